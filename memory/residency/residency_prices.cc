#include "memory/residency/residency_prices.h"

#include <algorithm>
#include <limits>

namespace gantry {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kDeepest = 8;  // ops that run again for one another, as far as their cost is looked at

}  // namespace

ResidencyPricer::ResidencyPricer(const ResidencyProblem& problem, const ResidencyGaps& gaps)
    : problem_(problem), gaps_(gaps), ops_(static_cast<int>(problem.ops.size())), start_(ops_ + 1, 0.0), prices_(ops_ + 1, 0.0), choice_(KeepAll(problem)) {
  for (int op = 0; op < ops_; ++op) start_[op + 1] = start_[op] + problem.ops[op].seconds;
}

double ResidencyPricer::TypicalByteSeconds() const {
  double seconds = 0.0, byte_ops = 0.0;
  for (const ResidencyGap& gap : gaps_.open()) {
    const double bytes = static_cast<double>(problem_.items[gap.item].bytes);
    const double span = problem_.items[gap.item].wraps && gap.index == 0 ? ops_ : gap.to - gap.from;
    byte_ops += bytes * span;
    for (const ResidencyTier& tier : problem_.tiers) seconds += bytes / tier.out_bytes_per_second + bytes / tier.in_bytes_per_second;
    if (problem_.tiers.empty()) {
      const int maker = problem_.items[gap.item].made_by;
      if (maker >= 0) seconds += problem_.ops[maker].seconds;
    }
  }
  return byte_ops > 0 ? seconds / byte_ops : 0.0;
}

double ResidencyPricer::Held(int first, int last) const {
  first = std::max(first, 0);
  last = std::min(last, ops_ - 1);
  return first <= last ? prices_[last + 1] - prices_[first] : 0.0;
}

int ResidencyPricer::OpAt(double seconds) const {
  return static_cast<int>(std::upper_bound(start_.begin(), start_.end(), seconds) - start_.begin()) - 1;
}

// Of copying `item` to `tier` after op `from`, where `out`, and back before op `to`, where `in`. While a copy is under way its memory is held,
// unless compute waits for the copy there and then, whichever costs less; and compute waits for what does not go between the two.
double ResidencyPricer::TierCost(int item, int tier, int from, int to, bool out, bool in) const {
  const ResidencyTier& t = problem_.tiers[tier];
  const double bytes = static_cast<double>(problem_.items[item].bytes);
  const double out_seconds = out ? t.latency_seconds + bytes / t.out_bytes_per_second : 0.0;
  const double in_seconds = in ? t.latency_seconds + bytes / t.in_bytes_per_second : 0.0;
  double held = 0.0;
  if (out) held += bytes * Held(from + 1, std::min(to - 1, OpAt(start_[from + 1] + out_seconds)));
  if (in) held += bytes * Held(std::max(from + 1, OpAt(start_[to] - in_seconds)), to - 1);
  // What goes out as the step ends has the next one's time as well.
  const bool goes_on = to == ops_ && problem_.items[item].wraps;
  const double late = goes_on ? 0.0 : std::max(0.0, out_seconds + in_seconds - (start_[to] - start_[from + 1]));
  return lane_price_ * (out_seconds + in_seconds) + (out ? bytes * t.out_compute_seconds_per_byte : 0.0) + (in ? bytes * t.in_compute_seconds_per_byte : 0.0) +
         std::min(held + late, out_seconds + in_seconds);
}

// Of running the op that made `item` again just before op `at`.
double ResidencyPricer::AgainCost(int item, int at, int depth) const {
  const int maker = problem_.items[item].made_by;
  if (maker < 0 || !problem_.ops[maker].repeatable || !problem_.items[item].changes.empty() || depth > kDeepest) return kInfinity;
  double seconds = problem_.ops[maker].seconds;
  for (int input : problem_.ops[maker].reads) {
    const ResidencyItem& read = problem_.items[input];
    for (int change : read.changes) {
      if (change >= maker && change < at) return kInfinity;
    }
    // Between which of its accesses this is.
    const size_t gap = std::lower_bound(read.uses.begin(), read.uses.end(), at) - read.uses.begin();
    const int before = gap > 0 ? read.uses[gap - 1] : read.made_by;
    const int next = gap < read.uses.size() ? read.uses[gap] : ops_;
    const double bytes = static_cast<double>(read.bytes);
    if (gap == read.uses.size() && !read.kept) {
      seconds += bytes * Held(before + 1, at);  // it stays longer than it would have
      continue;
    }
    const Residence as = choice_[input][gap];
    if (as == Residence::kKeep) continue;
    seconds += bytes * Held(at, next - 1);  // it comes back earlier
    if (as == Residence::kRecompute) {
      const double again = AgainCost(input, at, depth + 1);
      if (again == kInfinity) return kInfinity;
      // Its next use would have had to pay for it.
      seconds += gap == read.uses.size() ? again : 0.5 * again;
    }
  }
  return seconds;
}

// The cheapest way that uses `tier` or none. `home`: of what wraps, it is in the tier between steps.
ResidencyPricer::Way ResidencyPricer::WayThrough(int index, int tier, bool home) const {
  const ResidencyItem& item = problem_.items[index];
  const double bytes = static_cast<double>(item.bytes);
  const int uses = static_cast<int>(item.uses.size());
  Way way;
  way.gaps.assign(uses + 1, Residence::kKeep);
  // Copies of the tier stay good until the item changes, so the cheapest way up to each gap is kept for both cases.
  struct Partial {
    double seconds = kInfinity;
    std::vector<Residence> gaps;
  };
  Partial with, without;  // a good copy in the tier
  const bool in_tier = home || (!item.wraps && item.made_by < 0);
  (in_tier && home ? with : without) = {0.0, {}};
  const auto Take = [](Partial& to, const Partial& from, double seconds, Residence residence) {
    if (from.seconds + seconds >= to.seconds) return;
    to.seconds = from.seconds + seconds;
    to.gaps = from.gaps;
    to.gaps.push_back(residence);
  };
  for (int gap = 0; gap <= uses; ++gap) {
    const int from = gap == 0 ? item.made_by : item.uses[gap - 1];
    const int to = gap == uses ? ops_ : item.uses[gap];
    Partial next_with, next_without;
    if (gap > 0 && std::binary_search(item.changes.begin(), item.changes.end(), from)) {
      // The tier has an old version now.
      if (with.seconds < without.seconds) without = std::move(with);
      with = {};
    }
    const bool first_home = home && gap == 0, last_home = home && gap == uses;
    const bool nothing_follows = gap == uses && !item.kept;
    double keep = nothing_follows ? 0.0 : bytes * Held(from + 1, to - 1);
    if (!(first_home || last_home)) {
      Take(next_with, with, keep, Residence::kKeep);
      Take(next_without, without, keep, Residence::kKeep);
    }
    if (nothing_follows || (!item.wraps && to - from <= 1)) {
      with = std::move(next_with);
      without = std::move(next_without);
      continue;
    }
    for (Residence residence : gaps_.Choices(index, gap)) {
      if (residence == Residence::kRecompute) {
        const double again = AgainCost(index, to, 0);
        Take(next_with, with, again, residence);
        Take(next_without, without, again, residence);
      } else if (residence == InTier(tier) && tier >= 0 && (home || !item.wraps)) {
        // What is given with the step is in the tier from the start.
        const bool given = gap == 0 && item.made_by < 0, back = gap < uses;
        Take(next_with, with, TierCost(index, tier, from, to, false, back), residence);
        Take(next_with, without, TierCost(index, tier, from, to, !given, back), residence);
      }
    }
    with = std::move(next_with);
    without = std::move(next_without);
  }
  const Partial& best = with.seconds < without.seconds ? with : without;
  way.seconds = best.seconds;
  if (best.seconds < kInfinity) way.gaps = best.gaps;
  return way;
}

ResidencyPricer::Way ResidencyPricer::WayOf(int index) const {
  const ResidencyItem& item = problem_.items[index];
  Way best = WayThrough(index, -1, false);
  for (int tier = 0; tier < static_cast<int>(problem_.tiers.size()); ++tier) {
    if ((item.tiers >> tier & 1) == 0 || item.bytes > problem_.tiers[tier].budget_bytes) continue;
    Way way = WayThrough(index, tier, item.wraps);
    if (way.seconds < best.seconds) best = std::move(way);
  }
  return best;
}

const ResidencyChoice& ResidencyPricer::Choose(const std::vector<double>& byte_seconds, double lane_price) {
  for (int op = 0; op < ops_; ++op) prices_[op + 1] = prices_[op] + byte_seconds[op];
  lane_price_ = lane_price;
  ResidencyChoice next = choice_;
  std::vector<bool> open(problem_.items.size(), false);
  for (const ResidencyGap& gap : gaps_.open()) open[gap.item] = true;
  for (int item = 0; item < static_cast<int>(problem_.items.size()); ++item) {
    if (open[item]) next[item] = WayOf(item).gaps;
  }
  choice_ = std::move(next);
  return choice_;
}

}  // namespace gantry
