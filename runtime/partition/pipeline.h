// Layers of each network on different ranks.
#pragma once

#include <string>
#include <vector>

#include "runtime/graph/program.h"

namespace gantry {

// An axis of the mesh whose ranks have stages of networks: layers next to each other, so cut that the stage that takes longest takes the
// least. The networks of `forward` begin on the first rank, all others on the last one, so that samples go from the last layer of one to
// the first of the other on one rank.
struct PipelineAxis {
  std::vector<std::string> forward;
  std::vector<int> ranks;  // of the job: at least two
};

// The program of the rank at `index` of the axis: the ops and states of its stages, and what these need of other ranks (homes.h). A layer's home
// holds its weights, with their moments, averages and statistics; its passes forward and backward, of every micro-batch and every penalty, run
// there. Ops are in the order in which the ranks would begin them by estimated times if each took the first of the program that is
// ready: while a rank waits for the gradient of one micro-batch, or one pass, it goes on with the next. Every rank calls it with the same program
// but for the ranks and places of exchanges along other axes; kInvalidArgument where the axis is none.
absl::StatusOr<Program> PartitionPipeline(const Program& program, const PipelineAxis& axis, int index);

}  // namespace gantry
