// Measures what ops and copies take on this machine, by training steps of built-in families: kernels run there as they run in any
// other step, with operands as warm or cold as they are.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "memory/device.h"
#include "runtime/gan/run_config.h"
#include "runtime/partition/job_ranks.h"
#include "runtime/plan/machine.h"

namespace gantry {

struct CalibrateOptions {
  int steps = 3;              // that count, of each workload, at least 1; the median of each op is taken
  std::string directory;      // where a file tier would be: it is measured too; empty: only host memory is
  std::function<void(std::string_view)> progress;  // a line for each workload; may be empty
};

// A machine file's content. Takes a few seconds on a machine that does nothing else. Errors of the device and the folder.
absl::StatusOr<Machine> Calibrate(const CalibrateOptions& options, Device& device);

// What a run's step takes, as planned with `machine` and as measured.
struct CalibratedStep {
  double predicted_seconds = 0, measured_seconds = 0;
};
// Adds what the ops of a run's step took to `machine`, and plans and measures the step again with it. The data are made up. In a job (`ranks`
// not null) a call of all ranks with the same arguments: ops are measured while the others are at work, those of all ranks are added, with the
// link between the ranks, and `machine` is the same on all of them afterwards.
absl::StatusOr<CalibratedStep> CalibrateRun(const RunConfig& config, int steps, JobRanks* ranks, Machine& machine, Device& device);

}  // namespace gantry
