#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "runtime/plan/machine.h"
#include "runtime/plan/memory_options.h"
#include "runtime/simulate/plan_ranks.h"

namespace gantry {
namespace {

// So often shares are moved, at most; without gain for so many times in a row, or with ranks this near to each other, no more.
constexpr int kMostTries = 8, kWithoutGain = 3;
constexpr double kEven = 1.02;
// A part that did not fit is made smaller by this, and no part again as large.
constexpr double kSmaller = 0.8;

template <typename T>
bool Differ(const std::vector<T>& of_ranks) {
  return std::any_of(of_ranks.begin(), of_ranks.end(), [&](const T& one) { return one != of_ranks[0]; });
}

// Shares in thousandths: what is printed is what was planned.
std::vector<double> Rounded(std::vector<double> shares) {
  double sum = 0.0;
  for (const double share : shares) sum += share;
  for (double& share : shares) share = std::max(1.0, std::round(1000 * share / sum)) / 1000;
  return shares;
}

// Weights of sum 1, none above its limit where the others have room for the rest.
std::vector<double> Within(std::vector<double> weights, const std::vector<double>& limits) {
  std::vector<bool> held(weights.size(), false);
  for (bool changed = true; changed;) {
    changed = false;
    double free = 1.0, sum = 0.0;
    for (size_t i = 0; i < weights.size(); ++i) held[i] ? free -= weights[i] : sum += weights[i];
    for (size_t i = 0; i < weights.size(); ++i) {
      if (held[i]) continue;
      weights[i] *= std::max(free, 1e-3) / sum;
    }
    for (size_t i = 0; i < weights.size(); ++i) {
      if (held[i] || weights[i] <= limits[i]) continue;
      weights[i] = limits[i];
      held[i] = changed = true;
    }
  }
  return weights;
}

// What the rank is busy with, or waits for alone.
double OwnSeconds(const SimulatedTimes& times) { return times.compute + times.copy_wait; }

}  // namespace

void SetOrder(Parallel& parallel, PlanOptions& options) {
  parallel.gradients_first = options.overlap && !HasBudget(options);
  options.reorder = !Differ(parallel.shares) && !Differ(options.rank_memory);
}

bool AreUnequal(const PlanOptions& options, ShareBy by) {
  const bool by_memory = by == ShareBy::kSpeedAndMemory && Differ(options.rank_memory);
  return by_memory || (options.machine != nullptr && !options.machine->rank_speeds.empty());
}

absl::StatusOr<JobPlan> PlanBalanced(const Program& program, const Parallel& given, int ranks, const PlanOptions& options, ShareBy by) {
  Parallel parallel = given;
  SetSpeeds(options, ranks, parallel);
  if (!parallel.shares.empty() || !TakesShares(parallel, ranks) || !AreUnequal(options, by)) return PlanRanks(program, parallel, ranks, options);
  const auto count = static_cast<size_t>(ranks);
  std::vector<double> weights(count, 1.0), limits(count, std::numeric_limits<double>::infinity());
  if (!parallel.speeds.empty()) weights = parallel.speeds;
  absl::StatusOr<JobPlan> best = absl::UnknownError("nothing was planned");
  const bool without_budgets = by == ShareBy::kSpeed && HasBudget(options);
  PlanOptions each = without_budgets ? WithoutBudgets(options) : options;
  each.advise = false;
  for (int tried = 0, without_gain = 0; tried < kMostTries && without_gain < kWithoutGain; ++tried) {
    weights = Within(std::move(weights), limits);
    parallel.shares = Rounded(weights);
    absl::StatusOr<JobPlan> job = PlanRanks(program, parallel, ranks, each);
    if (!job.ok()) {
      const auto rank = RankOf(job.status());
      if (!rank) return job.status();
      if (tried == 0) best = job.status();
      weights[static_cast<size_t>(*rank)] *= kSmaller;
      limits[static_cast<size_t>(*rank)] = weights[static_cast<size_t>(*rank)];
      continue;
    }
    double longest = 0.0, shortest = std::numeric_limits<double>::infinity();
    for (size_t rank = 0; rank < count; ++rank) {
      const double seconds = OwnSeconds(job->simulation.ranks[rank]);
      weights[rank] /= std::max(seconds, 1e-12);
      longest = std::max(longest, seconds);
      shortest = std::min(shortest, seconds);
    }
    const bool better = !best.ok() || job->simulation.seconds < best->simulation.seconds;
    without_gain = better ? 0 : without_gain + 1;
    if (better) best = std::move(job);
    if (longest <= kEven * shortest) break;
  }
  if (best.ok() && without_budgets) return PlanRanks(program, best->parallel, ranks, options);
  // Where nothing fits, shares by speed are what is told of, with what would help.
  if (!best.ok() && options.advise) {
    parallel.shares = parallel.speeds;
    return PlanRanks(program, parallel, ranks, options);
  }
  return best;
}

}  // namespace gantry
