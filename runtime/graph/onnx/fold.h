// Arithmetic on constants at import. Results obey kMaxFoldedElements; shapes are checked, so that no graph can make it
// read or allocate out of bounds. `op` is the ONNX operator's name.
#pragma once

#include <string_view>
#include <vector>

#include "runtime/graph/onnx/host_tensor.h"

namespace gantry::onnx {

// Add, Sub, Mul, Div, Mod, Pow, Min, Max, And, Or, Xor, Equal, Greater, GreaterOrEqual, Less, LessOrEqual, broadcast.
// Integers stay integers (wrapping, division cut towards zero) where both are.
absl::StatusOr<HostTensor> FoldBinary(std::string_view op, const HostTensor& a, const HostTensor& b);
// Neg, Abs, Sign, Sqrt, Exp, Log, Reciprocal, Floor, Ceil, Round, Erf, Sin, Cos, Tanh, Sigmoid, Relu, Not.
absl::StatusOr<HostTensor> FoldUnary(std::string_view op, const HostTensor& x);
bool IsFoldableUnary(std::string_view op);
absl::StatusOr<HostTensor> FoldCast(const HostTensor& x, ElementKind kind);
absl::StatusOr<HostTensor> FoldWhere(const HostTensor& condition, const HostTensor& x, const HostTensor& y);
// ReduceSum, ReduceMean, ReduceMax, ReduceMin, ReduceProd over the sorted axes.
absl::StatusOr<HostTensor> FoldReduce(std::string_view op, const HostTensor& x, const std::vector<int>& axes,
                                      bool keep_dims);
absl::StatusOr<HostTensor> FoldRange(const HostTensor& start, const HostTensor& limit, const HostTensor& delta);
absl::StatusOr<HostTensor> FoldConcat(const std::vector<const HostTensor*>& parts, int axis);

// The same elements under another shape of the same element count.
HostTensor FoldReshape(const HostTensor& x, Shape shape);
// Element [i0, i1, ...] of the result is element offset + i0 * strides[0] + ... of x; all of them must exist.
absl::StatusOr<HostTensor> FoldStrided(const HostTensor& x, Shape shape, int64_t offset,
                                       const std::vector<int64_t>& strides);
// x broadcast to `shape`, which must be its broadcast with something.
absl::StatusOr<HostTensor> FoldBroadcast(const HostTensor& x, const Shape& shape);

}  // namespace gantry::onnx
