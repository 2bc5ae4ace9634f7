#include "runtime/gan/calibrate.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <thread>

#include "memory/tier/copy_lanes.h"
#include "memory/tier/tier.h"
#include "runtime/gan/families.h"
#include "runtime/gan/machine_file.h"
#include "runtime/gan/run_networks.h"
#include "runtime/gan/run_planning.h"
#include "runtime/plan/cost_model.h"

namespace gantry {
namespace {

// Two samples as near as this are one.
constexpr double kSameWork = 0.02;
// Copies as a step makes them, measured over so much memory that caches do not hold it.
constexpr int64_t kCopyBytes = int64_t{4} << 20, kCopyArea = int64_t{128} << 20;
// Ops with more operations per byte than this tell about compute, others about memory.
constexpr double kIntense = 16.0;

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

// The lower one of two in the middle. `values` must not be empty.
double Median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<int64_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

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

std::vector<float> MadeUpSamples(const GanSession& session) {
  std::vector<float> real(session.real_elements() * session.draws_per_step());
  for (size_t i = 0; i < real.size(); ++i) real[i] = std::sin(0.37f * static_cast<float>(i % 65536));
  return real;
}

void AddSample(MeasuredKernel& kernel, const KernelSample& sample) {
  const auto Near = [](double a, double b) { return std::abs(std::log((1 + a) / (1 + b))) < kSameWork; };
  for (KernelSample& known : kernel.samples) {
    if (!Near(known.flops, sample.flops) || !Near(known.bytes, sample.bytes)) continue;
    // The geometric mean of all that is the same work: other strides, other neighbours in the step.
    known.seconds = std::sqrt(known.seconds * sample.seconds);
    return;
  }
  kernel.samples.push_back(sample);
}

// Rates for ops that no sample tells about: sums over all samples.
void SetOverallRates(Machine& machine) {
  double flops = 0, flop_seconds = 0, bytes = 0, byte_seconds = 0, least = std::numeric_limits<double>::infinity();
  for (const MeasuredKernel& kernel : machine.kernels) {
    for (const KernelSample& sample : kernel.samples) {
      least = std::min(least, sample.seconds);
      const bool intense = sample.flops > kIntense * sample.bytes;
      (intense ? flops : bytes) += intense ? sample.flops : sample.bytes;
      (intense ? flop_seconds : byte_seconds) += sample.seconds;
    }
  }
  if (flop_seconds > 0) machine.flops_per_second = flops / flop_seconds;
  if (byte_seconds > 0) machine.bytes_per_second = bytes / byte_seconds;
  if (std::isfinite(least)) machine.op_seconds = least;
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

}  // namespace

absl::StatusOr<double> MeasureStep(GanSession& session, int steps) {
  const std::vector<float> real = MadeUpSamples(session);
  std::vector<double> seconds;
  for (int step = 0; step <= steps; ++step) {
    const double begin = Now();
    GANTRY_RETURN_IF_ERROR(session.Step({.real = real}));
    if (step > 0) seconds.push_back(Now() - begin);
  }
  return Median(seconds);
}

absl::Status AddSamples(GanSession& session, int steps, Machine& machine) {
  const std::vector<float> real = MadeUpSamples(session);
  Executor& executor = session.executor();
  std::vector<std::vector<double>> seconds(executor.op_seconds().size());  // of each op, by step
  for (int step = 0; step <= steps; ++step) {
    executor.SetProfiling(true);
    GANTRY_RETURN_IF_ERROR(session.Step({.real = real}));
    if (step == 0) continue;
    for (size_t op = 0; op < seconds.size(); ++op) seconds[op].push_back(executor.op_seconds()[op]);
  }
  executor.SetProfiling(false);
  const Plan& plan = session.plan();
  size_t index = 0;  // the executor leaves views out
  for (const PlannedOp& step : plan.schedule) {
    const Op& op = plan.program.ops()[step.op];
    if (op.definition->is_view) continue;
    const double median = Median(seconds[index++]);
    if (step.kernel == nullptr || !(median > 0)) continue;
    const std::string family = FamilyOf(op, *step.kernel);
    const int threads = session.options().plan.thread_count;
    auto kernel = std::find_if(machine.kernels.begin(), machine.kernels.end(),
                               [&](const MeasuredKernel& known) { return known.family == family && known.threads == threads; });
    if (kernel == machine.kernels.end()) kernel = machine.kernels.insert(kernel, {family, threads, {}});
    const OpWork work = WorkOf(plan.program, step.op);
    if (work.bytes > 0) AddSample(*kernel, {work.flops, work.bytes, median});
  }
  std::sort(machine.kernels.begin(), machine.kernels.end(),
            [](const MeasuredKernel& a, const MeasuredKernel& b) { return std::tie(a.family, a.threads) < std::tie(b.family, b.threads); });
  SetOverallRates(machine);
  return absl::OkStatus();
}

absl::StatusOr<CalibratedStep> CalibrateRun(const RunConfig& given, int steps, Machine& machine, Device& device) {
  RunConfig config = given;
  GANTRY_RETURN_IF_ERROR(FindSampleShape(config).status());
  CalibratedStep result;
  for (const bool again : {false, true}) {
    GANTRY_ASSIGN_OR_RETURN(RunNetworks networks, BuildRunNetworks(config));
    GanSessionOptions options{.step = config.step, .plan = config.plan, .seed = config.seed};
    options.plan.thread_count = static_cast<int>(config.threads);
    SetMachine(std::make_shared<const Machine>(machine), options.plan);
    GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<GanSession> session,
                            GanSession::Create(options, std::move(networks.generators), std::move(networks.discriminators), device));
    if (!again) {
      GANTRY_RETURN_IF_ERROR(AddSamples(*session, steps, machine));
      continue;
    }
    result.predicted_seconds = session->plan().residency.seconds;
    GANTRY_ASSIGN_OR_RETURN(result.measured_seconds, MeasureStep(*session, steps));
  }
  return result;
}

absl::StatusOr<Machine> Calibrate(const CalibrateOptions& options, Device& device) {
  Machine machine;
  machine.name = absl::StrFormat("measured, %d threads", device.thread_count());
  for (const Workload& workload : kWorkloads) {
    GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<GanSession> session, MakeSession(workload, device));
    const double begin = Now();
    GANTRY_RETURN_IF_ERROR(Annotate(AddSamples(*session, options.steps, machine), absl::StrFormat("calibration on %s", workload.family)));
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
