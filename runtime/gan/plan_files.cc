#include "runtime/gan/plan_files.h"

#include <filesystem>

#include "runtime/data/file.h"
#include "runtime/plan/plan_file.h"

namespace gantry {

std::string RankPlanFile(const std::string& folder, int rank) { return absl::StrFormat("%s/rank-%d.json", folder, rank); }

absl::StatusOr<Plan> ReadPlan(const std::string& path, int rank, const Program& program, const PlanOptions& options) {
  std::error_code error;
  const std::string file = std::filesystem::is_directory(path, error) ? RankPlanFile(path, rank) : path;
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadFile(file, kMaxPlanFileBytes));
  absl::StatusOr<Plan> plan = PlanFromJson({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, program, options);
  if (!plan.ok()) return Annotate(plan.status(), file);
  return plan;
}

}  // namespace gantry
