#include <algorithm>

#include "ops/functional.h"
#include "ops/infer.h"

namespace gantry {
namespace {

struct NormalizeAttributes {
  std::vector<int> axes;
  double eps;
};

absl::StatusOr<NormalizeAttributes> CheckAttributes(const Attributes& attributes, const TensorType& x) {
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(x, "x", 1, infer::kMaxRank));
  GANTRY_ASSIGN_OR_RETURN(std::vector<int> axes, infer::AxesAttribute(attributes, "axes", x.shape.rank()));
  for (int axis : axes) {
    if (x.shape[axis] == 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("x is %s: there is nothing to normalize over axis %d", x.ToString(), axis));
    }
  }
  GANTRY_ASSIGN_OR_RETURN(const double eps, infer::FloatAttribute(attributes, "eps"));
  if (eps < 0) return absl::InvalidArgumentError(absl::StrFormat("attribute 'eps' is %g; it must be at least 0", eps));
  return NormalizeAttributes{std::move(axes), eps};
}

Shape StatisticsShape(const Shape& x, std::span<const int> axes) {
  Shape shape = x;
  for (int axis : axes) shape[axis] = 1;
  return shape;
}

// `part` broadcasts to `whole` without enlarging it.
absl::Status RequireBroadcast(const TensorType& part, std::string_view what, const TensorType& whole) {
  const absl::StatusOr<Shape> shape = BroadcastShapes(part.shape, whole.shape);
  if (shape.ok() && *shape == whole.shape) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s %s does not broadcast to x %s", what, part.ToString(), whole.ToString()));
}

absl::Status CheckSlope(const Attributes& attributes) {
  if (!attributes.Has("slope")) return absl::OkStatus();
  GANTRY_ASSIGN_OR_RETURN(const double slope, infer::FloatAttribute(attributes, "slope"));
  if (slope >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("attribute 'slope' is %g; it must be at least 0", slope));
}

infer::Outputs InferNormalize(infer::Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireSameFloat(inputs));
  const TensorType& x = inputs[0];
  GANTRY_ASSIGN_OR_RETURN(const NormalizeAttributes checked, CheckAttributes(attributes, x));
  GANTRY_RETURN_IF_ERROR(RequireBroadcast(inputs[1], "scale", x));
  GANTRY_RETURN_IF_ERROR(RequireBroadcast(inputs[2], "bias", x));
  GANTRY_RETURN_IF_ERROR(CheckSlope(attributes));
  const TensorType statistics{x.dtype, StatisticsShape(x.shape, checked.axes)};
  return std::vector<TensorType>{TensorType{x.dtype, x.shape}, statistics, statistics};
}

infer::Outputs InferNormalizeGrad(infer::Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireSameFloat(inputs));
  const TensorType& x = inputs[1];
  GANTRY_ASSIGN_OR_RETURN(const NormalizeAttributes checked, CheckAttributes(attributes, x));
  GANTRY_RETURN_IF_ERROR(infer::RequireShape(inputs[0], "g", x.shape));
  GANTRY_RETURN_IF_ERROR(RequireBroadcast(inputs[2], "scale", x));
  const Shape statistics = StatisticsShape(x.shape, checked.axes);
  GANTRY_RETURN_IF_ERROR(infer::RequireShape(inputs[3], "mean", statistics));
  GANTRY_RETURN_IF_ERROR(infer::RequireShape(inputs[4], "variance", statistics));
  if ((inputs.size() > 5) != attributes.Has("slope")) {
    return absl::InvalidArgumentError("an activation's result y and the attribute 'slope' go together");
  }
  GANTRY_RETURN_IF_ERROR(CheckSlope(attributes));
  if (inputs.size() > 5) GANTRY_RETURN_IF_ERROR(infer::RequireShape(inputs[5], "y", x.shape));
  const TensorType parameter{x.dtype, inputs[2].shape};
  return std::vector<TensorType>{TensorType{x.dtype, x.shape}, parameter, parameter};
}

ValueId AddUnlessMissing(Builder& b, ValueId x, ValueId y) { return x == kNoValue ? y : ops::Add(b, x, y); }

// Elements that share one mean.
double Count(const Shape& x, const Shape& statistics) {
  return static_cast<double>(x.element_count()) / static_cast<double>(std::max<int64_t>(statistics.element_count(), 1));
}

// y's part is normalize_grad; mean and variance, where something depends on them, add
//   dmean / n + dvariance * 2 (x - mean) / n.
void DifferentiateNormalize(GradientContext& context) {
  Builder& b = context.builder;
  if (context.attributes.Has("slope")) {
    b.Fail(absl::InvalidArgumentError(
        "normalize with a fused activation (attribute 'slope') has no gradient rule; differentiate before fusion"));
    return;
  }
  const ValueId x = context.inputs[0], scale = context.inputs[1], bias = context.inputs[2];
  const ValueId mean = context.outputs[1], variance = context.outputs[2];
  const ValueId gradient = context.output_gradients[0];
  const auto wanted = [&](int input) { return static_cast<bool>(context.wanted[input]); };
  if (gradient != kNoValue && (wanted(0) || wanted(1))) {
    const ValueId inputs[] = {gradient, x, scale, mean, variance};
    const std::vector<ValueId> gradients =
        b.Emit("normalize_grad", inputs,
               {{"axes", context.attributes.Ints("axes")}, {"eps", context.attributes.Float("eps")}});
    if (!b.status().ok()) return;
    if (wanted(0)) context.input_gradients[0] = gradients[0];
    if (wanted(1)) context.input_gradients[1] = gradients[1];
    if (wanted(2) && b.TypeOf(bias).shape == b.TypeOf(scale).shape) context.input_gradients[2] = gradients[2];
  }
  if (gradient != kNoValue && wanted(2) && context.input_gradients[2] == kNoValue) {
    const Shape shape = b.TypeOf(bias).shape;
    context.input_gradients[2] = ops::SumTo(b, gradient, shape);
  }
  if (!wanted(0)) return;
  ValueId statistics = kNoValue;
  const Shape shape = b.TypeOf(x).shape;
  const double count = Count(shape, b.TypeOf(mean).shape);
  if (context.output_gradients[2] != kNoValue) {
    statistics = ops::Mul(b, ops::Sub(b, x, mean), ops::Scale(b, context.output_gradients[2], 2.0 / count));
  }
  if (context.output_gradients[1] != kNoValue) {
    const ValueId share = ops::Scale(b, context.output_gradients[1], 1.0 / count);
    statistics = statistics == kNoValue ? ops::Broadcast(b, share, shape) : ops::Add(b, statistics, share);
  }
  if (statistics != kNoValue) {
    context.input_gradients[0] = AddUnlessMissing(b, context.input_gradients[0], statistics);
  }
}

std::vector<ValueId> DecomposeNormalize(Builder& b, std::span<const ValueId> inputs, const Attributes& attributes) {
  const std::vector<int64_t> axes = attributes.Ints("axes");
  const ValueId mean = ops::ReduceMean(b, inputs[0], axes, true);
  const ValueId centered = ops::Sub(b, inputs[0], mean);
  const ValueId variance = ops::ReduceMean(b, ops::Square(b, centered), axes, true);
  const ValueId normal = ops::Mul(b, centered, ops::Rsqrt(b, ops::Scale(b, variance, 1.0, attributes.Float("eps"))));
  ValueId y = ops::Add(b, ops::Mul(b, normal, inputs[1]), inputs[2]);
  if (attributes.Has("slope")) y = ops::LeakyRelu(b, y, attributes.Float("slope"));
  return {y, mean, variance};
}

// Ioffe and Szegedy, "Batch Normalization" (2015), section 3, with mean and variance as inputs of their own.
std::vector<ValueId> DecomposeNormalizeGrad(Builder& b, std::span<const ValueId> inputs, const Attributes& attributes) {
  const ValueId x = inputs[1], scale = inputs[2], mean = inputs[3], variance = inputs[4];
  const ValueId g =
      inputs.size() > 5 ? ops::LeakyReluGrad(b, inputs[0], inputs[5], attributes.Float("slope")) : inputs[0];
  const std::vector<int64_t> axes = attributes.Ints("axes");
  const ValueId inverse = ops::Rsqrt(b, ops::Scale(b, variance, 1.0, attributes.Float("eps")));
  const ValueId normal = ops::Mul(b, ops::Sub(b, x, mean), inverse);
  const ValueId scaled = ops::Mul(b, g, scale);
  const ValueId mean_scaled = ops::ReduceMean(b, scaled, axes, true);
  const ValueId mean_product = ops::ReduceMean(b, ops::Mul(b, scaled, normal), axes, true);
  const ValueId dx =
      ops::Mul(b, inverse, ops::Sub(b, ops::Sub(b, scaled, mean_scaled), ops::Mul(b, normal, mean_product)));
  if (!b.status().ok()) return {kNoValue, kNoValue, kNoValue};
  const Shape parameter = b.TypeOf(scale).shape;
  return {dx, ops::SumTo(b, ops::Mul(b, g, normal), parameter), ops::SumTo(b, g, parameter)};
}

// The halves of normalize and normalize_grad, for statistics that several ranks make together: between them stand exchanges.
// Their scale has the extent 1 along `axes`, so that the mean of g * scale is scale times that of g.

infer::Outputs InferMoments(infer::Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireFloat(inputs));
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(inputs[0], "x", 1, infer::kMaxRank));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int> axes, infer::AxesAttribute(attributes, "axes", inputs[0].shape.rank()));
  const TensorType statistics{inputs[0].dtype, StatisticsShape(inputs[0].shape, axes)};
  return std::vector<TensorType>{statistics, statistics};
}

absl::Status CheckEps(const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(const double eps, infer::FloatAttribute(attributes, "eps"));
  return eps >= 0 ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrFormat("attribute 'eps' is %g; it must be at least 0", eps));
}

infer::Outputs InferNormalizeApply(infer::Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireSameFloat(inputs));
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(inputs[0], "x", 1, infer::kMaxRank));
  constexpr std::string_view kWhat[] = {"x", "scale", "bias", "mean", "variance"};
  for (int i = 1; i < 5; ++i) GANTRY_RETURN_IF_ERROR(RequireBroadcast(inputs[i], kWhat[i], inputs[0]));
  GANTRY_RETURN_IF_ERROR(infer::RequireShape(inputs[4], "variance", inputs[3].shape));
  GANTRY_RETURN_IF_ERROR(CheckEps(attributes));
  GANTRY_RETURN_IF_ERROR(CheckSlope(attributes));
  return infer::One(inputs[0].dtype, inputs[0].shape);
}

// g, x, [scale,] mean and statistics like it, and y where `slope` is given.
infer::Outputs InferNormalizeGradPart(infer::Inputs inputs, const Attributes& attributes, size_t statistics, size_t count) {
  GANTRY_RETURN_IF_ERROR(infer::RequireSameFloat(inputs));
  const Shape& x = inputs[1].shape;
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(inputs[1], "x", 1, infer::kMaxRank));
  GANTRY_RETURN_IF_ERROR(infer::RequireShape(inputs[0], "g", x));
  for (size_t i = 2; i < count; ++i) GANTRY_RETURN_IF_ERROR(RequireBroadcast(inputs[i], absl::StrCat("input ", i), inputs[1]));
  for (size_t i = statistics; i < count; ++i) {
    GANTRY_RETURN_IF_ERROR(infer::RequireShape(inputs[i], absl::StrCat("input ", i), inputs[statistics].shape));
  }
  GANTRY_RETURN_IF_ERROR(CheckEps(attributes));
  GANTRY_RETURN_IF_ERROR(CheckSlope(attributes));
  if ((inputs.size() > count) != attributes.Has("slope")) {
    return absl::InvalidArgumentError("an activation's result y and the attribute 'slope' go together");
  }
  if (inputs.size() > count) GANTRY_RETURN_IF_ERROR(infer::RequireShape(inputs[count], "y", x));
  return std::vector<TensorType>{{inputs[0].dtype, inputs[statistics].shape}, {inputs[0].dtype, inputs[statistics].shape}};
}

infer::Outputs InferNormalizeGradSums(infer::Inputs inputs, const Attributes& attributes) {
  return InferNormalizeGradPart(inputs, attributes, 2, 4);
}

infer::Outputs InferNormalizeGradApply(infer::Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(InferNormalizeGradPart(inputs, attributes, 3, 7).status());
  GANTRY_ASSIGN_OR_RETURN(const double count, infer::FloatAttribute(attributes, "count"));
  if (count < 1) return absl::InvalidArgumentError(absl::StrFormat("attribute 'count' is %g; it must be at least 1", count));
  return infer::One(inputs[1].dtype, inputs[1].shape);
}

std::vector<ValueId> DecomposeMoments(Builder& b, std::span<const ValueId> inputs, const Attributes& attributes) {
  const std::vector<int64_t> axes = attributes.Ints("axes");
  const ValueId mean = ops::ReduceMean(b, inputs[0], axes, true);
  return {mean, ops::ReduceMean(b, ops::Square(b, ops::Sub(b, inputs[0], mean)), axes, true)};
}

std::vector<ValueId> DecomposeNormalizeApply(Builder& b, std::span<const ValueId> inputs, const Attributes& attributes) {
  const ValueId inverse = ops::Rsqrt(b, ops::Scale(b, inputs[4], 1.0, attributes.Float("eps")));
  const ValueId normal = ops::Mul(b, ops::Sub(b, inputs[0], inputs[3]), inverse);
  const ValueId y = ops::Add(b, ops::Mul(b, normal, inputs[1]), inputs[2]);
  return {attributes.Has("slope") ? ops::LeakyRelu(b, y, attributes.Float("slope")) : y};
}

std::vector<ValueId> DecomposeNormalizeGradSums(Builder& b, std::span<const ValueId> inputs, const Attributes& attributes) {
  const ValueId g = inputs.size() > 4 ? ops::LeakyReluGrad(b, inputs[0], inputs[4], attributes.Float("slope")) : inputs[0];
  const ValueId inverse = ops::Rsqrt(b, ops::Scale(b, inputs[3], 1.0, attributes.Float("eps")));
  const ValueId normal = ops::Mul(b, ops::Sub(b, inputs[1], inputs[2]), inverse);
  if (!b.status().ok()) return {kNoValue, kNoValue};
  const Shape statistics = b.TypeOf(inputs[2]).shape;
  return {ops::SumTo(b, g, statistics), ops::SumTo(b, ops::Mul(b, g, normal), statistics)};
}

std::vector<ValueId> DecomposeNormalizeGradApply(Builder& b, std::span<const ValueId> inputs, const Attributes& attributes) {
  const ValueId g = inputs.size() > 7 ? ops::LeakyReluGrad(b, inputs[0], inputs[7], attributes.Float("slope")) : inputs[0];
  const ValueId inverse = ops::Rsqrt(b, ops::Scale(b, inputs[4], 1.0, attributes.Float("eps")));
  const ValueId normal = ops::Mul(b, ops::Sub(b, inputs[1], inputs[3]), inverse);
  const ValueId shared = ops::Scale(b, ops::Add(b, ops::Mul(b, normal, inputs[6]), inputs[5]), 1.0 / attributes.Float("count"));
  return {ops::Mul(b, ops::Mul(b, inverse, inputs[2]), ops::Sub(b, g, shared))};
}

template <int kPerElement>
Cost CostOf(std::span<const TensorType>, std::span<const TensorType> outputs, const Attributes&) {
  return {kPerElement * static_cast<double>(outputs[0].element_count())};
}

}  // namespace

std::vector<OpDefinition> NormalizationOps() {
  return {
      // Two passes for the statistics (1 + 3), one for the result (4).
      {.name = "normalize",
       .min_inputs = 3,
       .max_inputs = 3,
       .infer = InferNormalize,
       .differentiate = DifferentiateNormalize,
       .decompose = DecomposeNormalize,
       .cost = CostOf<8>,
       .in_place = {{0, 0}}},
      // Sums of g and g * x (6), then dx (6).
      {.name = "normalize_grad",
       .min_inputs = 5,
       .max_inputs = 6,
       .infer = InferNormalizeGrad,
       .decompose = DecomposeNormalizeGrad,
       .cost = CostOf<12>,
       .in_place = {{0, 0}, {0, 1}}},
      {.name = "moments", .infer = InferMoments, .decompose = DecomposeMoments,
       .cost = [](infer::Inputs inputs, std::span<const TensorType>, const Attributes&) -> Cost {
         return {4.0 * static_cast<double>(inputs[0].element_count())};
       },
       .planner_only = true},
      {.name = "normalize_apply", .min_inputs = 5, .max_inputs = 5, .infer = InferNormalizeApply,
       .decompose = DecomposeNormalizeApply, .cost = CostOf<4>, .in_place = {{0, 0}}, .planner_only = true},
      {.name = "normalize_grad_sums", .min_inputs = 4, .max_inputs = 5, .infer = InferNormalizeGradSums,
       .decompose = DecomposeNormalizeGradSums,
       .cost = [](infer::Inputs inputs, std::span<const TensorType>, const Attributes&) -> Cost {
         return {6.0 * static_cast<double>(inputs[0].element_count())};
       },
       .planner_only = true},
      {.name = "normalize_grad_apply", .min_inputs = 7, .max_inputs = 8, .infer = InferNormalizeGradApply,
       .decompose = DecomposeNormalizeGradApply, .cost = CostOf<6>, .in_place = {{0, 0}, {0, 1}}, .planner_only = true},
  };
}

namespace ops {

Normalized Normalize(Builder& b, ValueId x, ValueId scale, ValueId bias, std::vector<int64_t> axes, double eps) {
  const ValueId inputs[] = {x, scale, bias};
  const std::vector<ValueId> outputs = b.Emit("normalize", inputs, {{"axes", std::move(axes)}, {"eps", eps}});
  if (outputs.size() < 3) return {kNoValue, kNoValue, kNoValue};
  return {outputs[0], outputs[1], outputs[2]};
}

}  // namespace ops
}  // namespace gantry
