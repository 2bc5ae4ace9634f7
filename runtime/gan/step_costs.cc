#include "runtime/gan/step_costs.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <tuple>

#include "runtime/graph/lanes.h"
#include "runtime/plan/cost_model.h"

namespace gantry {
namespace {

// Two samples as near as this are one.
constexpr double kSameWork = 0.02;
// Ops with more operations per byte than this tell about compute, others about memory.
constexpr double kIntense = 16.0;
// An exchange of no more bytes tells about latency; an all-reduce of so many about bandwidth.
constexpr int64_t kFewBytes = 4096, kLinkBytes = int64_t{8} << 20;

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The lower one of two in the middle. `values` must not be empty.
double Median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<int64_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::vector<float> MadeUpSamples(const GanSession& session) {
  std::vector<float> real(session.real_elements() * session.draws_per_step());
  for (size_t i = 0; i < real.size(); ++i) real[i] = std::sin(0.37f * static_cast<float>(i % 65536));
  return real;
}

bool IsSameWork(const KernelSample& a, const KernelSample& b) {
  const auto Near = [](double x, double y) { return std::abs(std::log((1 + x) / (1 + y))) < kSameWork; };
  return Near(a.flops, b.flops) && Near(a.bytes, b.bytes);
}

MeasuredKernel& KernelOf(std::vector<MeasuredKernel>& kernels, std::string_view family, int threads, int ranks) {
  for (MeasuredKernel& known : kernels) {
    if (known.family == family && known.threads == threads && known.ranks == ranks) return known;
  }
  return kernels.emplace_back(MeasuredKernel{.family = std::string(family), .threads = threads, .ranks = ranks});
}

// Means of samples.
class Means {
 public:
  Means(int threads, int ranks) : threads_(threads), ranks_(ranks) {}
  void Add(std::string_view family, const KernelSample& sample) {
    MeasuredKernel& kernel = KernelOf(kernels_, family, threads_, ranks_);
    const auto at = static_cast<size_t>(&kernel - kernels_.data());
    counts_.resize(kernels_.size());
    for (size_t i = 0; i < kernel.samples.size(); ++i) {
      if (!IsSameWork(kernel.samples[i], sample)) continue;
      kernel.samples[i].seconds += (sample.seconds - kernel.samples[i].seconds) / ++counts_[at][i];
      return;
    }
    kernel.samples.push_back(sample);
    counts_[at].push_back(1);
  }
  std::vector<MeasuredKernel> Take() { return std::move(kernels_); }

 private:
  const int threads_, ranks_;
  std::vector<MeasuredKernel> kernels_;
  std::vector<std::vector<int>> counts_;  // of each sample
};

struct Mean {
  double sum = 0;
  int count = 0;
  void Add(double value) {
    sum += value;
    ++count;
  }
  double value() const { return count == 0 ? 0.0 : sum / count; }
};

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

}  // namespace

absl::StatusOr<StepCosts> MeasureOps(GanSession& session, int steps) {
  const std::vector<float> real = MadeUpSamples(session);
  const Plan& plan = session.plan();
  Executor& executor = session.executor();
  std::vector<const PlannedOp*> ops;  // as the executor has them: without views
  std::vector<bool> computes;
  for (const PlannedOp& step : plan.schedule) {
    const OpDefinition& definition = *plan.program.ops()[step.op].definition;
    if (definition.is_view) continue;
    ops.push_back(&step);
    computes.push_back(!definition.communicates && !definition.moves && step.kernel != nullptr);
  }
  std::vector<std::vector<double>> seconds(ops.size());  // of each op, by step
  std::vector<double> computing;                         // of all that computes, by step
  for (int step = 0; step <= steps; ++step) {
    executor.SetProfiling(true);
    const double begin = Now();
    GANTRY_RETURN_IF_ERROR(session.Step({.real = real}));
    double rest = Now() - begin;
    if (step == 0) continue;
    for (size_t op = 0; op < ops.size(); ++op) {
      seconds[op].push_back(executor.op_seconds()[op]);
      rest -= executor.op_wait_seconds()[op] + (computes[op] ? 0.0 : executor.op_seconds()[op]);
    }
    computing.push_back(rest);
  }
  executor.SetProfiling(false);

  // Medians of ops add up to less than the median step, by what disturbs one here and one there, and what lies between ops: that is spread over them.
  std::vector<double> medians;
  double sum = 0;
  for (size_t op = 0; op < ops.size(); ++op) {
    medians.push_back(Median(seconds[op]));
    if (computes[op]) sum += medians[op];
  }
  const double spread = sum > 0 ? std::max(1.0, Median(computing) / sum) : 1.0;
  StepCosts costs;
  Means means(session.options().plan.thread_count, std::max(1, session.options().plan.ranks_of_machine));
  Mean starts, in_place;
  for (size_t i = 0; i < ops.size(); ++i) {
    const Op& op = plan.program.ops()[ops[i]->op];
    if (!(medians[i] > 0)) continue;  // its condition did not hold
    if (op.definition->communicates && ops[i]->done_by >= 0) starts.Add(medians[i]);
    if (op.definition->communicates && ops[i]->done_by < 0 && LinkBytes(plan.program, ops[i]->op) <= kFewBytes) in_place.Add(medians[i]);
    const OpWork work = WorkOf(plan.program, ops[i]->op);
    if (computes[i] && work.bytes > 0) means.Add(FamilyOf(op, *ops[i]->kernel), {work.flops, work.bytes, spread * medians[i]});
  }
  costs.kernels = means.Take();
  costs.start_seconds = starts.value();
  costs.in_place_seconds = in_place.value();
  return costs;
}

absl::StatusOr<double> MeasureStep(GanSession& session, int steps) {
  const std::vector<float> real = MadeUpSamples(session);
  std::vector<double> seconds;
  for (int step = 0; step <= steps; ++step) {
    const double begin = Now();
    GANTRY_RETURN_IF_ERROR(session.Step({.real = real}));
    if (step > 0) seconds.push_back(Now() - begin);
  }
  return session.AgreeOn(Median(seconds));
}

absl::StatusOr<std::optional<MachineLink>> MeasureLink(GanSession& session, const StepCosts& costs) {
  Communicator* const world = session.world();
  if (world == nullptr) return std::nullopt;
  const int ranks = world->size(), of_machine = session.options().plan.ranks_of_machine;
  if (of_machine != ranks && of_machine != 1) return std::nullopt;
  const Slab& arena = session.executor().arena();
  // As many bytes as the smallest arena has.
  GANTRY_ASSIGN_OR_RETURN(const double short_of, session.AgreeOn(static_cast<double>(kLinkBytes - std::min(kLinkBytes, arena.size_bytes()))));
  const int64_t count = (kLinkBytes - static_cast<int64_t>(short_of)) / static_cast<int64_t>(sizeof(float));
  auto* const data = reinterpret_cast<float*>(arena.data());
  std::fill(data, data + count, 0.0f);
  const auto Measure = [&](int64_t elements, int rounds) -> absl::StatusOr<double> {
    std::vector<double> seconds;
    for (int round = -1; round < rounds; ++round) {
      GANTRY_RETURN_IF_ERROR(world->Barrier());
      const double begin = Now();
      GANTRY_RETURN_IF_ERROR(world->AllReduce(data, elements, ElementType::kF32, ReduceOp::kSum, {.name = "measured link"}).Wait());
      if (round >= 0) seconds.push_back(Now() - begin);
    }
    return session.AgreeOn(Median(seconds));
  };
  GANTRY_ASSIGN_OR_RETURN(double few, Measure(std::min<int64_t>(count, 2), 101));
  GANTRY_ASSIGN_OR_RETURN(const double many, Measure(count, 11));
  const double p = ranks, bytes = static_cast<double>(count) * sizeof(float);
  MachineLink link{.between = of_machine == ranks ? "node" : "network"};
  link.bytes_per_second = std::max(1.0, 2 * (p - 1) / p * bytes / std::max(many - few, 1e-9));
  // In a step ranks do not come at once, which belongs to what an exchange takes there.
  GANTRY_ASSIGN_OR_RETURN(const std::vector<double> in_place, session.GatherNumbers(costs.in_place_seconds));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<double> starts, session.GatherNumbers(costs.start_seconds));
  for (size_t rank = 0; rank < in_place.size(); ++rank) {
    few = std::max(few, in_place[rank]);
    link.start_seconds += starts[rank] / p;
  }
  link.latency_seconds = few / std::ceil(std::log2(p));
  return link;
}

void AddSamples(const std::vector<MeasuredKernel>& kernels, Machine& machine) {
  for (const MeasuredKernel& kernel : kernels) {
    MeasuredKernel& known = KernelOf(machine.kernels, kernel.family, kernel.threads, kernel.ranks);
    for (const KernelSample& sample : kernel.samples) {
      const auto same = std::find_if(known.samples.begin(), known.samples.end(), [&](const KernelSample& other) { return IsSameWork(other, sample); });
      if (same == known.samples.end()) {
        known.samples.push_back(sample);
      } else {
        same->seconds = std::sqrt(same->seconds * sample.seconds);
      }
    }
  }
  std::sort(machine.kernels.begin(), machine.kernels.end(), [](const MeasuredKernel& a, const MeasuredKernel& b) {
    return std::tie(a.family, a.threads, a.ranks) < std::tie(b.family, b.threads, b.ranks);
  });
  SetOverallRates(machine);
}

void SetLink(const MachineLink& link, Machine& machine) {
  const auto is_same = [&](const MachineLink& known) { return known.between == link.between; };
  machine.links.erase(std::remove_if(machine.links.begin(), machine.links.end(), is_same), machine.links.end());
  machine.links.push_back(link);
}

}  // namespace gantry
