// Convolutions by bands of rows (the first spatial axis; frames of a clip), so that nobody needs all rows of large images at once.
//
// conv, conv_transpose and conv_weight_grad may carry the attribute {band}: the op is then computed `band` rows of its result (of g for
// conv_weight_grad) after the other, each band by a kernel of its own, with pads of its own, on the rows that it reads. A band of conv or
// conv_transpose makes its rows of the result; conv_weight_grad adds what one band gives after the other. What a band gives depends on
// nothing but the rows that it reads, so the ops below, which do some of the bands each, give the same bits as the whole op, whatever
// library the kernels come from. Only the planner emits them. Their first `parts` inputs are x (conv_transpose: y) in runs of rows, one
// behind the other: all that is read of its `extent` rows, from row `first` on. `row` and `count` are multiples of `band`, but for the
// last rows.
//   "conv_bands"(x rows, w [, bias]) {conv's, band, row, count, parts, first, extent}: `count` rows of the result from `row` on.
//   "conv_transpose_bands"(y rows, w [, bias]) {conv_transpose's, the same}: the same.
//   "conv_weight_grad_bands"(x rows, g rows [, sum]) {conv_weight_grad's, the same, g_first}: what those rows of g give, added to `sum`;
//     the first row of `g rows` is row `g_first` of g.
//   "put_rows"(x [, into]) {begin, extent}: `into` with the rows from `begin` on replaced by those of x; without it, `extent` rows of which
//     the others are zeros.
#pragma once

#include "ops/weight_rows.h"

namespace gantry {

inline constexpr int kRowAxis = 2;  // of [N, C, spatial...]

// True for the ops above, and for convolutions with {band}.
bool IsByBands(const OpDefinition& op, const Attributes& attributes);

// The kernel of an op for which IsByRows or IsByBands holds, put together from kernels of its chunks and their bands. Null where `make` gives
// null.
absl::StatusOr<std::unique_ptr<Kernel>> MakePartsKernel(const KernelRequest& request, const KernelFactory& make);

struct RowSpan {
  int64_t begin = 0, end = 0;
};
// Which rows of its first operand a convolution reads for these rows of its result (of g); `op` is one of the three.
RowSpan RowsRead(std::string_view op, std::span<const TensorType> inputs, std::span<const TensorType> outputs, const Attributes& attributes,
                 const RowSpan& rows);

}  // namespace gantry
