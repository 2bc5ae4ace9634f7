// What kernels of parts, and those that are put together from them, share.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "memory/cpu/parallel.h"
#include "ops/attributes.h"
#include "ops/tensor_type.h"

namespace gantry {

// The ops that come in parts.
enum class ConvKind : uint8_t { kConv, kTranspose, kWeightGrad };
inline constexpr std::array<std::string_view, 3> kConvs = {"conv", "conv_transpose", "conv_weight_grad"};
// Which of them `op` is, or is a part of; `parts` are the names of parts, in the same order.
inline ConvKind ConvKindOf(std::string_view op, const std::array<std::string_view, 3>& parts) {
  for (size_t kind = 0; kind < kConvs.size(); ++kind) {
    if (op == kConvs[kind] || op == parts[kind]) return static_cast<ConvKind>(kind);
  }
  return ConvKind::kConv;
}

inline TensorType WithDim(TensorType type, int axis, int64_t extent) {
  type.shape[axis] = extent;
  return type;
}

// What an update is about: with {begin} a piece of one tensor, which is the smallest of its operands; larger ones are whole.
struct UpdatePiece {
  // `groups`: runs of operands, at most 4; with {begin} of one tensor each.
  UpdatePiece(std::span<const TensorType> inputs, const Attributes& attributes, int groups) {
    if (!attributes.Has("begin")) return;
    const auto operands = inputs.first(static_cast<size_t>(groups));
    const auto Fewer = [](const TensorType& a, const TensorType& b) { return a.element_count() < b.element_count(); };
    group = static_cast<int>(std::min_element(operands.begin(), operands.end(), Fewer) - operands.begin());
    for (int i = 0; i < groups; ++i) begins[i] = operands[i].element_count() > operands[group].element_count() ? attributes.Int("begin") : 0;
  }
  int group = 0;                    // whose operands say how many elements it is about
  std::array<int64_t, 4> begins{};  // per group: where they begin in its operands
};

// Scratch of parts lies aligned behind each other.
inline size_t AlignedBytes(size_t bytes) { return (bytes + 63) / 64 * 64; }

template <typename T>
void AddTo(T* to, const T* from, int64_t count, int threads) {
  constexpr int64_t kElements = 1 << 15;  // of one task
  ParallelFor(threads, (count + kElements - 1) / kElements, [&](int64_t task) {
    const int64_t end = std::min(count, (task + 1) * kElements);
    for (int64_t i = task * kElements; i < end; ++i) to[i] += from[i];
  });
}

// The same for f32 or f64 in bytes.
inline void AddTo(DataType dtype, void* to, const void* from, int64_t count, int threads) {
  if (dtype == DataType::kF64) {
    AddTo(static_cast<double*>(to), static_cast<const double*>(from), count, threads);
  } else {
    AddTo(static_cast<float*>(to), static_cast<const float*>(from), count, threads);
  }
}

}  // namespace gantry
