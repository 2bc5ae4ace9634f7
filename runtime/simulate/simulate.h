// The plans of all ranks of a job on a virtual clock. Plain schedules: it knows nothing of programs.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "memory/status.h"

namespace gantry {

// kExchange: exchanges that are waited for where they stand.
enum class SimulatedLane : uint8_t { kCompute, kCopyOut, kCopyIn, kExchange, kGradients, kGathers, kActivations };
inline constexpr int kSimulatedLanes = 7;
std::string_view Name(SimulatedLane lane);

// A step of a schedule. Ops of a lane follow one another; lanes of a rank run beside each other.
struct SimulatedOp {
  double seconds =
      0.0;  // on its lane; of an exchange: once all ranks of its group have come, and the slowest one's counts
  double compute_seconds = 0.0;  // of a copy, or an exchange beside compute: what compute loses to it, where it begins
  SimulatedLane lane = SimulatedLane::kCompute;
  int done_by =
      -1;  // beside compute: step `done_by` begins only once it is done; from the schedule's length on, that step of
           // the next round, or for the length itself the end of this one. -1: done before the next step begins
  int group = -1;  // an exchange: index into SimulatedRank::groups
  int tier = 0;    // a copy: each tier has lanes of its own
};
using SimulatedSchedule = std::vector<SimulatedOp>;

struct SimulatedRank {
  const SimulatedSchedule* schedule = nullptr;
  std::vector<int> groups;  // numbers of groups in the job: ranks with the same number exchange with each other
  double speed = 1.0;       // compute takes 1 / speed of its seconds
};

// Seconds of one round. For each rank they add up to the round but for the wait until the last rank is done.
struct SimulatedTimes {
  double compute = 0.0;                           // computing
  double exchange_wait = 0.0;                     // compute stands still until an exchange is done, moving
  double peer_wait = 0.0;                         // likewise, until the last rank of a group has come
  double copy_wait = 0.0;                         // likewise, for copies
  double end = 0.0;                               // of the rank's own work, counted from the begin of the round
  std::array<double, kSimulatedLanes> busy = {};  // of each lane; tiers together
};

struct Simulation {
  double seconds = 0.0;  // of a round once rounds follow one another
  std::vector<SimulatedTimes> ranks;
  // Of `seconds`, by the lane that everything waited for: the longest chain of what waits for what, traced through all
  // ranks.
  std::array<double, kSimulatedLanes> critical = {};
  SimulatedLane limit() const;
};

// Rounds follow one another, as steps of training do: the last of `rounds` is reported, without what only the first one
// waits for. The k-th exchange of a group on a lane begins when all its ranks have come to theirs, so order is that of
// schedules. kFailedPrecondition names ranks that wait for each other for ever.
absl::StatusOr<Simulation> Simulate(const std::vector<SimulatedRank>& ranks, int rounds = 2);

}  // namespace gantry
