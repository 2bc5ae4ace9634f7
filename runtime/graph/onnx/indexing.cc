// Constants, shapes as values, Slice, Gather and Pad.
#include <algorithm>
#include <numeric>

#include "ops/functional.h"
#include "ops/infer.h"
#include "runtime/graph/onnx/fold.h"
#include "runtime/graph/onnx/rearrange.h"

namespace gantry::onnx {
namespace {

absl::Status ImportConstant(Node& node) {
  if (node.HasAttribute("value")) {
    GANTRY_ASSIGN_OR_RETURN(HostTensor tensor, node.Tensor("value"));
    tensor.CollapseSplat();
    return node.SetConstant(0, std::move(tensor));
  }
  if (node.HasAttribute("value_int")) return node.SetConstant(0, HostTensor::Ints(Shape(), {node.Int("value_int", 0)}));
  if (node.HasAttribute("value_float"))
    return node.SetConstant(0, HostTensor::Floats(Shape(), {node.Float("value_float", 0)}));
  if (node.HasAttribute("value_ints")) {
    std::vector<int64_t> values = node.Ints("value_ints");
    const Shape shape{static_cast<int64_t>(values.size())};
    return node.SetConstant(0, HostTensor::Ints(shape, std::move(values)));
  }
  if (node.HasAttribute("value_floats")) {
    const std::vector<float> values = node.RawFloats("value_floats");
    return node.SetConstant(
        0, HostTensor::Floats(Shape{static_cast<int64_t>(values.size())}, {values.begin(), values.end()}));
  }
  return absl::UnimplementedError("only constants of numbers are supported");
}

absl::Status ImportConstantOfShape(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> dims, node.ConstantInts(0));
  HostTensor fill = HostTensor::Floats(Shape{1}, {0.0});
  if (node.HasAttribute("value")) {
    GANTRY_ASSIGN_OR_RETURN(fill, node.Tensor("value"));
    if (fill.element_count() != 1) return absl::InvalidArgumentError("its value must be a single number");
  }
  const Shape shape(dims);
  GANTRY_RETURN_IF_ERROR(infer::CheckShape(shape));
  GANTRY_ASSIGN_OR_RETURN(HostTensor result, FoldStrided(fill, shape, 0, std::vector<int64_t>(dims.size(), 0)));
  return node.SetConstant(0, std::move(result));
}

absl::Status ImportShape(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const Operand* x, node.Raw(0));
  const std::vector<int64_t> dims = node.ShapeOf(*x).dims();
  const auto rank = static_cast<int64_t>(dims.size());
  const auto Bound = [&](int64_t index) { return std::clamp<int64_t>(index < 0 ? index + rank : index, 0, rank); };
  const int64_t start = Bound(node.Int("start", 0));
  const int64_t end = std::max(start, Bound(node.Int("end", rank)));
  return node.SetConstant(0, HostTensor::Ints(Shape{end - start}, {dims.begin() + start, dims.begin() + end}));
}

absl::Status ImportSize(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const Operand* x, node.Raw(0));
  return node.SetConstant(0, HostTensor::Ints(Shape(), {node.ShapeOf(*x).element_count()}));
}

absl::Status ImportRange(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const auto start, node.Constant(0));
  GANTRY_ASSIGN_OR_RETURN(const auto limit, node.Constant(1));
  GANTRY_ASSIGN_OR_RETURN(const auto delta, node.Constant(2));
  GANTRY_ASSIGN_OR_RETURN(HostTensor result, FoldRange(*start, *limit, *delta));
  return node.SetConstant(0, std::move(result));
}

absl::Status ImportSlice(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const Operand x, node.Get(0));
  GANTRY_ASSIGN_OR_RETURN(const auto first, node.IntsFrom("starts", 1));
  GANTRY_ASSIGN_OR_RETURN(const auto last, node.IntsFrom("ends", 2));
  GANTRY_ASSIGN_OR_RETURN(const auto given_axes, node.IntsFrom("axes", 3));
  GANTRY_ASSIGN_OR_RETURN(const auto given_steps, node.IntsFrom("steps", 4));
  const Shape shape = node.ShapeOf(x);
  if (!first || !last || first->size() != last->size() || (given_axes && given_axes->size() != first->size()) ||
      (given_steps && given_steps->size() != first->size())) {
    return absl::InvalidArgumentError("starts, ends, axes and steps are not of one length");
  }
  std::vector<int64_t> starts(shape.rank(), 0), counts = shape.dims(), steps(shape.rank(), 1);
  std::vector<bool> sliced(shape.rank(), false);
  for (size_t i = 0; i < first->size(); ++i) {
    GANTRY_ASSIGN_OR_RETURN(const int axis,
                            NormalizeAxis(given_axes ? (*given_axes)[i] : static_cast<int64_t>(i), shape.rank()));
    if (sliced[axis]) return absl::InvalidArgumentError(absl::StrFormat("axis %d is sliced twice", axis));
    sliced[axis] = true;
    const int64_t extent = shape[axis];
    const int64_t step = given_steps ? (*given_steps)[i] : 1;
    if (step == 0 || step == INT64_MIN) return absl::InvalidArgumentError("its step is 0");
    // As in NumPy: negative bounds count from the end, then both are limited to the axis.
    const auto Bound = [&](int64_t index) {
      if (index < 0) index += extent;
      return step > 0 ? std::clamp<int64_t>(index, 0, extent) : std::clamp<int64_t>(index, -1, extent - 1);
    };
    const int64_t start = Bound((*first)[i]);
    const int64_t distance = step > 0 ? Bound((*last)[i]) - start : start - Bound((*last)[i]);
    const int64_t stride = step > 0 ? step : -step;
    counts[axis] = distance <= 0 ? 0 : (distance - 1) / stride + 1;
    starts[axis] = counts[axis] == 0 ? 0 : start;
    steps[axis] = counts[axis] <= 1 ? 1 : step;
  }
  GANTRY_ASSIGN_OR_RETURN(Operand result, SliceOf(node, x, starts, counts, steps));
  return node.Set(0, std::move(result));
}

// An arithmetic progression of indices inside the axis is a slice.
struct Progression {
  int64_t start = 0;
  int64_t step = 1;
};
std::optional<Progression> AsProgression(const HostTensor& indices, int64_t extent) {
  const int64_t count = indices.element_count();
  if (count == 0 || extent == 0 || (indices.is_splat() && count > 1)) return std::nullopt;
  const auto At = [&](int64_t i) { return indices.Integer(i) < 0 ? indices.Integer(i) + extent : indices.Integer(i); };
  for (int64_t i = 0; i < count; ++i) {
    if (At(i) < 0 || At(i) >= extent) return std::nullopt;
  }
  const int64_t step = count > 1 ? At(1) - At(0) : 1;
  for (int64_t i = 1; i < count; ++i) {
    if (step == 0 || At(i) - At(i - 1) != step) return std::nullopt;
  }
  return Progression{At(0), step};
}

absl::Status ImportGather(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(Operand x, node.Get(0));
  GANTRY_ASSIGN_OR_RETURN(Operand indices, node.Get(1));
  const Shape shape = node.ShapeOf(x);
  GANTRY_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(node.Int("axis", 0), shape.rank()));
  const Shape index_shape = node.ShapeOf(indices);
  std::vector<int64_t> dims(shape.dims().begin(), shape.dims().begin() + axis);
  dims.insert(dims.end(), index_shape.dims().begin(), index_shape.dims().end());
  dims.insert(dims.end(), shape.dims().begin() + axis + 1, shape.dims().end());
  const Shape result_shape(dims);
  GANTRY_RETURN_IF_ERROR(infer::CheckShape(result_shape));
  if (indices.constant != nullptr) {
    if (indices.constant->kind != ElementKind::kInt) return absl::InvalidArgumentError("its indices are no integers");
    const int64_t count = index_shape.element_count();
    for (int64_t i = 0; i < static_cast<int64_t>(indices.constant->stored()); ++i) {
      const int64_t index = indices.constant->Integer(i);
      if (index < -shape[axis] || index >= shape[axis]) {
        return absl::InvalidArgumentError(
            absl::StrFormat("index %d is outside axis %d of %s", index, axis, shape.ToString()));
      }
    }
    if (const auto run = AsProgression(*indices.constant, shape[axis]); run) {
      std::vector<int64_t> starts(shape.rank(), 0), counts = shape.dims(), steps(shape.rank(), 1);
      starts[axis] = run->start;
      counts[axis] = count;
      steps[axis] = run->step;
      GANTRY_ASSIGN_OR_RETURN(Operand part, SliceOf(node, x, starts, counts, steps));
      GANTRY_ASSIGN_OR_RETURN(part, ReshapeTo(node, part, result_shape));
      return node.Set(0, std::move(part));
    }
  }
  GANTRY_ASSIGN_OR_RETURN(const ValueId table, node.ToValue(x));
  GANTRY_ASSIGN_OR_RETURN(const ValueId chosen, node.ToValue(indices));
  return node.SetValue(0, ops::Gather(node.program(), table, chosen, axis));
}

// Begin and end pads of every axis, from the attribute (before opset 11) or the inputs pads and axes.
absl::StatusOr<std::vector<int64_t>> ReadPads(Node& node, int rank) {
  GANTRY_ASSIGN_OR_RETURN(const auto given, node.IntsFrom("pads", 1));
  if (!given) return absl::InvalidArgumentError("its pads are missing");
  std::vector<int64_t> axes(rank);
  std::iota(axes.begin(), axes.end(), 0);
  if (node.HasInput(3)) {
    GANTRY_ASSIGN_OR_RETURN(axes, node.ConstantInts(3));
  }
  if (given->size() != 2 * axes.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("it has %d pads for %d axes; two for each are needed", given->size(), axes.size()));
  }
  std::vector<int64_t> pads(2 * rank, 0);
  for (size_t i = 0; i < axes.size(); ++i) {
    GANTRY_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(axes[i], rank));
    for (int side : {0, 1}) {
      const int64_t pad = (*given)[side * axes.size() + i];
      if (pad < -infer::kMaxElements || pad > infer::kMaxElements) {
        return absl::InvalidArgumentError(absl::StrFormat("a pad of %d is too large", pad));
      }
      pads[side * rank + axis] = pad;
    }
  }
  return pads;
}

absl::Status ImportPad(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(Operand x, node.Get(0));
  const Shape shape = node.ShapeOf(x);
  const int rank = shape.rank();
  GANTRY_ASSIGN_OR_RETURN(std::vector<int64_t> pads, ReadPads(node, rank));
  double fill = node.Float("value", 0.0);
  if (node.HasInput(2)) {
    GANTRY_ASSIGN_OR_RETURN(fill, node.ConstantFloat(2));
  }
  // A negative pad cuts elements off.
  std::vector<int64_t> starts(rank, 0), counts = shape.dims(), steps(rank, 1);
  for (int axis = 0; axis < rank; ++axis) {
    for (int side : {0, 1}) {
      int64_t& pad = pads[side * rank + axis];
      if (pad >= 0) continue;
      counts[axis] += pad;
      if (side == 0) starts[axis] = -pad;
      pad = 0;
    }
    if (counts[axis] < 0)
      return absl::InvalidArgumentError(
          absl::StrFormat("its pads cut more off axis %d than %s has", axis, shape.ToString()));
  }
  const std::string mode = node.String("mode", "constant");
  Program& program = node.program();
  if (mode != "constant" && mode != "reflect" && mode != "edge") {
    return absl::UnimplementedError(
        absl::StrFormat("the mode '%s' is not supported; use constant, reflect or edge", mode));
  }
  const bool cuts = counts != shape.dims();
  if (cuts && mode != "constant")
    return absl::UnimplementedError(absl::StrFormat("negative pads are not supported in the mode '%s'", mode));
  if (cuts) {
    GANTRY_ASSIGN_OR_RETURN(x, SliceOf(node, x, starts, counts, steps));
  }
  if (std::all_of(pads.begin(), pads.end(), [](int64_t pad) { return pad == 0; })) return node.Set(0, std::move(x));
  GANTRY_ASSIGN_OR_RETURN(const ValueId value, node.ToValue(x));
  if (mode == "constant") return node.SetValue(0, ops::Pad(program, value, pads, fill));
  return node.SetValue(0,
                       mode == "reflect" ? ops::PadReflect(program, value, pads) : ops::PadEdge(program, value, pads));
}

}  // namespace

std::vector<Operator> IndexOperators() {
  return {{"Constant", ImportConstant}, {"ConstantOfShape", ImportConstantOfShape},
          {"Shape", ImportShape},       {"Size", ImportSize},
          {"Range", ImportRange},       {"Slice", ImportSlice},
          {"Gather", ImportGather},     {"Pad", ImportPad}};
}

}  // namespace gantry::onnx
