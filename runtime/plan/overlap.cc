#include "runtime/plan/overlap.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <map>

#include "runtime/plan/cost_model.h"

namespace gantry {
namespace {

// Of the live bytes of the order as it was, so much more; where a step goes on beside the next one, by what it keeps for that.
constexpr double kMoreMemory = 1.03, kMoreAcross = 1.25;
// An order that keeps to a limit as long as something fits may end above it where nothing does: limits that are tried, of that one.
constexpr double kLimits[] = {1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6};
// An order that is not better by this share is not worth the change.
constexpr double kLeastGain = 0.002;

bool IsBeside(const Op& op) {
  const PlanLane lane = LaneOf(*op.definition, op.attributes);
  return std::find(std::begin(kExchangeLanes), std::end(kExchangeLanes), lane) != std::end(kExchangeLanes);
}

// The value whose memory each value shares by views.
std::vector<ValueId> ViewBases(const Program& program) {
  std::vector<ValueId> base(program.values().size());
  for (ValueId value = 0; value < static_cast<ValueId>(base.size()); ++value) base[value] = value;
  for (const Op& op : program.ops()) {
    if (op.definition->is_view) base[op.outputs[0]] = base[op.inputs[0]];
  }
  return base;
}

// All lanes on one link: what is wanted sooner takes its time from large gradients under way.
class LinkClock {
 public:
  // Begins an exchange at `now`; when it is done, unless something urgent comes.
  void Begin(int id, PlanLane lane, double now, double seconds) {
    double& free = lanes_[lane];
    free = std::max(free, now) + seconds;
    if (lane != PlanLane::kGradients) {
      for (auto& [other, end] : gradients_) end += end > now ? seconds : 0.0;
      if (double& gradients = lanes_[PlanLane::kGradients]; gradients > now) gradients += seconds;
    } else {
      std::erase_if(gradients_, [&](const auto& under_way) { return under_way.second <= now; });
      gradients_.emplace_back(id, free);
    }
    last_ = std::pair(id, free);
  }
  // The exchange that has begun last, and large gradients under way, with when they are done as it stands.
  std::span<const std::pair<int, double>> gradients() const { return gradients_; }
  std::pair<int, double> last() const { return last_; }
  double End() const {
    double end = 0.0;
    for (const auto& [lane, free] : lanes_) end = std::max(end, free);
    return end;
  }

 private:
  std::map<PlanLane, double> lanes_;  // until when it is busy
  std::vector<std::pair<int, double>> gradients_;
  std::pair<int, double> last_;
};

// Ops as machines see them, on a clock.
class ListScheduler {
 public:
  ListScheduler(const Program& program, const PlanOptions& options)
      : program_(program), base_(ViewBases(program)), count_(static_cast<OpId>(program.ops().size())), after_(count_), waits_for_(count_, 0),
        seconds_(count_), beside_(count_), readers_left_(program.values().size(), 0), kept_(program.values().size(), false) {
    const CostModel costs(options);
    for (OpId id = 0; id < count_; ++id) {
      seconds_[id] = costs.Seconds(program, id, nullptr);
      beside_[id] = IsBeside(program.ops()[id]);
    }
    FindEdges();
    FindTails();
  }

  // The order of the program.
  double InOrder(int64_t& peak_bytes) {
    Clock clock(*this);
    for (OpId id = 0; id < count_; ++id) clock.Run(id);
    peak_bytes = clock.peak_bytes;
    return clock.End();
  }

  // By the longest way to the end. Above `limit_bytes`, what comes first in the program, so that it may end higher.
  double ByTails(int64_t limit_bytes, std::vector<OpId>& order, int64_t& peak_bytes) {
    Clock clock(*this);
    std::vector<int> waits = waits_for_;
    std::vector<OpId> ready;  // ascending
    for (OpId id = 0; id < count_; ++id) {
      if (waits[id] == 0) ready.push_back(id);
    }
    order.clear();
    while (!ready.empty()) {
      const OpId next = Choose(clock, ready, limit_bytes);
      ready.erase(std::lower_bound(ready.begin(), ready.end(), next));
      clock.Run(next);
      order.push_back(next);
      for (const Edge& edge : after_[next]) {
        if (--waits[edge.to] == 0) ready.insert(std::lower_bound(ready.begin(), ready.end(), edge.to), edge.to);
      }
    }
    peak_bytes = clock.peak_bytes;
    return clock.End();
  }

 private:
  struct Edge {
    OpId to;
    bool when_begun;  // `to` may follow once this op has begun; false: once it is done
  };

  struct Clock {
    explicit Clock(const ListScheduler& all)
        : all(all), available(all.count_, 0.0), readers_left(all.readers_left_) {}

    // When all that the op reads is there, on the compute lane no earlier than now.
    double Ready(OpId id) const { return available[id]; }
    int64_t BytesMade(OpId id) const {
      const Op& op = all.program_.ops()[id];
      if (op.definition->is_view || UpdateCount(op) > 0) return 0;
      int64_t bytes = 0;
      for (ValueId output : op.outputs) bytes += all.program_.TypeOf(output).size_bytes();
      return bytes;
    }

    // Of these, what takes the memory of an operand that ends here.
    int64_t BytesInPlace(OpId id) const {
      const Op& op = all.program_.ops()[id];
      int64_t shared = 0;
      for (const Alias& alias : op.definition->in_place) {
        if (alias.output >= static_cast<int>(op.outputs.size()) || alias.input >= static_cast<int>(op.inputs.size())) continue;
        const ValueId operand = all.base_[op.inputs[alias.input]];
        const auto uses = std::count_if(op.inputs.begin(), op.inputs.end(), [&](ValueId input) { return all.base_[input] == operand; });
        const int64_t bytes = all.program_.TypeOf(op.outputs[alias.output]).size_bytes();
        const bool ends = !all.kept_[operand] && readers_left[operand] == uses;
        if (ends && all.program_.TypeOf(operand).size_bytes() == bytes) shared = std::max(shared, bytes);
      }
      return shared;
    }
    // The most that is live while it runs.
    int64_t BytesWith(OpId id) const { return live_bytes + BytesMade(id) - BytesInPlace(id); }

    void Run(OpId id) {
      const Op& op = all.program_.ops()[id];
      double end = 0.0;
      if (op.definition->is_view) {
        end = available[id];  // of what it views
      } else if (all.beside_[id]) {
        link.Begin(id, all.LaneOfOp(id), std::max(now, available[id]), all.seconds_[id]);
        end = link.last().second;
        for (const auto& [gradient, until] : link.gradients()) {
          for (const Edge& edge : all.after_[gradient]) {
            if (!edge.when_begun) available[edge.to] = std::max(available[edge.to], until);
          }
        }
      } else {
        now = std::max(now, available[id]) + all.seconds_[id];
        end = now;
      }
      for (const Edge& edge : all.after_[id]) {
        if (!edge.when_begun) available[edge.to] = std::max(available[edge.to], end);
      }
      peak_bytes = std::max(peak_bytes, BytesWith(id));
      live_bytes += BytesMade(id);
      for (ValueId input : op.inputs) {
        if (--readers_left[all.base_[input]] > 0 || all.kept_[all.base_[input]]) continue;
        live_bytes -= all.program_.TypeOf(all.base_[input]).size_bytes();
      }
    }
    double End() const { return std::max(now, link.End()); }

    const ListScheduler& all;
    double now = 0.0;
    LinkClock link;
    std::vector<double> available;
    std::vector<int> readers_left;
    int64_t live_bytes = 0, peak_bytes = 0;
  };

  void FindEdges() {
    std::vector<std::vector<OpId>> readers(program_.values().size());
    std::vector<OpId> checked;  // make losses, where a step may stop
    std::vector<bool> is_scalar_output(program_.values().size(), false);
    for (const NamedValue& output : program_.outputs()) {
      is_scalar_output[output.value] = program_.TypeOf(output.value).shape.rank() == 0;
      kept_[base_[output.value]] = true;
    }
    for (ValueId value = 0; value < static_cast<ValueId>(base_.size()); ++value) {
      if (program_.values()[value].kind != ValueKind::kComputed) kept_[value] = true;
    }
    for (const State& state : program_.states()) kept_[base_[state.last]] = true;
    OpId last_exchange = -1;
    std::vector<bool> from_beside(program_.values().size(), false);  // comes of an exchange beside compute
    for (OpId id = 0; id < count_; ++id) {
      const Op& op = program_.ops()[id];
      bool late = beside_[id];
      for (ValueId input : op.inputs) late = late || from_beside[input];
      for (ValueId output : op.outputs) from_beside[output] = late && UpdateCount(op) == 0;
      for (ValueId input : op.inputs) {
        Precede(program_.values()[input].producer, id, false);
        ++readers_left_[base_[input]];
      }
      const int updates = UpdateCount(op);
      for (int i = 0; i < updates; ++i) {
        for (OpId reader : readers[base_[op.inputs[i]]]) Precede(reader, id, false);
        kept_[base_[op.outputs[i]]] = true;
      }
      // A step that stops at a loss has not changed weights. Norms of gradients are known when some weights have been updated.
      if (updates > 0) {
        for (OpId maker : checked) Precede(maker, id, false);
      }
      if (op.definition->communicates) {
        Precede(last_exchange, id, true);
        last_exchange = id;
      }
      for (ValueId input : op.inputs) readers[base_[input]].push_back(id);
      for (ValueId output : op.outputs) {
        if (is_scalar_output[output] && !late) checked.push_back(id);
      }
    }
  }

  void Precede(OpId first, OpId second, bool when_begun) {
    if (first < 0 || first == second) return;
    after_[first].push_back({second, when_begun});
    ++waits_for_[second];
  }

  // The longest way from the begin of each op to the end of the step. Exchanges of one lane follow one another.
  void FindTails() {
    tail_.assign(count_, 0.0);
    for (OpId id = count_ - 1; id >= 0; --id) {
      double longest = 0.0;
      for (const Edge& edge : after_[id]) {
        const bool waits = !edge.when_begun || (beside_[id] && beside_[edge.to] && LaneOfOp(id) == LaneOfOp(edge.to));
        longest = std::max(longest, tail_[edge.to] - (waits ? 0.0 : seconds_[id]));
      }
      tail_[id] = seconds_[id] + longest;
    }
  }

  PlanLane LaneOfOp(OpId id) const { return LaneOf(*program_.ops()[id].definition, program_.ops()[id].attributes); }

  OpId Choose(const Clock& clock, const std::vector<OpId>& ready, int64_t limit_bytes) const {
    OpId best = -1, first = -1, soonest = -1;
    for (OpId id : ready) {
      const Op& op = program_.ops()[id];
      if (op.definition->is_view) return id;
      const bool available = clock.Ready(id) <= clock.now;
      if (beside_[id] && available) return id;
      if (soonest < 0 || clock.Ready(id) < clock.Ready(soonest)) soonest = id;
      if (!available) continue;
      if (first < 0) first = id;
      if (clock.BytesWith(id) > limit_bytes) continue;
      if (best < 0 || tail_[id] > tail_[best]) best = id;
    }
    return best >= 0 ? best : first >= 0 ? first : soonest;
  }

  const Program& program_;
  const std::vector<ValueId> base_;
  const OpId count_;
  std::vector<std::vector<Edge>> after_;
  std::vector<int> waits_for_;
  std::vector<double> seconds_, tail_;
  std::vector<bool> beside_;
  std::vector<int> readers_left_;  // per view base
  std::vector<bool> kept_;         // inputs, states and outputs: not freed, and not counted where they are there anyway
};

// What is live at each step of the schedule, without views and with every value from its maker to its last reader.
std::vector<int64_t> LiveBytes(const Plan& plan, const std::vector<ValueId>& base) {
  const Program& program = plan.program;
  const int steps = static_cast<int>(plan.schedule.size());
  std::vector<int> first(program.values().size(), -1), last(program.values().size(), -1);
  for (int step = 0; step < steps; ++step) {
    const Op& op = program.ops()[plan.schedule[step].op];
    for (ValueId input : op.inputs) last[base[input]] = step;
    for (ValueId output : op.outputs) {
      if (base[output] == output) first[output] = last[output] = step;
    }
    for (int i = 0; i < UpdateCount(op); ++i) first[op.outputs[i]] = -1;  // in the memory of the version before
  }
  int64_t always = 0;
  for (const State& state : program.states()) {
    if (program.values()[state.first].tier == kDeviceTier) always += program.TypeOf(state.first).size_bytes();
  }
  for (ValueId input : program.inputs()) {
    if (program.values()[input].tier == kDeviceTier) always += program.TypeOf(input).size_bytes();
  }
  for (const NamedValue& output : program.outputs()) last[base[output.value]] = steps - 1;
  std::vector<int64_t> change(steps + 1, 0);
  for (ValueId value = 0; value < static_cast<ValueId>(first.size()); ++value) {
    if (first[value] < 0 || program.values()[value].tier != kDeviceTier) continue;
    change[first[value]] += program.TypeOf(value).size_bytes();
    change[last[value] + 1] -= program.TypeOf(value).size_bytes();
  }
  std::vector<int64_t> live(steps, 0);
  int64_t sum = always;
  for (int step = 0; step < steps; ++step) {
    live[step] = sum += change[step];
    const PlannedOp& planned = plan.schedule[step];
    if (planned.kernel != nullptr) live[step] += static_cast<int64_t>(planned.kernel->scratch_bytes());
  }
  return live;
}

// What an exchange holds beyond what waits for its result anyway: operands that nobody else reads later, and its scratch.
int64_t HeldBytes(const Plan& plan, int step, const std::vector<int>& last_read, const std::vector<ValueId>& base) {
  const Program& program = plan.program;
  const PlannedOp& planned = plan.schedule[step];
  const Op& op = program.ops()[planned.op];
  int64_t held = planned.kernel == nullptr ? 0 : static_cast<int64_t>(planned.kernel->scratch_bytes());
  for (size_t i = 0; i < op.inputs.size(); ++i) {
    const ValueId operand = base[op.inputs[i]];
    const bool in_place = !op.definition->in_place.empty() && i == 0 && op.inputs.size() == 1;
    if (!in_place && last_read[operand] <= step && program.values()[operand].kind == ValueKind::kComputed) held += program.TypeOf(operand).size_bytes();
  }
  return held;
}

}  // namespace

absl::StatusOr<Program> OrderForOverlap(const Program& program, const PlanOptions& options) {
  GANTRY_RETURN_IF_ERROR(program.status());
  if (!options.overlap || !options.reorder || std::none_of(program.ops().begin(), program.ops().end(), IsBeside)) return program;
  ListScheduler scheduler(program, options);
  int64_t peak_bytes = 0;
  const double before = scheduler.InOrder(peak_bytes);
  const bool across = program.FindInput(kTailFlag) != kNoValue;
  const double most = (across ? kMoreAcross : kMoreMemory) * static_cast<double>(peak_bytes);
  std::vector<OpId> order, best;
  double least = before * (1.0 - kLeastGain);
  for (const double limit : kLimits) {
    const double after = scheduler.ByTails(static_cast<int64_t>(limit * most), order, peak_bytes);
    if (order.size() != program.ops().size()) return absl::InternalError("an order for overlap leaves ops out");
    if (static_cast<double>(peak_bytes) > most || after > least) continue;
    least = after;
    best = order;
  }
  if (best.empty()) return program;
  Program target;
  ProgramCopier copier(program, target);
  for (OpId id : best) copier.Copy(id);
  copier.Finish();
  GANTRY_RETURN_IF_ERROR(target.status());
  return target;
}

void SetWaits(Plan& plan, const PlanOptions& options, int64_t budget_bytes) {
  const Program& program = plan.program;
  plan.link = options.link;
  if (!options.overlap) return;
  const std::vector<ValueId> base = ViewBases(program);
  const int steps = static_cast<int>(plan.schedule.size());
  // Per value: steps that read it, or write over it, ascending; views do neither.
  std::vector<std::vector<int>> reads(program.values().size()), writes(program.values().size());
  std::vector<int> last_read(program.values().size(), -1);
  for (int step = 0; step < steps; ++step) {
    const Op& op = program.ops()[plan.schedule[step].op];
    if (op.definition->is_view) continue;
    for (ValueId input : op.inputs) {
      reads[base[input]].push_back(step);
      last_read[base[input]] = step;
    }
    for (int i = 0; i < UpdateCount(op); ++i) writes[base[op.inputs[i]]].push_back(step);
  }
  std::vector<bool> is_output(program.values().size(), false);
  for (const NamedValue& output : program.outputs()) is_output[base[output.value]] = true;
  std::vector<int64_t> live;
  if (budget_bytes > 0) live = LiveBytes(plan, base);
  for (int step = 0; step < steps; ++step) {
    PlannedOp& planned = plan.schedule[step];
    const Op& op = program.ops()[planned.op];
    if (!IsBeside(op)) continue;
    int done_by = steps;
    bool is_read = false;
    const auto Before = [&](const std::vector<int>& others) {
      const auto next = std::upper_bound(others.begin(), others.end(), step);
      if (next != others.end()) done_by = std::min(done_by, *next);
    };
    for (ValueId output : op.outputs) {
      Before(reads[output]);
      is_read = is_read || !reads[output].empty() || is_output[output];
      if (is_output[output]) done_by = step + 1;  // checked as soon as it is made
    }
    for (ValueId input : op.inputs) Before(writes[base[input]]);
    // What is for other ranks only keeps its operand no longer than others do.
    if (!is_read) done_by = std::min(done_by, std::max(last_read[base[op.inputs[0]]], step) + 1);
    if (budget_bytes > 0) {
      const int64_t held = HeldBytes(plan, step, last_read, base);
      int until = step + 1;
      while (until < done_by && live[until] + held <= budget_bytes) live[until++] += held;
      done_by = until;
    }
    planned.done_by = done_by;
  }
}

OverlapEstimate EstimateOverlap(const Plan& plan) {
  OverlapEstimate estimate;
  double now = 0.0;
  LinkClock link;
  std::vector<double> ends(plan.schedule.size(), 0.0);  // of the exchange that begins at a step
  std::vector<std::vector<size_t>> waits(plan.schedule.size() + 1);
  const auto WaitFor = [&](const std::vector<size_t>& exchanges) {
    for (const size_t step : exchanges) {
      if (ends[step] <= now) continue;
      estimate.exposed_seconds += ends[step] - now;
      now = ends[step];
    }
  };
  for (size_t step = 0; step < plan.schedule.size() && step < plan.costs.size(); ++step) {
    const StepCost& cost = plan.costs[step];
    WaitFor(waits[step]);
    if (cost.lane == PlanLane::kCopy) continue;
    const bool exchange = !cost.purpose.empty();
    if (exchange) estimate.exchange_seconds += cost.seconds;
    if (cost.lane == PlanLane::kCompute) {
      now += cost.seconds;
      if (exchange) estimate.exposed_seconds += cost.seconds;
      continue;
    }
    link.Begin(static_cast<int>(step), cost.lane, now, cost.seconds);
    ends[step] = link.last().second;
    for (const auto& [gradient, until] : link.gradients()) ends[gradient] = until;
    waits[plan.schedule[step].done_by].push_back(step);
  }
  WaitFor(waits.back());
  estimate.seconds = now;
  return estimate;
}

}  // namespace gantry
