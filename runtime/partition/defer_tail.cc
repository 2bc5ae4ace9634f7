#include "runtime/partition/defer_tail.h"

#include <algorithm>
#include <map>
#include <set>

#include "runtime/graph/lanes.h"
#include "runtime/partition/gradient_ops.h"
#include "runtime/partition/order_exchanges.h"

namespace gantry {
namespace {

class TailDeferrer {
 public:
  explicit TailDeferrer(const Program& program) : program_(program), copier_(program, target_), in_tail_(program.ops().size(), false) {}

  absl::StatusOr<Program> Run() {
    if (!FindTail()) return program_;
    EmitTail();
    EmitStep();
    copier_.Finish();
    for (const auto& [value, state] : kept_) {
      if (!saved_.contains(value)) Save(value);
    }
    GANTRY_RETURN_IF_ERROR(target_.status());
    NumberExchanges(target_);
    return std::move(target_);
  }

 private:
  OpId MakerOf(ValueId value) const { return program_.values()[value].producer; }
  bool IsMadeInTail(ValueId value) const { return MakerOf(value) >= 0 && in_tail_[MakerOf(value)]; }

  // Marks the ops; false where there is no tail.
  bool FindTail() {
    int network = -1;
    for (OpId id = static_cast<OpId>(program_.ops().size()) - 1; id >= 0 && network < 0; --id) {
      const Op& op = program_.ops()[id];
      if (LaneOf(*op.definition, op.attributes) == PlanLane::kGradients) network = op.network;
    }
    if (network < 0) return false;
    std::vector<bool> is_first(program_.values().size(), false);
    for (const State& state : program_.states()) is_first[state.first] = true;
    bool updates = false, large = false;
    for (OpId id = 0; id < static_cast<OpId>(program_.ops().size()); ++id) {
      const Op& op = program_.ops()[id];
      // What is small and complete before the first large exchange ends within its step.
      large = large || (op.network == network && LaneOf(*op.definition, op.attributes) == PlanLane::kGradients);
      in_tail_[id] = large && op.network == network && op.definition->communicates && op.attributes.String("purpose") == "gradient";
      for (ValueId input : op.inputs) in_tail_[id] = in_tail_[id] || IsMadeInTail(input);
      if (!in_tail_[id]) continue;
      // It runs as one, once, and changes what nobody has changed before.
      if (op.condition != kNoValue) return false;
      for (int i = 0; i < UpdateCount(op); ++i) {
        if (!is_first[op.inputs[i]] && !IsMadeInTail(op.inputs[i])) return false;
        updates = true;
      }
      if (op.definition->communicates && op.network != network) return false;
    }
    if (updates) {
      const std::vector<bool> without = in_tail_;
      const int64_t bytes = KeptBytes();
      TakeMakers(network);
      if (KeptBytes() > bytes) in_tail_ = without;
    }
    return updates;
  }

  // Of what the tail reads of its step.
  int64_t KeptBytes() const {
    std::set<ValueId> kept;
    for (OpId id = 0; id < static_cast<OpId>(program_.ops().size()); ++id) {
      if (!in_tail_[id]) continue;
      for (ValueId input : program_.ops()[id].inputs) {
        if (program_.values()[input].kind != ValueKind::kState && !IsMadeInTail(input) && !IsConstant(input)) kept.insert(input);
      }
    }
    int64_t bytes = 0;
    for (const ValueId value : kept) bytes += program_.TypeOf(value).size_bytes();
    return bytes;
  }

  // What only the tail needs goes with it, but for what its first exchange waits for: the rest of the backward pass has exchanges to run beside
  // then, where its operands are no larger than the gradients that it makes.
  void TakeMakers(int network) {
    const auto count = static_cast<OpId>(program_.ops().size());
    const std::vector<bool> for_updates = NeededByUpdatesOnly(program_);
    const OpId first = static_cast<OpId>(std::find(in_tail_.begin(), in_tail_.end(), true) - in_tail_.begin());
    std::vector<bool> awaited(program_.values().size(), false), otherwise(program_.values().size(), false);
    std::vector<bool> stays(program_.values().size(), false);  // of states that change within the step
    for (ValueId input : program_.ops()[first].inputs) {
      const OpId maker = MakerOf(input);
      if (maker < 0) continue;
      for (ValueId operand : program_.ops()[maker].inputs) awaited[operand] = true;
    }
    for (const State& state : program_.states()) stays[state.first] = state.last != state.first && !IsMadeInTail(state.last);
    for (const NamedValue& output : program_.outputs()) otherwise[output.value] = true;
    for (OpId id = count - 1; id >= 0; --id) {
      const Op& op = program_.ops()[id];
      bool needed = false, away = for_updates[id] && op.network == network && op.condition == kNoValue;
      for (ValueId output : op.outputs) {
        needed = needed || awaited[output];
        away = away && !otherwise[output];
      }
      for (ValueId input : op.inputs) {
        awaited[input] = awaited[input] || needed;
        away = away && !stays[input];
      }
      in_tail_[id] = in_tail_[id] || (away && !needed);
      if (in_tail_[id]) continue;
      for (ValueId input : op.inputs) otherwise[input] = true;
    }
  }

  // A constant that the tail can make by itself.
  bool IsConstant(ValueId value) const { return MakerOf(value) >= 0 && program_.ops()[MakerOf(value)].definition->name == "fill"; }

  void EmitTail() {
    flag_ = target_.AddInput(std::string(kTailFlag), {DataType::kF32, Shape{}});
    std::map<ValueId, ValueId> made;  // of the source, in the tail
    std::set<ValueId> states;
    for (const State& state : program_.states()) states.insert(state.first);
    const auto InTail = [&](ValueId value) -> ValueId {
      if (const auto found = made.find(value); found != made.end()) return found->second;
      if (states.contains(value)) return copier_.Mapped(value);
      if (IsConstant(value)) {
        const Op& op = program_.ops()[MakerOf(value)];
        target_.SetCondition(flag_);
        return made[value] = target_.Emit("fill", {}, op.attributes)[0];
      }
      const std::string name = absl::StrCat("tail.", kept_.size());
      const ValueId state = target_.AddState(name, "", StateRole::kMoment, program_.TypeOf(value), Initializer());
      kept_.emplace_back(value, name);
      is_kept_.insert(value);
      return made[value] = state;
    };
    for (OpId id = 0; id < static_cast<OpId>(program_.ops().size()); ++id) {
      if (!in_tail_[id]) continue;
      const Op& op = program_.ops()[id];
      std::vector<ValueId> inputs;
      SetLabels(op);
      for (ValueId input : op.inputs) inputs.push_back(InTail(input));
      target_.SetCondition(flag_);
      const std::vector<ValueId> outputs = target_.Emit(op.definition->name, inputs, op.attributes);
      for (size_t i = 0; i < op.outputs.size(); ++i) {
        made[op.outputs[i]] = outputs[i];
        copier_.Map(op.outputs[i], outputs[i]);
        target_.NameValue(outputs[i], program_.values()[op.outputs[i]].name);
      }
      // The step reads what the tail has made of states.
      for (int i = 0; i < UpdateCount(op); ++i) {
        ValueId first = op.inputs[i];
        while (IsMadeInTail(first)) first = program_.ops()[MakerOf(first)].inputs[program_.values()[first].output_index];
        newest_[first] = outputs[i];
      }
    }
    target_.SetCondition(kNoValue);
    for (const auto& [first, newest] : newest_) copier_.Map(first, newest);
  }

  void SetLabels(const Op& op) {
    target_.SetPhase(program_.labels()[op.phase]);
    target_.SetNetwork(program_.labels()[op.network]);
  }

  // What does not need the tail goes first, so that no exchange of what does stands before it in the order of all ranks.
  void EmitStep() {
    const auto count = static_cast<OpId>(program_.ops().size());
    std::vector<bool> needs(program_.values().size(), false), late(count, false);
    for (const auto& [first, newest] : newest_) needs[first] = true;
    std::vector<ValueId> base(program_.values().size());
    for (ValueId value = 0; value < static_cast<ValueId>(base.size()); ++value) base[value] = value;
    std::vector<bool> read_late(program_.values().size(), false);  // by view base
    for (OpId id = 0; id < count; ++id) {
      const Op& op = program_.ops()[id];
      if (in_tail_[id]) continue;
      if (op.definition->is_view) base[op.outputs[0]] = base[op.inputs[0]];
      for (ValueId input : op.inputs) late[id] = late[id] || needs[input];
      for (int i = 0; i < UpdateCount(op); ++i) late[id] = late[id] || read_late[base[op.inputs[i]]];
      if (!late[id]) continue;
      for (ValueId input : op.inputs) read_late[base[input]] = true;
      for (ValueId output : op.outputs) needs[output] = true;
    }
    for (const bool then : {false, true}) {
      for (OpId id = 0; id < count; ++id) {
        if (in_tail_[id] || late[id] != then) continue;
        copier_.Copy(id);
        for (ValueId output : program_.ops()[id].outputs) {
          if (is_kept_.contains(output)) Save(output);
        }
      }
    }
  }

  // Into its state, for the tail that follows.
  void Save(ValueId value) {
    for (const auto& [kept, name] : kept_) {
      if (kept != value) continue;
      target_.SetCondition(kNoValue);
      const ValueId inputs[] = {target_.FindState(name)->last, copier_.Mapped(value)};
      target_.UpdateState(name, target_.Emit("assign", inputs, {})[0]);
      saved_.insert(value);
    }
  }

  const Program& program_;
  Program target_;
  ProgramCopier copier_;
  ValueId flag_ = kNoValue;
  std::vector<bool> in_tail_;  // per op
  std::vector<std::pair<ValueId, std::string>> kept_;  // what the tail reads of its step, and the state that keeps it
  std::set<ValueId> is_kept_, saved_;
  std::map<ValueId, ValueId> newest_;  // per first version of a state that the tail updates
};

}  // namespace

absl::StatusOr<Program> DeferTail(const Program& program) {
  GANTRY_RETURN_IF_ERROR(program.status());
  return TailDeferrer(program).Run();
}

}  // namespace gantry
