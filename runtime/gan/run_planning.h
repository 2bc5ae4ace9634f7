// A run as planners see it: its step program in every variation, and plans of it. Nothing is reserved; no data is read but where the
// samples' channels must be known.
#pragma once

#include <functional>
#include <memory>

#include "runtime/data/data_set.h"
#include "runtime/gan/gan_session.h"
#include "runtime/gan/run_config.h"
#include "runtime/plan/what_if.h"
#include "runtime/simulate/plan_ranks.h"

namespace gantry {

class RunPlanning {
 public:
  // `thread_count`: of the device, for a run that does not say. Errors as Trainer::Create.
  static absl::StatusOr<std::unique_ptr<RunPlanning>> Create(RunConfig config, int thread_count);
  // With the costs of `machine` instead of those of the file that the run names; null: of none.
  static absl::StatusOr<std::unique_ptr<RunPlanning>> Create(RunConfig config, int thread_count, std::shared_ptr<const Machine> machine);

  const RunConfig& config() const { return config_; }
  // For MakePlan: with the machine, and with how to build the step for advice where it does not fit.
  const PlanOptions& options() const { return options_; }
  absl::StatusOr<Program> Step(const StepVariation& variation) const { return BuildStep(config_, variation); }
  absl::StatusOr<Plan> MakePlan() const;
  absl::StatusOr<WhatIf> AskWhatIf() const;
  // The plans of all ranks (runtime/simulate). `ranks` 0: `nodes` times the machine's ranks of a node; `nodes` 0: as many as they take.
  // `parallel` empty: what the run says. `search` is filled where that is "auto".
  absl::StatusOr<JobPlan> PlanRanks(int ranks, int nodes, const std::string& parallel, SplitSearch& search) const;
  // Calls with the plan of each rank, which says whose program it is for; of more than kExactRanks, of the first of those that share one.
  // What `call` is given is valid during the call; the first error ends it. `job` is as before afterwards.
  absl::Status ForEachPlan(JobPlan& job, const std::function<absl::Status(int rank, const Plan& plan)>& call) const;

  // The step program of a run, whose channels must be known.
  static absl::StatusOr<Program> BuildStep(const RunConfig& config, const StepVariation& variation);
  // How a session of the run is made: as its keys say, planned with the costs of `machine`, which may be null. `ranks`: of the job, or null.
  static absl::StatusOr<GanSessionOptions> SessionOptionsOf(const RunConfig& config, std::shared_ptr<const Machine> machine, JobRanks* ranks);
  // How MakePlan can build the step of this run with other accumulation.
  static void SetVariants(const RunConfig& config, PlanOptions& options);

 private:
  PlanOptions OptionsOfRanks(int ranks) const;

  RunConfig config_;
  PlanOptions options_;
};

// Fills model.channels, and model.frames of clips, from the data where a family needs them: the data set, or null where it was not looked at.
absl::StatusOr<std::unique_ptr<DataSet>> FindSampleShape(RunConfig& config);

}  // namespace gantry
