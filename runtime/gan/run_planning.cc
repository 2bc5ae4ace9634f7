#include "runtime/gan/run_planning.h"

#include <algorithm>

#include "absl/cleanup/cleanup.h"
#include "runtime/gan/families.h"
#include "runtime/gan/machine_file.h"
#include "runtime/gan/plan_files.h"
#include "runtime/gan/run_networks.h"
#include "runtime/plan/lending.h"
#include "runtime/plan/memory_options.h"

namespace gantry {
namespace {

constexpr int kMostRanks = 16384;

}  // namespace

absl::StatusOr<std::unique_ptr<DataSet>> FindSampleShape(RunConfig& config) {
  const bool clips = config.model.family == kVideoFamily;
  if ((config.model.channels != 0 && (!clips || config.model.frames != 0)) || !UsesFamily(config)) return std::unique_ptr<DataSet>();
  GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<DataSet> data, OpenRunData(config, 0, config.model.image_size, config.model.image_size));
  const std::vector<int64_t>& shape = data->sample_shape();
  if (shape.size() != (clips ? 4 : 3)) {
    return absl::InvalidArgumentError(absl::StrFormat("data.path: %s; the family '%s' takes %s", data->Describe(), config.model.family,
                                                      clips ? "clips, [channels,frames,height,width]" : "images, [channels,height,width]"));
  }
  if (config.model.channels == 0) config.model.channels = shape[0];
  if (clips && config.model.frames == 0) config.model.frames = shape[1];
  return data;
}

absl::StatusOr<Program> RunPlanning::BuildStep(const RunConfig& given, const StepVariation& variation) {
  RunConfig config = given;
  if (variation.batch > 0) config.batch = variation.batch;
  if (variation.accumulate > 0) config.step.accumulate = variation.accumulate;
  if (variation.penalty_every > 0) config.step.penalty_every = variation.penalty_every;
  if (config.batch % config.step.accumulate != 0) {
    return absl::InvalidArgumentError(absl::StrFormat("a batch of %d cannot be in %d equal parts", config.batch, config.step.accumulate));
  }
  GANTRY_ASSIGN_OR_RETURN(const RunNetworks networks, BuildRunNetworks(config));
  return BuildGanStep(config.step, networks.generators, networks.discriminators);
}

void RunPlanning::SetVariants(const RunConfig& config, PlanOptions& options) {
  options.variants = {.batch = config.batch, .accumulate = config.step.accumulate, .build = [config](int accumulate) {
                        return BuildStep(config, {.accumulate = accumulate});
                      }};
}

namespace {

// The split, with the run's exchanges, which are set in `options` as far as they belong there.
absl::StatusOr<Parallel> ParallelOf(const RunConfig& config, const std::string& split, PlanOptions& options) {
  GANTRY_ASSIGN_OR_RETURN(Parallel parallel, Parallel::Parse(split));
  GANTRY_ASSIGN_OR_RETURN(const ExchangeSettings exchanges, SetExchanges(config.exchanges, options));
  parallel.exchanges.bucket_bytes = exchanges.bucket_bytes;
  parallel.across_steps = exchanges.across;
  return parallel;
}

}  // namespace

absl::StatusOr<GanSessionOptions> RunPlanning::SessionOptionsOf(const RunConfig& config, std::shared_ptr<const Machine> machine, JobRanks* ranks) {
  GanSessionOptions options{.step = config.step, .plan = config.plan, .seed = config.seed, .plan_file = config.plan_file, .ranks = ranks};
  options.plan.thread_count = static_cast<int>(config.threads);
  GANTRY_ASSIGN_OR_RETURN(options.parallel, ParallelOf(config, config.parallel, options.plan));
  SetMachine(std::move(machine), options.plan);
  return options;
}

absl::StatusOr<std::unique_ptr<RunPlanning>> RunPlanning::Create(RunConfig config, int thread_count) {
  GANTRY_ASSIGN_OR_RETURN(std::shared_ptr<const Machine> machine, FindMachine(config.memory.machine));
  return Create(std::move(config), thread_count, std::move(machine));
}

absl::StatusOr<std::unique_ptr<RunPlanning>> RunPlanning::Create(RunConfig config, int thread_count, std::shared_ptr<const Machine> machine) {
  std::unique_ptr<RunPlanning> planning(new RunPlanning());
  GANTRY_RETURN_IF_ERROR(FindSampleShape(config).status());
  planning->options_ = config.plan;
  planning->options_.thread_count = config.threads > 0 ? static_cast<int>(config.threads) : thread_count;
  SetMachine(std::move(machine), planning->options_);
  SetVariants(config, planning->options_);
  planning->config_ = std::move(config);
  return planning;
}

absl::StatusOr<Plan> RunPlanning::MakePlan() const {
  GANTRY_ASSIGN_OR_RETURN(const Program program, Step({}));
  GANTRY_RETURN_IF_ERROR(RequireOneRank(options_));
  if (config_.plan_file.empty()) return gantry::MakePlan(program, options_);
  return ReadPlan(config_.plan_file, 0, program, options_);
}

PlanOptions RunPlanning::OptionsOfRanks(int ranks) const {
  PlanOptions options = options_;
  options.variants = {};
  // Ranks share out the cores of this machine; of a machine that is described, a rank has what is described.
  const Machine* const machine = options_.machine.get();
  if (config_.threads == 0 && (machine == nullptr || !machine->kernels.empty())) options.thread_count = std::max(1, options.thread_count / ranks);
  return options;
}

absl::StatusOr<JobPlan> RunPlanning::PlanRanks(int ranks, int nodes, const std::string& parallel, SplitSearch& search) const {
  const Machine* const machine = options_.machine.get();
  const bool described = machine != nullptr && machine->rank_count > 1;
  const int per_node = described ? machine->ranks_per_node : std::max(1, ranks);
  if (ranks <= 0) ranks = nodes > 0 ? nodes * per_node : described ? machine->rank_count : 1;
  if (ranks > kMostRanks) return absl::InvalidArgumentError(absl::StrFormat("%d ranks; at most %d are planned", ranks, kMostRanks));
  if (nodes > 0 && (ranks - 1) / per_node + 1 != nodes) {
    return absl::InvalidArgumentError(absl::StrFormat("%d ranks at %d a node do not take %d nodes", ranks, per_node, nodes));
  }
  PlanOptions options = OptionsOfRanks(ranks);
  GANTRY_ASSIGN_OR_RETURN(Parallel split, ParallelOf(config_, parallel.empty() ? config_.parallel : parallel, options));
  for (const NetworkConfig& generator : config_.generators) split.generators.push_back(generator.name);
  GANTRY_ASSIGN_OR_RETURN(const Program program, Step({}));
  if (split.automatic) {
    GANTRY_ASSIGN_OR_RETURN(search, SearchSplits(program, split, ranks, options));
    if (search.taken < 0) return absl::ResourceExhaustedError(absl::StrCat("no split of the step fits:\n", gantry::Describe(search)));
    split = search.candidates[static_cast<size_t>(search.taken)].parallel;
  }
  return PlanBalanced(program, split, ranks, options, ShareBy::kSpeed);
}

absl::Status RunPlanning::ForEachPlan(JobPlan& job, const std::function<absl::Status(int rank, const Plan& plan)>& call) const {
  GANTRY_ASSIGN_OR_RETURN(const Program step, Step({}));
  for (RankClass& alike : job.classes) {
    std::string& program = alike.plan.origin.program;
    std::string& prepared = alike.plan.origin.prepared;
    const absl::Cleanup restore = [&, first_program = program, first_prepared = prepared] {
      program = first_program;
      prepared = first_prepared;
    };
    for (const int rank : alike.ranks) {
      if (rank != alike.ranks.front()) {
        if (job.rank_count > kExactRanks) break;  // taken as equal, which its program need not be
        PlanOptions options = OptionsOfRanks(job.rank_count);
        options.exchanges = job.exchanges.get();
        GANTRY_RETURN_IF_ERROR(TakeRankMemory(rank, job.rank_count, options));
        GANTRY_ASSIGN_OR_RETURN(const RankProgram mine, PartitionFor(step, job.parallel, rank, job.rank_count));
        const PlannedResidency& residency = alike.plan.residency;
        GANTRY_ASSIGN_OR_RETURN(const Program as_planned, PrepareProgram(mine.program, options, residency.piece_bytes, residency.batch_parts));
        program = Fingerprint(mine.program);
        prepared = Fingerprint(as_planned);
      }
      GANTRY_RETURN_IF_ERROR(call(rank, alike.plan));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<WhatIf> RunPlanning::AskWhatIf() const {
  GANTRY_RETURN_IF_ERROR(RequireOneRank(options_));
  const GanStepConfig& step = config_.step;
  return gantry::AskWhatIf([this](const StepVariation& variation) { return Step(variation); },
                           {.batch = config_.batch, .accumulate = step.accumulate, .penalty_every = step.penalty_every, .penalty = step.r1 > 0 || step.r2 > 0},
                           options_);
}

}  // namespace gantry
