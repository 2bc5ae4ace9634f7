// The checker over the plans of all ranks: what they do together fits together.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/plan/plan.h"

namespace gantry {

// What one rank does with others in a step.
struct RankTrace {
  struct Exchange {
    std::string op, purpose;
    std::vector<int> ranks;  // of the job
    int index = 0;           // this rank's place among them
    int64_t sequence = 0;
    PlanLane lane = PlanLane::kCompute;  // by its purpose: which communicator of these ranks
    bool beside = false;                 // it runs on that lane; false: it is waited for where it begins
    std::string condition;               // an input's name; empty: none
    std::string sizes;                   // what all its ranks must have alike: types, counts, who holds and who wants which places
  };
  std::vector<Exchange> exchanges;  // in the order in which they begin
  // In the order of the schedule: i: exchange i begins; ~i: what follows waits for exchange i.
  std::vector<int> events;
};

RankTrace TraceOf(const Plan& plan);

// Proves of all ranks of a job, which do not know of each other when they plan:
//   - each begins its exchanges in the one total order, that of `sequence`, and each communicator (a list of ranks and a lane) is used
//     beside compute or not, never both;
//   - the ranks of a communicator agree on its exchanges one by one: op, purpose, sequence, condition, sizes, and each is in its place;
//   - with every lane carrying out its exchanges one after another, and none before all its ranks have come to it, everybody gets to the end of
//     the step. Since all follow one order, leaving out those of any condition changes nothing about that.
// kInternal names the first rank and exchange of which it does not hold.
absl::Status VerifyRanks(std::span<const RankTrace> ranks);

// A trace as text, to send to others, and back. kDataLoss where it is damaged.
std::string ToText(const RankTrace& trace);
absl::StatusOr<RankTrace> TraceFromText(std::string_view text);

}  // namespace gantry
