// What kernels that are put together from kernels of parts share (weight_rows.cc, conv_bands.cc).
#pragma once

#include <algorithm>

#include "memory/cpu/parallel.h"
#include "ops/tensor_type.h"

namespace gantry {

inline TensorType WithDim(TensorType type, int axis, int64_t extent) {
  type.shape[axis] = extent;
  return type;
}

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
