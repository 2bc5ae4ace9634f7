// gantry program show, gantry plan show: what a step does and needs, without running one.
#include <cinttypes>
#include <cstdio>

#include <sys/stat.h>

#include "tools/cli/case_session.h"
#include "tools/cli/commands.h"
#include "tools/cli/run.h"

namespace gantry::cli {
namespace {

bool IsFolder(const std::string& path) {
  struct stat info{};
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// A run's settings are in its file.
void RequireRunOptions(const ModelOptions& options) {
  if (!options.dtype.empty()) throw Failure(kExitUsage, "--dtype is for reference cases; write --set train.dtype=" + options.dtype);
  if (!options.kernels.empty()) throw Failure(kExitUsage, "--kernels is for reference cases; write --set train.kernels=" + options.kernels);
  if (options.gradient_norms) throw Failure(kExitUsage, "--gradient-norms is for reference cases");
}

Gan MakeGan(gantry_context* context, const ModelOptions& options) {
  if (!options.settings.empty()) throw Failure(kExitUsage, "--set is for run files; a reference case has its settings in case.json");
  const ReferenceCase reference = ReadCaseSettings(options.source);
  gantry_gan_config config = reference.config;
  config.kernels = options.kernels == "reference" ? GANTRY_KERNELS_REFERENCE : GANTRY_KERNELS_FAST;
  config.gradient_norms = options.gradient_norms ? 1 : 0;
  Gan gan = MakeCaseSession(context, reference, options.dtype == "f64" ? GANTRY_F64 : GANTRY_F32, config);
  SetMemory(gan.get(), options.memory);
  return gan;
}

void PrintPlan(const gantry_plan_info& info, const char* text) {
  std::printf("peak         %s\nlower bound  %s\nstates       %s\nops          %" PRIu64 "\nbuffers      %" PRIu64 "\n\n%s\n",
              BytesText(info.arena_bytes).c_str(), BytesText(info.lower_bound_bytes).c_str(), BytesText(info.state_bytes).c_str(), info.op_count,
              info.buffer_count, text);
}

using PlanFile = std::unique_ptr<gantry_plan_file, Destroy<gantry_plan_file_destroy>>;

PlanFile OpenPlanFile(const std::string& path) {
  gantry_plan_file* file = nullptr;
  Require(gantry_plan_file_open(path.c_str(), &file));
  return PlanFile(file);
}

// A run or a reference case, planned.
class Planned {
 public:
  explicit Planned(const ModelOptions& options) : context_(MakeContext(0)) {
    if (IsFolder(options.source)) {
      gan_ = MakeGan(context_.get(), options);
      Require(gantry_gan_plan(gan_.get(), &info_), options.source);
      return;
    }
    RequireRunOptions(options);
    run_ = OpenPlanning(context_.get(), options.source, WithMemory(options.settings, options.memory));
    Require(gantry_planning_plan(run_.get(), &info_));
  }
  const gantry_plan_info& info() const { return info_; }
  const char* Text() const {
    const char* text = nullptr;
    Require(gan_ ? gantry_gan_plan_text(gan_.get(), &text) : gantry_planning_plan_text(run_.get(), &text));
    return text;
  }
  void Write(const std::string& path) const {
    Require(gan_ ? gantry_gan_write_plan(gan_.get(), path.c_str()) : gantry_planning_write_plan(run_.get(), path.c_str()));
  }

 private:
  Context context_;
  Gan gan_;
  Planning run_;
  gantry_plan_info info_ = GANTRY_PLAN_INFO_INIT;
};

int PlanRanks(const PlanOptions& options) {
  if (IsFolder(options.model.source)) throw Failure(kExitUsage, "--ranks, --nodes and --parallel of gantry plan are for run files");
  RequireRunOptions(options.model);
  if (!options.model.memory.plan.empty()) throw Failure(kExitUsage, "--plan is a plan of one rank: it does not go with --ranks");
  const Context context = MakeContext(0);
  const Planning planning =
      OpenPlanning(context.get(), options.model.source, WithRanks(WithMemory(options.model.settings, options.model.memory), options.ranks));
  gantry_ranks_config config = GANTRY_RANKS_CONFIG_INIT;
  config.ranks = options.ranks.ranks;
  config.nodes = options.nodes;
  config.parallel = options.ranks.parallel.c_str();
  Require(gantry_planning_ranks(planning.get(), &config));
  if (!options.out.empty()) Require(gantry_planning_write_ranks(planning.get(), options.out.c_str()));
  const char* text = nullptr;
  Require(gantry_planning_ranks_text(planning.get(), options.json ? 1 : 0, &text));
  std::printf("%s%s", text, options.json ? "\n" : "");
  return kExitOk;
}

}  // namespace

int RunProgramShow(const ModelOptions& options) {
  const Context context = MakeContext(0);
  const char* text = nullptr;
  if (IsFolder(options.source)) {
    const Gan gan = MakeGan(context.get(), options);
    if (options.executed) Require(gantry_gan_plan(gan.get(), nullptr), options.source);
    Require(gantry_gan_program_text(gan.get(), options.executed ? 1 : 0, &text), options.source);
    std::printf("%s\n", text);
    return kExitOk;
  }
  RequireRunOptions(options);
  const Run run = OpenRun(context.get(), options.source, WithMemory(options.settings, options.memory));
  Require(gantry_run_program_text(run.get(), options.executed ? 1 : 0, &text));
  std::printf("%s\n", text);
  return kExitOk;
}

int RunPlanShow(const ModelOptions& options) {
  if (options.source.ends_with(".json")) {
    const PlanFile file = OpenPlanFile(options.source);
    const char* text = nullptr;
    Require(gantry_plan_file_text(file.get(), &text));
    std::printf("%s", text);
    return kExitOk;
  }
  const Planned planned(options);
  PrintPlan(planned.info(), planned.Text());
  return kExitOk;
}

int RunPlanWhatIf(const WhatIfOptions& options) {
  if (IsFolder(options.model.source)) throw Failure(kExitUsage, "gantry plan what-if is for run files: a reference case has one batch size only");
  RequireRunOptions(options.model);
  const Context context = MakeContext(0);
  const Planning planning = OpenPlanning(context.get(), options.model.source, WithMemory(options.model.settings, options.model.memory));
  size_t count = 0;
  Require(gantry_planning_what_if(planning.get(), &count));
  const char* text = nullptr;
  Require(gantry_planning_what_if_text(planning.get(), options.json ? 1 : 0, &text));
  std::printf("%s%s", text, options.json ? "\n" : "");
  return kExitOk;
}

int RunCalibrate(const CalibrateOptions& options) {
  if (options.run.empty() && !options.settings.empty()) throw Failure(kExitUsage, "--set is for a run file: name one");
  if (options.run.empty() && options.ranks.ranks > 1) throw Failure(kExitUsage, "--ranks: ranks are measured at a run's step: name a run file");
  StartRanks(options.ranks.ranks, 0);
  const Context context = JoinRanks(options.threads);
  const std::vector<std::string> settings = WithRanks(options.settings, options.ranks);
  std::vector<const char*> overrides;
  for (const std::string& setting : settings) overrides.push_back(setting.c_str());
  gantry_calibrate_config config = GANTRY_CALIBRATE_CONFIG_INIT;
  if (!options.out.empty()) config.out = options.out.c_str();
  if (!options.directory.empty()) config.directory = options.directory.c_str();
  if (!options.run.empty()) config.run = options.run.c_str();
  config.overrides = overrides.data();
  config.override_count = overrides.size();
  config.steps = options.steps;
  gantry_calibration result = GANTRY_CALIBRATION_INIT;
  Together(context.get(), [&] { Require(gantry_calibrate(context.get(), &config, &result)); });
  if (result.measured_seconds > 0) {
    std::printf("step         %.4g s predicted, %.4g s measured (%+.1f %%)\n", result.predicted_seconds, result.measured_seconds,
                100 * (result.predicted_seconds / result.measured_seconds - 1));
  }
  std::printf("machine file %s\n", result.path);
  return kExitOk;
}

int RunPlanMake(const PlanOptions& options) {
  if (options.model.source.empty()) throw Failure(kExitUsage, "name a run file or the folder of a reference case");
  if (options.of_ranks()) return PlanRanks(options);
  if (options.json) throw Failure(kExitUsage, "--json is for plans of several ranks: name --ranks");
  if (options.out.empty()) throw Failure(kExitUsage, "name the file to write with --out, or use gantry plan show");
  const Planned planned(options.model);
  planned.Write(options.out);
  std::printf("%s", planned.Text());
  return kExitOk;
}

int RunPlanDiff(const PlanOptions& options) {
  const PlanFile from = OpenPlanFile(options.first), to = OpenPlanFile(options.second);
  const char* text = nullptr;
  Require(gantry_plan_file_diff(from.get(), to.get(), &text));
  std::printf("%s", text);
  return kExitOk;
}

int RunPlanVerify(const PlanOptions& options) {
  const PlanFile file = OpenPlanFile(options.first);
  if (gantry_plan_file_check(file.get()) != GANTRY_OK) {
    std::printf("WRONG: %s\n", gantry_last_error());
    return kExitNegative;
  }
  if (options.model.source.empty()) {
    std::printf("right: no two buffers that live at one time overlap, and the budget is held\n");
    return kExitOk;
  }
  ModelOptions model = options.model;
  model.memory.plan = options.first;
  try {
    const Planned planned(model);
  } catch (const Failure& failure) {
    if (failure.code() != kExitBadData && failure.code() != kExitUsage && failure.code() != kExitInternal) throw;
    std::printf("WRONG: %s\n", failure.what());
    return kExitNegative;
  }
  std::printf("right: every op reads what was made for it, no two buffers that live at one time overlap, and the budget is held\n");
  return kExitOk;
}

}  // namespace gantry::cli
