#include "memory/residency/residency_solver.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <span>

#include "memory/residency/residency_gaps.h"
#include "memory/residency/residency_prices.h"
#include "memory/status.h"

namespace gantry {
namespace {

// Budgets that the greedy choice is made for.
constexpr double kGreedyShares[] = {1.0, 0.9, 0.7, 0.95, 0.8, 0.6, 0.5};
// A copy that hides behind compute costs this share of its time: the lane might be needed by another.
constexpr double kHiddenCopy = 0.02;
// Of the search: how much worse a step may be to go on from, at first; work, in ops and items judged; how far before a wait it looks.
constexpr double kThreshold = 0.01;
constexpr int kSearchWork = 8'000'000, kBefore = 12, kAttempts = 200;

// Of prices: those of a lane's second to begin with, shares of the budget to aim at, rounds for each, and how far a round goes at first, how
// that shrinks, and the share of the budget that is over for which it goes so far.
constexpr double kLanePrices[] = {0.05, 0.3, 1.0}, kPriceShares[] = {1.0, 0.85};
constexpr int kPriceRounds = 40;
constexpr double kPriceStep = 1.0, kPriceDecay = 0.95, kPriceSpan = 0.1;

class Solver {
 public:
  Solver(const ResidencyProblem& problem, const ResidencyOptions& options)
      : problem_(problem), options_(options), gap_table_(problem, options.recompute, options.tiers), gaps_(gap_table_.open()), scheduler_(problem),
        ops_(static_cast<int>(problem.ops.size())) {
    start_.assign(ops_ + 1, 0.0);
    for (int op = 0; op < ops_; ++op) start_[op + 1] = start_[op] + problem.ops[op].seconds;
  }

  ResidencySolution Run() {
    FindLargestOp();
    Consider(KeepAll(problem_));
    const std::vector<int64_t> kept_bytes = scheduler_.op_bytes();
    solution_.bound_seconds = ResidencyBound(problem_, gap_table_, options_.tiers, kept_bytes);
    // Nothing to win where everything may stay.
    if (!solution_.fits) {
      if (Combinations() <= std::pow(3.0, options_.exhaustive_gaps)) {
        Exhaust();
      } else {
        // Leaving some of the budget free gives copies in room to come early.
        for (const double share : std::span(kGreedyShares).first(std::clamp(options_.greedy_budgets, 1, 7))) {
          if (!AtBound()) Greedy(static_cast<int64_t>(share * static_cast<double>(problem_.budget_bytes)), KeepAll(problem_));
        }
        SetPrices();
        Search();
      }
    }
    solution_.schedule = scheduler_.Run(solution_.choice);
    solution_.optimal = solution_.fits && (exhausted_ || solution_.schedule.seconds <= solution_.bound_seconds * (1 + 1e-12));
    if (exhausted_ && solution_.fits) solution_.bound_seconds = solution_.schedule.seconds;
    solution_.trials = trials_;
    return std::move(solution_);
  }

 private:
  std::vector<Residence> Choices(int item, int gap) const { return gap_table_.Choices(item, gap); }
  bool Covers(const ResidencyGap& gap, int op) const { return gap_table_.Covers(gap, op); }
  void Set(ResidencyChoice& choice, const ResidencyGap& gap, Residence residence) const { gap_table_.Set(choice, gap, residence); }

  double Combinations() const {
    double count = 1;
    for (const ResidencyGap& gap : gaps_) count *= static_cast<double>(Choices(gap.item, gap.index).size());
    return count;
  }

  // ---- Judging

  int64_t Excess(const ResidencySchedule& schedule) const { return Excess(schedule, problem_.budget_bytes); }
  int64_t Excess(const ResidencySchedule& schedule, int64_t budget) const {
    int64_t excess = std::max<int64_t>(0, schedule.peak_bytes - budget);
    for (size_t tier = 0; tier < problem_.tiers.size(); ++tier) {
      excess += std::max<int64_t>(0, schedule.tier_peak_bytes[tier] - problem_.tiers[tier].budget_bytes);
    }
    return excess;
  }

  // Runs `choice` and keeps it where it is better than the best so far.
  bool Consider(const ResidencyChoice& choice) {
    ++trials_;
    ResidencySchedule schedule = scheduler_.Judge(choice);
    if (!schedule.valid || !Better(schedule)) return false;
    Keep(choice, std::move(schedule));
    return true;
  }

  void FindLargestOp() {
    for (int op = 0; op < ops_; ++op) {
      const int64_t bytes = OperandBytes(problem_, op);
      if (bytes <= solution_.largest_op_bytes) continue;
      solution_.largest_op_bytes = bytes;
      solution_.largest_op = op;
    }
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
    const ResidencyGap& gap = gaps_[index];
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

  double TierSeconds(const ResidencyGap& gap, int tier, const ResidencyChoice& choice) const {
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

  // An offer that was taken, and how it was before.
  struct Taken {
    size_t offer;
    std::vector<Residence> before;  // of the item
    double lane_seconds;
  };

  // For `budget` bytes of the device; every choice on the way is considered for the real one.
  void Greedy(int64_t budget, ResidencyChoice choice) {
    ResidencyProblem tight = problem_;
    tight.budget_bytes = budget;
    ResidencyScheduler scheduler(tight);
    const bool real = budget == problem_.budget_bytes;
    std::vector<double> lane(problem_.tiers.size(), 0.0);
    std::vector<bool> refused(gaps_.size() * (problem_.tiers.size() + 2), false);
    const auto Refused = [&](size_t gap, Residence residence) {
      return refused[gap * (problem_.tiers.size() + 2) + static_cast<size_t>(residence)];
    };
    for (size_t round = 0; round < 4 * gaps_.size() + 16; ++round) {
      const ResidencySchedule schedule = scheduler.Judge(choice);
      if (!schedule.valid) break;
      ++trials_;
      const std::vector<int64_t> bytes = scheduler.op_bytes();
      if (real && Better(schedule)) Keep(choice, schedule);
      if (Excess(schedule, budget) == 0) break;
      // How much is over, summed over ops, so that a gap's relief is a difference.
      std::vector<double> over(ops_ + 1, 0.0);
      int64_t worst = 0;
      int at = -1;
      for (int op = 0; op < ops_; ++op) {
        const int64_t excess = bytes[op] - budget;
        over[op + 1] = over[op] + (excess > 0 ? 1.0 : 0.0);
        if (excess > worst) {
          worst = excess;
          at = op;
        }
      }
      if (at < 0 && schedule.peak_op >= 0 && schedule.peak_bytes > budget) {
        at = schedule.peak_op;
        worst = schedule.peak_bytes - budget;
      }
      std::vector<int64_t> tier_room;
      for (size_t tier = 0; tier < problem_.tiers.size(); ++tier) {
        tier_room.push_back(problem_.tiers[tier].budget_bytes - schedule.tier_peak_bytes[tier]);
      }
      if (at < 0) break;  // only a tier is over its budget
      std::vector<Offer> offers;
      for (size_t g = 0; g < gaps_.size(); ++g) {
        const ResidencyGap& gap = gaps_[g];
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
      std::vector<Taken> group;
      size_t most = offers.size();  // at a time
      for (size_t next = 0; next < offers.size() && left > 0;) {
        group.clear();
        int64_t after = left;
        size_t end = next;
        for (; end < offers.size() && end - next < most && after > 0; ++end) {
          const Offer& offer = offers[end];
          const ResidencyGap& gap = gaps_[offer.gap];
          const int64_t bytes = problem_.items[gap.item].bytes;
          const int tier = IsTier(offer.residence) ? TierOf(offer.residence) : -1;
          if (tier >= 0 && bytes > tier_room[tier]) continue;
          group.push_back({end, choice[gap.item], tier >= 0 ? TierSeconds(gap, tier, choice) : 0.0});
          if (tier >= 0) {
            tier_room[tier] -= bytes;
            lane[tier] += group.back().lane_seconds;
          }
          Set(choice, gap, offer.residence);
          after -= bytes;
        }
        // Where things run again, one choice can make another impossible: halves are tried until it is found.
        if (options_.recompute && !group.empty()) {
          ++trials_;
          if (!scheduler.Possible(choice)) {
            for (auto taken = group.rbegin(); taken != group.rend(); ++taken) {
              const Offer& offer = offers[taken->offer];
              const int item = gaps_[offer.gap].item;
              choice[item] = std::move(taken->before);
              if (!IsTier(offer.residence)) continue;
              tier_room[TierOf(offer.residence)] += problem_.items[item].bytes;
              lane[TierOf(offer.residence)] -= taken->lane_seconds;
            }
            most = std::max<size_t>(1, group.size() / 2);
            if (group.size() > 1) continue;
            const Offer& offer = offers[group.front().offer];
            refused[offer.gap * (problem_.tiers.size() + 2) + static_cast<size_t>(offer.residence)] = true;
            progress = true;
            next = end;
            continue;
          }
          most *= 2;
        }
        progress = progress || !group.empty();
        left = after;
        next = end;
      }
      if (!progress) break;
    }
    if (!real) Consider(choice);
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

  // Ops that are over the budget and inside the gap.
  double Relief(const ResidencyGap& gap, const std::vector<double>& over) const {
    const ResidencyItem& item = problem_.items[gap.item];
    if (item.wraps && gap.index == 0) {
      if (item.uses.empty()) return over[ops_];
      return over[item.uses.front()] + over[ops_] - over[item.uses.back() + 1];
    }
    return over[std::max(gap.from + 1, std::min(gap.to, ops_))] - over[std::max(0, gap.from + 1)];
  }

  double Cost(const ResidencyGap& gap, Residence residence, const ResidencyChoice& choice, const std::vector<double>& lane) const {
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

  // ---- Prices: memory costs more where it is short, until what items choose for themselves fits

  void SetPrices() {
    ResidencyPricer pricer(problem_, gap_table_);
    const double typical = pricer.TypicalByteSeconds();
    if (typical <= 0) return;
    // Everything leaves that may: what fits if anything does.
    Consider(pricer.Choose(std::vector<double>(ops_, 1e6 * typical), 1.0));
    for (const double lane_price : kLanePrices) {
      for (const double share : kPriceShares) {
        if (AtBound()) return;
        const double budget = share * static_cast<double>(problem_.budget_bytes);
        std::vector<double> log_price(ops_, std::log(lane_price)), prices(ops_);
        ResidencyChoice best;
        int64_t best_excess = 0;
        double best_seconds = 0;
        for (int round = 0; round < kPriceRounds; ++round) {
          for (int op = 0; op < ops_; ++op) prices[op] = typical * std::exp(log_price[op]);
          const ResidencyChoice& choice = pricer.Choose(prices, lane_price);
          ++trials_;
          ResidencySchedule schedule = scheduler_.Judge(choice);
          if (!schedule.valid) continue;
          const int64_t excess = Excess(schedule);
          if (best.empty() || excess < best_excess || (excess == best_excess && schedule.seconds < best_seconds)) {
            best = choice;
            best_excess = excess;
            best_seconds = schedule.seconds;
          }
          if (Better(schedule)) Keep(choice, std::move(schedule));
          const double step = kPriceStep * std::pow(kPriceDecay, round);
          const std::vector<int64_t>& bytes = scheduler_.op_bytes();
          for (int op = 0; op < ops_; ++op) {
            const double over = (static_cast<double>(bytes[op]) - budget) / budget;
            log_price[op] += step * std::clamp(over / kPriceSpan, -1.0, 1.0);
          }
        }
        if (best_excess > 0) Greedy(problem_.budget_bytes, std::move(best));
      }
    }
  }

  // ---- Search: gaps near the places where compute waits change, and what is not much worse is gone on from

  // Threshold accepting (Dueck and Scheuer, Journal of Computational Physics 90, 1990). The moves are drawn where the waits are: what
  // stays on the device just before a wait leaves, so that copies may begin earlier, or what is waited for stays or comes back in
  // another way. Draws are the generator's own bits, the same everywhere.
  void Search() {
    if (solution_.choice.empty() || gaps_.empty()) return;
    std::mt19937 random(1);
    const auto Below = [&](size_t count) { return static_cast<size_t>(random() % count); };
    ResidencyChoice current = solution_.choice;
    double seconds = solution_.schedule.seconds;
    int64_t excess = best_excess_;
    static_cast<void>(scheduler_.Judge(current));
    std::vector<double> waits = scheduler_.op_waits();
    const int trials = options_.trials > 0 ? options_.trials
                                           : std::clamp(kSearchWork / static_cast<int>(problem_.ops.size() + problem_.items.size() + 1), 100, 4000);
    for (int trial = 0; trial < trials && !AtBound(); ++trial) {
      // An op that waits, the long waits more often.
      double total = 0;
      for (double wait : waits) total += wait;
      int at = static_cast<int>(Below(static_cast<size_t>(ops_)));
      if (total > 0) {
        double left = total * static_cast<double>(random()) / 4294967296.0;
        for (at = 0; at + 1 < ops_ && left >= waits[at]; ++at) left -= waits[at];
      }
      std::vector<std::pair<int, std::vector<Residence>>> before;
      for (int move = 1 + static_cast<int>(Below(3)); move > 0; --move) Move(at, Below, current, before);
      if (before.empty()) continue;
      ++trials_;
      ResidencySchedule schedule = scheduler_.Judge(current);
      const double threshold = kThreshold * (1.0 - static_cast<double>(trial) / trials);
      const int64_t over = schedule.valid ? Excess(schedule) : 0;
      if (!schedule.valid || over > excess || (over == excess && schedule.seconds > seconds * (1 + threshold))) {
        for (auto undo = before.rbegin(); undo != before.rend(); ++undo) current[undo->first] = std::move(undo->second);
        continue;
      }
      seconds = schedule.seconds;
      excess = over;
      waits = scheduler_.op_waits();
      if (Better(schedule)) Keep(current, std::move(schedule));
    }
  }

  // Changes one gap of what is live at or shortly before `at`, if there is one, and notes in `before` how its item was.
  template <typename Below>
  void Move(int at, Below below, ResidencyChoice& choice, std::vector<std::pair<int, std::vector<Residence>>>& before) {
    const int place = std::max(0, at - static_cast<int>(below(kBefore)));
    const bool evict = below(2) == 0;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      const ResidencyGap& gap = gaps_[below(gaps_.size())];
      const ResidencyItem& item = problem_.items[gap.item];
      const Residence now = choice[gap.item][gap.index];
      const int end = item.wraps && gap.index == 0 && !item.uses.empty() ? item.uses.front() : gap.to;
      const bool near = evict ? now == Residence::kKeep && Covers(gap, place) : now != Residence::kKeep && end >= place && end <= at + 1;
      if (!near) continue;
      const std::vector<Residence> choices = Choices(gap.item, gap.index);
      const Residence residence = choices[below(choices.size())];
      if (residence == now) continue;
      before.emplace_back(gap.item, choice[gap.item]);
      Set(choice, gap, residence);
      return;
    }
  }

  bool AtBound() const { return solution_.fits && solution_.schedule.seconds <= solution_.bound_seconds * 1.001; }

  const ResidencyProblem& problem_;
  const ResidencyOptions& options_;
  const ResidencyGaps gap_table_;
  const std::vector<ResidencyGap>& gaps_;
  ResidencyScheduler scheduler_;
  const int ops_;
  std::vector<double> start_;
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
