#include "runtime/plan/memory_order.h"

#include <algorithm>

#include "runtime/plan/dependencies.h"

namespace gantry {
namespace {

constexpr int64_t kSmallBytes = 4096;  // what makes no more is run as soon as it can be
constexpr int64_t kSmallShare = 8;     // and so is what makes less than this part of what it reads
constexpr int64_t kPeakShare = 100;    // a peak is better by at least this part of it

// What is alive as ops run one after another.
class Liveness {
 public:
  Liveness(const Program& program, const Dependencies& dependencies)
      : program_(program), base_(dependencies.base), reads_(program.values().size(), 0), bytes_(program.values().size(), 0) {
    for (const Op& op : program.ops()) {
      for (ValueId input : op.inputs) ++reads_[base_[input]];
    }
    for (ValueId value = 0; value < static_cast<ValueId>(bytes_.size()); ++value) {
      if (base_[value] == value && program.values()[value].kind != ValueKind::kState) bytes_[value] = program.TypeOf(value).size_bytes();
    }
    for (const NamedValue& output : program.outputs()) ++reads_[base_[output.value]];
    for (ValueId input : program.inputs()) live_ += bytes_[input];
    peak_ = live_;
  }

  // Bytes that running `op` next would add; below 0 where it frees more than it makes.
  int64_t Growth(const Op& op) const { return Made(op) - Freed(op); }

  void Run(const Op& op) {
    const int64_t made = Made(op), freed = Freed(op);
    peak_ = std::max(peak_, live_ + made - InPlace(op));
    live_ += made - freed;
    area_ += static_cast<double>(live_);
    for (ValueId input : op.inputs) --reads_[base_[input]];
    for (ValueId output : op.outputs) {
      if (base_[output] == output && reads_[output] == 0) live_ -= bytes_[output];
    }
  }

  int64_t peak() const { return peak_; }
  double area() const { return area_; }
  int64_t Made(const Op& op) const {
    int64_t made = 0;
    for (ValueId output : op.outputs) made += base_[output] == output ? bytes_[output] : 0;
    return made;
  }

 private:
  bool Ends(const Op& op, ValueId value) const {
    const auto uses = std::ranges::count_if(op.inputs, [&](ValueId input) { return base_[input] == base_[value]; });
    return reads_[base_[value]] == uses;
  }
  int64_t Freed(const Op& op) const {
    int64_t freed = 0;
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      const ValueId root = base_[op.inputs[i]];
      const auto same = [&](ValueId other) { return base_[other] == root; };
      if (std::any_of(op.inputs.begin(), op.inputs.begin() + static_cast<int64_t>(i), same)) continue;
      if (Ends(op, root)) freed += bytes_[root];
    }
    return freed;
  }
  int64_t InPlace(const Op& op) const {
    int64_t shared = 0;
    for (const Alias& alias : op.definition->in_place) {
      if (alias.output >= static_cast<int>(op.outputs.size()) || alias.input >= static_cast<int>(op.inputs.size())) continue;
      const ValueId input = base_[op.inputs[alias.input]], output = op.outputs[alias.output];
      if (program_.values()[input].kind == ValueKind::kComputed && base_[output] == output && bytes_[input] == bytes_[output] && Ends(op, input)) {
        shared = std::max(shared, bytes_[output]);
      }
    }
    return shared;
  }

  const Program& program_;
  const std::vector<ValueId>& base_;
  std::vector<int> reads_;      // per base: reads to come
  std::vector<int64_t> bytes_;  // per base
  int64_t live_ = 0, peak_ = 0;
  double area_ = 0.0;
};

struct Order {
  std::vector<OpId> ops;
  int64_t peak = 0;   // bytes
  double area = 0.0;  // bytes alive, summed over the ops: what is alive for short needs little copying where memory is shorter still
};

class DepthFirst {
 public:
  DepthFirst(const Program& program, const Dependencies& dependencies, bool last_first, bool shrink)
      : program_(program), dependencies_(dependencies), liveness_(program, dependencies), last_first_(last_first), shrink_(shrink),
        waits_for_(program.ops().size()), done_(program.ops().size(), false), statistic_(program.values().size(), false) {
    for (const State& state : program.states()) statistic_[state.first] = state.role == StateRole::kStatistic;
    for (size_t op = 0; op < waits_for_.size(); ++op) {
      waits_for_[op] = static_cast<int>(dependencies.before[op].size());
      if (waits_for_[op] == 0) ready_.push_back(static_cast<OpId>(op));
    }
  }

  Order Run() {
    const OpId count = static_cast<OpId>(program_.ops().size());
    for (OpId begin = 0; begin < count;) {
      OpId end = begin;
      while (end < count && IsTraining(end)) ++end;
      // All that a run of updates needs, and then the updates behind one another.
      for (OpId id = begin; id < end; ++id) {
        for (OpId before : dependencies_.before[id]) {
          if (before < begin || before >= end) Demand(before);
        }
      }
      for (OpId id = begin; id < end; ++id) {
        if (!done_[id] && waits_for_[id] == 0) RunOp(id);
      }
      RunEager();
      for (OpId id = begin; id < end; ++id) Demand(id);  // those that read what others of them make
      begin = std::max(end, begin + 1);
    }
    for (const NamedValue& output : program_.outputs()) {
      if (const OpId producer = program_.values()[output.value].producer; producer >= 0) Demand(producer);
    }
    for (OpId id = 0; id < count; ++id) Demand(id);
    return {std::move(order_), liveness_.peak(), liveness_.area()};
  }

 private:
  // An optimizer's or an average's. Running statistics are updated where they are made.
  bool IsTraining(OpId id) const {
    const Op& op = program_.ops()[id];
    return UpdateCount(op) > 0 && !statistic_[dependencies_.base[op.inputs[0]]];
  }

  void Demand(OpId wanted) {
    std::vector<OpId> stack = {wanted};
    while (!stack.empty()) {
      const OpId id = stack.back();
      if (done_[id]) {
        stack.pop_back();
        continue;
      }
      OpId missing = -1;
      for (OpId before : dependencies_.before[id]) {
        if (done_[before]) continue;
        missing = before;
        if (!last_first_) break;
      }
      if (missing >= 0) {
        stack.push_back(missing);
      } else {
        RunOp(id);
        RunEager();
      }
    }
  }

  void RunOp(OpId id) {
    liveness_.Run(program_.ops()[id]);
    order_.push_back(id);
    done_[id] = true;
    std::erase(ready_, id);
    for (OpId next : dependencies_.after[id]) {
      if (--waits_for_[next] == 0) ready_.push_back(next);
    }
  }

  bool IsEager(OpId id) const {
    const Op& op = program_.ops()[id];
    if (op.definition->communicates || IsTraining(id)) return false;
    if (dependencies_.before[id].empty()) return false;  // what nothing holds back can wait until it is wanted
    const int64_t made = liveness_.Made(op);
    if (made <= kSmallBytes) return true;
    if (!shrink_) return false;
    int64_t largest = 0;
    for (ValueId input : op.inputs) largest = std::max(largest, program_.TypeOf(input).size_bytes());
    // A weight gradient goes before the gradient of what was multiplied with the weight, which is large and wanted by others only.
    return made <= largest / kSmallShare || liveness_.Growth(op) <= 0;
  }

  void RunEager() {
    for (bool found = true; found;) {
      found = false;
      for (OpId id : ready_) {
        if (!IsEager(id)) continue;
        RunOp(id);
        found = true;
        break;
      }
    }
  }

  const Program& program_;
  const Dependencies& dependencies_;
  Liveness liveness_;
  bool last_first_, shrink_;
  std::vector<int> waits_for_;
  std::vector<bool> done_;
  std::vector<bool> statistic_;  // per value
  std::vector<OpId> ready_, order_;
};

}  // namespace

int64_t LiveBytes(const Program& program) {
  const Dependencies dependencies(program);
  Liveness liveness(program, dependencies);
  for (const Op& op : program.ops()) liveness.Run(op);
  return liveness.peak();
}

absl::StatusOr<Program> OrderForMemory(const Program& program) {
  GANTRY_RETURN_IF_ERROR(program.status());
  const Dependencies dependencies(program);
  const int64_t own = LiveBytes(program);
  Order best;
  best.peak = own - own / kPeakShare;
  for (const bool last_first : {false, true}) {
    for (const bool shrink : {false, true}) {
      Order order = DepthFirst(program, dependencies, last_first, shrink).Run();
      const int64_t much = best.peak / kPeakShare;
      if (order.peak < best.peak - (best.ops.empty() ? 0 : much) || (order.peak < best.peak + much && order.area < best.area)) best = std::move(order);
    }
  }
  if (best.ops.empty()) return program;
  Program target;
  ProgramCopier copier(program, target);
  for (OpId id : best.ops) copier.Copy(id);
  copier.Finish();
  GANTRY_RETURN_IF_ERROR(target.status());
  return target;
}

}  // namespace gantry
