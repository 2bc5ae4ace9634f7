// A training process for tests: train_process RUN.toml STEPS [RESUME]. Takes STEPS steps at most (0: to the end), going
// on from RESUME
// ("latest" or a path, or "auto": latest where there is one) if given, then finishes. Errors and warnings go to
// standard error.
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "runtime/gan/trainer.h"

namespace gantry {
namespace {

absl::Status Train(const char* run_file, int64_t steps, std::string_view resume) {
  GANTRY_ASSIGN_OR_RETURN(RunConfig config, LoadRunConfig(run_file));
  const std::unique_ptr<Device> device = MakeCpuDevice({});
  const std::string folder = config.output.directory;
  GANTRY_ASSIGN_OR_RETURN(const auto trainer,
                          Trainer::Create(std::move(config), *device, {.warn = [](std::string_view text) {
                                            std::fprintf(stderr, "warning: %.*s\n", static_cast<int>(text.size()),
                                                         text.data());
                                          }}));
  if (resume == "auto") resume = FindLatestCheckpoint(folder).ok() ? "latest" : "";
  if (!resume.empty()) GANTRY_RETURN_IF_ERROR(trainer->Resume(std::string(resume)));
  for (int64_t i = 0; !trainer->finished() && (steps == 0 || i < steps); ++i)
    GANTRY_RETURN_IF_ERROR(trainer->Step().status());
  return trainer->Finish().status();
}

}  // namespace
}  // namespace gantry

int main(int count, char** arguments) {
  if (count < 3) return 64;
  const absl::Status status = gantry::Train(arguments[1], std::atoll(arguments[2]), count > 3 ? arguments[3] : "");
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
