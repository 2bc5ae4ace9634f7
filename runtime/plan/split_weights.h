// Large weights by rows, so that no op needs one of them whole.
#pragma once

#include "runtime/graph/program.h"

namespace gantry {

// Gives convolutions whose weights are at least two chunks large the attribute {chunk} (ops/weight_rows.h), for chunks of about
// `chunk_bytes` of weights. It depends on shapes only and changes the order of some sums: it is part of every plan, with a budget and
// without, so that plans with other budgets give the same bits.
absl::StatusOr<Program> ChunkWeights(const Program& program, int64_t chunk_bytes);

// Keeps weights in pieces of about `piece_bytes`, whole chunks each, along with their gradients, moments and averages: wherever every op
// that reads or makes them is a convolution with {chunk}, an update or elementwise. Bits do not change. Wants updates of one tensor
// each (FuseOptions::buckets = false).
absl::StatusOr<Program> SplitWeights(const Program& program, int64_t piece_bytes);

}  // namespace gantry
