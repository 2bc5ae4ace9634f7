#include "runtime/plan/plan_totals.h"

#include <algorithm>
#include <map>

#include "runtime/plan/cost_model.h"

namespace gantry {
namespace {

using Row = PlanTotals::Row;

// Rows by name, in order of appearance.
class RowFinder {
 public:
  explicit RowFinder(std::vector<Row>& rows) : rows_(rows) {}
  Row& operator()(const std::string& name) {
    const auto [found, added] = index_.try_emplace(name, rows_.size());
    if (added) rows_.push_back({.name = name});
    return rows_[found->second];
  }

 private:
  std::vector<Row>& rows_;
  std::map<std::string, size_t> index_;
};

void AddStep(const StepCost& step, Row& row) {
  if (step.tier == kDeviceTier) {
    ++row.ops;
    row.seconds += step.seconds;
    return;
  }
  (step.out ? row.out_bytes : row.in_bytes) += step.bytes;
  (step.out ? row.out_seconds : row.in_seconds) += step.seconds;
}

// What is live on the device at each step.
std::vector<int64_t> Live(std::span<const PlannedBuffer> buffers, size_t steps) {
  std::vector<int64_t> live(steps + 1, 0);
  for (const PlannedBuffer& buffer : buffers) {
    if (buffer.tier != kDeviceTier) continue;
    live[std::min(static_cast<size_t>(buffer.lower), steps)] += buffer.bytes;
    live[std::min(static_cast<size_t>(buffer.upper), steps)] -= buffer.bytes;
  }
  for (size_t step = 1; step <= steps; ++step) live[step] += live[step - 1];
  live.pop_back();
  return live;
}

// The most bytes of one network that are on the device at once.
std::map<std::string, int64_t> NetworkPeaks(std::span<const PlannedBuffer> buffers) {
  std::map<std::string, std::map<int, int64_t>> changes;  // by step
  for (const PlannedBuffer& buffer : buffers) {
    if (buffer.tier != kDeviceTier) continue;
    changes[buffer.network][buffer.lower] += buffer.bytes;
    changes[buffer.network][buffer.upper] -= buffer.bytes;
  }
  std::map<std::string, int64_t> peaks;
  for (const auto& [network, by_step] : changes) {
    int64_t live = 0;
    for (const auto& [step, bytes] : by_step) peaks[network] = std::max(peaks[network], live += bytes);
  }
  return peaks;
}

std::string Table(std::string_view title, const std::vector<Row>& rows) {
  std::string text = absl::StrFormat("%-20s %7s %10s %14s %14s %10s %14s %10s\n", title, "ops", "seconds", "peak bytes", "bytes out", "lane s", "bytes in", "lane s");
  for (const Row& row : rows) {
    absl::StrAppend(&text, absl::StrFormat("  %-18s %7d %10.4g %14d %14d %10.4g %14d %10.4g\n", row.name.empty() ? "(none)" : row.name, row.ops, row.seconds,
                                           row.peak_bytes, row.out_bytes, row.out_seconds, row.in_bytes, row.in_seconds));
  }
  return text;
}

std::string TableDifference(std::string_view title, const std::vector<Row>& from, const std::vector<Row>& to) {
  std::vector<std::string> names;
  std::map<std::string, std::pair<Row, Row>> pairs;
  const auto Add = [&](const std::vector<Row>& rows, Row std::pair<Row, Row>::* side) {
    for (const Row& row : rows) {
      const auto [found, added] = pairs.try_emplace(row.name);
      if (added) names.push_back(row.name);
      found->second.*side = row;
    }
  };
  Add(from, &std::pair<Row, Row>::first);
  Add(to, &std::pair<Row, Row>::second);
  std::string text;
  for (const std::string& name : names) {
    const auto& [a, b] = pairs.at(name);
    std::string line;
    const auto Number = [&](std::string_view what, int64_t before, int64_t after) {
      if (before != after) absl::StrAppend(&line, absl::StrFormat("%s%s %d -> %d", line.empty() ? "" : ", ", what, before, after));
    };
    const auto Seconds = [&](std::string_view what, double before, double after) {
      if (before != after) absl::StrAppend(&line, absl::StrFormat("%s%s %.4g -> %.4g", line.empty() ? "" : ", ", what, before, after));
    };
    Number("ops", a.ops, b.ops);
    Seconds("seconds", a.seconds, b.seconds);
    Number("peak bytes", a.peak_bytes, b.peak_bytes);
    Number("bytes out", a.out_bytes, b.out_bytes);
    Seconds("seconds out", a.out_seconds, b.out_seconds);
    Number("bytes in", a.in_bytes, b.in_bytes);
    Seconds("seconds in", a.in_seconds, b.in_seconds);
    if (!line.empty()) absl::StrAppend(&text, absl::StrFormat("%s %s: %s\n", title, name.empty() ? "(none)" : name, line));
  }
  return text;
}

}  // namespace

std::vector<StepCost> StepCosts(const Plan& plan, const PlanOptions& options) {
  const CostModel costs(options);
  std::vector<ResidencyTier> tiers;
  for (const PlannedTier& tier : plan.tiers) tiers.push_back(costs.TierOf(tier.options));
  std::vector<StepCost> steps;
  for (const PlannedOp& planned : plan.schedule) {
    const Op& op = plan.program.ops()[planned.op];
    StepCost step{.phase = plan.program.labels()[op.phase], .network = plan.program.labels()[op.network]};
    if (op.definition->communicates) {
      step.purpose = op.attributes.String("purpose");
      step.bytes = LinkBytes(plan.program, planned.op);
      if (planned.done_by >= 0) step.lane = LaneOf(*op.definition, op.attributes);
    }
    if (op.definition->moves) {
      step.lane = PlanLane::kCopy;
      const Value& from = plan.program.values()[op.inputs[0]];
      step.out = plan.program.values()[op.outputs[0]].tier != kDeviceTier;
      step.tier = step.out ? plan.program.values()[op.outputs[0]].tier : from.tier;
      step.bytes = from.type.size_bytes();
      const ResidencyTier& tier = tiers[step.tier];
      step.seconds = tier.latency_seconds + static_cast<double>(step.bytes) / (step.out ? tier.out_bytes_per_second : tier.in_bytes_per_second);
    } else if (planned.kernel != nullptr) {
      step.seconds = costs.Seconds(plan.program, planned.op, planned.kernel.get());
    }
    steps.push_back(std::move(step));
  }
  return steps;
}

PlanTotals TotalsOf(std::span<const StepCost> steps, std::span<const PlannedBuffer> buffers, std::span<const std::pair<std::string, int64_t>> tiers) {
  PlanTotals totals;
  for (const auto& [name, bytes] : tiers) totals.tiers.push_back({.name = name, .peak_bytes = bytes});
  const std::vector<int64_t> live = Live(buffers, steps.size());
  RowFinder phases(totals.phases), networks(totals.networks);
  for (size_t index = 0; index < steps.size(); ++index) {
    const StepCost& step = steps[index];
    Row& phase = phases(step.phase);
    AddStep(step, phase);
    phase.peak_bytes = std::max(phase.peak_bytes, live[index]);
    AddStep(step, networks(step.network));
    if (step.tier >= 0 && step.tier < static_cast<int>(totals.tiers.size())) AddStep(step, totals.tiers[step.tier]);
  }
  const std::map<std::string, int64_t> peaks = NetworkPeaks(buffers);
  for (Row& row : totals.networks) {
    if (const auto found = peaks.find(row.name); found != peaks.end()) row.peak_bytes = found->second;
  }
  return totals;
}

std::string Describe(const PlanTotals& totals) {
  std::string text = absl::StrCat(Table("by phase", totals.phases), Table("by network", totals.networks));
  if (!totals.tiers.empty()) text += Table("by tier", totals.tiers);
  return text;
}

std::string DescribeDifference(const PlanTotals& from, const PlanTotals& to) {
  return absl::StrCat(TableDifference("phase", from.phases, to.phases), TableDifference("network", from.networks, to.networks),
                      TableDifference("tier", from.tiers, to.tiers));
}

}  // namespace gantry
