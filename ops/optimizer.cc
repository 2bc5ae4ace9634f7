// Definitions of the state updates, and of sum_squares, which clips gradients.
#include <algorithm>

#include "ops/functional.h"
#include "ops/infer.h"

namespace gantry {
namespace ops {

ValueId SumSquares(Builder& b, std::span<const ValueId> tensors) {
  const std::vector<ValueId> outputs = b.Emit("sum_squares", tensors, {});
  return outputs.empty() ? kNoValue : outputs[0];
}

}  // namespace ops

namespace {

using infer::Inputs;
using infer::Outputs;

// The groups of one tensor: whole ones of one shape, and pieces with fewer elements, all with as many, that lie inside. Pieces begin at multiples of
// 16384 elements, which is what kernels share among threads: the bits are those of the whole update.
absl::Status CheckPiece(Inputs groups, const Attributes& attributes, int64_t count) {
  GANTRY_ASSIGN_OR_RETURN(const int64_t begin, infer::IntAttribute(attributes, "begin", 0, int64_t{1} << 60));
  const auto Fewer = [](const TensorType& a, const TensorType& b) { return a.element_count() < b.element_count(); };
  const TensorType& whole = *std::max_element(groups.begin(), groups.end(), Fewer);
  const TensorType& piece = *std::min_element(groups.begin(), groups.end(), Fewer);
  for (size_t group = 0; group < groups.size(); ++group) {
    const bool right = groups[group].element_count() == piece.element_count() || groups[group].shape == whole.shape;
    if (!right) return absl::InvalidArgumentError(absl::StrFormat("input %d is %s, not %s", group, groups[group].ToString(), whole.ToString()));
  }
  if (count != 1 || begin % 16384 != 0 || piece.element_count() < 1 || piece.element_count() > whole.element_count() - begin) {
    return absl::InvalidArgumentError(absl::StrFormat("there is no such piece of one tensor at element %d", begin));
  }
  return absl::OkStatus();
}

// The inputs are `groups` runs of {count} tensors, equal from run to run, then `scalars` scalars, all of one float
// type. The outputs are the first `updated` runs.
// With {begin}, one tensor is updated in part: groups with fewer elements than others are pieces of it that begin there.
Outputs InferBucket(Inputs inputs, const Attributes& attributes, int64_t groups, int64_t scalars, int64_t updated) {
  GANTRY_ASSIGN_OR_RETURN(const int64_t count, infer::IntAttribute(attributes, "count", 1, 1 << 20));
  if (static_cast<int64_t>(inputs.size()) != groups * count + scalars) {
    return absl::InvalidArgumentError(absl::StrFormat("%d tensors need %d inputs (%d times %d, and %d scalars), got %d",
                                                      count, groups * count + scalars, groups, count, scalars,
                                                      inputs.size()));
  }
  GANTRY_RETURN_IF_ERROR(infer::RequireSameFloat(inputs));
  if (attributes.Has("begin")) {
    GANTRY_RETURN_IF_ERROR(CheckPiece(inputs.first(groups), attributes, count));
  }
  for (int64_t i = count; i < groups * count && !attributes.Has("begin"); ++i) {
    const int64_t first = i % count;
    if (inputs[i].shape != inputs[first].shape) {
      return absl::InvalidArgumentError(absl::StrFormat("input %d is %s, but input %d, which it belongs to, is %s", i,
                                                        inputs[i].ToString(), first, inputs[first].ToString()));
    }
  }
  for (int64_t i = groups * count; i < static_cast<int64_t>(inputs.size()); ++i) {
    GANTRY_RETURN_IF_ERROR(infer::RequireShape(inputs[i], absl::StrCat("scalar input ", i), Shape()));
  }
  std::vector<TensorType> outputs;
  for (int64_t i = 0; i < updated * count; ++i) outputs.push_back(TensorType{inputs[i].dtype, inputs[i].shape});
  return outputs;
}

absl::Status RequireRange(const Attributes& attributes, std::string_view name, double low, double below) {
  GANTRY_ASSIGN_OR_RETURN(const double value, infer::FloatAttribute(attributes, name));
  if (value >= low && value < below) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("attribute '%s' is %g; it must be at least %g and below %g", name, value, low, below));
}

constexpr double kAny = 1e30;

Outputs InferAdam(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(RequireRange(attributes, "beta1", 0.0, 1.0));
  GANTRY_RETURN_IF_ERROR(RequireRange(attributes, "beta2", 0.0, 1.0));
  GANTRY_RETURN_IF_ERROR(RequireRange(attributes, "epsilon", 0.0, kAny));
  GANTRY_RETURN_IF_ERROR(RequireRange(attributes, "weight_decay", 0.0, kAny));
  GANTRY_RETURN_IF_ERROR(infer::IntAttribute(attributes, "decoupled", 0, 1).status());
  return InferBucket(inputs, attributes, 4, 3, 3);
}

bool HasMomentum(const Attributes& attributes) { return attributes.Float("momentum") != 0.0; }

Outputs InferSgd(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(RequireRange(attributes, "momentum", 0.0, kAny));
  GANTRY_RETURN_IF_ERROR(RequireRange(attributes, "weight_decay", 0.0, kAny));
  GANTRY_RETURN_IF_ERROR(RequireRange(attributes, "dampening", -kAny, kAny));
  GANTRY_ASSIGN_OR_RETURN(const int64_t nesterov, infer::IntAttribute(attributes, "nesterov", 0, 1));
  const bool momentum = HasMomentum(attributes);
  if (nesterov == 1 && (!momentum || attributes.Float("dampening") != 0.0)) {
    return absl::InvalidArgumentError("nesterov needs a momentum and no dampening");
  }
  return InferBucket(inputs, attributes, momentum ? 3 : 2, 3, momentum ? 2 : 1);
}

Outputs InferLerp(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::FloatAttribute(attributes, "weight").status());
  GANTRY_RETURN_IF_ERROR(infer::FloatAttribute(attributes, "scale").status());
  return InferBucket(inputs, attributes, 2, 0, 1);
}

Outputs InferSumSquares(Inputs inputs, const Attributes&) {
  GANTRY_RETURN_IF_ERROR(infer::RequireSameFloat(inputs));
  return infer::One(inputs[0].dtype, Shape());
}

// {chunk}: elements, at least 1.
absl::Status CheckChunk(const Attributes& attributes) {
  return attributes.Has("chunk") ? infer::IntAttribute(attributes, "chunk", 1, infer::kMaxElements).status() : absl::OkStatus();
}

Outputs InferSumSquaresRows(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(CheckChunk(attributes));
  if (!(inputs[0] == TensorType{DataType::kF64, Shape()}) || !IsFloat(inputs[1].dtype)) {
    return absl::InvalidArgumentError(absl::StrFormat("takes a f64 scalar and a float tensor, got %s and %s", inputs[0].ToString(),
                                                      inputs[1].ToString()));
  }
  return infer::One(attributes.Int("last") != 0 ? inputs[1].dtype : DataType::kF64, Shape());
}

int AdamUpdates(int, const Attributes& attributes) { return static_cast<int>(3 * attributes.Int("count")); }
int SgdUpdates(int, const Attributes& attributes) {
  return static_cast<int>((HasMomentum(attributes) ? 2 : 1) * attributes.Int("count"));
}
int LerpUpdates(int, const Attributes& attributes) { return static_cast<int>(attributes.Int("count")); }

double ElementCount(std::span<const TensorType> types) {
  double count = 0.0;
  for (const TensorType& type : types) count += static_cast<double>(type.element_count());
  return count;
}

// An Adam step is 14 operations per weight, with three outputs each.
Cost AdamCost(Inputs, std::span<const TensorType> outputs, const Attributes&) {
  return {.flops = 14.0 / 3.0 * ElementCount(outputs)};
}
Cost SgdCost(Inputs, std::span<const TensorType> outputs, const Attributes&) {
  return {.flops = 4.0 * ElementCount(outputs)};
}
Cost LerpCost(Inputs, std::span<const TensorType> outputs, const Attributes&) {
  return {.flops = 3.0 * ElementCount(outputs)};
}
Cost SumSquaresCost(Inputs inputs, std::span<const TensorType>, const Attributes&) {
  return {.flops = 2.0 * ElementCount(inputs)};
}

void SumSquaresRule(GradientContext& c) {
  for (size_t i = 0; i < c.inputs.size(); ++i) {
    if (!c.wanted[i]) continue;
    c.input_gradients[i] = ops::Mul(c.builder, ops::Scale(c.builder, c.output_gradients[0], 2.0), c.inputs[i]);
  }
}

}  // namespace

std::vector<OpDefinition> OptimizerOps() {
  return {
      {.name = "adam_update",
       .min_inputs = 7,
       .max_inputs = -1,
       .infer = InferAdam,
       .cost = AdamCost,
       .updates = AdamUpdates},
      {.name = "sgd_update",
       .min_inputs = 5,
       .max_inputs = -1,
       .infer = InferSgd,
       .cost = SgdCost,
       .updates = SgdUpdates},
      {.name = "lerp_update",
       .min_inputs = 2,
       .max_inputs = -1,
       .infer = InferLerp,
       .cost = LerpCost,
       .updates = LerpUpdates},
      {.name = "sum_squares",
       .min_inputs = 1,
       .max_inputs = -1,
       .infer = InferSumSquares,
       .differentiate = SumSquaresRule,
       .cost = SumSquaresCost},
      {.name = "sum_squares_rows",
       .min_inputs = 2,
       .max_inputs = 2,
       .infer = InferSumSquaresRows,
       .cost = SumSquaresCost,
       .planner_only = true},
  };
}

}  // namespace gantry
