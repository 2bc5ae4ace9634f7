// Plan files of one rank, and of all ranks of a job: a folder with one for each.
#pragma once

#include <string>

#include "runtime/plan/plan.h"

namespace gantry {

// "FOLDER/rank-3.json"
std::string RankPlanFile(const std::string& folder, int rank);

// The plan in `path`, or where that is a folder, this rank's in it. Errors as PlanFromJson and ReadFile, with the file's name.
absl::StatusOr<Plan> ReadPlan(const std::string& path, int rank, const Program& program, const PlanOptions& options);

// How the ranks share out the step, as this rank's plan says: Parallel::Text. kInvalidArgument where it does not, being a plan of one rank.
absl::StatusOr<std::string> PlannedSplit(const std::string& path, int rank);

}  // namespace gantry
