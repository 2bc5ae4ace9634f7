#include "tests/support/run_op.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>

namespace gantry::test {
namespace {

// Memory as kernels get it: 64-byte aligned, every byte 0xff (NaN in both float types, -1 in integers).
class Block {
 public:
  explicit Block(size_t bytes) : data_(::operator new(std::max<size_t>(bytes, 1), std::align_val_t(64))) {
    std::memset(data_, 0xff, bytes);
  }
  Block(Block&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  ~Block() { ::operator delete(data_, std::align_val_t(64)); }
  void* data() const { return data_; }

 private:
  void* data_;
};

template <typename T>
void Store(const std::vector<double>& values, void* to) {
  for (size_t i = 0; i < values.size(); ++i) static_cast<T*>(to)[i] = static_cast<T>(values[i]);
}
template <typename T>
void Load(const void* from, std::vector<double>& values) {
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(static_cast<const T*>(from)[i]);
}

void Store(const Tensor& tensor, void* to) {
  switch (tensor.type.dtype) {
    case DataType::kF32:
      return Store<float>(tensor.values, to);
    case DataType::kF64:
      return Store<double>(tensor.values, to);
    case DataType::kI32:
      return Store<int32_t>(tensor.values, to);
    case DataType::kI64:
      return Store<int64_t>(tensor.values, to);
    case DataType::kU8:
      return Store<uint8_t>(tensor.values, to);
  }
}
void Load(const void* from, Tensor& tensor) {
  switch (tensor.type.dtype) {
    case DataType::kF32:
      return Load<float>(from, tensor.values);
    case DataType::kF64:
      return Load<double>(from, tensor.values);
    case DataType::kI32:
      return Load<int32_t>(from, tensor.values);
    case DataType::kI64:
      return Load<int64_t>(from, tensor.values);
    case DataType::kU8:
      return Load<uint8_t>(from, tensor.values);
  }
}

std::vector<TensorType> Types(const std::vector<Tensor>& tensors) {
  std::vector<TensorType> types;
  for (const Tensor& tensor : tensors) types.push_back(tensor.type);
  return types;
}

}  // namespace

Tensor MakeTensor(const Shape& shape, std::vector<double> values, DataType dtype) {
  return {TensorType{dtype, shape}, std::move(values)};
}

Tensor RandomTensor(const Shape& shape, std::mt19937_64& random, DataType dtype) {
  std::vector<double> values(shape.element_count());
  for (double& value : values) {
    value = std::uniform_real_distribution<double>(-1.0, 1.0)(random);
    if (dtype == DataType::kF32) value = static_cast<float>(value);
  }
  return MakeTensor(shape, std::move(values), dtype);
}

Tensor Cast(const Tensor& tensor, DataType dtype) {
  Tensor result = tensor;
  result.type.dtype = dtype;
  if (dtype == DataType::kF32) {
    for (double& value : result.values) value = static_cast<float>(value);
  }
  return result;
}

absl::StatusOr<std::vector<TensorType>> InferOp(std::string_view op, std::span<const TensorType> inputs,
                                                const Attributes& attributes) {
  const OpDefinition* definition = FindOp(op);
  if (definition == nullptr) return absl::NotFoundError(absl::StrFormat("no op '%s'", op));
  const auto count = static_cast<int>(inputs.size());
  if (count < definition->min_inputs || (definition->max_inputs >= 0 && count > definition->max_inputs)) {
    return absl::InvalidArgumentError(absl::StrFormat("%s takes another number of inputs than %d", op, count));
  }
  return definition->infer(inputs, attributes);
}

absl::StatusOr<std::vector<Tensor>> RunKernel(Kernel& kernel, const std::vector<Tensor>& inputs,
                                              std::span<const TensorType> outputs) {
  std::vector<Block> blocks;
  std::vector<const void*> input_data;
  std::vector<void*> output_data;
  for (const Tensor& input : inputs) {
    blocks.emplace_back(input.type.size_bytes());
    Store(input, blocks.back().data());
    input_data.push_back(blocks.back().data());
  }
  for (const TensorType& output : outputs) {
    blocks.emplace_back(output.size_bytes());
    output_data.push_back(blocks.back().data());
  }
  const Block scratch(kernel.scratch_bytes());
  GANTRY_RETURN_IF_ERROR(kernel.Run({.inputs = input_data, .outputs = output_data, .scratch = scratch.data()}));
  std::vector<Tensor> results;
  for (size_t i = 0; i < outputs.size(); ++i) {
    results.push_back({outputs[i], std::vector<double>(outputs[i].element_count())});
    Load(output_data[i], results.back());
  }
  return results;
}

absl::StatusOr<std::vector<Tensor>> RunOp(std::string_view op, const std::vector<Tensor>& inputs,
                                          const Attributes& attributes, const RunOptions& options) {
  const std::vector<TensorType> types = Types(inputs);
  GANTRY_ASSIGN_OR_RETURN(const std::vector<TensorType> outputs, InferOp(op, types, attributes));
  const KernelLibrary& library = options.library == nullptr ? ReferenceKernels() : *options.library;
  GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<Kernel> kernel, library.Make({.op = *FindOp(op),
                                                                              .attributes = attributes,
                                                                              .inputs = types,
                                                                              .outputs = outputs,
                                                                              .thread_count = options.thread_count}));
  if (kernel == nullptr)
    return absl::UnimplementedError(absl::StrFormat("library %s has no kernel for %s", library.name(), op));
  return RunKernel(*kernel, inputs, outputs);
}

double Dot(const Tensor& a, const Tensor& b) {
  if (a.values.size() != b.values.size()) return std::numeric_limits<double>::quiet_NaN();
  double sum = 0;
  for (size_t i = 0; i < a.values.size(); ++i) sum += a.values[i] * b.values[i];
  return sum;
}

double RelativeDifference(const Tensor& a, const Tensor& b) {
  if (a.type.shape != b.type.shape || a.values.size() != b.values.size())
    return std::numeric_limits<double>::infinity();
  double difference = 0, size = 1;
  for (size_t i = 0; i < a.values.size(); ++i) {
    if (std::isnan(a.values[i]) || std::isnan(b.values[i])) return std::numeric_limits<double>::infinity();
    difference = std::max(difference, std::abs(a.values[i] - b.values[i]));
    size = std::max(size, std::abs(b.values[i]));
  }
  return difference / size;
}

}  // namespace gantry::test
