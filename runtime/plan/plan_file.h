// A plan as a file: JSON, docs/reference/plan-file.md describes it. Carrying out a plan from a file plans nothing again.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/plan/plan.h"

namespace gantry {

inline constexpr std::string_view kPlanFormat = "gantry-plan-2";
inline constexpr size_t kMaxPlanFileBytes = size_t{1} << 30;

std::string PlanToJson(const Plan& plan);

// The plan of `text` for `program`. kInvalidArgument where it is no plan, is damaged, or was made for another program, machine or
// version: the message says what differs. The result has passed VerifyPlan.
absl::StatusOr<Plan> PlanFromJson(std::string_view text, const Program& program, const PlanOptions& options);

// What can be said of a plan file without its program.
struct PlanSummary {
  std::string version, program, machine, costs;
  std::string parallel;  // empty: a plan of one rank
  int64_t arena_bytes = 0, lower_bound_bytes = 0;
  PlannedResidency residency;
  int ops = 0;
  struct Tier {
    std::string name;
    int64_t bytes = 0;
  };
  std::vector<Tier> tiers;
  std::vector<PlannedLoan> loans;
  std::vector<PlannedBuffer> buffers;
  std::vector<StepCost> steps;
};
absl::StatusOr<PlanSummary> SummarizePlan(std::string_view text);
// The checker of files alone: no two buffers that are live together overlap, nothing lies outside its slab, what is lent lies behind the
// arena, the budget is held.
// kFailedPrecondition names what does not hold.
absl::Status CheckSummary(const PlanSummary& plan);
std::string Describe(const PlanSummary& plan);
// What changes from one to the other: totals, then buffers that come, go, move between tiers or change their size.
std::string DescribeDifference(const PlanSummary& from, const PlanSummary& to);

}  // namespace gantry
