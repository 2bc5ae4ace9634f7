// Layers of each network on different ranks.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "runtime/graph/program.h"

namespace gantry {

// A program whose ops say by their network's label ("generator|2") in which stage they run.
struct StagedProgram {
  Program program;
  std::map<std::string, int, std::less<>> stage_of_state;
};

// Gives every op and state of the whole program a stage: layers of a network that are next to each other, so cut that the stage that takes longest
// takes the least. The networks of `forward` begin in the first stage, all others in the last one, so that samples go from the last layer of one to the first of
// the other inside a stage. A layer's stage has its weights, with their moments, averages and statistics; its passes forward and backward, of
// every micro-batch and every penalty, run there. Ops are in the order in which stages would begin them, by estimated times, if each took the first of the
// program that is ready: while a stage waits for the gradient of one micro-batch, or one pass, it goes on with the next. kInvalidArgument where
// there are fewer than 2 stages or more than kMostHomes (homes.h).
absl::StatusOr<StagedProgram> AssignStages(const Program& program, std::span<const std::string> forward, int stages);

// The program of the rank at `stage`: its ops and states, and what these need of other stages (PartitionByHomes). `program` is that of `staged`, maybe partitioned along
// other axes; `ranks` (of the job) have one stage each. Networks have their own labels again.
absl::StatusOr<Program> PartitionPipeline(const Program& program, const StagedProgram& staged, std::span<const int> ranks, int stage);

}  // namespace gantry
