// Runs an op, whole or a part of one (ops/weight_rows.h, ops/conv_bands.h), on bytes: what tests compare to the bit.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "ops/conv_bands.h"

namespace gantry::test {

using Bytes = std::vector<std::byte>;

inline Bytes Random(const TensorType& type, uint32_t seed) {
  Bytes bytes(type.size_bytes());
  for (int64_t i = 0; i < type.element_count(); ++i) {
    const double value = std::sin(0.7 * static_cast<double>(i + 1) * (seed + 1) + 0.01 * static_cast<double>(i % 977));
    if (type.dtype == DataType::kF64) {
      std::memcpy(&bytes[i * 8], &value, 8);
    } else {
      const auto single = static_cast<float>(value);
      std::memcpy(&bytes[i * 4], &single, 4);
    }
  }
  return bytes;
}

inline double ValueAt(const Bytes& bytes, DataType dtype, int64_t i) {
  if (dtype == DataType::kF64) {
    double value;
    std::memcpy(&value, &bytes[i * 8], 8);
    return value;
  }
  float value;
  std::memcpy(&value, &bytes[i * 4], 4);
  return value;
}

// 64-byte aligned memory with a copy of `bytes`.
class Memory {
 public:
  explicit Memory(const Bytes& bytes) : size_(bytes.size()), data_(std::aligned_alloc(64, (bytes.size() + 127) / 64 * 64)) {
    std::memcpy(data_, bytes.data(), bytes.size());
  }
  Memory(const Memory&) = delete;
  Memory(Memory&& other) noexcept : size_(other.size_), data_(std::exchange(other.data_, nullptr)) {}
  ~Memory() { std::free(data_); }
  void* data() const { return data_; }
  Bytes Read() const {
    Bytes bytes(size_);
    std::memcpy(bytes.data(), data_, size_);
    return bytes;
  }

 private:
  size_t size_;
  void* data_;
};

// Runs an op; the first output. `over_first`: in the memory of the first input.
inline absl::StatusOr<Bytes> RunPartOp(const KernelLibrary& library, std::string_view name, const Attributes& attributes,
                                       const std::vector<TensorType>& types, const std::vector<Bytes>& inputs, bool over_first) {
  const OpDefinition& op = *FindOp(name);
  GANTRY_ASSIGN_OR_RETURN(const std::vector<TensorType> outputs, op.infer(types, attributes));
  const KernelRequest request{op, attributes, types, outputs, 2};
  std::unique_ptr<Kernel> kernel;
  if (IsByRows(op, attributes) || IsByBands(op, attributes)) {
    GANTRY_ASSIGN_OR_RETURN(kernel, MakePartsKernel(request, [&](const KernelRequest& part) { return library.Make(part); }));
  } else {
    GANTRY_ASSIGN_OR_RETURN(kernel, library.Make(request));
  }
  if (kernel == nullptr) return absl::UnimplementedError("no kernel");
  std::vector<Memory> memory;
  std::vector<const void*> pointers;
  for (const Bytes& input : inputs) {
    memory.emplace_back(input);
    pointers.push_back(memory.back().data());
  }
  const Memory result(Bytes(outputs[0].size_bytes(), std::byte{0x55}));
  const Memory scratch(Bytes(kernel->scratch_bytes() + 1, std::byte{0x7f}));
  void* const output[] = {over_first ? memory[0].data() : result.data()};
  GANTRY_RETURN_IF_ERROR(kernel->Run({pointers, output, scratch.data()}));
  return over_first ? memory[0].Read() : result.Read();
}

inline Attributes Without(const Attributes& attributes, std::string_view name) {
  Attributes rest;
  for (const auto& [key, value] : attributes.entries()) {
    if (key != name) rest.Set(key, value);
  }
  return rest;
}

}  // namespace gantry::test
