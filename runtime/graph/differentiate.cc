#include "runtime/graph/differentiate.h"

#include <algorithm>
#include <string>

#include "ops/functional.h"

namespace gantry {
namespace {

class Differentiator {
 public:
  explicit Differentiator(Program& program) : program_(program) {}

  absl::StatusOr<std::vector<ValueId>> Run(std::span<const ValueId> outputs, std::span<const ValueId> seeds,
                                           std::span<const ValueId> with_respect_to) {
    const std::string network(program_.network());
    Grow();
    for (ValueId value : with_respect_to) active_[value] = true;
    const OpId end = static_cast<OpId>(program_.ops().size());
    MarkActive(0, end);
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!active_[outputs[i]]) continue;
      ValueId seed = seeds.empty() ? kNoValue : seeds[i];
      if (seed == kNoValue) {
        const TensorType& type = program_.TypeOf(outputs[i]);
        seed = ops::Fill(program_, type.dtype, type.shape, 1.0);
      } else if (!(program_.TypeOf(seed).shape == program_.TypeOf(outputs[i]).shape)) {
        return absl::InvalidArgumentError(absl::StrFormat("the seed of a gradient is %s, its output is %s",
                                                          program_.TypeOf(seed).ToString(),
                                                          program_.TypeOf(outputs[i]).ToString()));
      }
      Accumulate(outputs[i], seed);
    }
    GANTRY_RETURN_IF_ERROR(Reverse(0, end));
    program_.SetNetwork(network);
    GANTRY_RETURN_IF_ERROR(program_.status());
    std::vector<ValueId> result;
    for (ValueId value : with_respect_to) result.push_back(gradient_[value]);
    return result;
  }

 private:
  void Grow() {
    active_.resize(program_.values().size(), false);
    gradient_.resize(program_.values().size(), kNoValue);
  }

  // A value is active when it depends on what is differentiated by.
  void MarkActive(OpId begin, OpId end) {
    Grow();
    for (OpId id = begin; id < end; ++id) {
      const Op& op = program_.ops()[id];
      if (!PassesGradients(op)) continue;
      for (ValueId output : op.outputs) active_[output] = IsFloat(program_.TypeOf(output).dtype);
    }
  }

  // Does a gradient have a way through the op, to something that is differentiated by?
  bool PassesGradients(const Op& op) const {
    // What an update made is where the next phase starts from: no gradient flows back through a training step.
    if (op.definition->zero_gradient || op.definition->updates != nullptr) return false;
    return std::any_of(op.inputs.begin(), op.inputs.end(), [&](ValueId input) { return active_[input]; });
  }

  void Accumulate(ValueId value, ValueId gradient) {
    gradient_[value] = gradient_[value] == kNoValue ? gradient : ops::Add(program_, gradient_[value], gradient);
    Grow();
  }

  absl::Status Reverse(OpId begin, OpId end) {
    for (OpId id = end - 1; id >= begin; --id) GANTRY_RETURN_IF_ERROR(ReverseOp(id));
    return absl::OkStatus();
  }

  absl::Status ReverseOp(OpId id) {
    const Op op = program_.ops()[id];  // a copy: emitting moves the ops
    std::vector<ValueId> output_gradients;
    bool reached = false;
    for (ValueId output : op.outputs) {
      output_gradients.push_back(active_[output] ? gradient_[output] : kNoValue);
      reached = reached || output_gradients.back() != kNoValue;
    }
    if (!reached || !PassesGradients(op)) return absl::OkStatus();
    program_.SetNetwork(program_.labels()[op.network]);
    if (op.definition->differentiate != nullptr) return ApplyRule(id, op, output_gradients);
    if (op.definition->decompose != nullptr) return ThroughDecomposition(op, output_gradients);
    return absl::InvalidArgumentError(absl::StrFormat("%s has no gradient, but one is asked for", program_.Describe(id)));
  }

  absl::Status ApplyRule(OpId id, const Op& op, const std::vector<ValueId>& output_gradients) {
    std::vector<bool> wanted;
    for (ValueId input : op.inputs) wanted.push_back(active_[input]);
    std::vector<ValueId> input_gradients(op.inputs.size(), kNoValue);
    GradientContext context{program_, op.inputs, op.outputs, output_gradients, wanted, op.attributes, input_gradients};
    op.definition->differentiate(context);
    Grow();
    if (!program_.status().ok()) return Annotate(program_.status(), "gradient of " + program_.Describe(id));
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      if (!wanted[i] || input_gradients[i] == kNoValue) continue;
      if (!(program_.TypeOf(input_gradients[i]).shape == program_.TypeOf(op.inputs[i]).shape)) {
        return absl::InternalError(absl::StrFormat("the gradient rule of %s made %s for input %d, which is %s",
                                                   program_.Describe(id), program_.TypeOf(input_gradients[i]).ToString(), i,
                                                   program_.TypeOf(op.inputs[i]).ToString()));
      }
      Accumulate(op.inputs[i], input_gradients[i]);
    }
    return absl::OkStatus();
  }

  // The op's value is computed again from simpler ops (common subexpressions go later), and those are differentiated.
  absl::Status ThroughDecomposition(const Op& op, const std::vector<ValueId>& output_gradients) {
    const OpId begin = static_cast<OpId>(program_.ops().size());
    const std::vector<ValueId> outputs = op.definition->decompose(program_, op.inputs, op.attributes);
    GANTRY_RETURN_IF_ERROR(program_.status());
    const OpId end = static_cast<OpId>(program_.ops().size());
    MarkActive(begin, end);
    for (size_t i = 0; i < op.outputs.size(); ++i) {
      if (output_gradients[i] == kNoValue || !active_[outputs[i]]) continue;
      // An output that the decomposition passes straight through (a view of an input) is handled by the input itself.
      Accumulate(outputs[i], output_gradients[i]);
    }
    return Reverse(begin, end);
  }

  Program& program_;
  std::vector<bool> active_;
  std::vector<ValueId> gradient_;
};

}  // namespace

absl::StatusOr<std::vector<ValueId>> Differentiate(Program& program, std::span<const ValueId> outputs,
                                                   std::span<const ValueId> seeds,
                                                   std::span<const ValueId> with_respect_to) {
  GANTRY_RETURN_IF_ERROR(program.status());
  return Differentiator(program).Run(outputs, seeds, with_respect_to);
}

}  // namespace gantry
