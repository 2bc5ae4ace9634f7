#include "runtime/plan/cost_model.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "memory/hash.h"

namespace gantry {
namespace {

// Plain loops against fast kernels, on one thread.
constexpr double kReferenceSlowdown = 40.0;
// Samples that an op is compared with.
constexpr size_t kNearest = 4;

// Twice as many ranks at work count as work that is different by 15 %.
constexpr double kOfRanks = 0.2;

// Samples of the number of threads nearest to `threads`, the smaller of two.
bool IsNearer(int threads, int candidate, int now) {
  const auto Distance = [&](int other) { return std::abs(std::log2(static_cast<double>(other) / threads)); };
  return Distance(candidate) < Distance(now) || (Distance(candidate) == Distance(now) && candidate < now);
}

}  // namespace

OpWork WorkOf(const Program& program, OpId id) {
  const Op& op = program.ops()[id];
  OpWork work;
  std::vector<TensorType> inputs, outputs;
  for (ValueId input : op.inputs) {
    inputs.push_back(program.TypeOf(input));
    work.bytes += static_cast<double>(inputs.back().size_bytes());
  }
  for (ValueId output : op.outputs) {
    outputs.push_back(program.TypeOf(output));
    work.bytes += static_cast<double>(outputs.back().size_bytes());
    work.flops += static_cast<double>(outputs.back().element_count());
  }
  if (op.definition->cost != nullptr) work.flops = op.definition->cost(inputs, outputs, op.attributes).flops;
  if (!op.attributes.Has("begin")) return work;
  // An update of a piece touches no more of the whole than the piece has.
  double piece = INFINITY, whole = 0;
  for (const TensorType& type : inputs) {
    if (type.element_count() > 1) piece = std::min(piece, static_cast<double>(type.size_bytes()));
    whole = std::max(whole, static_cast<double>(type.size_bytes()));
  }
  if (!std::isfinite(piece)) return work;
  work.bytes = 0;
  for (const auto* types : {&inputs, &outputs}) {
    for (const TensorType& type : *types) work.bytes += std::min(piece, static_cast<double>(type.size_bytes()));
  }
  work.flops *= piece / whole;
  return work;
}

std::string FamilyOf(const Op& op, const Kernel& kernel) {
  const std::string direction = op.definition->name == "panel_conv" ? absl::StrCat(" ", op.attributes.String("direction")) : std::string();
  // Bands of a convolution cost what it does as a whole.
  std::string_view name = op.definition->name, implementation = kernel.implementation();
  for (std::string_view* text : {&name, &implementation}) {
    for (const std::string_view bands : {"_bands", ", in bands"}) {
      if (text->ends_with(bands)) text->remove_suffix(bands.size());
    }
  }
  return absl::StrCat(ToAbsl(name), direction, ", ", ToAbsl(implementation));
}

CostModel::CostModel(const PlanOptions& options) : options_(options), links_(options.machine.get(), options.ranks_of_machine) {
  if (options.machine == nullptr) return;
  for (const MeasuredKernel& kernel : options.machine->kernels) {
    std::vector<Measured>& known = measured_[kernel.family];
    if (!known.empty() && kernel.threads != known[0].kernel->threads) {
      if (!IsNearer(std::max(1, options.thread_count), kernel.threads, known[0].kernel->threads)) continue;
      known.clear();
    }
    const double ranks = kOfRanks * std::log2(static_cast<double>(std::max(1, options.ranks_of_machine)) / kernel.ranks);
    known.push_back({&kernel, ranks * ranks});
  }
}

double CostModel::Analytic(const OpWork& work) const {
  const MachineRates& rates = options_.rates;
  const Machine* machine = options_.machine.get();
  const bool slow = options_.kernels == KernelChoice::kReference;
  const double threads = slow ? 1.0 : static_cast<double>(std::max(1, options_.thread_count));
  const double flops = (machine != nullptr && machine->flops_per_second > 0 ? machine->flops_per_second : rates.flops_per_second * threads) /
                       (slow ? kReferenceSlowdown : 1.0);
  const double bytes = machine != nullptr && machine->bytes_per_second > 0 ? machine->bytes_per_second : rates.bytes_per_second;
  return std::max(work.flops / flops, work.bytes / bytes) + (machine != nullptr && machine->op_seconds >= 0 ? machine->op_seconds : rates.op_seconds);
}

double CostModel::Seconds(const Program& program, OpId id, const Kernel* kernel) const {
  const Op& op = program.ops()[id];
  if (op.definition->is_view || op.definition->moves) return 0.0;
  if (op.definition->communicates) return ExchangeSeconds(program, id);
  const OpWork work = WorkOf(program, id);
  const double analytic = Analytic(work);
  if (kernel == nullptr || measured_.empty()) return analytic;
  const auto found = measured_.find(FamilyOf(op, *kernel));
  if (found == measured_.end()) return analytic;
  struct Neighbour {
    double distance = INFINITY, ratio = 0;
  };
  std::array<Neighbour, kNearest> nearest;
  for (const Measured& measured : found->second) {
    for (const KernelSample& sample : measured.kernel->samples) {
      const double flops = std::log((1 + work.flops) / (1 + sample.flops)), bytes = std::log((1 + work.bytes) / (1 + sample.bytes));
      Neighbour neighbour{flops * flops + bytes * bytes + measured.distance, std::log(sample.seconds / Analytic({sample.flops, sample.bytes}))};
      for (Neighbour& place : nearest) {
        if (neighbour.distance < place.distance) std::swap(neighbour, place);
      }
    }
  }
  double sum = 0, weights = 0;
  for (const Neighbour& neighbour : nearest) {
    if (!std::isfinite(neighbour.distance)) continue;
    const double weight = 1.0 / ((neighbour.distance + 1e-4) * (neighbour.distance + 1e-4));
    sum += weight * neighbour.ratio;
    weights += weight;
  }
  return analytic * std::exp(sum / weights);
}

double CostModel::ExchangeSeconds(const Program& program, OpId id) const {
  const Throttle& link = options_.link;
  const int64_t bytes = LinkBytes(program, id);
  if (options_.machine != nullptr && !options_.machine->links.empty()) {
    const std::vector<int64_t> members = program.ops()[id].attributes.Ints("ranks");
    return std::max(links_.Seconds(program, id, std::vector<int>(members.begin(), members.end())), link.Seconds(bytes));
  }
  const double own = options_.rates.link_bytes_per_second;
  const double rate = link.bytes_per_second > 0 ? std::min(link.bytes_per_second, own) : own;
  return options_.rates.link_latency_seconds + link.latency_seconds + static_cast<double>(bytes) / rate;
}

double CostModel::Seconds(const Plan& plan) const {
  double seconds = 0;
  for (const PlannedOp& step : plan.schedule) seconds += step.kernel == nullptr ? 0.0 : Seconds(plan.program, step.op, step.kernel.get());
  return seconds;
}

ResidencyTier CostModel::TierOf(const TierOptions& tier) const {
  const Machine* const machine = options_.machine.get();
  const bool far_peer = tier.far && tier.kind == TierKind::kPeer;  // machines describe peers of a node
  const MachineTier* measured = machine == nullptr || far_peer ? nullptr : machine->FindTier(Name(tier.kind));
  // Memory of another rank that no tier describes is behind the link to it; where that is not described either, in a node as host memory is.
  const MachineLink* link = nullptr;
  if (machine != nullptr && measured == nullptr && IsLent(tier.kind)) {
    link = machine->FindLink(tier.far ? "network" : "node");
    if (link == nullptr && !tier.far) measured = machine->FindTier("host");
  }
  const double copy = link != nullptr ? link->bytes_per_second : tier.far ? options_.rates.link_bytes_per_second : options_.rates.copy_bytes_per_second;
  const double latency = link != nullptr ? link->latency_seconds : tier.far ? options_.rates.link_latency_seconds : options_.rates.op_seconds;
  const double out = measured != nullptr ? measured->out_bytes_per_second : copy, in = measured != nullptr ? measured->in_bytes_per_second : copy;
  const auto Rate = [](const Throttle& throttle, double rate) {
    return throttle.bytes_per_second > 0 ? std::min(throttle.bytes_per_second, rate) : rate;
  };
  ResidencyTier result;
  result.budget_bytes = tier.budget_bytes;
  result.out_bytes_per_second = Rate(tier.out, out);
  result.in_bytes_per_second = Rate(tier.in, in);
  result.latency_seconds = std::max(tier.out.latency_seconds, tier.in.latency_seconds) +
                           (measured != nullptr ? measured->latency_seconds : latency);
  // A throttled lane sleeps for the rest of its time.
  if (measured != nullptr) {
    result.out_compute_seconds_per_byte = measured->compute_share / out;
    result.in_compute_seconds_per_byte = measured->compute_share / in;
    if (tier.budget_bytes == INT64_MAX && !IsLent(tier.kind)) result.budget_bytes = measured->memory_bytes;
  }
  return result;
}

std::string CostText(const PlanOptions& options) {
  if (options.machine == nullptr) return "analytic";
  const Machine& machine = *options.machine;
  const std::string file = machine.source.substr(machine.source.rfind('/') + 1);
  return absl::StrFormat("%s, %s, %016x", machine.kernels.empty() ? "described" : "measured", file.empty() ? "unnamed" : file, HashText(ToToml(machine)));
}

}  // namespace gantry
