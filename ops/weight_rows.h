// Convolutions by rows of their weights, so that nobody needs all rows of a large weight at once.
//
// conv, conv_transpose and conv_weight_grad may carry the attribute {chunk}: the op is then computed `chunk` rows (first axis) of its
// weights [O, C, kernel] after the other, each chunk by a kernel of its own. A chunk of conv makes its channels of the result, one of
// conv_weight_grad its rows; conv_transpose begins with zeros, adds the part of one chunk after the other, and ends with bias and
// activation. What a chunk gives depends on nothing but the chunk, so the ops below, which do some of the chunks each, give the same bits
// as the whole op, whatever library the kernels come from. Only the planner emits them; `begin` and the number of rows are multiples of
// `chunk`, but for the last rows.
//   "conv_rows"(into, x, w rows [, bias rows]) {conv's, chunk, begin}: `into` with the channels from `begin` on replaced.
//   "conv_transpose_rows"(into, y, w rows [, bias]) {conv_transpose's, chunk, begin}: `into` plus what channels of y from `begin` on
//     give; then bias and `slope`, which belong to the last piece only.
//   "conv_weight_grad_rows"(x, g) {conv_weight_grad's, chunk, begin, rows}: those rows of the gradient.
// One group only.
#pragma once

#include <functional>

#include "ops/kernel.h"

namespace gantry {

// Of weights that are at least two chunks large, what a chunk has.
inline constexpr int64_t kWeightChunkBytes = 2 << 20;
// Rows of a chunk of about `bytes` of a weight of this type.
int64_t WeightChunkRows(const TensorType& weight, int64_t bytes);

// True for the ops above, and for convolutions with {chunk}.
bool IsByRows(const OpDefinition& op, const Attributes& attributes);

// Makes the kernel of a plain convolution.
using KernelFactory = std::function<absl::StatusOr<std::unique_ptr<Kernel>>(const KernelRequest&)>;
// The kernel of an op for which IsByRows holds, put together from kernels of its chunks. Null where `make` gives null.
absl::StatusOr<std::unique_ptr<Kernel>> MakeRowsKernel(const KernelRequest& request, const KernelFactory& make);

}  // namespace gantry
