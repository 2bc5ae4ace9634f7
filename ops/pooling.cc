#include "ops/pooling.h"

#include <algorithm>

#include "ops/functional.h"
#include "ops/infer.h"

namespace gantry {
namespace {

// No more windows than this are looked at one by one to see whether each holds a place of the input.
constexpr int64_t kMostWindowsChecked = 1 << 20;

// A window without any place of the input has no maximum and no average. A pad below the kernel's extent rules that
// out, unless the dilation is so large that a window can step over the whole input.
absl::Status CheckNoEmptyWindow(const WindowAxis& axis, int dimension, int64_t input, int64_t windows) {
  if (axis.pad_begin >= axis.extent() || axis.pad_end >= axis.extent()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "spatial dimension %d: pads %d + %d must be smaller than the %d places that a kernel of %d spans", dimension,
        axis.pad_begin, axis.pad_end, axis.extent(), axis.kernel));
  }
  if (axis.kernel == 1 || input >= axis.dilation || axis.pad_begin == 0) return absl::OkStatus();
  for (int64_t index = 0; index < std::min(windows, kMostWindowsChecked); ++index) {
    const TapRange taps = TapsInside(axis, index, input);
    if (taps.first < taps.last) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("spatial dimension %d: window %d with dilation %d misses the input of %d", dimension, index,
                        axis.dilation, input));
  }
  if (windows <= kMostWindowsChecked) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("spatial dimension %d: dilation %d is too large for an input of %d",
                                                    dimension, axis.dilation, input));
}

absl::StatusOr<std::vector<int64_t>> CheckedCounts(std::span<const int64_t> spatial, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> kernel,
                          infer::IntsAttribute(attributes, "kernel", static_cast<int>(spatial.size()), 1, INT32_MAX));
  GANTRY_ASSIGN_OR_RETURN(const Window window, ParseWindow(attributes, kernel));
  for (const std::string_view flag : {"ceil_mode", "count_include_pad"}) {
    if (attributes.Has(flag)) GANTRY_RETURN_IF_ERROR(infer::IntAttribute(attributes, flag, 0, 1).status());
  }
  const bool ceil_mode = attributes.Int("ceil_mode") != 0;
  GANTRY_ASSIGN_OR_RETURN(std::vector<int64_t> counts, WindowCounts(window, spatial, ceil_mode));
  for (int index = 0; index < window.rank; ++index) {
    GANTRY_RETURN_IF_ERROR(CheckNoEmptyWindow(window.spatial(index), index, spatial[index], counts[index]));
  }
  return counts;
}

Shape WithSpatial(const Shape& like, std::span<const int64_t> spatial) {
  std::vector<int64_t> dims = {like[0], like[1]};
  dims.insert(dims.end(), spatial.begin(), spatial.end());
  return Shape(std::move(dims));
}

infer::Outputs InferPool(infer::Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireSameFloat(inputs));
  const TensorType& x = inputs[0];
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(x, "x", 3, 5));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> counts, CheckedCounts(SpatialDims(x.shape), attributes));
  return infer::One(x.dtype, WithSpatial(x.shape, counts));
}

absl::Status RequirePooled(const TensorType& g, std::span<const int64_t> spatial, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> counts, CheckedCounts(spatial, attributes));
  const std::span<const int64_t> given = SpatialDims(g.shape);
  if (std::equal(counts.begin(), counts.end(), given.begin(), given.end())) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("pooling spatial %s gives %s, but g is %s",
                                                    Shape(spatial).ToString(), Shape(counts).ToString(), g.ToString()));
}

infer::Outputs InferAvgPoolGrad(infer::Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireFloat(inputs));
  const TensorType& g = inputs[0];
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(g, "g", 3, 5));
  GANTRY_ASSIGN_OR_RETURN(
      const std::vector<int64_t> spatial,
      infer::IntsAttribute(attributes, "output_spatial", g.shape.rank() - 2, 1, infer::kMaxElements));
  GANTRY_RETURN_IF_ERROR(RequirePooled(g, spatial, attributes));
  return infer::One(g.dtype, WithSpatial(g.shape, spatial));
}

infer::Outputs InferMaxPoolGrad(infer::Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireSameFloat(inputs));
  const TensorType& g = inputs[0];
  const TensorType& x = inputs[1];
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(x, "x", 3, 5));
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(g, "g", x.shape.rank(), x.shape.rank()));
  if (g.shape[0] != x.shape[0] || g.shape[1] != x.shape[1]) {
    return absl::InvalidArgumentError(
        absl::StrFormat("g %s and x %s differ in batch or channels", g.ToString(), x.ToString()));
  }
  GANTRY_RETURN_IF_ERROR(RequirePooled(g, SpatialDims(x.shape), attributes));
  return infer::One(x.dtype, x.shape);
}

infer::Outputs InferMaxPoolSelect(infer::Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireSameShape(inputs));
  return InferPool(inputs, attributes);
}

template <infer::Outputs (*kInfer)(infer::Inputs, const Attributes&)>
infer::Outputs Infer(infer::Inputs inputs, const Attributes& attributes) {
  infer::Outputs outputs = kInfer(inputs, attributes);
  if (outputs.ok()) return outputs;
  return absl::Status(outputs.status().code(),
                      absl::StrCat(outputs.status().message(), "; input ", inputs[0].ToString(), " ",
                                   attributes.ToString().substr(0, 400)));
}

void DifferentiateAvgPool(GradientContext& context) {
  if (!context.wanted[0]) return;
  Builder& b = context.builder;
  const std::span<const int64_t> spatial = SpatialDims(b.TypeOf(context.inputs[0]).shape);
  Attributes attributes = context.attributes;
  attributes.Set("output_spatial", std::vector<int64_t>(spatial.begin(), spatial.end()));
  context.input_gradients[0] = ops::Emit1(b, "avg_pool_grad", {context.output_gradients[0]}, std::move(attributes));
}

void DifferentiateAvgPoolGrad(GradientContext& context) {
  if (!context.wanted[0]) return;
  Attributes attributes;
  for (const auto& [name, value] : context.attributes.entries()) {
    if (name != "output_spatial") attributes.Set(name, value);
  }
  context.input_gradients[0] =
      ops::Emit1(context.builder, "avg_pool", {context.output_gradients[0]}, std::move(attributes));
}

void DifferentiateMaxPool(GradientContext& context) {
  if (!context.wanted[0]) return;
  context.input_gradients[0] = ops::Emit1(context.builder, "max_pool_grad",
                                          {context.output_gradients[0], context.inputs[0]}, context.attributes);
}

// Both are linear in their first input, and constant in x but for the set of measure zero where the maximum jumps.
void DifferentiateMaxPoolGrad(GradientContext& context) {
  if (!context.wanted[0]) return;
  context.input_gradients[0] = ops::Emit1(context.builder, "max_pool_select",
                                          {context.output_gradients[0], context.inputs[1]}, context.attributes);
}

void DifferentiateMaxPoolSelect(GradientContext& context) {
  if (!context.wanted[0]) return;
  context.input_gradients[0] = ops::Emit1(context.builder, "max_pool_grad",
                                          {context.output_gradients[0], context.inputs[1]}, context.attributes);
}

// One operation for each tap of each window.
Cost PoolCost(std::span<const TensorType> inputs, std::span<const TensorType> outputs, const Attributes& attributes) {
  double taps = 1;
  for (int64_t extent : attributes.Ints("kernel")) taps *= static_cast<double>(extent);
  return {taps * static_cast<double>(std::min(inputs[0].element_count(), outputs[0].element_count()))};
}

}  // namespace

PoolGeometry PoolGeometryOf(const Shape& x, const Shape& pooled, const Attributes& attributes) {
  return {.images = x[0] * x[1],
          .window = ParseWindow(attributes, attributes.Ints("kernel")).value(),
          .input = SpatialDims3(x),
          .output = SpatialDims3(pooled),
          .count_include_pad = attributes.Int("count_include_pad") != 0};
}

TapRange TapsInside(const WindowAxis& axis, int64_t index, int64_t input) {
  const int64_t start = index * axis.stride - axis.pad_begin;
  const auto taps_before = [&](int64_t place) {  // taps that lie before `place`
    return place <= start ? 0 : std::min(axis.kernel, (place - start - 1) / axis.dilation + 1);
  };
  return {.first = taps_before(0), .last = taps_before(input), .padded = taps_before(input + axis.pad_end)};
}

std::vector<OpDefinition> PoolingOps() {
  return {
      {.name = "avg_pool", .infer = Infer<InferPool>, .differentiate = DifferentiateAvgPool, .cost = PoolCost},
      {.name = "avg_pool_grad",
       .infer = Infer<InferAvgPoolGrad>,
       .differentiate = DifferentiateAvgPoolGrad,
       .cost = PoolCost},
      {.name = "max_pool", .infer = Infer<InferPool>, .differentiate = DifferentiateMaxPool, .cost = PoolCost},
      {.name = "max_pool_grad",
       .min_inputs = 2,
       .max_inputs = 2,
       .infer = Infer<InferMaxPoolGrad>,
       .differentiate = DifferentiateMaxPoolGrad,
       .cost = PoolCost},
      {.name = "max_pool_select",
       .min_inputs = 2,
       .max_inputs = 2,
       .infer = Infer<InferMaxPoolSelect>,
       .differentiate = DifferentiateMaxPoolSelect,
       .cost = PoolCost},
  };
}

namespace ops {
namespace {

Attributes Written(const PoolAttributes& attributes) {
  const size_t rank = attributes.kernel.size();
  const auto filled = [](const std::vector<int64_t>& values, size_t size, int64_t value) {
    return values.empty() ? std::vector<int64_t>(size, value) : values;
  };
  return {{"kernel", attributes.kernel},
          {"strides", filled(attributes.strides, rank, 1)},
          {"pads", filled(attributes.pads, 2 * rank, 0)},
          {"dilations", filled(attributes.dilations, rank, 1)},
          {"ceil_mode", int64_t{attributes.ceil_mode}}};
}

}  // namespace

ValueId AvgPool(Builder& b, ValueId x, const PoolAttributes& attributes) {
  Attributes written = Written(attributes);
  written.Set("count_include_pad", int64_t{attributes.count_include_pad});
  return Emit1(b, "avg_pool", {x}, std::move(written));
}

ValueId MaxPool(Builder& b, ValueId x, const PoolAttributes& attributes) {
  return Emit1(b, "max_pool", {x}, Written(attributes));
}

}  // namespace ops
}  // namespace gantry
