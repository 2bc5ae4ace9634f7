// The order of a step's ops, so that little is alive at one time.
#pragma once

#include "runtime/graph/program.h"

namespace gantry {

// The most bytes of inputs and computed values alive at one time in the program's order, without scratch. Views take none, updates of
// states neither, and an op that may run in place does where it can.
int64_t LiveBytes(const Program& program);

// The same program in the order, among a few, that has the fewest live bytes; in its own where none is better by a hundredth. Candidates
// run what the updates and outputs need depth first, as the memory scheduler of XLA does (its DFS and post order), so that one pass of a
// network goes back before the next goes forward, and do at once whatever frees as much as it makes. Updates of states that stood
// next to each other still do, so that they can be fused. Exchanges between ranks keep their order. Bits do not change.
absl::StatusOr<Program> OrderForMemory(const Program& program);

}  // namespace gantry
