// Where a plan's bytes and seconds go: by phase, by network and by tier.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "runtime/plan/plan.h"

namespace gantry {

struct PlanTotals {
  struct Row {
    std::string name;
    int ops = 0;
    double seconds = 0.0;        // of its ops, without copies
    int64_t peak_bytes = 0;      // phase: most on the device during it; network: most of its own on the device; tier: its slab
    int64_t out_bytes = 0, in_bytes = 0;
    double out_seconds = 0.0, in_seconds = 0.0;  // of copies on their lanes, beside compute
  };
  std::vector<Row> phases, networks, tiers;  // in order of appearance; "" for what belongs to none
};

// Per step of the plan's schedule, by the costs of `options`.
std::vector<StepCost> StepCosts(const Plan& plan, const PlanOptions& options);
// `buffers` as in Plan; `tiers` by name with their slabs' bytes.
PlanTotals TotalsOf(std::span<const StepCost> steps, std::span<const PlannedBuffer> buffers, std::span<const std::pair<std::string, int64_t>> tiers);

std::string Describe(const PlanTotals& totals);
// Lines of what differs; empty where nothing does.
std::string DescribeDifference(const PlanTotals& from, const PlanTotals& to);

}  // namespace gantry
