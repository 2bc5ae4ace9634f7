// Definitions of the ops that move elements: reshape, transpose, slice and its adjoint, pad, concat.
#include <algorithm>
#include <utility>

#include "absl/strings/str_join.h"
#include "ops/functional.h"
#include "ops/infer.h"

namespace gantry {
namespace ops {
namespace {

std::vector<int64_t> Repeated(int rank, int64_t value) { return std::vector<int64_t>(rank, value); }

// The elements of x at start, start + step, ... along one axis, all of the other axes.
ValueId SliceAxis(Builder& b, ValueId x, int axis, int64_t start, int64_t count, int64_t step) {
  if (x == kNoValue) return x;
  const Shape shape = b.TypeOf(x).shape;
  std::vector<int64_t> starts = Repeated(shape.rank(), 0), counts = shape.dims(), steps = Repeated(shape.rank(), 1);
  starts[axis] = start;
  counts[axis] = count;
  steps[axis] = step;
  return Slice(b, x, std::move(starts), std::move(counts), std::move(steps));
}

// Pads axis by axis with what edge(x, axis, at_end, count) makes.
template <typename Edge>
ValueId PadWith(Builder& b, ValueId x, std::span<const int64_t> pads, Edge edge) {
  if (x == kNoValue) return x;
  const int rank = b.TypeOf(x).shape.rank();
  if (static_cast<int>(pads.size()) != 2 * rank ||
      std::any_of(pads.begin(), pads.end(), [](int64_t pad) { return pad < 0; })) {
    b.Fail(
        absl::InvalidArgumentError(absl::StrFormat("pads [%s] do not fit %s: two entries >= 0 per dimension are needed",
                                                   absl::StrJoin(pads, ","), b.TypeOf(x).ToString())));
    return kNoValue;
  }
  for (int axis = 0; axis < rank && x != kNoValue; ++axis) {
    std::vector<ValueId> parts;
    if (pads[axis] > 0) parts.push_back(edge(x, axis, false, pads[axis]));
    parts.push_back(x);
    if (pads[rank + axis] > 0) parts.push_back(edge(x, axis, true, pads[rank + axis]));
    if (parts.size() > 1) x = Concat(b, parts, axis);
  }
  return x;
}

}  // namespace

ValueId Reshape(Builder& b, ValueId x, const Shape& shape) {
  if (x == kNoValue || b.TypeOf(x).shape == shape) return x;
  return Emit1(b, "reshape", {x}, {{"dims", shape.dims()}});
}
ValueId Transpose(Builder& b, ValueId x, std::vector<int64_t> perm) {
  return Emit1(b, "transpose", {x}, {{"perm", std::move(perm)}});
}
ValueId Slice(Builder& b, ValueId x, std::vector<int64_t> starts, std::vector<int64_t> counts,
              std::vector<int64_t> steps) {
  return Emit1(b, "slice", {x},
               {{"starts", std::move(starts)}, {"counts", std::move(counts)}, {"steps", std::move(steps)}});
}
ValueId SliceGrad(Builder& b, ValueId x, const Shape& shape, std::vector<int64_t> starts, std::vector<int64_t> steps) {
  return Emit1(b, "slice_grad", {x},
               {{"dims", shape.dims()}, {"starts", std::move(starts)}, {"steps", std::move(steps)}});
}
ValueId Pad(Builder& b, ValueId x, std::vector<int64_t> pads, double value) {
  return Emit1(b, "pad", {x}, {{"pads", std::move(pads)}, {"value", value}});
}

ValueId PadReflect(Builder& b, ValueId x, std::vector<int64_t> pads) {
  return PadWith(b, x, pads, [&b](ValueId part, int axis, bool at_end, int64_t count) {
    const int64_t extent = b.TypeOf(part).shape[axis];
    // Past the other edge the slice's own check says so.
    return SliceAxis(b, part, axis, at_end ? extent - 2 : count, count, -1);
  });
}

ValueId PadEdge(Builder& b, ValueId x, std::vector<int64_t> pads) {
  return PadWith(b, x, pads, [&b](ValueId part, int axis, bool at_end, int64_t count) {
    Shape shape = b.TypeOf(part).shape;
    const int64_t extent = std::exchange(shape[axis], count);
    return Broadcast(b, SliceAxis(b, part, axis, at_end ? extent - 1 : 0, 1, 1), shape);
  });
}

ValueId Concat(Builder& b, std::span<const ValueId> parts, int64_t axis) {
  const std::vector<ValueId> outputs = b.Emit("concat", parts, {{"axis", axis}});
  return outputs.empty() ? kNoValue : outputs[0];
}

std::vector<ValueId> Split(Builder& b, ValueId x, int64_t axis, std::span<const int64_t> lengths) {
  std::vector<ValueId> parts(lengths.size(), kNoValue);
  if (x == kNoValue) return parts;
  const Shape shape = b.TypeOf(x).shape;
  const absl::StatusOr<int> place = NormalizeAxis(axis, shape.rank());
  if (!place.ok()) {
    b.Fail(Annotate(place.status(), "split"));
    return parts;
  }
  int64_t start = 0, left = shape[*place];
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] < 0 || lengths[i] > left) break;
    parts[i] = SliceAxis(b, x, *place, start, lengths[i], 1);
    start += lengths[i];
    left -= lengths[i];
  }
  if (left != 0 || (!parts.empty() && parts.back() == kNoValue)) {
    b.Fail(absl::InvalidArgumentError(absl::StrFormat("split lengths [%s] do not add up to axis %d of %s",
                                                      absl::StrJoin(lengths, ","), *place, shape.ToString())));
  }
  return parts;
}

}  // namespace ops

namespace {

using namespace ops;  // NOLINT: gradient rules read as formulas
using infer::Inputs;
using infer::Outputs;

Outputs InferReshape(Inputs inputs, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(Shape shape, infer::ShapeAttribute(attributes, "dims"));
  if (shape.element_count() != inputs[0].element_count()) {
    return absl::InvalidArgumentError(absl::StrFormat("%s has %d elements, the new shape %s has %d",
                                                      inputs[0].ToString(), inputs[0].element_count(), shape.ToString(),
                                                      shape.element_count()));
  }
  return infer::One(inputs[0].dtype, std::move(shape));
}

Outputs InferTranspose(Inputs inputs, const Attributes& attributes) {
  const int rank = inputs[0].shape.rank();
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> perm,
                          infer::IntsAttribute(attributes, "perm", rank, 0, std::max(rank - 1, 0)));
  std::vector<bool> seen(rank, false);
  std::vector<int64_t> dims(rank);
  for (int axis = 0; axis < rank; ++axis) {
    if (seen[perm[axis]]) {
      return absl::InvalidArgumentError(
          absl::StrFormat("perm [%s] names axis %d twice", absl::StrJoin(perm, ","), perm[axis]));
    }
    seen[perm[axis]] = true;
    dims[axis] = inputs[0].shape[static_cast<int>(perm[axis])];
  }
  return infer::One(inputs[0].dtype, Shape(std::move(dims)));
}

// start, start + step, ... (count of them) lie in [0, extent) on every axis of `whole`.
absl::Status CheckSlice(const Shape& whole, std::span<const int64_t> starts, std::span<const int64_t> counts,
                        std::span<const int64_t> steps) {
  for (int axis = 0; axis < whole.rank(); ++axis) {
    const int64_t start = starts[axis], count = counts[axis], step = steps[axis], extent = whole[axis];
    bool inside = step != 0 && count >= 0 && start >= 0 && start <= extent;
    if (inside && count > 0) {
      // How many indices fit from `start` on, without a product that could overflow.
      const int64_t room = step > 0 ? extent - 1 - start : start;
      const int64_t stride = step > 0 ? step : step == INT64_MIN ? INT64_MAX : -step;
      inside = start < extent && (count - 1) <= room / stride;
    }
    if (!inside) {
      return absl::InvalidArgumentError(
          absl::StrFormat("axis %d: start %d, count %d, step %d does not lie inside shape %s", axis, start, count, step,
                          whole.ToString()));
    }
  }
  return absl::OkStatus();
}

Outputs InferSlice(Inputs inputs, const Attributes& attributes) {
  const Shape& shape = inputs[0].shape;
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> starts, infer::IntsAttribute(attributes, "starts", shape.rank()));
  GANTRY_ASSIGN_OR_RETURN(std::vector<int64_t> counts, infer::IntsAttribute(attributes, "counts", shape.rank()));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> steps, infer::IntsAttribute(attributes, "steps", shape.rank()));
  GANTRY_RETURN_IF_ERROR(CheckSlice(shape, starts, counts, steps));
  return infer::One(inputs[0].dtype, Shape(std::move(counts)));
}

Outputs InferSliceGrad(Inputs inputs, const Attributes& attributes) {
  const Shape& shape = inputs[0].shape;
  GANTRY_ASSIGN_OR_RETURN(Shape whole, infer::ShapeAttribute(attributes, "dims"));
  if (whole.rank() != shape.rank()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is no slice of shape %s: the ranks differ", inputs[0].ToString(), whole.ToString()));
  }
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> starts, infer::IntsAttribute(attributes, "starts", shape.rank()));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> steps, infer::IntsAttribute(attributes, "steps", shape.rank()));
  GANTRY_RETURN_IF_ERROR(CheckSlice(whole, starts, shape.dims(), steps));
  return infer::One(inputs[0].dtype, std::move(whole));
}

Outputs InferPad(Inputs inputs, const Attributes& attributes) {
  Shape shape = inputs[0].shape;
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> pads,
                          infer::IntsAttribute(attributes, "pads", 2 * shape.rank(), 0, infer::kMaxElements));
  GANTRY_RETURN_IF_ERROR(infer::FloatAttribute(attributes, "value", !IsFloat(inputs[0].dtype)).status());
  for (int axis = 0; axis < shape.rank(); ++axis) shape[axis] += pads[axis] + pads[shape.rank() + axis];
  return infer::One(inputs[0].dtype, std::move(shape));
}

Outputs InferConcat(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireSameDataType(inputs));
  Shape shape = inputs[0].shape;
  GANTRY_ASSIGN_OR_RETURN(const int axis, infer::AxisAttribute(attributes, "axis", shape.rank()));
  for (size_t i = 1; i < inputs.size(); ++i) {
    Shape part = inputs[i].shape;
    const bool same_rank = part.rank() == shape.rank();
    const int64_t extent = same_rank ? std::exchange(part[axis], shape[axis]) : 0;
    if (!same_rank || part != shape) {
      return absl::InvalidArgumentError(absl::StrFormat("input 0 %s and input %d %s must be equal but for axis %d",
                                                        inputs[0].ToString(), i, inputs[i].ToString(), axis));
    }
    shape[axis] += extent;
    GANTRY_RETURN_IF_ERROR(infer::CheckShape(shape));
  }
  return infer::One(inputs[0].dtype, std::move(shape));
}

// "add_part"(x, part) {axis, begin}: x with `part` added to its places from `begin` on along `axis`. Only partitioning emits it.
Outputs InferAddPart(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireSameFloat(inputs));
  const Shape &whole = inputs[0].shape, &part = inputs[1].shape;
  GANTRY_ASSIGN_OR_RETURN(const int axis, infer::AxisAttribute(attributes, "axis", whole.rank()));
  GANTRY_ASSIGN_OR_RETURN(const int64_t begin, infer::IntAttribute(attributes, "begin", 0, whole[axis]));
  Shape expected = whole;
  if (part.rank() == whole.rank()) expected[axis] = part[axis];
  if (part != expected || part[axis] > whole[axis] - begin) {
    return absl::InvalidArgumentError(absl::StrFormat("%s is no part of %s from place %d of axis %d on", inputs[1].ToString(),
                                                      inputs[0].ToString(), begin, axis));
  }
  return infer::One(inputs[0].dtype, whole);
}

// An addition an element of the part.
Cost AddPartCost(Inputs inputs, std::span<const TensorType>, const Attributes&) {
  return {static_cast<double>(inputs[1].element_count())};
}

Cost NoOperations(Inputs, std::span<const TensorType>, const Attributes&) { return {}; }

void ReshapeRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  c.input_gradients[0] = Reshape(c.builder, c.output_gradients[0], c.builder.TypeOf(c.inputs[0]).shape);
}

void TransposeRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  const std::vector<int64_t> perm = c.attributes.Ints("perm");
  std::vector<int64_t> inverse(perm.size());
  for (size_t axis = 0; axis < perm.size(); ++axis) inverse[perm[axis]] = static_cast<int64_t>(axis);
  c.input_gradients[0] = Transpose(c.builder, c.output_gradients[0], std::move(inverse));
}

void SliceRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  c.input_gradients[0] = SliceGrad(c.builder, c.output_gradients[0], c.builder.TypeOf(c.inputs[0]).shape,
                                   c.attributes.Ints("starts"), c.attributes.Ints("steps"));
}

void SliceGradRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  c.input_gradients[0] = Slice(c.builder, c.output_gradients[0], c.attributes.Ints("starts"),
                               c.builder.TypeOf(c.inputs[0]).shape.dims(), c.attributes.Ints("steps"));
}

void PadRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  const Shape shape = c.builder.TypeOf(c.inputs[0]).shape;
  std::vector<int64_t> starts = c.attributes.Ints("pads");
  starts.resize(shape.rank());
  c.input_gradients[0] =
      Slice(c.builder, c.output_gradients[0], std::move(starts), shape.dims(), Repeated(shape.rank(), 1));
}

void ConcatRule(GradientContext& c) {
  Builder& b = c.builder;
  const int axis = *NormalizeAxis(c.attributes.Int("axis"), b.TypeOf(c.inputs[0]).shape.rank());
  int64_t start = 0;
  for (size_t i = 0; i < c.inputs.size(); ++i) {
    const int64_t extent = b.TypeOf(c.inputs[i]).shape[axis];
    if (c.wanted[i]) c.input_gradients[i] = SliceAxis(b, c.output_gradients[0], axis, start, extent, 1);
    start += extent;
  }
}

}  // namespace

std::vector<OpDefinition> ShapeOps() {
  return {
      {.name = "reshape", .infer = InferReshape, .differentiate = ReshapeRule, .cost = NoOperations, .is_view = true},
      {.name = "transpose", .infer = InferTranspose, .differentiate = TransposeRule, .cost = NoOperations},
      {.name = "slice", .infer = InferSlice, .differentiate = SliceRule, .cost = NoOperations},
      {.name = "slice_grad", .infer = InferSliceGrad, .differentiate = SliceGradRule, .cost = NoOperations},
      {.name = "pad", .infer = InferPad, .differentiate = PadRule, .cost = NoOperations},
      {.name = "concat", .max_inputs = -1, .infer = InferConcat, .differentiate = ConcatRule, .cost = NoOperations},
      {.name = "add_part",
       .min_inputs = 2,
       .max_inputs = 2,
       .infer = InferAddPart,
       .cost = AddPartCost,
       .in_place = {{0, 0}},
       .planner_only = true},
  };
}

}  // namespace gantry
