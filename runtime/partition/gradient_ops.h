// Gradients of parameters, on their way from a backward pass to the updates.
#pragma once

#include <vector>

#include "runtime/graph/program.h"

namespace gantry {

// Per op: nothing needs its results but updates and norms of gradients, directly or through other such ops.
std::vector<bool> NeededByUpdatesOnly(const Program& program);

}  // namespace gantry
