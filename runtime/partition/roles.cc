#include "runtime/partition/roles.h"

#include <algorithm>

#include "ops/functional.h"

namespace gantry {
namespace {

constexpr int kBoth = -1;           // where a value is: on both ranks, or on rank 0 or 1 of the axis
constexpr int64_t kSmallBytes = 4096;

class RolePartitioner {
 public:
  RolePartitioner(const Program& source, const RoleAxis& axis, int index)
      : source_(source), axis_(axis), index_(index), home_(source.values().size(), kBoth), local_(source.values().size(), kNoValue),
        is_output_(source.values().size(), false) {}

  absl::StatusOr<Program> Run() {
    GANTRY_RETURN_IF_ERROR(source_.status());
    for (ValueId input : source_.inputs()) local_[input] = target_.AddInput(source_.values()[input].name, source_.TypeOf(input));
    for (const State& state : source_.states()) AddState(state);
    for (const NamedValue& output : source_.outputs()) is_output_[output.value] = true;
    for (const Op& op : source_.ops()) {
      Place(op);
      GANTRY_RETURN_IF_ERROR(Annotate(target_.status(), source_.Describe(static_cast<OpId>(&op - source_.ops().data()))));
    }
    target_.SetCondition(kNoValue);
    for (const State& state : source_.states()) {
      if (state.last == state.first || !Here(HomeOf(state))) continue;
      target_.UpdateState(HomeOf(state) == kBoth ? state.name : PieceName(state), local_[state.last]);
    }
    for (const NamedValue& output : source_.outputs()) {
      if (local_[output.value] != kNoValue) target_.AddOutput(output.name, local_[output.value]);
    }
    GANTRY_RETURN_IF_ERROR(target_.status());
    return std::move(target_);
  }

 private:
  bool Here(int home) const { return home == kBoth || home == index_; }

  int RoleOf(std::string_view network) const {
    if (network.starts_with("ema.")) network.remove_prefix(4);
    return std::ranges::find(axis_.first, network) != axis_.first.end() ? 0 : 1;
  }

  static std::string PieceName(const State& state) { return state.whole.empty() ? absl::StrCat(state.name, "#0") : state.name; }

  int HomeOf(const State& state) const { return state.network.empty() ? kBoth : RoleOf(state.network); }

  void AddState(const State& state) {
    home_[state.first] = HomeOf(state);
    if (!Here(home_[state.first])) return;
    const TensorType& type = source_.TypeOf(state.first);
    if (home_[state.first] == kBoth) {
      local_[state.first] = target_.AddState(state.name, state.network, state.role, type, state.initializer);
      return;
    }
    // A piece never has the name of the whole, which is not there on the other rank.
    State whole = state;
    if (!state.whole.empty()) whole.name = state.whole;
    local_[state.first] = target_.AddStatePiece(PieceName(state), whole, state.begin, type);
  }

  int HomeOf(const Op& op) const {
    if (UpdateCount(op) > 0) return home_[op.inputs[0]];
    int64_t made = 0;
    for (ValueId output : op.outputs) made += source_.TypeOf(output).size_bytes();
    const bool reads_both = std::ranges::all_of(op.inputs, [&](ValueId input) { return home_[input] == kBoth; });
    if (reads_both && made <= kSmallBytes && !op.definition->communicates) return kBoth;
    const std::string& network = source_.labels()[op.network];
    if (!network.empty()) return RoleOf(network);
    // To where most of its operands are.
    int64_t bytes[2] = {};
    for (ValueId input : op.inputs) {
      if (home_[input] != kBoth) bytes[home_[input]] += source_.TypeOf(input).size_bytes();
    }
    return bytes[0] > bytes[1] ? 0 : 1;
  }

  void Place(const Op& op) {
    const int home = HomeOf(op);
    for (ValueId input : op.inputs) {
      if (home_[input] != kBoth && home_[input] != home) Share(input, home == kBoth ? kBoth : home);
    }
    target_.SetPhase(source_.labels()[op.phase]);
    target_.SetNetwork(source_.labels()[op.network]);
    target_.SetCondition(op.condition == kNoValue ? kNoValue : local_[op.condition]);
    for (ValueId output : op.outputs) home_[output] = home;
    // Numbered on both ranks, so that the order of all is one.
    const int64_t sequence = op.definition->communicates ? sequence_++ : 0;
    if (Here(home)) {
      std::vector<ValueId> inputs;
      for (ValueId input : op.inputs) inputs.push_back(local_[input]);
      Attributes attributes = op.attributes;
      if (op.definition->communicates) attributes.Set("sequence", sequence);
      const std::vector<ValueId> outputs = target_.Emit(op.definition->name, inputs, std::move(attributes));
      if (!target_.status().ok()) return;
      for (size_t o = 0; o < op.outputs.size(); ++o) {
        local_[op.outputs[o]] = outputs[o];
        target_.NameValue(outputs[o], source_.values()[op.outputs[o]].name);
      }
    }
    // Whoever looks at a loss must see it on both ranks, and stop there on both.
    for (ValueId output : op.outputs) {
      if (is_output_[output] && home != kBoth && source_.TypeOf(output).element_count() == 1) Share(output, kBoth);
    }
  }

  // Brings the value to the other rank. With `to` kBoth, both take what was exchanged for it.
  void Share(ValueId value, int to) {
    const TensorType& type = source_.TypeOf(value);
    const int holder = home_[value];
    const int64_t count = type.element_count();
    // Under the condition of what made it.
    const Value& made = source_.values()[value];
    const ValueId condition = made.kind == ValueKind::kComputed ? source_.ops()[made.producer].condition : kNoValue;
    const bool updated = made.kind == ValueKind::kComputed && UpdateCount(source_.ops()[made.producer]) > 0;
    target_.SetCondition(condition == kNoValue || updated ? kNoValue : local_[condition]);
    const ValueId mine = holder == index_ ? ops::Reshape(target_, local_[value], Shape{count}) : ops::Fill(target_, type.dtype, Shape{0}, 0.0);
    const std::vector<int64_t> held_from = {0, holder == 0 ? count : 0}, held_to = {holder == 0 ? count : 0, count};
    std::vector<int64_t> wanted(2, 0);
    wanted[1 - holder] = count;
    if (to == kBoth) wanted[holder] = count;
    const ValueId inputs[] = {mine};
    const ValueId got = target_.Emit("exchange", inputs,
                                     {{"ranks", std::vector<int64_t>(axis_.ranks.begin(), axis_.ranks.end())},
                                      {"index", static_cast<int64_t>(index_)},
                                      {"sequence", sequence_++},
                                      {"purpose", std::string("edge")},
                                      {"axis", int64_t{0}},
                                      {"from_begins", held_from},
                                      {"from_ends", held_to},
                                      {"to_begins", std::vector<int64_t>(2, 0)},
                                      {"to_ends", wanted}})[0];
    if (!target_.status().ok()) return;
    if (holder != index_ || to == kBoth) local_[value] = ops::Reshape(target_, got, type.shape);
    if (holder != index_) target_.NameValue(local_[value], made.name);
    home_[value] = kBoth;
  }

  const Program& source_;
  const RoleAxis& axis_;
  const int index_;
  Program target_;
  std::vector<int> home_;        // per value of the source
  std::vector<ValueId> local_;   // likewise: in the target; kNoValue where it is not here
  std::vector<bool> is_output_;  // likewise
  int64_t sequence_ = 0;
};

}  // namespace

absl::StatusOr<Program> PartitionRoles(const Program& program, const RoleAxis& axis, int index) {
  if (axis.ranks.size() != 2 || index < 0 || index > 1) {
    return absl::InvalidArgumentError(absl::StrFormat("an axis of roles has two ranks, not %d, and no place %d", axis.ranks.size(), index));
  }
  return RolePartitioner(program, axis, index).Run();
}

}  // namespace gantry
