#include "memory/residency/residency_gaps.h"

#include <algorithm>
#include <limits>

namespace gantry {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Ops that a window of the bound spans at most, and places where the bytes above the budget are looked at.
constexpr int kWindow = 64;
constexpr size_t kPlaces = 8;

class Bound {
 public:
  Bound(const ResidencyProblem& problem, const ResidencyGaps& gaps, bool tiers) : problem_(problem), gaps_(gaps), ops_(static_cast<int>(problem.ops.size())) {
    start_.assign(ops_ + 1, 0.0);
    for (int op = 0; op < ops_; ++op) start_[op + 1] = start_[op] + problem.ops[op].seconds;
    if (!tiers) return;
    in_cost_ = kInfinity;
    for (const ResidencyTier& tier : problem.tiers) {
      in_rate_ += tier.in_bytes_per_second;
      in_cost_ = std::min(in_cost_, tier.in_compute_seconds_per_byte);
    }
    if (problem.tiers.empty()) in_cost_ = 0.0;
  }

  double Run(const std::vector<int64_t>& kept_bytes) const { return std::max(OverBudget(kept_bytes), start_[ops_] + Windows()); }

 private:
  // Seconds of running again per byte that comes back so; kInfinity where that cannot be.
  double AgainPerByte(int item) const {
    const int maker = problem_.items[item].made_by;
    if (maker < 0) return kInfinity;
    double made_bytes = 0;
    for (int made : problem_.ops[maker].makes) made_bytes += static_cast<double>(problem_.items[made].bytes);
    return made_bytes > 0 ? problem_.ops[maker].seconds / made_bytes : kInfinity;
  }
  bool MayRunAgain(int item) const {
    for (size_t gap = 0; gap < problem_.items[item].uses.size(); ++gap) {
      for (Residence residence : gaps_.Choices(item, static_cast<int>(gap))) {
        if (residence == Residence::kRecompute) return true;
      }
    }
    return false;
  }

  // At every op the bytes above the budget must leave: each comes back by running again, which takes compute time, or through a
  // lane in, which takes lane time and what compute loses to it. The cheaper share of the two, as if items could be divided.
  double OverBudget(const std::vector<int64_t>& kept_bytes) const {
    const double compute = start_[ops_];
    double bound = compute;
    std::vector<int> order;
    for (int op = 0; op < ops_; ++op) {
      if (kept_bytes[op] > problem_.budget_bytes) order.push_back(op);
    }
    std::sort(order.begin(), order.end(), [&](int a, int b) { return kept_bytes[a] > kept_bytes[b]; });
    if (order.size() > kPlaces) order.resize(kPlaces);
    for (int op : order) {
      double over = static_cast<double>(kept_bytes[op] - problem_.budget_bytes);
      std::vector<std::pair<double, double>> offers;  // seconds of running again per byte, bytes
      for (const ResidencyGap& gap : gaps_.open()) {
        if (!gaps_.Covers(gap, op)) continue;
        const ResidencyItem& item = problem_.items[gap.item];
        // An output that ends the step in a tier does not come back.
        if (!item.wraps && gap.index == static_cast<int>(item.uses.size())) over -= static_cast<double>(item.bytes);
        bool again = false;
        for (Residence residence : gaps_.Choices(gap.item, gap.index)) again = again || residence == Residence::kRecompute;
        if (again) offers.push_back({AgainPerByte(gap.item), static_cast<double>(problem_.items[gap.item].bytes)});
      }
      std::sort(offers.begin(), offers.end());
      double again_seconds = 0;
      for (const auto& [cost, bytes] : offers) {
        if (over <= 0 || cost == kInfinity) break;
        const double lane = in_rate_ > 0 ? over / in_rate_ : kInfinity;
        if (cost >= in_cost_ && lane <= compute + again_seconds + over * in_cost_) break;
        double share = std::min(bytes, over);
        if (in_rate_ > 0 && cost > in_cost_) {
          share = std::min(share, (lane - compute - again_seconds - over * in_cost_) / (cost - in_cost_ + 1 / in_rate_));
        }
        again_seconds += share * cost;
        over -= share;
        if (share < bytes) break;
      }
      const double lane = over > 0 && in_rate_ > 0 ? over / in_rate_ : 0.0;
      const double beside = over > 0 && in_rate_ > 0 ? over * in_cost_ : 0.0;
      bound = std::max(bound, std::max(compute + again_seconds + beside, lane));
    }
    return bound;
  }

  // While op p runs, its operands leave only so much room. What ops p+1 to q read beyond that comes in once p has ended, and the ops
  // between hide only so much of it: compute waits or runs something again. Windows that do not overlap add up; the best set of them
  // by dynamic programming (weighted interval scheduling). Copies out are taken to be free.
  double Windows() const {
    const int items = static_cast<int>(problem_.items.size());
    if (in_rate_ <= 0) return 0.0;
    std::vector<double> again(items);
    for (int item = 0; item < items; ++item) again[item] = MayRunAgain(item) ? AgainPerByte(item) : kInfinity;
    std::vector<int> seen(items, -1);
    std::vector<double> best(ops_ + 1, 0.0);  // of windows that end at or before an op
    for (int p = 0; p < ops_; ++p) {
      if (p > 0) best[p] = std::max(best[p], best[p - 1]);
      for (int item : problem_.ops[p].reads) seen[item] = p;
      for (int item : problem_.ops[p].makes) seen[item] = p;
      int64_t room = problem_.budget_bytes - OperandBytes(problem_, p);
      if (room < 0) continue;
      double cheapest = kInfinity;
      for (int q = p + 1; q < std::min(ops_, p + kWindow); ++q) {
        for (int item : problem_.ops[q].reads) {
          if (seen[item] == p || problem_.items[item].made_by > p) continue;
          seen[item] = p;
          room -= problem_.items[item].bytes;
          cheapest = std::min(cheapest, again[item]);
        }
        if (room >= 0) continue;
        const double over = static_cast<double>(-room);
        const double waits = over / in_rate_ - (start_[q] - start_[p + 1]);
        if (waits <= 0) continue;
        // Of each byte the cheaper way; a second of running again hides a second of copying as well.
        const double lost = cheapest == kInfinity ? waits : waits * cheapest / (cheapest + 1 / in_rate_);
        best[q] = std::max(best[q], best[p] + lost);
      }
    }
    return *std::max_element(best.begin(), best.end());
  }

  const ResidencyProblem& problem_;
  const ResidencyGaps& gaps_;
  const int ops_;
  std::vector<double> start_;
  double in_rate_ = 0.0, in_cost_ = 0.0;
};

}  // namespace

ResidencyGaps::ResidencyGaps(const ResidencyProblem& problem, bool recompute, bool tiers)
    : problem_(problem), recompute_(recompute), tiers_(tiers), ops_(static_cast<int>(problem.ops.size())) {
  for (int i = 0; i < static_cast<int>(problem.items.size()); ++i) {
    const ResidencyItem& item = problem.items[i];
    if (item.bytes == 0) continue;
    const int uses = static_cast<int>(item.uses.size());
    for (int gap = 0; gap <= uses; ++gap) {
      const int from = gap == 0 ? item.made_by : item.uses[gap - 1];
      const int to = gap == uses ? ops_ : item.uses[gap];
      if (item.wraps && gap == uses && uses > 0) continue;
      if (gap == uses && !item.kept) continue;      // nothing follows
      if (!item.wraps && to - from <= 1) continue;  // nothing between
      if (Choices(i, gap).size() > 1) open_.push_back({i, gap, from, to});
    }
  }
}

std::vector<Residence> ResidencyGaps::Choices(int index, int gap) const {
  const ResidencyItem& item = problem_.items[index];
  std::vector<Residence> choices = {Residence::kKeep};
  const bool last = gap == static_cast<int>(item.uses.size());
  if (recompute_ && item.made_by >= 0 && !last && item.changes.empty() && problem_.ops[item.made_by].repeatable) {
    choices.push_back(Residence::kRecompute);
  }
  if (tiers_) {
    for (int tier = 0; tier < static_cast<int>(problem_.tiers.size()); ++tier) {
      if ((item.tiers >> tier & 1) != 0 && item.bytes <= problem_.tiers[tier].budget_bytes) choices.push_back(InTier(tier));
    }
  }
  return choices;
}

bool ResidencyGaps::Covers(const ResidencyGap& gap, int op) const {
  const ResidencyItem& item = problem_.items[gap.item];
  if (item.wraps && gap.index == 0) {
    if (item.uses.empty()) return true;
    return op < item.uses.front() || op > item.uses.back();
  }
  return gap.from < op && op < gap.to;
}

void ResidencyGaps::Set(ResidencyChoice& choice, const ResidencyGap& gap, Residence residence) const {
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

int64_t OperandBytes(const ResidencyProblem& problem, int op) {
  int64_t bytes = problem.ops[op].scratch_bytes;
  for (int item : problem.ops[op].reads) {
    const int heir = problem.items[item].taken_over_by;
    if (heir >= 0 && problem.items[heir].made_by == op && problem.items[item].uses.back() == op) continue;
    bytes += problem.items[item].bytes;
  }
  for (int item : problem.ops[op].makes) bytes += problem.items[item].bytes;
  return bytes;
}

double ResidencyBound(const ResidencyProblem& problem, const ResidencyGaps& gaps, bool tiers, const std::vector<int64_t>& kept_bytes) {
  return Bound(problem, gaps, tiers).Run(kept_bytes);
}

}  // namespace gantry
