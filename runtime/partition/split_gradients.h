// Large gradients in pieces.
#pragma once

#include "runtime/graph/program.h"

namespace gantry {

// The gradient of a weight of at least two pieces of about `piece_bytes` is made, summed over ranks and used for its update piece by piece (rows of the
// weight, chunks as of ops/weight_rows.h), so that the exchange of one piece runs beside the compute of the next, and its update beside the
// exchange after it (Jayarajan et al. 2019, Priority-based Parameter Propagation, section 4.1, slices gradients for that). A gradient that no convolution
// makes, or that something other than updates and norms wants, stays whole. Bits do not change. Exchanges are in their order and numbered
// (OrderExchanges) and stay so; what is taken in pieces depends on shapes that all ranks have alike.
absl::StatusOr<Program> SplitGradients(const Program& program, int64_t piece_bytes);

}  // namespace gantry
