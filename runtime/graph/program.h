// The step program: a list of ops over values with known shapes, in an order in which every value is made before it is used.
// Models, losses, gradients and updates are all built in it, and everything the runtime does afterwards is a rewrite of it.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ops/op_definition.h"

namespace gantry {

using OpId = int32_t;

// Where a value is: on the device, or in tier 0, 1, ... of the plan.
inline constexpr int kDeviceTier = -1;

enum class ValueKind : uint8_t {
  kInput,     // given by the caller before a step
  kState,     // what a state holds when a step begins
  kComputed,  // made by an op
};

struct Value {
  std::string name;  // of inputs and states; empty for most computed values
  TensorType type;
  ValueKind kind = ValueKind::kComputed;
  OpId producer = -1;   // of a computed value
  int output_index = 0;  // which output of the producer
  int tier = kDeviceTier;
};

struct Op {
  const OpDefinition* definition = nullptr;
  std::vector<ValueId> inputs;
  std::vector<ValueId> outputs;
  Attributes attributes;
  int phase = 0;    // index into Program::labels()
  int network = 0;  // likewise
  // A scalar float input of the program: the op runs in steps where it is not 0. kNoValue: in every step. What reads the
  // result must run under the same condition or be "add_if", which knows.
  ValueId condition = kNoValue;
};

// Outputs [0, n) of the op are new versions of its inputs [0, n), in the same memory: that n. 0: it updates nothing.
int UpdateCount(const Op& op);

// How the first content of a state is made. Random draws depend on the run's seed and the state's name only.
struct Initializer {
  enum class Kind : uint8_t { kConstant, kNormal, kUniform, kData, kCopy };
  Kind kind = Kind::kConstant;
  double a = 0.0;  // the constant, mean, or low end
  double b = 0.0;  // standard deviation, or high end
  std::vector<double> data;  // kData: row-major, as many as the state has elements
  std::string source;        // kCopy: the state whose first content is taken
};

enum class StateRole : uint8_t { kParameter, kStatistic, kMoment, kAverage };  // trained; running; optimizer's; EMA

// What outlives a step: `first` is its content when the step begins, `last` when it ends (`first` where no op updates it).
// Both are one piece of memory: between them stands a chain of ops that update it in place.
struct State {
  std::string name;     // "discriminator.0.weight": unique in the program
  std::string network;  // "discriminator"
  StateRole role = StateRole::kParameter;
  ValueId first = kNoValue;
  ValueId last = kNoValue;
  Initializer initializer;
  // Where memory is short, a state may be kept in pieces [n]: `whole` is then its name, `begin` the element where this piece begins.
  std::string whole;
  int64_t begin = 0;
};

struct NamedValue {
  std::string name;
  ValueId value = kNoValue;
};

class Program final : public Builder {
 public:
  Program() : labels_{""} {}

  // Builder. Ops get the current phase and network.
  std::vector<ValueId> Emit(std::string_view op, std::span<const ValueId> inputs, Attributes attributes) override;
  const TensorType& TypeOf(ValueId value) const override;
  const absl::Status& status() const override { return status_; }
  void Fail(absl::Status error) override;

  ValueId AddInput(std::string name, TensorType type);
  // The state's first content. The name must be new; otherwise the error sticks and kNoValue comes back.
  ValueId AddState(std::string name, std::string network, StateRole role, TensorType type, Initializer initializer);
  // A piece of the state `whole`, from element `begin` on; its initializer is that of the whole.
  ValueId AddStatePiece(std::string name, const State& whole, int64_t begin, TensorType type);
  // `value` is the new content of the state from here on.
  void UpdateState(std::string_view name, ValueId value);
  void AddOutput(std::string name, ValueId value);
  // Gives a computed value a name for dumps and errors; an existing name stays.
  void NameValue(ValueId value, std::string_view name);

  // The memory layout of a computed value, plain unless lowering says otherwise.
  void SetLayout(ValueId value, TensorLayout layout);

  // Sets or replaces an attribute of an op, one that does not change its types.
  void SetAttribute(OpId op, std::string name, AttributeValue value) { ops_[op].attributes.Set(std::move(name), std::move(value)); }

  // Where a value is; on the device unless residency says otherwise.
  void SetTier(ValueId value, int tier);

  // Labels of the ops emitted from now on.
  void SetPhase(std::string_view phase) { phase_ = Label(phase); }
  void SetNetwork(std::string_view network) { network_ = Label(network); }
  // Another network's label for an op that is there.
  void SetOpNetwork(OpId op, std::string_view network) { ops_[op].network = Label(network); }
  // Condition of the ops emitted from now on.
  void SetCondition(ValueId flag) { condition_ = flag; }
  ValueId condition() const { return condition_; }
  std::string_view phase() const { return labels_[phase_]; }
  std::string_view network() const { return labels_[network_]; }
  int Label(std::string_view text);
  const std::vector<std::string>& labels() const { return labels_; }

  // References to values and their types stay good while ops are emitted.
  const std::deque<Value>& values() const { return values_; }
  const std::vector<Op>& ops() const { return ops_; }
  const std::vector<State>& states() const { return states_; }
  const std::vector<ValueId>& inputs() const { return inputs_; }
  const std::vector<NamedValue>& outputs() const { return outputs_; }
  // Null where there is none of the name.
  const State* FindState(std::string_view name) const;
  // kNoValue where there is none of the name.
  ValueId FindInput(std::string_view name) const;
  ValueId FindOutput(std::string_view name) const;

  // A text to read and to diff: inputs, states, ops by phase, outputs. Values are numbered in order of appearance.
  std::string Dump() const;
  // "op 12 conv (phase d_real, discriminator)", for errors.
  std::string Describe(OpId op) const;

 private:
  absl::Status status_;
  std::deque<Value> values_;  // gradient rules hold on to types while they emit
  std::vector<Op> ops_;
  std::vector<State> states_;
  std::vector<ValueId> inputs_;
  std::vector<NamedValue> outputs_;
  std::vector<std::string> labels_;
  int phase_ = 0;
  int network_ = 0;
  ValueId condition_ = kNoValue;
};

// Copies ops of `source` into another program, value by value: the base of every rewrite.
class ProgramCopier {
 public:
  // Copies all inputs and states of `source`, in order, into the (new, empty) `target`.
  ProgramCopier(const Program& source, Program& target);
  // Emits a copy of the op with its inputs mapped, and maps its outputs. Labels and names are kept.
  void Copy(OpId op);
  // `value` of the source is `mapped` in the target from here on.
  void Map(ValueId value, ValueId mapped) { map_[value] = mapped; }
  ValueId Mapped(ValueId value) const { return value == kNoValue ? kNoValue : map_[value]; }
  // Ops that the target emits next belong where `op` of the source does: phase, network and condition.
  void SetLabels(const Op& op);
  // Copies outputs and the last values of states. Call once, at the end.
  void Finish();

 private:
  const Program& source_;
  Program& target_;
  std::vector<ValueId> map_;
};

}  // namespace gantry
