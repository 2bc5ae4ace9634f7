// The plans of all ranks of a job in one process, and what a step of the job takes by them.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/partition/exchange_kernels.h"
#include "runtime/partition/parallel.h"
#include "runtime/plan/plan.h"
#include "runtime/simulate/simulate.h"

namespace gantry {

// Ranks whose programs are equal but for their place share a plan.
struct RankClass {
  Plan plan;
  std::vector<int> ranks;       // ascending; the plan is that of the first
  int64_t exchanged_bytes = 0;  // of a rank in a step, by links
};

struct JobPlan {
  Parallel parallel;
  int rank_count = 1, node_count = 1;
  std::shared_ptr<ExchangeKernels> exchanges;  // that the plans' kernels are of; not connected
  std::deque<RankClass> classes;
  std::vector<std::string> gathered;  // ops that no rule covers, computed whole by every rank
  Simulation simulation;
  std::vector<std::string> assumptions;  // a line each

  int64_t peak_bytes() const;  // of the rank that takes most
  const RankClass& ClassOf(int rank) const;
};

// Up to so many ranks each rank's program is made and compared; of more, ranks are taken as equal to one of these: the
// first, the last, one in between, of each axis.
inline constexpr int kExactRanks = 16;

// Partitions `program` for the ranks that differ, plans each, and simulates a step on the machine of `options`.
// kResourceExhausted where a rank's plan does not fit names the rank (RankOf). `options.exchanges` is not needed.
absl::StatusOr<JobPlan> PlanRanks(const Program& program, const Parallel& parallel, int ranks,
                                  const PlanOptions& options);

// A table to read, and one line of JSON (docs/reference/parallel.md).
std::string Describe(const JobPlan& job);
std::string ToJson(const JobPlan& job);

// The rank whose plan an error of PlanRanks is about; nothing where it is about all.
std::optional<int> RankOf(const absl::Status& status);

// Speeds of ranks as the machine of `options` describes them.
void SetSpeeds(const PlanOptions& options, int ranks, Parallel& parallel);
// The order of ops of a job: gradients come first, and ops move, where exchanges run beside compute and memory is not short. Each rank moves its
// ops by its own costs and bytes, and ranks that do so in different ways wait for each other at every exchange between. Ranks with shares or budgets
// of their own therefore keep the program's order, which all have alike.
void SetOrder(Parallel& parallel, PlanOptions& options);
// What shares of the work follow from. Results depend on shares, by the order of sums: with kSpeed they do not depend on budgets.
enum class ShareBy : uint8_t { kSpeed, kSpeedAndMemory };
// Whether ranks differ in that.
bool AreUnequal(const PlanOptions& options, ShareBy by);

// PlanRanks. Where ranks are unequal, no shares of the work are given and one axis takes them, with the shares of the least predicted seconds that
// were found (JobPlan::parallel has them): first by speed; then what each rank's part takes, compute and waits for copies, says how much of it
// should be elsewhere, and a part that does not fit becomes smaller. Plans all ranks up to 9 times.
absl::StatusOr<JobPlan> PlanBalanced(const Program& program, const Parallel& parallel, int ranks, const PlanOptions& options, ShareBy by);

// How a step may be split, what each costs, and which is taken.
struct SplitCandidate {
  Parallel parallel;
  bool fits = false;
  double seconds = 0.0;
  int64_t peak_bytes = 0;
  std::string why;  // it was not taken; empty for the one that was
};
struct SplitSearch {
  std::vector<SplitCandidate> candidates;
  int taken = -1;  // -1: none fits
};
// Every mesh of batch times space over `ranks`, with states shared out or not, each as PlanBalanced plans it. The least predicted seconds that fit;
// among those within 0.5 % of it the one with the fewest bytes, then the first. The same input gives the same answer.
absl::StatusOr<SplitSearch> SearchSplits(const Program& program, const Parallel& base, int ranks,
                                         const PlanOptions& options);
std::string Describe(const SplitSearch& search);

}  // namespace gantry
