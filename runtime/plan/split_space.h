// Convolutions over large images in plain layout by parts of their rows, so that no op needs all rows of such an image at once.
#pragma once

#include "runtime/graph/program.h"

namespace gantry {

// Gives convolutions in plain layout over large images, of which each takes at least two bands of about `band_bytes`, operand and result
// together, the attribute {band} (ops/conv_bands.h): a power of two rows, about an eighth of all or fewer. It depends on shapes only, and
// kernels for other shapes may add in another order: it is part of every plan, with a budget and without, so that plans with other budgets
// give the same bits.
absl::StatusOr<Program> ChunkImages(const Program& program, int64_t band_bytes);

// Runs convolutions with {band}, of at least `least_bytes` of images, in `parts` (a number of parts as SplitBatch takes; 1: nothing is
// done) parts of their rows, and elementwise ops behind them. What they make exists in parts, each a value of its own; a convolution reads
// the parts that have rows for it, and a whole value is put together where another op needs one. Bits do not change.
absl::StatusOr<Program> SplitSpace(const Program& program, int parts, int64_t least_bytes);

}  // namespace gantry
