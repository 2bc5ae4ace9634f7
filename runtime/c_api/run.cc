#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "runtime/c_api/call.h"
#include "runtime/c_api/handles.h"
#include "runtime/gan/trainer.h"

using namespace gantry;
using namespace gantry::c_api;

struct gantry_run {
  std::shared_ptr<SharedContext> context;
  std::unique_ptr<Trainer> trainer;  // goes before the context
  bool started = false, stopped = false;
  std::string text;                  // what the last call that returns text gave
  std::string samples_path, checkpoint_path, exposed_text;
  std::chrono::steady_clock::time_point first_step;
};

namespace gantry::c_api {

absl::StatusOr<RunConfig> ReadRun(const char* path, size_t override_count, const char* const* overrides) {
  RunConfigSources sources;
  sources.environment = GantryEnvironment();
  if (override_count > 0) GANTRY_RETURN_IF_ERROR(RequireNonNull("overrides", overrides));
  for (size_t i = 0; i < override_count; ++i) {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("overrides", overrides[i]));
    sources.overrides.emplace_back(overrides[i]);
  }
  absl::StatusOr<RunConfig> config = LoadRunConfig(path, std::move(sources));
  if (!config.ok()) return FromFile(config.status());
  return config;
}

}  // namespace gantry::c_api

namespace {

// Settings of the user: a wrong one is the file's fault. A kFailedPrecondition about the folder stays one.
absl::Status FromRun(const absl::Status& status) {
  return status.GetPayload(kOutputPayload).has_value() ? ToFile(status) : FromFile(status);
}

// 0 where steps do not end the run.
int64_t TotalSteps(const Trainer& trainer) { return trainer.total_steps() == INT64_MAX ? 0 : trainer.total_steps(); }

// An estimate of the seconds to the run's end: by its rate, or by its clock if that comes first.
double SecondsLeft(const gantry_run& run, const StepReport& step) {
  double left = HUGE_VAL;
  const RunConfig& config = run.trainer->config();
  if (const int64_t total = TotalSteps(*run.trainer); total > 0 && step.images_per_second > 0) {
    left = static_cast<double>((total - step.step) * config.images_per_step()) / step.images_per_second;
  }
  if (config.minutes > 0) {
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - run.first_step;
    left = std::min(left, std::max(0.0, 60 * config.minutes - elapsed.count()));
  }
  return left;
}

gantry_status GiveText(gantry_run* run, const char** text, absl::StatusOr<std::string> (*make)(gantry_run& run)) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("run, text", run, text));
    GANTRY_ASSIGN_OR_RETURN(run->text, make(*run));
    *text = run->text.c_str();
    return absl::OkStatus();
  });
}

gantry_status GivePath(gantry_run* run, const char** path, absl::StatusOr<std::string> (Trainer::*write)()) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("run", run));
    absl::StatusOr<std::string> written = ((*run->trainer).*write)();
    if (!written.ok()) run->trainer->session().Abandon();
    if (!written.ok()) return FromRun(run->context->FromRanks(written.status()));
    run->text = *std::move(written);
    if (path != nullptr) *path = run->text.c_str();
    return absl::OkStatus();
  });
}

}  // namespace

extern "C" {

gantry_status gantry_run_open(gantry_context* context, const char* path, size_t override_count, const char* const* overrides,
                              gantry_run** run) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("context, path, run", context, path, run));
    GANTRY_ASSIGN_OR_RETURN(RunConfig config, ReadRun(path, override_count, overrides));
    auto made = std::make_unique<gantry_run>();
    made->context = context->shared;
    TrainerOptions options;
    options.warn = [shared = context->shared](std::string_view message) { shared->Log(GANTRY_LOG_WARNING, message); };
    options.inform = [shared = context->shared](std::string_view message) { shared->Log(GANTRY_LOG_INFO, message); };
    options.ranks = context->shared->ranks.get();
    options.keeping = context->shared->keeping.get();
    absl::StatusOr<std::unique_ptr<Trainer>> trainer = Trainer::Create(std::move(config), *made->context->device, std::move(options));
    if (!trainer.ok()) return FromRun(context->shared->FromRanks(trainer.status()));
    made->trainer = *std::move(trainer);
    *run = made.release();
    return absl::OkStatus();
  });
}

void gantry_run_destroy(gantry_run* run) {
  if (run != nullptr) run->trainer.reset();
  delete run;
}

gantry_status gantry_run_resume(gantry_run* run, const char* checkpoint) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("run, checkpoint", run, checkpoint));
    if (run->started) return Error(GANTRY_FAILED_PRECONDITION, "a run can be resumed before its first step only: open it anew");
    return FromRun(run->trainer->Resume(checkpoint));
  });
}

gantry_status gantry_run_restart(gantry_run* run, const char* checkpoint, const char** text) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("run, text", run, text));
    if (run->started) return Error(GANTRY_FAILED_PRECONDITION, "a run can be resumed before its first step only: open it anew");
    absl::StatusOr<std::string> how = run->trainer->Restart(checkpoint == nullptr ? "" : checkpoint);
    if (!how.ok()) return FromRun(run->context->FromRanks(how.status()));
    run->text = *std::move(how);
    *text = run->text.c_str();
    return absl::OkStatus();
  });
}

gantry_status gantry_run_plan_info(const gantry_run* run, gantry_plan_info* info) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("run, info", run, info));
    return WriteStruct(info, PlanInfo(run->trainer->session().plan()), "gantry_plan_info");
  });
}

gantry_status gantry_run_write_plan(gantry_run* run, const char* path) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("run, path", run, path));
    return WritePlan(path, run->trainer->session().plan());
  });
}

gantry_status gantry_run_tier(const gantry_run* run, size_t index, gantry_tier_info* info) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("run", run));
    return WriteTierInfo(run->trainer->session(), index, info);
  });
}

gantry_status gantry_run_plan_text(gantry_run* run, const char** text) {
  return GiveText(run, text, [](gantry_run& of) -> absl::StatusOr<std::string> { return Describe(of.trainer->session().plan()); });
}

gantry_status gantry_run_program_text(gantry_run* run, int32_t executed, const char** text) {
  if (executed != 0) {
    return GiveText(run, text, [](gantry_run& of) -> absl::StatusOr<std::string> { return of.trainer->session().plan().program.Dump(); });
  }
  return GiveText(run, text, [](gantry_run& of) -> absl::StatusOr<std::string> {
    const GanSession& session = of.trainer->session();
    GANTRY_ASSIGN_OR_RETURN(const Program program, BuildGanStep(session.options().step, session.generators(), session.discriminators()));
    return program.Dump();
  });
}

gantry_status gantry_run_config_text(gantry_run* run, const char** text) {
  return GiveText(run, text, [](gantry_run& of) -> absl::StatusOr<std::string> { return ToToml(of.trainer->config()); });
}

gantry_status gantry_run_data_text(gantry_run* run, const char** text) {
  return GiveText(run, text, [](gantry_run& of) -> absl::StatusOr<std::string> { return of.trainer->data_set().Describe(); });
}

const char* gantry_run_parallel(const gantry_run* run) { return run == nullptr ? nullptr : run->trainer->config().parallel.c_str(); }

uint64_t gantry_run_high_water_bytes(const gantry_run* run) {
  return run == nullptr ? 0 : static_cast<uint64_t>(run->trainer->session().high_water_bytes());
}
const char* gantry_run_folder(const gantry_run* run) {
  return run == nullptr ? nullptr : run->trainer->config().output.directory.c_str();
}
int32_t gantry_run_finished(const gantry_run* run) { return run != nullptr && run->trainer->finished() ? 1 : 0; }
int64_t gantry_run_step_count(const gantry_run* run) { return run == nullptr ? 0 : run->trainer->progress().steps; }
int64_t gantry_run_first_step(const gantry_run* run) { return run == nullptr ? 0 : run->trainer->first_step_of_job(); }
int64_t gantry_run_total_steps(const gantry_run* run) { return run == nullptr ? 0 : TotalSteps(*run->trainer); }

gantry_status gantry_run_step(gantry_run* run, gantry_step_report* report) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("run", run));
    if (report != nullptr) GANTRY_RETURN_IF_ERROR(CheckStruct(report, report->struct_size, sizeof(*report), "gantry_step_report"));
    if (run->stopped) {
      return Error(GANTRY_FAILED_PRECONDITION, "a step before this one ended with a NaN or infinity: open the run anew and resume it");
    }
    if (!run->started) run->first_step = std::chrono::steady_clock::now();
    run->started = true;
    absl::StatusOr<StepReport> step = run->trainer->Step();
    if (!step.ok()) run->trainer->session().Abandon();
    if (absl::IsDataLoss(step.status())) {
      run->stopped = true;
      return WithCode(step.status(), GANTRY_NOT_FINITE);
    }
    if (!step.ok()) return FromRun(run->context->FromRanks(step.status()));
    if (report == nullptr) return absl::OkStatus();
    run->samples_path = step->samples_path;
    run->checkpoint_path = step->checkpoint_path;
    gantry_step_report result = GANTRY_STEP_REPORT_INIT;
    result.step = step->step;
    result.total_steps = TotalSteps(*run->trainer);
    result.images = step->images;
    result.discriminator_loss = step->discriminator_loss;
    result.generator_loss = step->generator_loss;
    result.seconds = step->seconds;
    result.data_wait_seconds = step->data_wait_seconds;
    result.images_per_second = step->images_per_second;
    result.seconds_left = SecondsLeft(*run, *step);
    result.logged = step->logged ? 1 : 0;
    result.collapsed = run->trainer->collapsed() ? 1 : 0;
    result.samples_path = run->samples_path.c_str();
    result.checkpoint_path = run->checkpoint_path.c_str();
    run->exposed_text.clear();
    for (const ExposedWait& wait : step->exposed) {
      absl::StrAppendFormat(&run->exposed_text, "%s%s %.1f ms", run->exposed_text.empty() ? "" : ", ", wait.kind, 1e3 * wait.seconds);
    }
    result.exposed_seconds = step->exposed_seconds;
    result.exposed_text = run->exposed_text.c_str();
    return WriteStruct(report, result, "gantry_step_report");
  });
}

gantry_status gantry_run_agree(gantry_run* run, int32_t mine, int32_t* any) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("run, any", run, any));
    const absl::StatusOr<double> largest = run->trainer->session().AgreeOn(mine != 0 ? 1.0 : 0.0);
    if (!largest.ok()) return run->context->FromRanks(largest.status());
    *any = *largest > 0.0 ? 1 : 0;
    return absl::OkStatus();
  });
}

gantry_status gantry_run_read_scalar(const gantry_run* run, const char* name, double* value) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("run, name, value", run, name, value));
    GANTRY_ASSIGN_OR_RETURN(*value, run->trainer->session().Scalar(name));
    return absl::OkStatus();
  });
}

gantry_status gantry_run_save(gantry_run* run, const char** path) { return GivePath(run, path, &Trainer::Save); }
gantry_status gantry_run_write_samples(gantry_run* run, const char** path) { return GivePath(run, path, &Trainer::WriteSamples); }
gantry_status gantry_run_finish(gantry_run* run, const char** summary) { return GivePath(run, summary, &Trainer::Finish); }

gantry_status gantry_checkpoint_sample(gantry_context* context, const char* source, int64_t count, uint64_t noise_seed, int32_t use_average,
                                       gantry_array** samples) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("context, source, samples", context, source, samples));
    std::string path = source;
    if (std::filesystem::path(path).extension() == ".toml") {
      absl::StatusOr<RunConfig> config = LoadRunConfig(path, RunConfigSources{.environment = GantryEnvironment()});
      if (!config.ok()) return FromRun(config.status());
      path = config->output.directory;
    }
    absl::StatusOr<Samples> drawn = SampleCheckpoint(path, count, noise_seed, use_average != 0, *context->shared->device);
    if (!drawn.ok()) return FromFile(drawn.status());
    GANTRY_ASSIGN_OR_RETURN(HostArray array, HostArray::FromValues(drawn->shape, std::span<const float>(drawn->values)));
    *samples = new gantry_array{std::move(array)};
    return absl::OkStatus();
  });
}

}  // extern "C"
