// Generators on one rank, discriminators on another.
#pragma once

#include <string>
#include <vector>

#include "runtime/graph/program.h"

namespace gantry {

// An axis of the mesh with two ranks: the first has the networks of `first`, the second all others.
struct RoleAxis {
  std::vector<std::string> first;  // labels of ops, networks of states; "ema.NAME" goes with NAME
  std::vector<int> ranks;          // of the job: two
};

// The program of the rank at `index` of the axis: the ops and states of its networks, and what these need of the other's, each value once, as soon
// as the other rank needs it. Samples go one way and the gradient with respect to them comes back as edges of the program like any other. Ops of
// no network are where most of what they read is, small ones that read inputs alone on both ranks. Scalar outputs are there on both,
// others where they are made. States are pieces (State::whole) that one rank has all of. Every rank calls it with the same program but for the ranks and
// places of exchanges along other axes; kInvalidArgument where the axis has not two ranks.
absl::StatusOr<Program> PartitionRoles(const Program& program, const RoleAxis& axis, int index);

}  // namespace gantry
