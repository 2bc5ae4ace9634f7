// The order of ops where memory is short.
#pragma once

#include "runtime/graph/program.h"

namespace gantry {

// Moves what ends large values and makes only small ones, updates of states and sums over gradients, to the earliest place where
// all it reads is there and nobody reads the old version any more. The rest keeps its order; bits do not change.
absl::StatusOr<Program> UpdateEarly(const Program& program);

}  // namespace gantry
