// What an op is: its name, its shapes, its gradient, its meaning in simpler ops, and its cost. There is one definition per
// op, in the file of its family (elementwise.cc, convolution.cc, ...); kernels refer to it by name.
//
// An op is pure: its outputs depend on its inputs and attributes only. Random ops take their generator state as an input,
// and an op that updates state takes the old version and returns the new one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ops/attributes.h"
#include "ops/tensor_type.h"

namespace gantry {

using ValueId = int32_t;
inline constexpr ValueId kNoValue = -1;

// Where gradient rules, decompositions, models and losses emit ops. Errors stick: after the first, Emit returns kNoValue for
// every output and status() says what was wrong, so a rule reads as a formula. Not thread-safe.
class Builder {
 public:
  virtual ~Builder() = default;
  // Emits `op` and returns its outputs. An unknown op, inputs that do not fit or kNoValue among the inputs set status().
  virtual std::vector<ValueId> Emit(std::string_view op, std::span<const ValueId> inputs, Attributes attributes) = 0;
  virtual const TensorType& TypeOf(ValueId value) const = 0;
  virtual const absl::Status& status() const = 0;
  // Sets status() to `error` if it is OK so far.
  virtual void Fail(absl::Status error) = 0;
};

// The op being differentiated, as its gradient rule sees it.
struct GradientContext {
  Builder& builder;
  std::span<const ValueId> inputs;
  std::span<const ValueId> outputs;
  std::span<const ValueId> output_gradients;  // kNoValue where nothing depends on that output
  const std::vector<bool>& wanted;            // per input: is its gradient asked for?
  const Attributes& attributes;
  std::vector<ValueId>& input_gradients;      // to be filled where wanted; kNoValue means zero
};

struct Cost {
  double flops = 0;  // multiplications and additions counted each
};

// Two places of one op that share memory.
struct Alias {
  int output;
  int input;
};

struct OpDefinition {
  std::string_view name;
  int min_inputs = 1;
  int max_inputs = 1;  // -1: any number
  // Types of the outputs. Errors name shapes; the caller puts the op's name before them.
  absl::StatusOr<std::vector<TensorType>> (*infer)(std::span<const TensorType> inputs, const Attributes& attributes) = nullptr;
  // The gradient rule: emits ops that are themselves differentiable. Null where `decompose` serves instead, or where the
  // op has no gradient (integer results, random draws, updates of state).
  void (*differentiate)(GradientContext& context) = nullptr;
  // The op in simpler ops: returns one value per output. Used to differentiate an op without a rule of its own.
  std::vector<ValueId> (*decompose)(Builder& builder, std::span<const ValueId> inputs, const Attributes& attributes) = nullptr;
  // Null: one operation per output element.
  Cost (*cost)(std::span<const TensorType> inputs, std::span<const TensorType> outputs, const Attributes& attributes) = nullptr;
  // The op is constant in its inputs (floor, sign, comparison, stop_gradient): it has neither rule nor gradient, and
  // differentiation passes it by in silence.
  bool zero_gradient = false;
  // Output 0 is input 0 under another shape: no kernel runs, both share memory.
  bool is_view = false;
  // Outputs whose kernels may write over an input of the same size that nobody reads later.
  std::vector<Alias> in_place = {};
  // For a variadic state update, outputs [0, n) are the new versions of inputs [0, n), in the same memory: `updates` is
  // that n as a function of the input count and attributes. Null: updates nothing.
  int (*updates)(int input_count, const Attributes& attributes) = nullptr;
  // Copies a value between the device and a tier, on a copy lane: no kernel runs. Only the planner emits such ops.
  bool moves = false;
  // All ranks of a group take part (exchange.cc). Only partitioning emits such ops.
  bool communicates = false;
  // Only the planner emits it.
  bool planner_only = false;
};

// The definition, or null. Definitions live as long as the program.
const OpDefinition* FindOp(std::string_view name);
// All definitions that programs are built of, by name: those that only the planner emits are left out.
std::vector<const OpDefinition*> AllOps();

// One list per family, put together by op_registry.cc.
std::vector<OpDefinition> ElementwiseOps();
std::vector<OpDefinition> ReductionOps();
std::vector<OpDefinition> ShapeOps();
std::vector<OpDefinition> MatmulOps();
std::vector<OpDefinition> ConvolutionOps();
std::vector<OpDefinition> PoolingOps();
std::vector<OpDefinition> ResizeOps();
std::vector<OpDefinition> NormalizationOps();
std::vector<OpDefinition> IndexOps();
std::vector<OpDefinition> RandomOps();
std::vector<OpDefinition> OptimizerOps();
std::vector<OpDefinition> ControlOps();
std::vector<OpDefinition> PanelOps();
std::vector<OpDefinition> BatchPartsOps();
std::vector<OpDefinition> ExchangeOps();
std::vector<OpDefinition> WeightRowsOps();
std::vector<OpDefinition> ConvBandsOps();
std::vector<OpDefinition> EncodeOps();

}  // namespace gantry
