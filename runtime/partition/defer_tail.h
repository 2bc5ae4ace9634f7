// The last exchanges of a step beside the begin of the next one.
#pragma once

#include "runtime/graph/lanes.h"

namespace gantry {

// What of a step can wait for the next one, since nothing in the step depends on it: the exchanges of gradients of the network that is updated
// last, from the first large one on, its updates and averages, and what only they are for. This tail moves to the begin of the program, under the condition kTailFlag, and
// reads what it needs of the step before from states (names "tail.<n>", first 0) that the step fills. So it runs beside whatever of the next
// step does not need the new weights, and every weight is as new as before when it is read. Between steps the states of that network
// are those of the step before until the tail has run by itself (Executor::RunTail).
//
// The program as it is where there is no such tail: nothing is exchanged for the last update, or what it gives is used in the same step. Op
// numbers of exchanges ({sequence}) are made anew, the same on all ranks. Costs memory for what the tail reads.
absl::StatusOr<Program> DeferTail(const Program& program);

}  // namespace gantry
