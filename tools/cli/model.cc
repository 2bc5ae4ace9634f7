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
  return MakeCaseSession(context, reference, options.dtype == "f64" ? GANTRY_F64 : GANTRY_F32, config);
}

void PrintPlan(const gantry_plan_info& info, const char* text) {
  std::printf("peak         %s\nlower bound  %s\nstates       %s\nops          %" PRIu64 "\nbuffers      %" PRIu64 "\n\n%s\n",
              BytesText(info.arena_bytes).c_str(), BytesText(info.lower_bound_bytes).c_str(), BytesText(info.state_bytes).c_str(), info.op_count,
              info.buffer_count, text);
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
  const Run run = OpenRun(context.get(), options.source, options.settings);
  Require(gantry_run_program_text(run.get(), options.executed ? 1 : 0, &text));
  std::printf("%s\n", text);
  return kExitOk;
}

int RunPlanShow(const ModelOptions& options) {
  const Context context = MakeContext(0);
  gantry_plan_info info = GANTRY_PLAN_INFO_INIT;
  const char* text = nullptr;
  if (IsFolder(options.source)) {
    const Gan gan = MakeGan(context.get(), options);
    Require(gantry_gan_plan(gan.get(), &info), options.source);
    Require(gantry_gan_plan_text(gan.get(), &text));
    PrintPlan(info, text);
    return kExitOk;
  }
  RequireRunOptions(options);
  const Run run = OpenRun(context.get(), options.source, options.settings);
  Require(gantry_run_plan_info(run.get(), &info));
  Require(gantry_run_plan_text(run.get(), &text));
  PrintPlan(info, text);
  return kExitOk;
}

}  // namespace gantry::cli
