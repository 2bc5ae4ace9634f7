// Definitions of gather and its adjoint.
#include <algorithm>

#include "ops/functional.h"
#include "ops/infer.h"

namespace gantry {
namespace ops {

ValueId Gather(Builder& b, ValueId x, ValueId indices, int64_t axis) {
  return Emit1(b, "gather", {x, indices}, {{"axis", axis}});
}

}  // namespace ops

namespace {

using infer::Inputs;
using infer::Outputs;

absl::Status RequireIndices(const TensorType& indices) {
  if (indices.dtype == DataType::kI32 || indices.dtype == DataType::kI64) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("indices must be i32 or i64, got %s", indices.ToString()));
}

// `shape` with `count` dimensions from `axis` on replaced by `middle`.
Shape Replace(const Shape& shape, int axis, int count, std::span<const int64_t> middle) {
  std::vector<int64_t> dims(shape.dims().begin(), shape.dims().begin() + axis);
  dims.insert(dims.end(), middle.begin(), middle.end());
  dims.insert(dims.end(), shape.dims().begin() + axis + count, shape.dims().end());
  return Shape(std::move(dims));
}

Outputs InferGather(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(RequireIndices(inputs[1]));
  GANTRY_ASSIGN_OR_RETURN(const int axis, infer::AxisAttribute(attributes, "axis", inputs[0].shape.rank()));
  if (inputs[0].shape[axis] == 0 && inputs[1].element_count() > 0) {
    return absl::InvalidArgumentError(absl::StrFormat("axis %d of %s is empty, nothing can be chosen from it by %s",
                                                      axis, inputs[0].ToString(), inputs[1].ToString()));
  }
  return infer::One(inputs[0].dtype, Replace(inputs[0].shape, axis, 1, inputs[1].shape.dims()));
}

Outputs InferGatherGrad(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireFloat(inputs.first(1)));
  GANTRY_RETURN_IF_ERROR(RequireIndices(inputs[1]));
  const Shape& shape = inputs[0].shape;
  const Shape& indices = inputs[1].shape;
  // The axis counts in the result, whose rank is the gradient's with the indices' dimensions made one.
  const int rank = shape.rank() - indices.rank() + 1;
  GANTRY_ASSIGN_OR_RETURN(const int axis, infer::AxisAttribute(attributes, "axis", std::max(rank, 0)));
  GANTRY_ASSIGN_OR_RETURN(const int64_t extent, infer::IntAttribute(attributes, "extent", 0, infer::kMaxElements));
  for (int i = 0; i < indices.rank(); ++i) {
    if (shape[axis + i] != indices[i]) {
      return absl::InvalidArgumentError(
          absl::StrFormat("the gradient %s does not have the indices' shape %s at axis %d", inputs[0].ToString(),
                          indices.ToString(), axis));
    }
  }
  if (extent == 0 && indices.element_count() > 0) {
    return absl::InvalidArgumentError(absl::StrFormat("extent is 0, no index of %s fits", inputs[1].ToString()));
  }
  return infer::One(inputs[0].dtype, Replace(shape, axis, indices.rank(), std::vector<int64_t>{extent}));
}

void GatherRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  Builder& b = c.builder;
  const Shape shape = b.TypeOf(c.inputs[0]).shape;
  const int axis = *NormalizeAxis(c.attributes.Int("axis"), shape.rank());
  c.input_gradients[0] = ops::Emit1(b, "gather_grad", {c.output_gradients[0], c.inputs[1]},
                                    {{"axis", int64_t{axis}}, {"extent", shape[axis]}});
}

void GatherGradRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  c.input_gradients[0] = ops::Gather(c.builder, c.output_gradients[0], c.inputs[1], c.attributes.Int("axis"));
}

Cost GatherCost(Inputs, std::span<const TensorType>, const Attributes&) { return {}; }

Cost GatherGradCost(Inputs inputs, std::span<const TensorType>, const Attributes&) {
  return {.flops = static_cast<double>(inputs[0].element_count())};
}

}  // namespace

std::vector<OpDefinition> IndexOps() {
  return {
      {.name = "gather",
       .min_inputs = 2,
       .max_inputs = 2,
       .infer = InferGather,
       .differentiate = GatherRule,
       .cost = GatherCost},
      {.name = "gather_grad",
       .min_inputs = 2,
       .max_inputs = 2,
       .infer = InferGatherGrad,
       .differentiate = GatherGradRule,
       .cost = GatherGradCost},
  };
}

}  // namespace gantry
