#include "runtime/gan/plan_files.h"

#include <filesystem>

#include "runtime/data/file.h"
#include "runtime/plan/plan_file.h"

namespace gantry {

std::string RankPlanFile(const std::string& folder, int rank) { return absl::StrFormat("%s/rank-%d.json", folder, rank); }

namespace {

std::string FileOf(const std::string& path, int rank) {
  std::error_code error;
  return std::filesystem::is_directory(path, error) ? RankPlanFile(path, rank) : path;
}

absl::StatusOr<std::string> ReadText(const std::string& file) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadFile(file, kMaxPlanFileBytes));
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

}  // namespace

absl::StatusOr<Plan> ReadPlan(const std::string& path, int rank, const Program& program, const PlanOptions& options) {
  const std::string file = FileOf(path, rank);
  GANTRY_ASSIGN_OR_RETURN(const std::string text, ReadText(file));
  absl::StatusOr<Plan> plan = PlanFromJson(text, program, options);
  if (!plan.ok()) return Annotate(plan.status(), file);
  return plan;
}

absl::StatusOr<std::string> PlannedSplit(const std::string& path, int rank) {
  const std::string file = FileOf(path, rank);
  GANTRY_ASSIGN_OR_RETURN(const std::string text, ReadText(file));
  absl::StatusOr<PlanSummary> plan = SummarizePlan(text);
  if (!plan.ok()) return Annotate(plan.status(), file);
  if (plan->parallel.empty()) return absl::InvalidArgumentError(absl::StrCat(file, ": is a plan of one rank; make one of all ranks with gantry plan --ranks"));
  return plan->parallel;
}

}  // namespace gantry
