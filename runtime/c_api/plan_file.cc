// Plan files, to look at without their model.
#include "runtime/plan/plan_file.h"

#include "runtime/c_api/call.h"
#include "runtime/c_api/handles.h"
#include "runtime/data/file.h"
#include "runtime/include/gantry/gantry.h"

using namespace gantry;
using namespace gantry::c_api;

struct gantry_plan_file {
  PlanSummary summary;
  std::string text;
};

namespace gantry::c_api {

absl::Status WritePlan(const std::string& path, const Plan& plan) {
  const std::string text = PlanToJson(plan);
  return WriteFileAtomically(path, std::as_bytes(std::span(text.data(), text.size())));
}

}  // namespace gantry::c_api

extern "C" {

gantry_status gantry_plan_file_open(const char* path, gantry_plan_file** file) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("path, file", path, file));
    *file = nullptr;
    GANTRY_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadFile(path, kMaxPlanFileBytes));
    absl::StatusOr<PlanSummary> summary = SummarizePlan({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    if (!summary.ok()) return Error(GANTRY_BAD_DATA, absl::StrCat(path, ": ", ToAbsl(Message(summary.status()))));
    *file = new gantry_plan_file{*std::move(summary), ""};
    return absl::OkStatus();
  });
}

void gantry_plan_file_destroy(gantry_plan_file* file) { delete file; }

gantry_status gantry_plan_file_text(gantry_plan_file* file, const char** text) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("file, text", file, text));
    file->text = Describe(file->summary);
    *text = file->text.c_str();
    return absl::OkStatus();
  });
}

gantry_status gantry_plan_file_diff(gantry_plan_file* file, const gantry_plan_file* other, const char** text) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("file, other, text", file, other, text));
    file->text = DescribeDifference(file->summary, other->summary);
    *text = file->text.c_str();
    return absl::OkStatus();
  });
}

gantry_status gantry_plan_file_check(const gantry_plan_file* file) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("file", file));
    return CheckSummary(file->summary);
  });
}

}  // extern "C"
