// Ops over many images by parts of the batch, so that no op needs all images of a large value at once.
#pragma once

#include "runtime/graph/program.h"

namespace gantry {

// A batch is taken in at most so many parts.
inline constexpr int kMostBatchParts = 8;
constexpr bool IsBatchParts(int parts) { return parts >= 1 && parts <= kMostBatchParts && kMostBatchParts % parts == 0; }

// Ops that make each element of their results from those elements of their operands.
bool IsElementwise(std::string_view op);

// Gives ops that sum over a batch on the panel layout (weight gradients, batch norms and their gradients) the attribute {images}, where an
// operand is at least two of `chunk_bytes`: they then are a sequence over so many images, an eighth of the batch and at least 32, each sum
// added to those before (ops/cpu/panel_ops.cc, ops/cpu/batch_parts.cc). It depends on shapes only and changes the order of sums: it is
// part of every plan, with a budget and without, so that plans with other budgets give the same bits. `program` is lowered.
absl::StatusOr<Program> ChunkBatches(const Program& program, int64_t chunk_bytes);

// Runs ops whose image operands and results have at least `least_bytes` together in `parts` (2, 4 or 8; 1: nothing is done) parts of the
// batch, where they are independent over it (convolutions on panels, elementwise ops behind them) or sums with {images}. What they make
// exists in parts, each a value of its own; a whole value is put together where an op needs one. Ops behind one another run part by
// part, up to the next sum or convolution. Bits do not change. kInvalidArgument for another number of parts.
absl::StatusOr<Program> SplitBatch(const Program& program, int parts, int64_t least_bytes);

}  // namespace gantry
