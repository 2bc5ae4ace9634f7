#include <filesystem>
#include <optional>
#include <system_error>

#include "runtime/c_api/call.h"
#include "runtime/c_api/handles.h"
#include "runtime/gan/calibrate.h"
#include "runtime/gan/machine_file.h"
#include "runtime/gan/plan_files.h"
#include "runtime/gan/run_planning.h"
#include "runtime/simulate/topology.h"

using namespace gantry;
using namespace gantry::c_api;

struct gantry_planning {
  std::unique_ptr<RunPlanning> run;
  std::optional<Plan> plan;
  std::optional<WhatIf> what_if;
  std::optional<JobPlan> job;
  SplitSearch search;
  std::string text;
};

namespace {

absl::Status RequirePlanned(const gantry_planning* planning) {
  GANTRY_RETURN_IF_ERROR(RequireNonNull("planning", planning));
  if (!planning->plan) return Error(GANTRY_FAILED_PRECONDITION, "call gantry_planning_plan first");
  return absl::OkStatus();
}

absl::Status RequireAsked(const gantry_planning* planning) {
  GANTRY_RETURN_IF_ERROR(RequireNonNull("planning", planning));
  if (!planning->what_if) return Error(GANTRY_FAILED_PRECONDITION, "call gantry_planning_what_if first");
  return absl::OkStatus();
}

}  // namespace

extern "C" {

gantry_status gantry_planning_open(gantry_context* context, const char* path, size_t override_count, const char* const* overrides,
                                   gantry_planning** planning) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("context, path, planning", context, path, planning));
    GANTRY_ASSIGN_OR_RETURN(RunConfig config, ReadRun(path, override_count, overrides));
    absl::StatusOr<std::unique_ptr<RunPlanning>> run = RunPlanning::Create(std::move(config), context->shared->device->thread_count());
    if (!run.ok()) return FromFile(run.status());
    auto made = std::make_unique<gantry_planning>();
    made->run = *std::move(run);
    *planning = made.release();
    return absl::OkStatus();
  });
}

void gantry_planning_destroy(gantry_planning* planning) { delete planning; }

gantry_status gantry_planning_plan(gantry_planning* planning, gantry_plan_info* info) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("planning", planning));
    if (info != nullptr) GANTRY_RETURN_IF_ERROR(CheckStruct(info, info->struct_size, sizeof(*info), "gantry_plan_info"));
    if (!planning->plan) {
      absl::StatusOr<Plan> plan = planning->run->MakePlan();
      if (!plan.ok()) return FromFile(plan.status());
      planning->plan = *std::move(plan);
    }
    return info == nullptr ? absl::OkStatus() : WriteStruct(info, PlanInfo(*planning->plan), "gantry_plan_info");
  });
}

gantry_status gantry_planning_plan_text(gantry_planning* planning, const char** text) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("text", text));
    GANTRY_RETURN_IF_ERROR(RequirePlanned(planning));
    planning->text = Describe(*planning->plan);
    *text = planning->text.c_str();
    return absl::OkStatus();
  });
}

gantry_status gantry_planning_write_plan(gantry_planning* planning, const char* path) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("path", path));
    GANTRY_RETURN_IF_ERROR(RequirePlanned(planning));
    return WritePlan(path, *planning->plan);
  });
}

gantry_status gantry_planning_ranks(gantry_planning* planning, const gantry_ranks_config* config) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("planning", planning));
    GANTRY_ASSIGN_OR_RETURN(const gantry_ranks_config given, ReadStruct(config, gantry_ranks_config GANTRY_RANKS_CONFIG_INIT, "gantry_ranks_config"));
    if (given.ranks < 0 || given.nodes < 0 || given.nodes > 65536) return Error(GANTRY_INVALID_ARGUMENT, "ranks and nodes must not be negative, nodes at most 65536");
    SplitSearch search;
    absl::StatusOr<JobPlan> job = planning->run->PlanRanks(given.ranks, given.nodes, std::string(Text(given.parallel)), search);
    if (!job.ok()) return FromFile(job.status());
    planning->job = *std::move(job);
    planning->search = std::move(search);
    return absl::OkStatus();
  });
}

gantry_status gantry_planning_ranks_text(gantry_planning* planning, int32_t json, const char** text) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("planning, text", planning, text));
    if (!planning->job) return Error(GANTRY_FAILED_PRECONDITION, "call gantry_planning_ranks first");
    planning->text = json != 0 ? ToJson(*planning->job) : Describe(*planning->job);
    if (json == 0 && planning->search.taken >= 0) planning->text = absl::StrCat(Describe(planning->search), "\n", planning->text);
    *text = planning->text.c_str();
    return absl::OkStatus();
  });
}

gantry_status gantry_planning_write_ranks(gantry_planning* planning, const char* path) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("planning, path", planning, path));
    if (!planning->job) return Error(GANTRY_FAILED_PRECONDITION, "call gantry_planning_ranks first");
    if (std::string_view(path).ends_with(".json")) return WritePlan(path, planning->job->ClassOf(0).plan);
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) return Error(GANTRY_CANNOT_CREATE, absl::StrFormat("%s: cannot be made: %s", path, error.message()));
    return planning->run->ForEachPlan(*planning->job, [&](int rank, const Plan& plan) { return WritePlan(RankPlanFile(path, rank), plan); });
  });
}

gantry_status gantry_planning_what_if(gantry_planning* planning, size_t* count) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("planning, count", planning, count));
    absl::StatusOr<WhatIf> what_if = planning->run->AskWhatIf();
    if (!what_if.ok()) return FromFile(what_if.status());
    planning->what_if = *std::move(what_if);
    *count = planning->what_if->answers.size();
    return absl::OkStatus();
  });
}

gantry_status gantry_planning_answer(const gantry_planning* planning, size_t index, gantry_what_if* answer) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("answer", answer));
    GANTRY_RETURN_IF_ERROR(RequireAsked(planning));
    if (index >= planning->what_if->answers.size()) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("there are %d answers, not %d", planning->what_if->answers.size(), index + 1));
    }
    const WhatIfAnswer& from = planning->what_if->answers[index];
    gantry_what_if result = GANTRY_WHAT_IF_INIT;
    result.topic = from.topic.c_str();
    result.what = from.what.c_str();
    result.flags = from.flags.c_str();
    result.fits = from.fits ? 1 : 0;
    result.batch = from.batch;
    result.peak_bytes = static_cast<uint64_t>(from.peak_bytes);
    result.tier_bytes = static_cast<uint64_t>(from.tier_bytes);
    result.seconds = from.seconds;
    return WriteStruct(answer, result, "gantry_what_if");
  });
}

gantry_status gantry_planning_what_if_text(gantry_planning* planning, int32_t json, const char** text) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("text", text));
    GANTRY_RETURN_IF_ERROR(RequireAsked(planning));
    planning->text = json != 0 ? ToJson(*planning->what_if) : Describe(*planning->what_if);
    *text = planning->text.c_str();
    return absl::OkStatus();
  });
}

gantry_status gantry_context_machine_text(gantry_context* context, const char* machine, int32_t nodes, int32_t json, const char** text) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("context, machine, text", context, machine, text));
    if (Text(machine).empty() || Text(machine) == "none") return Error(GANTRY_INVALID_ARGUMENT, "machine names no description");
    absl::StatusOr<std::shared_ptr<const Machine>> known = FindMachine(machine);
    if (!known.ok()) return FromFile(known.status());
    GANTRY_ASSIGN_OR_RETURN(const TopologyNode job, DescribedTopology(**known, nodes));
    context->text = json != 0 ? FormatTopologyJson(job) : FormatTopology(job);
    *text = context->text.c_str();
    return absl::OkStatus();
  });
}

gantry_status gantry_calibrate(gantry_context* context, const gantry_calibrate_config* config, gantry_calibration* result) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("context", context));
    GANTRY_ASSIGN_OR_RETURN(const gantry_calibrate_config given,
                            ReadStruct(config, gantry_calibrate_config GANTRY_CALIBRATE_CONFIG_INIT, "gantry_calibrate_config"));
    if (result != nullptr) GANTRY_RETURN_IF_ERROR(CheckStruct(result, result->struct_size, sizeof(*result), "gantry_calibration"));
    if (given.steps < 0 || given.steps > 1000) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("steps is %d; it must be 1 to 1000, or 0 for 3", given.steps));
    }
    SharedContext& shared = *context->shared;
    const std::string path = Text(given.out).empty() ? CalibrationPath() : std::string(given.out);
    if (path.empty()) {
      return Error(GANTRY_FAILED_PRECONDITION, "there is no place to keep it: name a file, or set XDG_CACHE_HOME or HOME");
    }
    gantry_calibration written = GANTRY_CALIBRATION_INIT;
    if (path.size() >= sizeof(written.path)) return Error(GANTRY_INVALID_ARGUMENT, "the path of the machine file is too long");
    std::optional<RunConfig> run;
    if (given.run != nullptr) {
      GANTRY_ASSIGN_OR_RETURN(run, ReadRun(given.run, given.override_count, given.overrides));
    }
    CalibrateOptions options{.directory = std::string(Text(given.directory))};
    if (given.steps > 0) options.steps = given.steps;
    options.progress = [&](std::string_view line) { shared.Log(GANTRY_LOG_INFO, line); };
    JobRanks* const ranks = shared.ranks.get();
    if (ranks != nullptr && !run) return Error(GANTRY_INVALID_ARGUMENT, "ranks are measured at a run's step: name a run file");
    const bool first = ranks == nullptr || ranks->rank() == 0;
    const auto Known = [&]() -> absl::StatusOr<Machine> {
      std::error_code error;
      if (!run || !std::filesystem::exists(path, error)) return Calibrate(options, *shared.device);
      absl::StatusOr<std::shared_ptr<const Machine>> known = FindMachine(path);
      if (!known.ok()) return FromFile(known.status());
      return **known;
    };
    absl::StatusOr<Machine> machine = first ? Known() : Machine();
    if (ranks != nullptr) {
      const absl::StatusOr<std::string> text = ranks->FromFirst(machine.ok() ? ToToml(*machine) : absl::StatusOr<std::string>(machine.status()));
      GANTRY_RETURN_IF_ERROR(shared.FromRanks(text.status()));
      machine = ParseMachine(*text, path);
    }
    GANTRY_RETURN_IF_ERROR(machine.status());
    if (run) {
      absl::StatusOr<CalibratedStep> step = CalibrateRun(*run, options.steps, ranks, *machine, *shared.device);
      if (!step.ok()) return FromFile(shared.FromRanks(step.status()));
      written.predicted_seconds = step->predicted_seconds;
      written.measured_seconds = step->measured_seconds;
    }
    if (first) GANTRY_RETURN_IF_ERROR(ToFile(WriteMachine(path, *machine)));
    std::copy(path.begin(), path.end(), written.path);
    return result == nullptr ? absl::OkStatus() : WriteStruct(result, written, "gantry_calibration");
  });
}

}  // extern "C"
