#include "runtime/graph/program.h"

#include <algorithm>

#include "absl/strings/str_join.h"

namespace gantry {

int UpdateCount(const Op& op) {
  return op.definition->updates == nullptr ? 0 : op.definition->updates(static_cast<int>(op.inputs.size()), op.attributes);
}

void Program::Fail(absl::Status error) {
  if (status_.ok()) status_ = std::move(error);
}

const TensorType& Program::TypeOf(ValueId value) const {
  static const TensorType* const none = new TensorType();
  if (value < 0 || value >= static_cast<ValueId>(values_.size())) return *none;
  return values_[value].type;
}

std::vector<ValueId> Program::Emit(std::string_view name, std::span<const ValueId> inputs, Attributes attributes) {
  // An op has at most its input count or four outputs; after an error callers may index any of them.
  const std::vector<ValueId> nothing(std::max<size_t>(4, inputs.size()), kNoValue);
  if (!status_.ok()) return nothing;
  const OpDefinition* definition = FindOp(name);
  if (definition == nullptr) {
    Fail(absl::InvalidArgumentError(absl::StrFormat("there is no op '%s'", name)));
    return nothing;
  }
  const int count = static_cast<int>(inputs.size());
  if (count < definition->min_inputs || (definition->max_inputs >= 0 && count > definition->max_inputs)) {
    Fail(absl::InvalidArgumentError(absl::StrFormat("%s: takes %d to %d inputs, got %d", name, definition->min_inputs,
                                                    definition->max_inputs, count)));
    return nothing;
  }
  std::vector<TensorType> types;
  types.reserve(inputs.size());
  for (ValueId input : inputs) {
    if (input < 0 || input >= static_cast<ValueId>(values_.size())) {
      Fail(absl::InvalidArgumentError(absl::StrFormat("%s: input %d is not a value of this program", name, input)));
      return nothing;
    }
    types.push_back(values_[input].type);
  }
  absl::StatusOr<std::vector<TensorType>> outputs = definition->infer(types, attributes);
  if (!outputs.ok()) {
    std::string names = absl::StrJoin(inputs, ", ", [&](std::string* out, ValueId input) {
      absl::StrAppend(out, values_[input].name, values_[input].name.empty() ? "" : " ", values_[input].type.ToString());
    });
    Fail(Annotate(outputs.status(), absl::StrFormat("%s(%s)%s", name, names, attributes.ToString())));
    return nothing;
  }
  Op op{definition, {inputs.begin(), inputs.end()}, {}, std::move(attributes), phase_, network_, condition_};
  const OpId id = static_cast<OpId>(ops_.size());
  for (size_t index = 0; index < outputs->size(); ++index) {
    op.outputs.push_back(static_cast<ValueId>(values_.size()));
    values_.push_back(Value{"", std::move((*outputs)[index]), ValueKind::kComputed, id, static_cast<int>(index)});
  }
  ops_.push_back(std::move(op));
  return ops_.back().outputs;
}

ValueId Program::AddInput(std::string name, TensorType type) {
  if (FindInput(name) != kNoValue) {
    Fail(absl::InvalidArgumentError(absl::StrFormat("the program already has an input '%s'", name)));
    return kNoValue;
  }
  inputs_.push_back(static_cast<ValueId>(values_.size()));
  values_.push_back(Value{std::move(name), std::move(type), ValueKind::kInput});
  return inputs_.back();
}

ValueId Program::AddState(std::string name, std::string network, StateRole role, TensorType type, Initializer initializer) {
  if (FindState(name) != nullptr) {
    Fail(absl::InvalidArgumentError(absl::StrFormat("the program already has a state '%s'", name)));
    return kNoValue;
  }
  const auto value = static_cast<ValueId>(values_.size());
  values_.push_back(Value{name, std::move(type), ValueKind::kState});
  states_.push_back(State{std::move(name), std::move(network), role, value, value, std::move(initializer)});
  return value;
}

ValueId Program::AddStatePiece(std::string name, const State& whole, int64_t begin, TensorType type) {
  const ValueId value = AddState(std::move(name), whole.network, whole.role, std::move(type), whole.initializer);
  if (value == kNoValue) return value;
  states_.back().whole = whole.name;
  states_.back().begin = begin;
  return value;
}

void Program::UpdateState(std::string_view name, ValueId value) {
  for (State& state : states_) {
    if (state.name != name) continue;
    if (value == kNoValue) return Fail(absl::InvalidArgumentError(absl::StrFormat("state '%s' is updated with no value", name)));
    if (!(TypeOf(value) == TypeOf(state.first))) {
      return Fail(absl::InvalidArgumentError(absl::StrFormat("state '%s' is %s, its new value is %s", name,
                                                             TypeOf(state.first).ToString(), TypeOf(value).ToString())));
    }
    state.last = value;
    return;
  }
  Fail(absl::InvalidArgumentError(absl::StrFormat("there is no state '%s'", name)));
}

void Program::AddOutput(std::string name, ValueId value) {
  if (value < 0 || value >= static_cast<ValueId>(values_.size())) {
    return Fail(absl::InvalidArgumentError(absl::StrFormat("output '%s' is not a value of this program", name)));
  }
  if (FindOutput(name) != kNoValue) {
    return Fail(absl::InvalidArgumentError(absl::StrFormat("the program already has an output '%s'", name)));
  }
  NameValue(value, name);
  outputs_.push_back(NamedValue{std::move(name), value});
}

void Program::NameValue(ValueId value, std::string_view name) {
  if (value >= 0 && value < static_cast<ValueId>(values_.size()) && values_[value].name.empty()) {
    values_[value].name = std::string(name);
  }
}

void Program::SetLayout(ValueId value, TensorLayout layout) {
  if (value >= 0 && value < static_cast<ValueId>(values_.size())) values_[value].type.layout = layout;
}

void Program::SetTier(ValueId value, int tier) {
  if (value >= 0 && value < static_cast<ValueId>(values_.size())) values_[value].tier = tier;
}

int Program::Label(std::string_view text) {
  const auto label = std::find(labels_.begin(), labels_.end(), text);
  if (label != labels_.end()) return static_cast<int>(label - labels_.begin());
  labels_.emplace_back(text);
  return static_cast<int>(labels_.size()) - 1;
}

const State* Program::FindState(std::string_view name) const {
  for (const State& state : states_) {
    if (state.name == name) return &state;
  }
  return nullptr;
}

ValueId Program::FindInput(std::string_view name) const {
  for (ValueId input : inputs_) {
    if (values_[input].name == name) return input;
  }
  return kNoValue;
}

ValueId Program::FindOutput(std::string_view name) const {
  for (const NamedValue& output : outputs_) {
    if (output.name == name) return output.value;
  }
  return kNoValue;
}

std::string Program::Describe(OpId id) const {
  const Op& op = ops_[id];
  std::string text = absl::StrFormat("op %d %s", id, op.definition->name);
  if (op.phase != 0 || op.network != 0) {
    absl::StrAppend(&text, " (phase ", labels_[op.phase], op.network == 0 ? "" : ", ", labels_[op.network], ")");
  }
  return text;
}

std::string Program::Dump() const {
  std::vector<int> number(values_.size(), -1);
  int next = 0;
  const auto Ref = [&](ValueId value) {
    if (number[value] < 0) number[value] = next++;
    std::string text = absl::StrCat("%", number[value]);
    if (!values_[value].name.empty()) absl::StrAppend(&text, ":", values_[value].name);
    return text;
  };
  std::string text;
  for (ValueId input : inputs_) absl::StrAppend(&text, "input  ", Ref(input), " ", values_[input].type.ToString(), "\n");
  constexpr std::string_view kRoles[] = {"parameter", "statistic", "moment", "average"};
  for (const State& state : states_) {
    absl::StrAppend(&text, "state  ", Ref(state.first), " ", values_[state.first].type.ToString(), " ",
                    ToAbsl(kRoles[static_cast<int>(state.role)]));
    if (values_[state.first].tier != kDeviceTier) absl::StrAppend(&text, " in tier ", values_[state.first].tier);
    text += '\n';
  }
  int phase = -1;
  for (const Op& op : ops_) {
    if (op.phase != phase) {
      phase = op.phase;
      absl::StrAppend(&text, "phase ", labels_[phase].empty() ? "(none)" : labels_[phase], "\n");
    }
    const std::string inputs = absl::StrJoin(op.inputs, ", ", [&](std::string* out, ValueId v) { out->append(Ref(v)); });
    const std::string outputs = absl::StrJoin(op.outputs, ", ", [&](std::string* out, ValueId v) {
      absl::StrAppend(out, Ref(v), " ", values_[v].type.ToString());
      if (values_[v].tier != kDeviceTier) absl::StrAppend(out, " in tier ", values_[v].tier);
    });
    absl::StrAppend(&text, "  ", outputs, " = ", ToAbsl(op.definition->name), "(", inputs, ")");
    if (const std::string attributes = op.attributes.ToString(); !attributes.empty()) absl::StrAppend(&text, " ", attributes);
    if (op.network != 0) absl::StrAppend(&text, "  @", labels_[op.network]);
    if (op.condition != kNoValue) absl::StrAppend(&text, "  if ", Ref(op.condition));
    text += '\n';
  }
  for (const State& state : states_) {
    if (state.last != state.first) absl::StrAppend(&text, "update ", state.name, " <- ", Ref(state.last), "\n");
  }
  for (const NamedValue& output : outputs_) absl::StrAppend(&text, "output ", output.name, " = ", Ref(output.value), "\n");
  return text;
}

ProgramCopier::ProgramCopier(const Program& source, Program& target)
    : source_(source), target_(target), map_(source.values().size(), kNoValue) {
  for (ValueId input : source.inputs()) {
    map_[input] = target.AddInput(source.values()[input].name, source.values()[input].type);
  }
  for (const State& state : source.states()) {
    if (state.whole.empty()) {
      map_[state.first] = target.AddState(state.name, state.network, state.role, source.TypeOf(state.first), state.initializer);
    } else {
      State whole = state;
      whole.name = state.whole;
      map_[state.first] = target.AddStatePiece(state.name, whole, state.begin, source.TypeOf(state.first));
    }
  }
}

void ProgramCopier::SetLabels(const Op& op) {
  target_.SetPhase(source_.labels()[op.phase]);
  target_.SetNetwork(source_.labels()[op.network]);
  target_.SetCondition(op.condition == kNoValue ? kNoValue : map_[op.condition]);
}

void ProgramCopier::Copy(OpId id) {
  const Op& op = source_.ops()[id];
  SetLabels(op);
  std::vector<ValueId> inputs;
  for (ValueId input : op.inputs) inputs.push_back(map_[input]);
  const std::vector<ValueId> outputs = target_.Emit(op.definition->name, inputs, op.attributes);
  for (size_t index = 0; index < op.outputs.size(); ++index) {
    map_[op.outputs[index]] = outputs[index];
    target_.SetLayout(outputs[index], source_.TypeOf(op.outputs[index]).layout);
    target_.NameValue(outputs[index], source_.values()[op.outputs[index]].name);
  }
}

void ProgramCopier::Finish() {
  for (const State& state : source_.states()) {
    if (state.last != state.first) target_.UpdateState(state.name, map_[state.last]);
  }
  for (const NamedValue& output : source_.outputs()) target_.AddOutput(output.name, map_[output.value]);
}

}  // namespace gantry
