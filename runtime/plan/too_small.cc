#include "runtime/plan/too_small.h"

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>

namespace gantry {
namespace {

constexpr size_t kContributors = 8, kFixes = 3;
// Budgets above what is known to be too little, in turn, until one can be planned.
constexpr double kMore[] = {1.0, 1.02, 1.05, 1.1, 1.2, 1.4};

std::string Bytes(int64_t bytes) { return absl::StrFormat("%d bytes (%.1f MiB)", bytes, static_cast<double>(bytes) / 1048576.0); }

struct Fix {
  std::string flags;
  int64_t peak_bytes;
  double seconds;
};

// Sums of what is live at the peak, largest first.
std::string Contributors(const Plan& base) {
  std::map<std::tuple<std::string, std::string, std::string>, std::pair<int64_t, int>> sums;
  for (const PlannedBuffer* buffer : LargestAtPeak(base, base.buffers.size())) {
    auto& [bytes, count] = sums[{buffer->network, buffer->phase, buffer->name}];
    bytes += buffer->bytes;
    ++count;
  }
  std::vector<std::pair<int64_t, std::string>> lines;
  for (const auto& [key, sum] : sums) {
    const auto& [network, phase, name] = key;
    lines.emplace_back(sum.first, absl::StrFormat("%14d  %s%s%s%s%s%s", sum.first, name, sum.second > 1 ? absl::StrFormat(" (%d of them)", sum.second) : "",
                                                  network.empty() ? "" : ", ", network, phase.empty() ? "" : ", ", phase));
  }
  std::stable_sort(lines.begin(), lines.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  if (lines.size() > kContributors) lines.resize(kContributors);
  std::string text;
  for (const auto& [bytes, line] : lines) absl::StrAppend(&text, "\n", line);
  return text;
}

class Advice {
 public:
  Advice(const Program& program, const PlanOptions& options, int64_t budget) : program_(program), options_(options) {
    options_.advise = false;
    options_.any_plan_will_do = true;
    // A share of the step would be another budget once the step is another.
    if (options.device_memory.bytes == 0) budget_flag_ = absl::StrFormat("--device-memory %d ", budget);
    options_.device_memory = {.bytes = budget};
  }

  // Changes that fit, the fastest first.
  std::vector<Fix> Find() {
    const bool recompute = options_.recompute, tiers = !options_.tiers.empty();
    PlanOptions host = options_;
    if (!tiers) host.tiers = {TierOptions{.name = "host"}};
    PlanOptions both = host;
    both.recompute = true;
    if (!recompute) {
      PlanOptions again = options_;
      again.recompute = true;
      Try("--recompute", program_, again);
    }
    if (!tiers) Try("--offload host", program_, host);
    if (!tiers && !recompute) Try("--offload host --recompute", program_, both);
    RaiseTiers();
    Accumulate();
    std::stable_sort(fixes_.begin(), fixes_.end(), [](const Fix& a, const Fix& b) { return a.seconds < b.seconds; });
    if (fixes_.size() > kFixes) fixes_.resize(kFixes);
    return std::move(fixes_);
  }

  // The smallest budget from `need` bytes on that can be planned.
  Fix MoreMemory(int64_t need, int64_t footprint) {
    for (const double more : kMore) {
      PlanOptions options = options_;
      options.device_memory.bytes = (static_cast<int64_t>(static_cast<double>(need) * more) + 63) / 64 * 64;
      if (options.device_memory.bytes >= footprint) break;
      const absl::StatusOr<Plan> plan = MakePlan(program_, options);
      if (plan.ok()) return {absl::StrFormat("--device-memory %d", options.device_memory.bytes), plan->arena_bytes, plan->residency.seconds};
    }
    PlanOptions options = options_;
    options.device_memory = {};
    const absl::StatusOr<Plan> plan = MakePlan(program_, options);
    if (!plan.ok()) return {absl::StrFormat("--device-memory %d", footprint), footprint, 0.0};
    return {absl::StrFormat("--device-memory %d", plan->arena_bytes), plan->arena_bytes, plan->residency.seconds};
  }

 private:
  std::optional<Plan> Try(std::string flags, const Program& program, const PlanOptions& options) {
    absl::StatusOr<Plan> plan = MakePlan(program, options);
    if (!plan.ok()) return std::nullopt;
    fixes_.push_back({std::move(flags), plan->arena_bytes, plan->residency.seconds});
    return *std::move(plan);
  }

  // Tiers with a limit get what the step needs there.
  void RaiseTiers() {
    PlanOptions raised = options_;
    bool any = false;
    for (TierOptions& tier : raised.tiers) {
      if (IsLent(tier.kind)) continue;  // what others have to spare is what it is
      any = any || tier.budget_bytes != INT64_MAX;
      tier.budget_bytes = INT64_MAX;
    }
    if (!any) return;
    const absl::StatusOr<Plan> plan = MakePlan(program_, raised);
    if (!plan.ok()) return;
    std::string flags;
    for (size_t tier = 0; tier < plan->tiers.size() && tier < options_.tiers.size(); ++tier) {
      if (options_.tiers[tier].budget_bytes == INT64_MAX || IsLent(options_.tiers[tier].kind)) continue;
      raised.tiers[tier].budget_bytes = std::max(plan->tiers[tier].bytes, options_.tiers[tier].budget_bytes);
      absl::StrAppend(&flags, flags.empty() ? "" : " ",
                      options_.tiers[tier].kind == TierKind::kHost ? "--host-memory " : "--set memory.file=", raised.tiers[tier].budget_bytes);
    }
    Try(std::move(flags), program_, raised);
  }

  void Accumulate() {
    const StepVariants& variants = options_.variants;
    if (variants.build == nullptr) return;
    for (int64_t accumulate = 2 * int64_t{variants.accumulate}; accumulate <= variants.batch; accumulate *= 2) {
      if (variants.batch % accumulate != 0) continue;
      const absl::StatusOr<Program> program = variants.build(static_cast<int>(accumulate));
      if (!program.ok()) return;
      if (Try(absl::StrFormat("%s--set train.accumulate=%d", budget_flag_, accumulate), *program, options_)) return;
    }
  }

  const Program& program_;
  PlanOptions options_;
  std::vector<Fix> fixes_;
  std::string budget_flag_;
};

}  // namespace

// The largest buffers live at the arena's fullest moment.
std::vector<const PlannedBuffer*> LargestAtPeak(const Plan& plan, size_t count) {
  std::vector<int64_t> change(plan.schedule.size() + 2, 0);
  for (const PlannedBuffer& buffer : plan.buffers) {
    if (buffer.tier != kDeviceTier) continue;
    change[buffer.lower] += buffer.bytes;
    change[buffer.upper] -= buffer.bytes;
  }
  int64_t live = 0, peak = -1;
  int peak_time = 0;
  for (size_t time = 0; time < change.size(); ++time) {
    live += change[time];
    if (live <= peak) continue;
    peak = live;
    peak_time = static_cast<int>(time);
  }
  std::vector<const PlannedBuffer*> at_peak;
  for (const PlannedBuffer& buffer : plan.buffers) {
    if (buffer.tier == kDeviceTier && buffer.lower <= peak_time && peak_time < buffer.upper) at_peak.push_back(&buffer);
  }
  std::stable_sort(at_peak.begin(), at_peak.end(), [](const auto* a, const auto* b) { return a->bytes > b->bytes; });
  if (at_peak.size() > count) at_peak.resize(count);
  return at_peak;
}

absl::Status TooSmall(const Program& program, const Plan& base, const Resider& resider, const PlanOptions& options, int64_t budget,
                      const ResidencySolution& best, int64_t best_bytes) {
  const int64_t need = std::max(best_bytes, best.largest_op_bytes);
  std::string text = absl::StrFormat("the step does not fit %s of device memory: it needs %s with nothing offloaded, and %s with what "
                                     "is allowed now, %d bytes too many",
                                     Bytes(budget), Bytes(base.arena_bytes), Bytes(need), need - budget);
  if (!options.advise) return absl::ResourceExhaustedError(text);
  if (best.largest_op_bytes > budget) {
    absl::StrAppend(&text, "\nThe largest op alone needs ", Bytes(best.largest_op_bytes), ": ",
                    base.program.Describe(resider.OpOf(best.largest_op)));
  }
  absl::StrAppend(&text, "\nLargest with nothing offloaded:", Contributors(base));
  Advice advice(program, options, budget);
  std::vector<Fix> fixes = advice.Find();
  fixes.push_back(advice.MoreMemory(need, base.arena_bytes));
  absl::StrAppend(&text, "\nWhat would fit, as flags to add:");
  for (const Fix& fix : fixes) {
    absl::StrAppend(&text, absl::StrFormat("\n  %s: peak %s, predicted step %.4g s", fix.flags, Bytes(fix.peak_bytes), fix.seconds));
  }
  return absl::ResourceExhaustedError(text);
}

}  // namespace gantry
