#include "memory/residency/residency_solver.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "memory/status.h"

namespace gantry {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// A copy that hides behind compute costs this share of its time: the lane might be needed by another.
constexpr double kHiddenCopy = 0.02;

struct Gap {
  int item;
  int index;
  int from, to;  // ops around it; -1 and ops.size() at the ends of the step
};

class Solver {
 public:
  Solver(const ResidencyProblem& problem, const ResidencyOptions& options)
      : problem_(problem), options_(options), scheduler_(problem), ops_(static_cast<int>(problem.ops.size())) {
    start_.assign(ops_ + 1, 0.0);
    for (int op = 0; op < ops_; ++op) start_[op + 1] = start_[op] + problem.ops[op].seconds;
    FindGaps();
  }

  ResidencySolution Run() {
    FindLargestOp();
    Consider(KeepAll(problem_));
    const std::vector<int64_t> kept_bytes = scheduler_.op_bytes();
    solution_.bound_seconds = Bound(kept_bytes);
    // Nothing to win where everything may stay.
    if (!solution_.fits) {
      if (Combinations() <= std::pow(3.0, options_.exhaustive_gaps)) {
        Exhaust();
      } else {
        Greedy();
        Improve();
      }
    }
    solution_.optimal = solution_.fits && (exhausted_ || solution_.schedule.seconds <= solution_.bound_seconds * (1 + 1e-12));
    if (exhausted_ && solution_.fits) solution_.bound_seconds = solution_.schedule.seconds;
    solution_.trials = trials_;
    return std::move(solution_);
  }

 private:
  // ---- What may be chosen

  void FindGaps() {
    for (int i = 0; i < static_cast<int>(problem_.items.size()); ++i) {
      const ResidencyItem& item = problem_.items[i];
      if (item.bytes == 0) continue;
      const int uses = static_cast<int>(item.uses.size());
      for (int gap = 0; gap <= uses; ++gap) {
        const int from = gap == 0 ? item.made_by : item.uses[gap - 1];
        const int to = gap == uses ? ops_ : item.uses[gap];
        if (item.wraps && gap == uses && uses > 0) continue;  // the same as gap 0
        if (gap == uses && !item.kept) continue;              // nothing follows
        if (!item.wraps && to - from <= 1) continue;          // nothing between
        if (Choices(i, gap).size() > 1) gaps_.push_back({i, gap, from, to});
      }
    }
  }

  // What a gap may be, kKeep first.
  std::vector<Residence> Choices(int i, int gap) const {
    const ResidencyItem& item = problem_.items[i];
    std::vector<Residence> choices = {Residence::kKeep};
    const bool last = gap == static_cast<int>(item.uses.size());
    if (options_.recompute && item.made_by >= 0 && !last && item.changes.empty() && problem_.ops[item.made_by].repeatable) {
      choices.push_back(Residence::kRecompute);
    }
    if (options_.tiers) {
      for (int tier = 0; tier < static_cast<int>(problem_.tiers.size()); ++tier) {
        if ((item.tiers >> tier & 1) != 0 && item.bytes <= problem_.tiers[tier].budget_bytes) choices.push_back(InTier(tier));
      }
    }
    return choices;
  }

  double Combinations() const {
    double count = 1;
    for (const Gap& gap : gaps_) count *= static_cast<double>(Choices(gap.item, gap.index).size());
    return count;
  }

  // States that leave between uses must leave between steps.
  void Set(ResidencyChoice& choice, const Gap& gap, Residence residence) const {
    std::vector<Residence>& gaps = choice[gap.item];
    gaps[gap.index] = residence;
    if (!problem_.items[gap.item].wraps) return;
    if (residence == Residence::kKeep) {
      if (gap.index == 0) std::fill(gaps.begin(), gaps.end(), Residence::kKeep);
      return;
    }
    gaps.front() = gaps.back() = residence;
    for (Residence& other : gaps) {
      if (other != Residence::kKeep) other = residence;
    }
  }

  // ---- Judging

  int64_t Excess(const ResidencySchedule& schedule) const {
    int64_t excess = std::max<int64_t>(0, schedule.peak_bytes - problem_.budget_bytes);
    for (size_t tier = 0; tier < problem_.tiers.size(); ++tier) {
      excess += std::max<int64_t>(0, schedule.tier_peak_bytes[tier] - problem_.tiers[tier].budget_bytes);
    }
    return excess;
  }

  // Runs `choice` and keeps it where it is better than the best so far.
  bool Consider(const ResidencyChoice& choice) {
    ++trials_;
    ResidencySchedule schedule = scheduler_.Run(choice);
    if (!schedule.valid) return false;
    if (!Better(schedule)) return false;
    Keep(choice, std::move(schedule));
    return true;
  }

  void FindLargestOp() {
    for (int op = 0; op < ops_; ++op) {
      int64_t bytes = problem_.ops[op].scratch_bytes;
      for (int item : problem_.ops[op].reads) {
        const int heir = problem_.items[item].taken_over_by;
        if (heir >= 0 && problem_.items[heir].made_by == op && problem_.items[item].uses.back() == op) continue;
        bytes += problem_.items[item].bytes;
      }
      for (int item : problem_.ops[op].makes) bytes += problem_.items[item].bytes;
      if (bytes <= solution_.largest_op_bytes) continue;
      solution_.largest_op_bytes = bytes;
      solution_.largest_op = op;
    }
  }

  // At every op the bytes above the budget must leave: each by recompute, which takes compute time, or through a tier's lane
  // in, which takes lane time. The cheaper share of the two, as if items could be divided, is less than any schedule takes.
  double Bound(const std::vector<int64_t>& kept_bytes) const {
    const double compute = start_[ops_];
    double bound = compute;
    double in_rate = 0;
    if (options_.tiers) {
      for (const ResidencyTier& tier : problem_.tiers) in_rate += tier.in_bytes_per_second;
    }
    std::vector<int> order;
    for (int op = 0; op < ops_; ++op) {
      if (kept_bytes[op] > problem_.budget_bytes) order.push_back(op);
    }
    std::sort(order.begin(), order.end(), [&](int a, int b) { return kept_bytes[a] > kept_bytes[b]; });
    if (order.size() > 8) order.resize(8);
    for (int op : order) {
      double over = static_cast<double>(kept_bytes[op] - problem_.budget_bytes);
      std::vector<std::pair<double, double>> offers;  // seconds of recompute per byte, bytes
      for (const Gap& gap : gaps_) {
        if (!Covers(gap, op)) continue;
        const double bytes = static_cast<double>(problem_.items[gap.item].bytes);
        bool again = false;
        for (Residence residence : Choices(gap.item, gap.index)) again = again || residence == Residence::kRecompute;
        // Items of one op come back together.
        double made_bytes = bytes;
        if (again) {
          made_bytes = 0;
          for (int made : problem_.ops[problem_.items[gap.item].made_by].makes) made_bytes += static_cast<double>(problem_.items[made].bytes);
        }
        offers.push_back({again ? problem_.ops[problem_.items[gap.item].made_by].seconds / made_bytes : kInfinity, bytes});
      }
      std::sort(offers.begin(), offers.end());
      // Recompute the cheapest first for as long as the lane would take longer than compute.
      double again_seconds = 0;
      for (const auto& [cost, bytes] : offers) {
        if (over <= 0 || cost == kInfinity) break;
        const double lane = in_rate > 0 ? over / in_rate : kInfinity;
        if (lane <= compute + again_seconds) break;
        double share = std::min(bytes, over);
        if (in_rate > 0) share = std::min(share, (lane - compute - again_seconds) / (cost + 1 / in_rate));
        again_seconds += share * cost;
        over -= share;
        if (share < bytes) break;
      }
      const double lane = over > 0 && in_rate > 0 ? over / in_rate : 0.0;
      bound = std::max(bound, std::max(compute + again_seconds, lane));
    }
    return bound;
  }

  // ---- Complete search

  void Exhaust() {
    ResidencyChoice choice = KeepAll(problem_);
    Enumerate(0, choice);
    exhausted_ = true;
  }

  void Enumerate(size_t index, ResidencyChoice& choice) {
    if (index == gaps_.size()) {
      Consider(choice);
      return;
    }
    const Gap& gap = gaps_[index];
    const std::vector<Residence> before = choice[gap.item];
    for (Residence residence : Choices(gap.item, gap.index)) {
      choice[gap.item] = before;
      // Of a state: inner gaps come after gap 0 and cannot leave alone.
      if (problem_.items[gap.item].wraps && gap.index > 0 && residence != Residence::kKeep && residence != before.front()) continue;
      Set(choice, gap, residence);
      Enumerate(index + 1, choice);
    }
    choice[gap.item] = before;
  }

  // ---- Greedy: at the worst op, let leave what is cheapest for what it frees

  double OpSeconds(int from, int to) const { return start_[std::max(0, std::min(to, ops_))] - start_[std::max(0, from + 1)]; }

  double TierSeconds(const Gap& gap, int tier, const ResidencyChoice& choice) const {
    const ResidencyItem& item = problem_.items[gap.item];
    const ResidencyTier& t = problem_.tiers[tier];
    const double bytes = static_cast<double>(item.bytes);
    double seconds = 0;
    const bool in = gap.index < static_cast<int>(item.uses.size());
    const bool there = item.made_by < 0 && gap.index == 0 && !item.wraps;
    bool out = !there;
    if (item.wraps) out = !item.changes.empty() && gap.index == 0;
    if (!item.wraps && gap.index > 0) {
      for (int before = 0; before < gap.index; ++before) out = out && choice[gap.item][before] != InTier(tier);
    }
    if (in) seconds += t.latency_seconds + bytes / t.in_bytes_per_second;
    if (out) seconds += t.latency_seconds + bytes / t.out_bytes_per_second;
    return seconds;
  }

  struct Offer {
    size_t gap = 0;
    Residence residence = Residence::kKeep;
    double score = 0;
  };

  void Greedy() {
    ResidencyChoice choice = KeepAll(problem_);
    std::vector<double> lane(problem_.tiers.size(), 0.0);
    std::vector<bool> refused(gaps_.size() * (problem_.tiers.size() + 2), false);
    const auto Refused = [&](size_t gap, Residence residence) {
      return refused[gap * (problem_.tiers.size() + 2) + static_cast<size_t>(residence)];
    };
    for (size_t round = 0; round < 4 * gaps_.size() + 16; ++round) {
      const ResidencySchedule schedule = scheduler_.Run(choice);
      if (!schedule.valid) break;
      ++trials_;
      const std::vector<int64_t> bytes = scheduler_.op_bytes();
      if (Better(schedule)) Keep(choice, schedule);
      if (Excess(schedule) == 0) break;
      // How much is over, summed over ops, so that a gap's relief is a difference.
      std::vector<double> over(ops_ + 1, 0.0);
      int64_t worst = 0;
      int at = -1;
      for (int op = 0; op < ops_; ++op) {
        const int64_t excess = bytes[op] - problem_.budget_bytes;
        over[op + 1] = over[op] + (excess > 0 ? 1.0 : 0.0);
        if (excess > worst) {
          worst = excess;
          at = op;
        }
      }
      if (at < 0 && schedule.peak_op >= 0 && schedule.peak_bytes > problem_.budget_bytes) {
        at = schedule.peak_op;
        worst = schedule.peak_bytes - problem_.budget_bytes;
      }
      std::vector<int64_t> tier_room;
      for (size_t tier = 0; tier < problem_.tiers.size(); ++tier) {
        tier_room.push_back(problem_.tiers[tier].budget_bytes - schedule.tier_peak_bytes[tier]);
      }
      if (at < 0) break;  // only a tier is over its budget
      std::vector<Offer> offers;
      for (size_t g = 0; g < gaps_.size(); ++g) {
        const Gap& gap = gaps_[g];
        if (choice[gap.item][gap.index] != Residence::kKeep || !Covers(gap, at)) continue;
        const double freed = static_cast<double>(problem_.items[gap.item].bytes) * Relief(gap, over);
        if (freed <= 0) continue;
        Offer best;
        for (Residence residence : Choices(gap.item, gap.index)) {
          if (residence == Residence::kKeep || Refused(g, residence)) continue;
          if (IsTier(residence) && problem_.items[gap.item].bytes > tier_room[TierOf(residence)]) continue;
          const double score = freed / Cost(gap, residence, choice, lane);
          if (score > best.score) best = {g, residence, score};
        }
        if (best.score > 0) offers.push_back(best);
      }
      if (offers.empty()) break;
      std::sort(offers.begin(), offers.end(), [](const Offer& a, const Offer& b) { return a.score > b.score; });
      // As many at once as are certain to be needed.
      int64_t left = worst;
      bool progress = false;
      for (const Offer& offer : offers) {
        if (left <= 0) break;
        const Gap& gap = gaps_[offer.gap];
        ResidencyChoice next = choice;
        Set(next, gap, offer.residence);
        // Where things run again, one choice can make another impossible.
        if (options_.recompute) {
          ++trials_;
          if (!scheduler_.Run(next).valid) {
            refused[offer.gap * (problem_.tiers.size() + 2) + static_cast<size_t>(offer.residence)] = true;
            progress = true;
            continue;
          }
        }
        if (IsTier(offer.residence)) {
          const int tier = TierOf(offer.residence);
          if (problem_.items[gap.item].bytes > tier_room[tier]) continue;
          tier_room[tier] -= problem_.items[gap.item].bytes;
          lane[tier] += TierSeconds(gap, tier, choice);
        }
        choice = std::move(next);
        left -= problem_.items[gap.item].bytes;
        progress = true;
      }
      if (!progress) break;
    }
  }

  bool Better(const ResidencySchedule& schedule) const {
    const int64_t excess = Excess(schedule);
    return best_excess_ < 0 || excess < best_excess_ ||
           (excess == best_excess_ && schedule.seconds < solution_.schedule.seconds * (1 - 1e-9));
  }

  void Keep(const ResidencyChoice& choice, ResidencySchedule schedule) {
    best_excess_ = Excess(schedule);
    solution_.choice = choice;
    solution_.schedule = std::move(schedule);
    solution_.fits = best_excess_ == 0;
  }

  bool Covers(const Gap& gap, int op) const {
    const ResidencyItem& item = problem_.items[gap.item];
    if (item.wraps && gap.index == 0) {
      if (item.uses.empty()) return true;
      return op < item.uses.front() || op > item.uses.back();
    }
    return gap.from < op && op < gap.to;
  }

  // Ops that are over the budget and inside the gap.
  double Relief(const Gap& gap, const std::vector<double>& over) const {
    const ResidencyItem& item = problem_.items[gap.item];
    if (item.wraps && gap.index == 0) {
      if (item.uses.empty()) return over[ops_];
      return over[item.uses.front()] + over[ops_] - over[item.uses.back() + 1];
    }
    return over[std::max(gap.from + 1, std::min(gap.to, ops_))] - over[std::max(0, gap.from + 1)];
  }

  double Cost(const Gap& gap, Residence residence, const ResidencyChoice& choice, const std::vector<double>& lane) const {
    const ResidencyItem& item = problem_.items[gap.item];
    constexpr double kLeast = 1e-9;
    if (residence == Residence::kRecompute) {
      double seconds = problem_.ops[item.made_by].seconds;
      // Inputs that have left themselves come back by their own way.
      for (int input : problem_.ops[item.made_by].reads) {
        const ResidencyItem& read = problem_.items[input];
        const size_t next = std::upper_bound(read.uses.begin(), read.uses.end(), item.made_by) - read.uses.begin();
        const Residence as = choice[input][std::min(next, read.uses.size())];
        if (as == Residence::kRecompute && read.made_by >= 0) seconds += problem_.ops[read.made_by].seconds;
        if (IsTier(as)) seconds += kHiddenCopy * static_cast<double>(read.bytes) / problem_.tiers[TierOf(as)].in_bytes_per_second;
      }
      return seconds + kLeast;
    }
    const int tier = TierOf(residence);
    const double seconds = TierSeconds(gap, tier, choice);
    const double room = item.wraps && gap.index == 0 && !item.uses.empty()
                            ? start_[ops_] - OpSeconds(item.uses.front() - 1, item.uses.back() + 1)
                            : OpSeconds(gap.from, gap.to);
    const double exposed = std::max(0.0, seconds - room);
    // A lane that is nearly full makes others wait.
    const double crowded = std::clamp((lane[tier] + seconds) / (2 * start_[ops_] + kLeast) - 0.5, 0.0, 1.0);
    return exposed + seconds * (kHiddenCopy + crowded) + kLeast;
  }

  // ---- Improvement: one gap at a time, for as long as it pays

  void Improve() {
    if (solution_.choice.empty()) return;
    int left = options_.trials;
    bool better = true;
    while (better && left > 0) {
      better = false;
      for (const Gap& gap : gaps_) {
        if (left <= 0 || AtBound()) return;
        const Residence now = solution_.choice[gap.item][gap.index];
        if (now == Residence::kKeep && solution_.fits) continue;
        for (Residence residence : Choices(gap.item, gap.index)) {
          if (residence == now || left <= 0) continue;
          ResidencyChoice choice = solution_.choice;
          Set(choice, gap, residence);
          --left;
          if (Consider(choice)) {
            better = true;
            break;
          }
        }
      }
    }
  }

  bool AtBound() const { return solution_.fits && solution_.schedule.seconds <= solution_.bound_seconds * 1.001; }

  const ResidencyProblem& problem_;
  const ResidencyOptions& options_;
  ResidencyScheduler scheduler_;
  const int ops_;
  std::vector<double> start_;
  std::vector<Gap> gaps_;
  ResidencySolution solution_;
  int64_t best_excess_ = -1;
  int trials_ = 0;
  bool exhausted_ = false;
};

}  // namespace

absl::StatusOr<ResidencySolution> SolveResidency(const ResidencyProblem& problem, const ResidencyOptions& options) {
  GANTRY_RETURN_IF_ERROR(ValidateResidencyProblem(problem));
  return Solver(problem, options).Run();
}

}  // namespace gantry
