// Reverse-mode differentiation as a rewrite of the program, closed under itself.
#pragma once

#include <span>
#include <vector>

#include "runtime/graph/program.h"

namespace gantry {

// Appends to `program` the gradient of sum_i <seed_i, output_i> with respect to each value of `with_respect_to`, and returns
// them, shaped like those values. A seed of kNoValue is all ones. kNoValue comes back where the outputs do not depend on a value.
// The gradient ops carry the program's current phase and the network of the op they differentiate. Gradients of gradients come
// from calling it again. Only what the asked gradients need is emitted.
// Updates of states (optimizers, running statistics) are constants. kInvalidArgument names the op where a gradient would have to pass through an op that has none.
absl::StatusOr<std::vector<ValueId>> Differentiate(Program& program, std::span<const ValueId> outputs,
                                                   std::span<const ValueId> seeds, std::span<const ValueId> with_respect_to);

}  // namespace gantry
