#include "runtime/graph/model.h"

#include "memory/status.h"

namespace gantry {
namespace {

// Room for the random streams of one use of a model.
constexpr int64_t kStreamsPerUse = 1 << 10;

}  // namespace

std::vector<ValueId> ModelEmitter::Emit(const Model& model, std::string_view network, std::span<const ValueId> inputs,
                                        const EmitOptions& options) {
  const Program& source = model.program;
  std::vector<ValueId> map(source.values().size(), kNoValue);
  size_t next_input = 0;
  for (ValueId input : source.inputs()) {
    const Value& value = source.values()[input];
    if (value.name == kRandomState) {
      map[input] = program_.FindInput(kRandomState);
      if (map[input] == kNoValue) map[input] = program_.AddInput(std::string(kRandomState), value.type);
      continue;
    }
    if (next_input >= inputs.size()) {
      program_.Fail(absl::InvalidArgumentError(
          absl::StrFormat("network '%s' has more inputs than the %d given", network, inputs.size())));
      break;
    }
    map[input] = inputs[next_input++];
    if (program_.status().ok() && !(program_.TypeOf(map[input]) == value.type)) {
      program_.Fail(absl::InvalidArgumentError(absl::StrFormat("network '%s' takes %s as '%s', got %s", network,
                                                               value.type.ToString(), value.name,
                                                               program_.TypeOf(map[input]).ToString())));
    }
  }
  if (next_input != inputs.size()) {
    program_.Fail(absl::InvalidArgumentError(
        absl::StrFormat("network '%s' takes %d inputs, got %d", network, next_input, inputs.size())));
  }
  for (const State& state : source.states()) {
    const std::string name = absl::StrCat(ToAbsl(network), ".", state.name);
    auto place = current_.find(name);
    if (place == current_.end()) {
      const ValueId value = program_.AddState(name, std::string(network), state.role, source.TypeOf(state.first), state.initializer);
      place = current_.emplace(name, value).first;
    }
    map[state.first] = place->second;
  }
  const int64_t first_stream = (options.stream_use >= 0 ? options.stream_use : uses_) * kStreamsPerUse;
  ++uses_;
  const std::string outer_network(program_.network());
  program_.SetNetwork(network);
  for (const Op& op : source.ops()) {
    std::vector<ValueId> op_inputs;
    for (ValueId input : op.inputs) op_inputs.push_back(map[input]);
    Attributes attributes = op.attributes;
    if (attributes.Has("stream")) attributes.Set("stream", attributes.Int("stream") + first_stream);
    const std::vector<ValueId> outputs = program_.Emit(op.definition->name, op_inputs, std::move(attributes));
    for (size_t i = 0; i < op.outputs.size(); ++i) map[op.outputs[i]] = outputs[i];
  }
  for (const State& state : source.states()) {
    if (options.update_statistics && state.last != state.first) Update(absl::StrCat(ToAbsl(network), ".", state.name), map[state.last]);
  }
  program_.SetNetwork(outer_network);
  std::vector<ValueId> outputs;
  for (const NamedValue& output : source.outputs()) outputs.push_back(map[output.value]);
  return outputs;
}

ValueId ModelEmitter::Current(std::string_view state) const {
  const auto place = current_.find(state);
  return place == current_.end() ? kNoValue : place->second;
}

void ModelEmitter::Update(std::string_view state, ValueId value) {
  program_.UpdateState(state, value);
  const auto place = current_.find(state);
  if (place == current_.end()) {
    current_.emplace(std::string(state), value);
  } else {
    place->second = value;
  }
}

}  // namespace gantry
