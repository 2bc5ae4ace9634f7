// Definitions of reductions, broadcast and softmax.
#include <algorithm>

#include "ops/functional.h"
#include "ops/infer.h"

namespace gantry {
namespace ops {
namespace {

ValueId Reduce(Builder& b, std::string_view op, ValueId x, std::vector<int64_t> axes, bool keep_dims) {
  return Emit1(b, op, {x}, {{"axes", std::move(axes)}, {"keep_dims", static_cast<int64_t>(keep_dims)}});
}

}  // namespace

ValueId ReduceSum(Builder& b, ValueId x, std::vector<int64_t> axes, bool keep_dims) {
  return Reduce(b, "reduce_sum", x, std::move(axes), keep_dims);
}
ValueId ReduceMean(Builder& b, ValueId x, std::vector<int64_t> axes, bool keep_dims) {
  return Reduce(b, "reduce_mean", x, std::move(axes), keep_dims);
}
ValueId ReduceMax(Builder& b, ValueId x, std::vector<int64_t> axes, bool keep_dims) {
  return Reduce(b, "reduce_max", x, std::move(axes), keep_dims);
}
ValueId Softmax(Builder& b, ValueId x, int64_t axis) { return Emit1(b, "softmax", {x}, {{"axis", axis}}); }

ValueId Broadcast(Builder& b, ValueId x, const Shape& shape) {
  if (x == kNoValue || b.TypeOf(x).shape == shape) return x;
  return Emit1(b, "broadcast", {x}, {{"dims", shape.dims()}});
}

ValueId SumTo(Builder& b, ValueId x, const Shape& shape) {
  if (x == kNoValue) return x;
  const Shape from = b.TypeOf(x).shape;
  if (from == shape) return x;
  const Shape to = shape;  // a copy: `shape` may belong to a value, and values move when ops are emitted
  const int added = from.rank() - shape.rank();
  std::vector<int64_t> axes;
  bool fits = added >= 0;
  for (int axis = 0; fits && axis < from.rank(); ++axis) {
    const int64_t wanted = axis < added ? 1 : shape[axis - added];
    if (from[axis] == wanted) continue;
    fits = wanted == 1;
    axes.push_back(axis);
  }
  if (!fits) {
    b.Fail(absl::InvalidArgumentError(
        absl::StrFormat("a value of shape %s cannot be summed to %s", from.ToString(), shape.ToString())));
    return kNoValue;
  }
  return Reshape(b, axes.empty() ? x : ReduceSum(b, x, axes, true), to);
}

}  // namespace ops

namespace {

using namespace ops;  // NOLINT: gradient rules read as formulas
using infer::Inputs;
using infer::Outputs;

// The shape with the reduced axes as 1.
Shape KeptShape(const Shape& shape, std::span<const int> axes) {
  Shape kept = shape;
  for (int axis : axes) kept[axis] = 1;
  return kept;
}

Outputs InferReduce(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireFloat(inputs));
  const Shape& shape = inputs[0].shape;
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int> axes, infer::AxesAttribute(attributes, "axes", shape.rank()));
  GANTRY_ASSIGN_OR_RETURN(const int64_t keep_dims, infer::IntAttribute(attributes, "keep_dims", 0, 1));
  if (keep_dims == 1) return infer::One(inputs[0].dtype, KeptShape(shape, axes));
  std::vector<int64_t> dims;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (std::find(axes.begin(), axes.end(), axis) == axes.end()) dims.push_back(shape[axis]);
  }
  return infer::One(inputs[0].dtype, Shape(std::move(dims)));
}

// The mean and the maximum of nothing are not defined.
Outputs InferReduceSome(Inputs inputs, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(std::vector<TensorType> outputs, InferReduce(inputs, attributes));
  if (inputs[0].element_count() == 0 && outputs[0].element_count() > 0) {
    return absl::InvalidArgumentError(absl::StrFormat("%s has no elements to reduce", inputs[0].ToString()));
  }
  return outputs;
}

Outputs InferBroadcast(Inputs inputs, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(Shape shape, infer::ShapeAttribute(attributes, "dims"));
  GANTRY_ASSIGN_OR_RETURN(const Shape both, BroadcastShapes(inputs[0].shape, shape));
  if (both != shape) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s does not broadcast to %s", inputs[0].ToString(), shape.ToString()));
  }
  return infer::One(inputs[0].dtype, std::move(shape));
}

Outputs InferSoftmax(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireFloat(inputs));
  GANTRY_RETURN_IF_ERROR(infer::AxisAttribute(attributes, "axis", inputs[0].shape.rank()).status());
  return infer::One(inputs[0].dtype, inputs[0].shape);
}

Cost ReduceCost(Inputs inputs, std::span<const TensorType>, const Attributes&) {
  return {.flops = static_cast<double>(inputs[0].element_count())};
}

Cost SoftmaxCost(Inputs inputs, std::span<const TensorType>, const Attributes&) {
  return {.flops = 5.0 * static_cast<double>(inputs[0].element_count())};
}

// The input's shape with the reduced axes as 1.
Shape KeptShapeOf(const GradientContext& c) {
  const Shape& shape = c.builder.TypeOf(c.inputs[0]).shape;
  return KeptShape(shape, *infer::AxesAttribute(c.attributes, "axes", shape.rank()));
}

void ReduceSumRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  const ValueId kept = Reshape(c.builder, c.output_gradients[0], KeptShapeOf(c));
  c.input_gradients[0] = Broadcast(c.builder, kept, c.builder.TypeOf(c.inputs[0]).shape);
}

void ReduceMeanRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  Builder& b = c.builder;
  const Shape shape = b.TypeOf(c.inputs[0]).shape, kept = KeptShapeOf(c);
  if (shape.element_count() == 0) return;
  const double share = static_cast<double>(kept.element_count()) / static_cast<double>(shape.element_count());
  c.input_gradients[0] = Broadcast(b, Scale(b, Reshape(b, c.output_gradients[0], kept), share), shape);
}

void ReduceMaxRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  Builder& b = c.builder;
  const Shape kept = KeptShapeOf(c);
  const ValueId largest = Equal(b, c.inputs[0], Reshape(b, c.outputs[0], kept));
  const ValueId share = Div(b, Reshape(b, c.output_gradients[0], kept), SumTo(b, largest, kept));
  c.input_gradients[0] = Mul(b, largest, share);
}

void BroadcastRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  c.input_gradients[0] = SumTo(c.builder, c.output_gradients[0], c.builder.TypeOf(c.inputs[0]).shape);
}

void SoftmaxRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  Builder& b = c.builder;
  const ValueId g = c.output_gradients[0], y = c.outputs[0];
  const ValueId mean = ReduceSum(b, Mul(b, g, y), {c.attributes.Int("axis")}, true);
  c.input_gradients[0] = Mul(b, y, Sub(b, g, mean));
}

}  // namespace

std::vector<OpDefinition> ReductionOps() {
  return {
      {.name = "reduce_sum", .infer = InferReduce, .differentiate = ReduceSumRule, .cost = ReduceCost},
      {.name = "reduce_mean", .infer = InferReduceSome, .differentiate = ReduceMeanRule, .cost = ReduceCost},
      {.name = "reduce_max", .infer = InferReduceSome, .differentiate = ReduceMaxRule, .cost = ReduceCost},
      {.name = "broadcast", .infer = InferBroadcast, .differentiate = BroadcastRule},
      {.name = "softmax", .infer = InferSoftmax, .differentiate = SoftmaxRule, .cost = SoftmaxCost},
  };
}

}  // namespace gantry
