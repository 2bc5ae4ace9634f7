// Rules of convolution, pooling and resizing: along batch they are local, along space each rank needs the rows that its windows see. All but
// maximum pooling are linear in them: a rank's result is what its own rows give, where they lie, plus what the halo's rows give at its edges.
#include <algorithm>

#include "ops/convolution.h"
#include "ops/functional.h"
#include "runtime/partition/partitioner.h"

namespace gantry {
namespace {

Span PartOf(const std::vector<int64_t>& cuts, int index) { return {cuts[index], cuts[index + 1]}; }

}  // namespace

int Partitioner::SpatialDim(const Placement& operand, const Shape& result) const {
  int dim = operand.split() && operand.dim >= 2 ? operand.dim : -1;
  if (dim < 0 && axis_.split == SplitKind::kSpace && result[2] >= axis_.least_rows * ranks()) dim = 2;
  return dim >= 0 && Splittable(result[dim]) ? dim : -1;
}

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
  if (!weight_gradient) {
    dim = SpatialDim(first, output.shape);
  } else {
    for (const Placement* placement : {&first, &second}) dim = placement->split() && placement->dim >= 2 ? placement->dim : dim;
  }
  return dim < 0 || attributes.Has("slope") ? Locals{} : ConvolutionInSpace(op, inputs, attributes, output, dim);
}

Partitioner::Locals Partitioner::ConvolutionInSpace(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                                                    const TensorType& output, int dim) {
  std::vector<TensorType> types;
  for (ValueId input : inputs) types.push_back(TypeOf(input));
  const TensorType outputs[] = {output};
  const ConvGeometry geometry = GeometryOf(op, types, outputs, attributes);
  const bool transposed = op == "conv_transpose", weight_gradient = op == "conv_weight_grad";
  const int64_t places = transposed ? output.shape[dim] : types[0].shape[dim];
  const int64_t windows = transposed ? types[0].shape[dim] : weight_gradient ? types[1].shape[dim] : output.shape[dim];
  const WindowForm form = WindowForm::Sliding(geometry.window.spatial(dim - 2), places, windows, attributes, geometry.window.rank, dim - 2);
  if (weight_gradient) return WeightGradientInSpace(inputs, dim, form);
  return LinearWindows(op, inputs, output, dim, form, transposed ? WindowSide::kWindows : WindowSide::kPlaces);
}

std::vector<Partitioner::WindowPart> Partitioner::AsWindowParts(ValueId id, int dim, const WindowForm& form, WindowSide side,
                                                                const std::vector<int64_t>& cuts) {
  const Placement& placement = values_[id].placement;
  std::vector<WindowPart> parts;
  // Samples may come to lie along a spatial dimension. Rows of a mesh then must not differ in more than extents, as parts at edges do.
  bool in_parts = axis_.split == SplitKind::kSpace && placement.split(dim);
  bool alone = true;  // nobody wants what others hold
  Ranges ranges;
  std::vector<WindowForm::Block> mine;
  for (int i = 0; i < ranks() && in_parts; ++i) {
    const Span held = PartOf(placement.cuts, i);
    std::vector<WindowForm::Block> blocks = form.InParts(side, held, PartOf(cuts, i));
    in_parts = !blocks.empty();
    ranges.begins.push_back(held.begin);
    ranges.ends.push_back(held.end);
    for (const WindowForm::Block& block : blocks) {
      ranges.begins.back() = std::min(ranges.begins.back(), block.here.begin);
      ranges.ends.back() = std::max(ranges.ends.back(), block.here.end);
    }
    alone = alone && blocks.size() == 1;
    if (i == index_) mine = std::move(blocks);
  }
  if (in_parts) {
    const Span held = PartOf(placement.cuts, index_);
    const std::vector<ValueId> halo = alone ? std::vector<ValueId>() : Halo(id, dim, ranges);
    for (WindowForm::Block& block : mine) {
      const ValueId local = block.here.begin == held.begin ? values_[id].local : halo[block.here.begin < held.begin ? 0 : 1];
      parts.push_back({local, block.there, std::move(block.attributes)});
    }
    return parts;
  }
  ranges = {};
  for (int i = 0; i < ranks(); ++i) {
    std::optional<WindowForm::Block> block = form.InOne(side, PartOf(cuts, i));
    if (!block.has_value()) return {};
    ranges.begins.push_back(block->here.begin);
    ranges.ends.push_back(block->here.end);
    if (i == index_) parts.push_back({kNoValue, block->there, std::move(block->attributes)});
  }
  parts[0].local = AsWindow(id, dim, ranges);
  return parts;
}

Partitioner::Locals Partitioner::LinearWindows(std::string_view op, std::span<const ValueId> inputs, const TensorType& output, int dim,
                                               const WindowForm& form, WindowSide side) {
  const std::vector<int64_t> cuts = Cuts(output.shape[dim]);
  const std::vector<WindowPart> parts = AsWindowParts(inputs[0], dim, form, side, cuts);
  if (parts.empty()) return {};
  ValueId result = kNoValue;
  for (const WindowPart& part : parts) {
    std::vector<ValueId> locals = {part.local};
    // A bias counts once.
    for (size_t i = 1; i < inputs.size() && (i < 2 || result == kNoValue); ++i) locals.push_back(AsWhole(inputs[i]));
    const ValueId made = EmitLocal(op, locals, part.attributes)[0];
    result = result == kNoValue ? made
                                : EmitLocal("add_part", {result, made}, {{"axis", int64_t{dim}}, {"begin", part.there.begin - cuts[index_]}});
  }
  return {{Placement::Split(dim, cuts), result}};
}

// A sum over pairs of places and windows: each rank has those with its places, or those with its windows. The halo is that of the operand which
// was made last, a gradient: what it brings is wanted for the gradient of the other one, too, and waits nowhere from forward to backward.
Partitioner::Locals Partitioner::WeightGradientInSpace(std::span<const ValueId> inputs, int dim, const WindowForm& form) {
  const int last = values_[inputs[1]].made_at > values_[inputs[0]].made_at ? 1 : 0;
  for (const int with_halo : {last, 1 - last}) {
    const ValueId other = inputs[1 - with_halo];
    if (!values_[other].placement.split(dim)) continue;
    const std::vector<int64_t> cuts = values_[other].placement.cuts;
    const std::vector<WindowPart> parts = AsWindowParts(inputs[with_halo], dim, form, with_halo == 0 ? WindowSide::kPlaces : WindowSide::kWindows, cuts);
    ValueId sum = kNoValue;
    for (const WindowPart& part : parts) {
      const ValueId there = LocalSlice(values_[other].local, dim, part.there.begin - cuts[index_], part.there.end - cuts[index_]);
      const ValueId addend = with_halo == 0 ? EmitLocal("conv_weight_grad", {part.local, there}, part.attributes)
                                            : EmitLocal("conv_weight_grad", {there, part.local}, part.attributes);
      sum = sum == kNoValue ? addend : ops::Add(target_, sum, addend);
    }
    if (sum != kNoValue) return {{Placement::Partial(), sum}};
  }
  return {};
}

// Average pooling, resizing, and the gradients of both.
Partitioner::Locals Partitioner::Resampling(std::string_view op, ValueId x, const Attributes& attributes, const TensorType& output) {
  const Placement placement = values_[x].placement;
  if (placement.split() && placement.dim < 2) return {{placement, EmitLocal(op, {values_[x].local}, attributes)}};
  const int dim = over_channels() ? -1 : SpatialDim(placement, output.shape);
  if (dim < 0) return {};
  const bool gradient = op.ends_with("_grad");
  const int64_t in = TypeOf(x).shape[dim], out = output.shape[dim];
  const int64_t places = gradient ? out : in, windows = gradient ? in : out;
  const ValueId inputs[] = {x};
  const WindowSide side = gradient ? WindowSide::kWindows : WindowSide::kPlaces;
  if (op.starts_with("resize")) {
    return LinearWindows(op, inputs, output, dim, WindowForm::Resizing(attributes, dim - 2, places, windows, gradient), side);
  }
  const absl::StatusOr<Window> window = ParseWindow(attributes, attributes.Ints("kernel"));
  if (!window.ok() || attributes.Int("ceil_mode") != 0) return {};
  // At the edges of parts places count that are elsewhere, so at the edges of the whole those of the pads would have to.
  const std::vector<int64_t> pads = attributes.Ints("pads");
  const bool padded = std::any_of(pads.begin(), pads.end(), [](int64_t pad) { return pad != 0; });
  const WindowAxis& axis = window->spatial(dim - 2);
  if ((padded && attributes.Int("count_include_pad") == 0) || axis.dilation != 1) return Pooling(op, inputs, attributes, output);
  Attributes local = attributes;
  local.Set("count_include_pad", int64_t{1});
  return LinearWindows(op, inputs, output, dim, WindowForm::Sliding(axis, places, windows, std::move(local), window->rank, dim - 2, true), side);
}

// What is not linear in the operand's places: windows read a copy of the rows that they see.
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
  const absl::StatusOr<Window> window = ParseWindow(attributes, attributes.Ints("kernel"));
  if (!window.ok() || attributes.Int("ceil_mode") != 0) return {};
  const WindowAxis& axis = window->spatial(dim - 2);
  if (!op.ends_with("_grad")) {
    const std::vector<int64_t> cuts = Cuts(output.shape[dim]);
    if (cuts.empty()) return {};
    const WindowForm form = WindowForm::Sliding(axis, TypeOf(inputs[0]).shape[dim], output.shape[dim], attributes, window->rank, dim - 2, true);
    Ranges ranges;
    Attributes local;
    for (int i = 0; i < ranks(); ++i) {
      std::optional<WindowForm::Block> block = form.InOne(WindowSide::kPlaces, PartOf(cuts, i));
      if (!block.has_value()) return {};
      ranges.begins.push_back(block->here.begin);
      ranges.ends.push_back(block->here.end);
      if (i == index_) local = std::move(block->attributes);
    }
    std::vector<ValueId> locals;
    for (ValueId input : inputs) locals.push_back(AsWindow(input, dim, ranges));
    return {{Placement::Split(dim, cuts), EmitLocal(op, locals, std::move(local))[0]}};
  }
  if (op != "max_pool_grad") return {};
  // Backward where windows do not overlap and cover everything: a rank's windows are its rows.
  if (axis.extent() != axis.stride || axis.dilation != 1 || axis.pad_begin != 0 || axis.pad_end != 0) return {};
  const int64_t windows = TypeOf(inputs[0]).shape[dim];
  if (windows * axis.stride != output.shape[dim]) return {};
  const std::vector<int64_t> cuts = Cuts(windows);
  if (cuts.empty()) return {};
  std::vector<int64_t> rows = cuts;
  for (int64_t& row : rows) row *= axis.stride;
  return {{Placement::Split(dim, rows), EmitLocal(op, {AsSplit(inputs[0], dim, cuts), AsSplit(inputs[1], dim, rows)}, attributes)}};
}

}  // namespace gantry
