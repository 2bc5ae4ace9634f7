// A described machine as the tree that `gantry topo` prints of a real one.
#pragma once

#include "comm/topology.h"
#include "memory/status.h"
#include "runtime/plan/machine.h"

namespace gantry {

inline constexpr int kMaxDescribedNodes = 1024;

// A job on `nodes` such machines: "job" over "node"s over "rank"s, with each rank's device memory and "tier"s (the slower of the ways out
// and in), and the "link"s of nodes and job. `nodes` 0: as many as the described ranks take. kInvalidArgument where `nodes` is below 0 or
// above kMaxDescribedNodes, or where there are several and no link connects them.
absl::StatusOr<TopologyNode> DescribedTopology(const Machine& machine, int nodes);

}  // namespace gantry
