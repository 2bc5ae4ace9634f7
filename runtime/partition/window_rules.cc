// Rules of convolution, pooling and resizing: along batch they are local, along space each rank needs the rows that its windows see.
#include <algorithm>

#include "ops/convolution.h"
#include "ops/functional.h"
#include "runtime/partition/partitioner.h"

namespace gantry {
namespace {

int64_t CeilDivide(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
int64_t FloorDivide(int64_t a, int64_t b) { return a >= 0 ? a / b : -CeilDivide(-a, b); }

// What windows [first, last) see of `input` places, and the pads that make a window op over just that give just those windows.
struct Seen {
  int64_t begin, end, pad_begin, pad_end;
};

Seen SeenByWindows(const WindowAxis& axis, int64_t first, int64_t last, int64_t input) {
  const int64_t low = first * axis.stride - axis.pad_begin, high = (last - 1) * axis.stride - axis.pad_begin + axis.extent();
  const int64_t begin = std::clamp<int64_t>(low, 0, input), end = std::clamp<int64_t>(high, 0, input);
  return {begin, end, begin - low, high - end};
}

// The windows that reach input places [first, last), and the pads with which they make just those.
Seen WindowsOver(const WindowAxis& axis, int64_t first, int64_t last, int64_t windows) {
  int64_t begin = std::min(CeilDivide(first + axis.pad_begin - (axis.extent() - 1), axis.stride), FloorDivide(first + axis.pad_begin, axis.stride));
  begin = std::clamp<int64_t>(begin, 0, windows);
  const int64_t end = std::clamp<int64_t>(FloorDivide(last - 1 + axis.pad_begin, axis.stride) + 1, 0, windows);
  const int64_t pad_begin = axis.pad_begin + first - begin * axis.stride;
  const int64_t pad_end = std::max<int64_t>(0, (end - begin - 1) * axis.stride + axis.extent() - (last - first) - pad_begin);
  return {begin, end, pad_begin, pad_end};
}

Attributes WithPads(const Attributes& attributes, int spatial_rank, int spatial_axis, int64_t begin, int64_t end) {
  Attributes result = attributes;
  std::vector<int64_t> pads = attributes.Ints("pads", std::vector<int64_t>(2 * spatial_rank, 0));
  if (pads.empty()) pads.assign(2 * spatial_rank, 0);
  pads[spatial_axis] = begin;
  pads[spatial_rank + spatial_axis] = end;
  result.Set("pads", pads);
  return result;
}

Attributes WithSpatial(Attributes attributes, int spatial_axis, int64_t extent) {
  std::vector<int64_t> spatial = attributes.Ints("output_spatial");
  spatial[spatial_axis] = extent;
  attributes.Set("output_spatial", spatial);
  return attributes;
}

}  // namespace

Partitioner::Locals Partitioner::Convolution(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                                             const TensorType& output) {
  const Placement &first = values_[inputs[0]].placement, &second = values_[inputs[1]].placement;
  const bool weight_gradient = op == "conv_weight_grad";
  if (over_channels()) return ConvolutionOverChannels(op, inputs, attributes, output);
  if (first.split(0) || (weight_gradient && second.split(0))) {
    const std::vector<int64_t> cuts = first.split(0) ? first.cuts : second.cuts;
    if (weight_gradient) {
      return {{Placement::Partial(), EmitLocal(op, {AsSplit(inputs[0], 0, cuts), AsSplit(inputs[1], 0, cuts)}, attributes)}};
    }
    std::vector<ValueId> locals = {values_[inputs[0]].local};
    for (ValueId parameter : inputs.subspan(1)) locals.push_back(AsWhole(parameter));
    return {{Placement::Split(0, cuts), EmitLocal(op, locals, attributes)[0]}};
  }
  int dim = -1;
  if (first.split() && first.dim >= 2) dim = first.dim;
  if (weight_gradient && second.split() && second.dim >= 2) dim = second.dim;
  const Shape& result = weight_gradient ? TypeOf(inputs[1]).shape : output.shape;  // whose places are shared out
  if (dim < 0 && axis_.split == SplitKind::kSpace && !weight_gradient && result[2] >= axis_.least_rows * ranks()) dim = 2;
  if (dim < 0 || !Splittable(result[dim])) return {};
  return ConvolutionInSpace(op, inputs, attributes, output, dim);
}

Partitioner::Locals Partitioner::ConvolutionInSpace(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                                                    const TensorType& output, int dim) {
  std::vector<TensorType> types;
  for (ValueId input : inputs) types.push_back(TypeOf(input));
  const TensorType outputs[] = {output};
  const ConvGeometry geometry = GeometryOf(op, types, outputs, attributes);
  const WindowAxis& axis = geometry.window.spatial(dim - 2);
  const int spatial_rank = geometry.window.rank;
  const bool transposed = op == "conv_transpose", weight_gradient = op == "conv_weight_grad";
  const int64_t extent = weight_gradient ? types[1].shape[dim] : output.shape[dim];
  const std::vector<int64_t> cuts = weight_gradient && values_[inputs[1]].placement.split(dim) ? values_[inputs[1]].placement.cuts : Cuts(extent);
  Ranges ranges;
  Seen mine{};
  for (int i = 0; i < ranks(); ++i) {
    const Seen seen = transposed ? WindowsOver(axis, cuts[i], cuts[i + 1], types[0].shape[dim])
                                 : SeenByWindows(axis, cuts[i], cuts[i + 1], types[0].shape[dim]);
    if (seen.end <= seen.begin) return {};  // some rank's places see nothing but padding
    ranges.begins.push_back(seen.begin);
    ranges.ends.push_back(seen.end);
    if (i == index_) mine = seen;
  }
  Attributes local = WithPads(attributes, spatial_rank, dim - 2, mine.pad_begin, mine.pad_end);
  std::vector<ValueId> locals = {AsWindow(inputs[0], dim, ranges)};
  if (weight_gradient) {
    locals.push_back(AsSplit(inputs[1], dim, cuts));
    return {{Placement::Partial(), EmitLocal(op, locals, std::move(local))[0]}};
  }
  if (transposed) local = WithSpatial(std::move(local), dim - 2, cuts[index_ + 1] - cuts[index_]);
  for (ValueId parameter : inputs.subspan(1)) locals.push_back(AsWhole(parameter));
  return {{Placement::Split(dim, cuts), EmitLocal(op, locals, std::move(local))[0]}};
}

Partitioner::Locals Partitioner::Pooling(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                                         const TensorType& output) {
  Placement placement;
  for (ValueId input : inputs) {
    if (placement.whole() && values_[input].placement.split()) placement = values_[input].placement;
  }
  if (!placement.split()) return {};
  if (placement.dim < 2) {
    std::vector<ValueId> locals;
    for (ValueId input : inputs) locals.push_back(AsSplit(input, placement.dim, placement.cuts));
    return {{placement, EmitLocal(op, locals, attributes)[0]}};
  }
  const int dim = placement.dim;
  const bool forward = op == "avg_pool" || op == "max_pool" || op == "max_pool_select";
  if (op == "resize" || op == "resize_grad" || attributes.Int("ceil_mode") != 0) return {};
  const absl::StatusOr<Window> window = ParseWindow(attributes, attributes.Ints("kernel"));
  if (!window.ok()) return {};
  const WindowAxis& axis = window->spatial(dim - 2);
  if (forward) {
    const std::vector<int64_t> cuts = Cuts(output.shape[dim]);
    if (cuts.empty()) return {};
    Ranges ranges;
    Seen mine{};
    const int64_t extent = TypeOf(inputs[0]).shape[dim];
    for (int i = 0; i < ranks(); ++i) {
      const Seen seen = SeenByWindows(axis, cuts[i], cuts[i + 1], extent);
      if (seen.end <= seen.begin) return {};
      ranges.begins.push_back(seen.begin);
      ranges.ends.push_back(seen.end);
      if (i == index_) mine = seen;
    }
    std::vector<ValueId> locals;
    for (ValueId input : inputs) locals.push_back(AsWindow(input, dim, ranges));
    const Attributes local = WithPads(attributes, window->rank, dim - 2, mine.pad_begin, mine.pad_end);
    return {{Placement::Split(dim, cuts), EmitLocal(op, locals, local)[0]}};
  }
  // Backward where windows do not overlap and cover everything: a rank's windows are its rows.
  if (axis.extent() != axis.stride || axis.dilation != 1 || axis.pad_begin != 0 || axis.pad_end != 0) return {};
  const int64_t windows = TypeOf(inputs[0]).shape[dim];
  if (windows * axis.stride != output.shape[dim]) return {};
  const std::vector<int64_t> cuts = Cuts(windows);
  if (cuts.empty()) return {};
  std::vector<int64_t> rows = cuts;
  for (int64_t& row : rows) row *= axis.stride;
  std::vector<ValueId> locals = {AsSplit(inputs[0], dim, cuts)};
  if (inputs.size() > 1) locals.push_back(AsSplit(inputs[1], dim, rows));
  Attributes local = attributes;
  if (attributes.Has("output_spatial")) local = WithSpatial(std::move(local), dim - 2, rows[index_ + 1] - rows[index_]);
  return {{Placement::Split(dim, rows), EmitLocal(op, locals, std::move(local))[0]}};
}

}  // namespace gantry
