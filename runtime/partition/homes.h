// Ops of one program on different ranks: no value is split, every op has a home, and what another rank reads is sent there.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "runtime/graph/program.h"

namespace gantry {

inline constexpr int kEverywhere = -1;  // a home: every rank of the axis
inline constexpr int kMostHomes = 64;
using RankSet = uint64_t;  // ranks of the axis: bit i for the one at index i

struct Homes {
  // Where a state is held and updated.
  std::function<int(const State& state)> of_state;
  // Where an op runs; `where` has for each value that was made before it the ranks that have it.
  std::function<int(const Op& op, std::span<const RankSet> where)> of_op;
  // The network that an op is labelled with from here on; null: as it is.
  std::function<std::string(const Op& op)> network = nullptr;
};

// The program of the rank at `index` of the axis `ranks` (of the job): the ops and states at home there, and what these need of other ranks, each value once
// for each rank that reads it, as soon as that rank needs it. Values go between two ranks; those for everywhere among all. Scalar outputs
// are there on all ranks, others where they are made. States are pieces (State::whole) that one rank has all of. Every rank calls it with the same program but for
// the ranks and places of exchanges along other axes, and the same homes. kInvalidArgument where the axis has fewer than 2 or more than kMostHomes ranks.
absl::StatusOr<Program> PartitionByHomes(const Program& program, std::span<const int> ranks, int index, const Homes& homes);

}  // namespace gantry
