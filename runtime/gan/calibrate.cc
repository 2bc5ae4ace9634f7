#include "runtime/gan/calibrate.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>

#include "memory/tier/copy_lanes.h"
#include "memory/tier/tier.h"
#include "runtime/gan/families.h"
#include "runtime/gan/machine_file.h"
#include "runtime/gan/run_networks.h"
#include "runtime/gan/run_planning.h"
#include "runtime/gan/step_costs.h"

namespace gantry {
namespace {

// Copies as a step makes them, measured over so much memory that caches do not hold it.
constexpr int64_t kCopyBytes = int64_t{4} << 20, kCopyArea = int64_t{128} << 20;

struct Workload {
  std::string_view family;
  int64_t size, width, batch;
  double share;  // of the device's memory that the step may take; 1: all, and updates of many weights are one op
};
// Sizes from where calls cost more than their work to where caches hold nothing.
constexpr Workload kWorkloads[] = {
    {"dcgan", 16, 16, 8, 1.0},   {"dcgan", 32, 64, 16, 1.0},  {"dcgan", 64, 64, 8, 1.0},  {"dcgan", 128, 64, 2, 1.0}, {"dcgan", 64, 64, 8, 0.5},
    {"wgan-gp", 16, 16, 8, 1.0}, {"wgan-gp", 32, 64, 8, 1.0}, {"wgan-gp", 64, 32, 8, 1.0}, {"sngan", 16, 16, 8, 1.0},   {"sngan", 32, 64, 8, 1.0},
    {"r3gan", 16, 16, 8, 1.0},   {"r3gan", 32, 32, 8, 1.0},   {"r3gan", 64, 16, 8, 1.0},
};

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

absl::StatusOr<std::unique_ptr<GanSession>> MakeSession(const Workload& workload, Device& device) {
  GANTRY_ASSIGN_OR_RETURN(Family family, BuildFamily(workload.family, {.image_size = workload.size, .width = workload.width, .batch = workload.batch}));
  GANTRY_ASSIGN_OR_RETURN(const FamilyDefaults defaults, DefaultsOf(workload.family));
  GanSessionOptions options;
  options.step.loss = defaults.loss;
  options.step.r1 = defaults.r1;
  options.step.r2 = defaults.r2;
  options.step.gradient_penalty = defaults.gradient_penalty;
  options.step.ema = defaults.ema > 0 ? defaults.ema : 0.999;
  if (workload.share < 1) {
    options.plan.device_memory.fraction = workload.share;
    options.plan.tiers = {TierOptions{.name = "host"}};
  }
  std::vector<GanRole> generators, discriminators;
  generators.push_back({"generator", std::move(family.generator), defaults.generator});
  discriminators.push_back({"discriminator", std::move(family.discriminator), defaults.discriminator});
  return GanSession::Create(options, std::move(generators), std::move(discriminators), device);
}

// Copies in one direction until told to stop.
class Copier {
 public:
  Copier(CopyLanes& lanes, std::byte* device, bool out) : lanes_(lanes), device_(device), out_(out), thread_([this] { Run(); }) {}
  ~Copier() {
    stop_ = true;
    thread_.join();
  }

 private:
  void Run() {
    for (int64_t offset = 0; !stop_; offset = (offset + kCopyBytes) % kCopyArea) {
      const int64_t ticket = lanes_.Start({.tier = 0, .out = out_, .device = device_ + offset, .tier_offset = offset, .bytes = kCopyBytes});
      if (!lanes_.Wait(lanes_.lane(0, out_), ticket).ok()) return;
    }
  }

  CopyLanes& lanes_;
  std::byte* const device_;
  const bool out_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;  // last: it uses the others
};

absl::StatusOr<MachineTier> MeasureTier(const TierOptions& options, GanSession& session, double alone, int steps, Device& device) {
  GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<Slab> memory, device.Reserve(kCopyArea));
  GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<TierSlab> slab, ReserveTier(options, kCopyArea));
  std::fill(memory->data(), memory->data() + kCopyArea, std::byte{1});
  MachineTier tier;
  tier.name = tier.kind = std::string(Name(options.kind));
  if (options.kind == TierKind::kFile) tier.granularity_bytes = TierSlab::kFileBlockBytes;
  double lost = 0;
  for (const bool out : {true, false}) {
    GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<CopyLanes> lanes, CopyLanes::Create({slab.get()}, {}, {}, {.max_pending = 4}));
    double beside = 0;
    {
      const Copier copier(*lanes, memory->data(), out);
      GANTRY_ASSIGN_OR_RETURN(beside, MeasureStep(session, steps));
    }
    GANTRY_RETURN_IF_ERROR(lanes->Drain());
    const double bytes = static_cast<double>(out ? lanes->bytes_out(0) : lanes->bytes_in(0)), busy = lanes->busy_seconds(lanes->lane(0, out));
    if (bytes > 0 && busy > 0) (out ? tier.out_bytes_per_second : tier.in_bytes_per_second) = bytes / busy;
    lost += std::clamp(1.0 - alone / beside, 0.0, 1.0) / 2;
  }
  tier.compute_share = lost;
  return tier;
}

// The samples of every rank, the same on all of them afterwards.
absl::Status AddOfAll(JobRanks* ranks, std::vector<MeasuredKernel> mine, Machine& machine) {
  if (ranks == nullptr) {
    AddSamples(mine, machine);
    return absl::OkStatus();
  }
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::string> of_ranks, ranks->Gather(ToToml({.kernels = std::move(mine)})));
  for (const std::string& text : of_ranks) {
    GANTRY_ASSIGN_OR_RETURN(const Machine measured, ParseMachine(text, "what a rank has measured"));
    AddSamples(measured.kernels, machine);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<GanSession>> SessionOf(const RunConfig& config, JobRanks* ranks, const Machine& machine, Device& device) {
  const auto Prepare = [&](GanSessionOptions& options, RunNetworks& networks) -> absl::Status {
    GANTRY_ASSIGN_OR_RETURN(networks, BuildRunNetworks(config));
    GANTRY_ASSIGN_OR_RETURN(options, RunPlanning::SessionOptionsOf(config, std::make_shared<const Machine>(machine), ranks));
    return absl::OkStatus();
  };
  GanSessionOptions options;
  RunNetworks networks;
  absl::Status prepared = Prepare(options, networks);
  if (ranks != nullptr) prepared = ranks->Agree(prepared);
  GANTRY_RETURN_IF_ERROR(prepared);
  return GanSession::Create(options, std::move(networks.generators), std::move(networks.discriminators), device);
}

}  // namespace

absl::StatusOr<CalibratedStep> CalibrateRun(const RunConfig& given, int steps, JobRanks* ranks, Machine& machine, Device& device) {
  RunConfig config = given;
  absl::Status found = FindSampleShape(config).status();
  if (ranks != nullptr) found = ranks->Agree(found);
  GANTRY_RETURN_IF_ERROR(found);
  if (config.threads == 0) config.threads = device.thread_count();
  CalibratedStep result;
  {
    GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<GanSession> session, SessionOf(config, ranks, machine, device));
    GANTRY_ASSIGN_OR_RETURN(StepCosts costs, MeasureOps(*session, steps));
    GANTRY_ASSIGN_OR_RETURN(const std::optional<MachineLink> link, MeasureLink(*session, costs));
    if (link) SetLink(*link, machine);
    GANTRY_RETURN_IF_ERROR(AddOfAll(ranks, std::move(costs.kernels), machine));
  }
  {
    GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<GanSession> session, SessionOf(config, ranks, machine, device));
    result.predicted_seconds = session->plan().residency.seconds;
    GANTRY_ASSIGN_OR_RETURN(result.measured_seconds, MeasureStep(*session, steps));
    // The split, where it was left open, is what the ranks have chosen.
    if (ranks != nullptr) config.parallel = session->options().parallel.Text();
  }
  if (ranks == nullptr) return result;
  GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<RunPlanning> planning,
                          RunPlanning::Create(config, device.thread_count(), std::make_shared<const Machine>(machine)));
  SplitSearch search;  // the split is known
  GANTRY_ASSIGN_OR_RETURN(const JobPlan job, planning->PlanRanks(ranks->size(), 0, config.parallel, search));
  result.predicted_seconds = job.simulation.seconds;
  return result;
}

absl::StatusOr<Machine> Calibrate(const CalibrateOptions& options, Device& device) {
  Machine machine;
  machine.name = absl::StrFormat("measured, %d threads", device.thread_count());
  for (const Workload& workload : kWorkloads) {
    GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<GanSession> session, MakeSession(workload, device));
    const double begin = Now();
    const absl::StatusOr<StepCosts> costs = MeasureOps(*session, options.steps);
    if (!costs.ok()) return Annotate(costs.status(), absl::StrFormat("calibration on %s", workload.family));
    AddSamples(costs->kernels, machine);
    if (options.progress) {
      options.progress(absl::StrFormat("%s %dx%d, batch %d%s: %.2f s", workload.family, workload.size, workload.size, workload.batch,
                                       workload.share < 1 ? ", half the memory" : "", Now() - begin));
    }
  }
  GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<GanSession> session, MakeSession({"dcgan", 64, 64, 8, 1.0}, device));
  const int steps = 2 * options.steps;
  GANTRY_ASSIGN_OR_RETURN(const double alone, MeasureStep(*session, steps));
  std::vector<TierOptions> tiers = {{.name = "host"}};
  if (!options.directory.empty()) tiers.push_back({.name = "file", .kind = TierKind::kFile, .directory = options.directory});
  for (const TierOptions& tier : tiers) {
    GANTRY_ASSIGN_OR_RETURN(MachineTier measured, MeasureTier(tier, *session, alone, steps, device));
    if (options.progress) {
      options.progress(absl::StrFormat("tier %s: out %.2f GB/s, in %.2f GB/s beside compute, which loses %.0f %% of a copy's time", tier.name,
                                       measured.out_bytes_per_second / 1e9, measured.in_bytes_per_second / 1e9, 100 * measured.compute_share));
    }
    machine.tiers.push_back(std::move(measured));
  }
  return machine;
}

}  // namespace gantry
