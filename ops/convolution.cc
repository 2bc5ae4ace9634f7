#include "ops/convolution.h"

#include <algorithm>

#include "ops/functional.h"
#include "ops/infer.h"

namespace gantry {
namespace {

// `status` with the types and attributes behind it, so that the error names everything that took part.
absl::Status Explain(const absl::Status& status, infer::Inputs inputs, const Attributes& attributes) {
  if (status.ok()) return status;
  std::string text = absl::StrCat(status.message(), "; inputs");
  for (const TensorType& input : inputs) absl::StrAppend(&text, " ", input.ToString());
  absl::StrAppend(&text, " ", attributes.ToString().substr(0, 400));
  return absl::Status(status.code(), text);
}

struct Channels {
  int64_t input;
  int64_t output;
};

absl::StatusOr<int64_t> Groups(const Attributes& attributes) {
  return attributes.Has("groups") ? infer::IntAttribute(attributes, "groups", 1, INT32_MAX) : 1;
}

// The channels that a weight tensor [O, C/groups, kernel] joins.
absl::StatusOr<Channels> WeightChannels(const TensorType& weight, int64_t groups) {
  const int64_t output = weight.shape[0];
  if (output < 1 || weight.shape[1] < 1) return absl::InvalidArgumentError("the weights have no channels");
  if (output % groups != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("groups %d does not divide the %d channels of w's first axis", groups, output));
  }
  return Channels{weight.shape[1] * groups, output};
}

absl::Status CheckSlope(const Attributes& attributes) {
  if (!attributes.Has("slope")) return absl::OkStatus();
  GANTRY_ASSIGN_OR_RETURN(const double slope, infer::FloatAttribute(attributes, "slope"));
  if (slope < 0)
    return absl::InvalidArgumentError(absl::StrFormat("attribute 'slope' is %g; it must be at least 0", slope));
  return absl::OkStatus();
}

absl::Status CheckBias(infer::Inputs inputs, int64_t channels) {
  return inputs.size() < 3 ? absl::OkStatus() : infer::RequireShape(inputs[2], "bias", {channels});
}

// All inputs are of one float type, and the first two have the same 3 to 5 dimensions.
absl::Status CheckOperands(infer::Inputs inputs) {
  GANTRY_RETURN_IF_ERROR(infer::RequireSameFloat(inputs));
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(inputs[0], "the first input", 3, 5));
  return infer::RequireRank(inputs[1], "the second input", inputs[0].shape.rank(), inputs[0].shape.rank());
}

absl::Status CheckCounts(const Window& window, std::span<const int64_t> spatial, std::span<const int64_t> expected,
                         std::string_view what) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> counts, WindowCounts(window, spatial));
  if (std::equal(counts.begin(), counts.end(), expected.begin(), expected.end())) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("a convolution over spatial %s gives %s, but %s has %s",
                                                    Shape(spatial).ToString(), Shape(counts).ToString(), what,
                                                    Shape(expected).ToString()));
}

Shape WithSpatial(int64_t first, int64_t second, std::span<const int64_t> spatial) {
  std::vector<int64_t> dims = {first, second};
  dims.insert(dims.end(), spatial.begin(), spatial.end());
  return Shape(std::move(dims));
}

infer::Outputs InferConvOrError(infer::Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(CheckOperands(inputs));
  GANTRY_RETURN_IF_ERROR(CheckSlope(attributes));
  const TensorType& x = inputs[0];
  const TensorType& w = inputs[1];
  GANTRY_ASSIGN_OR_RETURN(const int64_t groups, Groups(attributes));
  GANTRY_ASSIGN_OR_RETURN(const Channels channels, WeightChannels(w, groups));
  if (x.shape[1] != channels.input) {
    return absl::InvalidArgumentError(
        absl::StrFormat("x has %d channels, but w with groups %d takes %d", x.shape[1], groups, channels.input));
  }
  GANTRY_RETURN_IF_ERROR(CheckBias(inputs, channels.output));
  GANTRY_ASSIGN_OR_RETURN(const Window window, ParseWindow(attributes, SpatialDims(w.shape)));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> counts, WindowCounts(window, SpatialDims(x.shape)));
  return infer::One(x.dtype, WithSpatial(x.shape[0], channels.output, counts));
}

infer::Outputs InferConvTransposeOrError(infer::Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(CheckOperands(inputs));
  GANTRY_RETURN_IF_ERROR(CheckSlope(attributes));
  const TensorType& y = inputs[0];
  const TensorType& w = inputs[1];
  GANTRY_ASSIGN_OR_RETURN(const int64_t groups, Groups(attributes));
  GANTRY_ASSIGN_OR_RETURN(const Channels channels, WeightChannels(w, groups));
  if (y.shape[1] != channels.output) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the input has %d channels, but w takes %d", y.shape[1], channels.output));
  }
  GANTRY_RETURN_IF_ERROR(CheckBias(inputs, channels.input));
  GANTRY_ASSIGN_OR_RETURN(const Window window, ParseWindow(attributes, SpatialDims(w.shape)));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> spatial,
                          infer::IntsAttribute(attributes, "output_spatial", window.rank, 1, infer::kMaxElements));
  GANTRY_RETURN_IF_ERROR(CheckCounts(window, spatial, SpatialDims(y.shape), "the input"));
  return infer::One(y.dtype, WithSpatial(y.shape[0], channels.input, spatial));
}

infer::Outputs InferConvWeightGradOrError(infer::Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(CheckOperands(inputs));
  const TensorType& x = inputs[0];
  const TensorType& g = inputs[1];
  if (x.shape[0] != g.shape[0]) {
    return absl::InvalidArgumentError(absl::StrFormat("x has a batch of %d, g of %d", x.shape[0], g.shape[0]));
  }
  GANTRY_ASSIGN_OR_RETURN(const int64_t groups, Groups(attributes));
  if (x.shape[1] < 1 || g.shape[1] < 1 || x.shape[1] % groups != 0 || g.shape[1] % groups != 0) {
    return absl::InvalidArgumentError(absl::StrFormat("groups %d does not divide the %d channels of x and the %d of g",
                                                      groups, x.shape[1], g.shape[1]));
  }
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> kernel,
                          infer::IntsAttribute(attributes, "kernel", x.shape.rank() - 2, 1, INT32_MAX));
  GANTRY_ASSIGN_OR_RETURN(const Window window, ParseWindow(attributes, kernel));
  GANTRY_RETURN_IF_ERROR(CheckCounts(window, SpatialDims(x.shape), SpatialDims(g.shape), "g"));
  return infer::One(x.dtype, WithSpatial(g.shape[1], x.shape[1] / groups, kernel));
}

template <infer::Outputs (*kInfer)(infer::Inputs, const Attributes&)>
infer::Outputs Infer(infer::Inputs inputs, const Attributes& attributes) {
  infer::Outputs outputs = kInfer(inputs, attributes);
  if (!outputs.ok()) return Explain(outputs.status(), inputs, attributes);
  return outputs;
}

ops::ConvAttributes ReadAttributes(const Attributes& attributes) {
  return {.strides = attributes.Ints("strides"),
          .pads = attributes.Ints("pads"),
          .dilations = attributes.Ints("dilations"),
          .groups = attributes.Int("groups", 1)};
}

std::vector<int64_t> Spatial(Builder& b, ValueId value) {
  const std::span<const int64_t> dims = SpatialDims(b.TypeOf(value).shape);
  return {dims.begin(), dims.end()};
}

ValueId BiasGradient(Builder& b, ValueId gradient) {
  std::vector<int64_t> axes = {0};
  for (int axis = 2; axis < b.TypeOf(gradient).shape.rank(); ++axis) axes.push_back(axis);
  return ops::ReduceSum(b, gradient, std::move(axes));
}

// False, with the builder failed, for an op that fusion has made: its activation is part of it.
bool RequireUnfused(GradientContext& context) {
  if (!context.attributes.Has("slope")) return true;
  context.builder.Fail(absl::InvalidArgumentError(
      "a convolution with a fused activation (attribute 'slope') has no gradient rule; differentiate before fusion"));
  return false;
}

void DifferentiateConv(GradientContext& context) {
  if (!RequireUnfused(context)) return;
  Builder& b = context.builder;
  const ops::ConvAttributes attributes = ReadAttributes(context.attributes);
  const ValueId x = context.inputs[0], w = context.inputs[1], gradient = context.output_gradients[0];
  if (context.wanted[0]) {
    context.input_gradients[0] = ops::ConvTranspose(b, gradient, w, kNoValue, attributes, Spatial(b, x));
  }
  if (context.wanted[1]) context.input_gradients[1] = ops::ConvWeightGrad(b, x, gradient, attributes, Spatial(b, w));
  if (context.inputs.size() > 2 && context.wanted[2]) context.input_gradients[2] = BiasGradient(b, gradient);
}

void DifferentiateConvTranspose(GradientContext& context) {
  if (!RequireUnfused(context)) return;
  Builder& b = context.builder;
  const ops::ConvAttributes attributes = ReadAttributes(context.attributes);
  const ValueId y = context.inputs[0], w = context.inputs[1], gradient = context.output_gradients[0];
  if (context.wanted[0]) context.input_gradients[0] = ops::Conv(b, gradient, w, kNoValue, attributes);
  if (context.wanted[1]) context.input_gradients[1] = ops::ConvWeightGrad(b, gradient, y, attributes, Spatial(b, w));
  if (context.inputs.size() > 2 && context.wanted[2]) context.input_gradients[2] = BiasGradient(b, gradient);
}

void DifferentiateConvWeightGrad(GradientContext& context) {
  Builder& b = context.builder;
  const ops::ConvAttributes attributes = ReadAttributes(context.attributes);
  const ValueId x = context.inputs[0], g = context.inputs[1], gradient = context.output_gradients[0];
  if (context.wanted[0]) {
    context.input_gradients[0] = ops::ConvTranspose(b, g, gradient, kNoValue, attributes, Spatial(b, x));
  }
  if (context.wanted[1]) context.input_gradients[1] = ops::Conv(b, x, gradient, kNoValue, attributes);
}

// Every tap of every window counts, those in the padding too, and so does the bias.
double Flops(const ConvGeometry& geometry) {
  return 2.0 * static_cast<double>(geometry.batch) * static_cast<double>(geometry.output_channels) *
         static_cast<double>(geometry.output_places()) * static_cast<double>(geometry.group_input_channels()) *
         static_cast<double>(geometry.window.taps());
}

template <const char* kOp>
Cost CostOf(std::span<const TensorType> inputs, std::span<const TensorType> outputs, const Attributes& attributes) {
  const double elements = inputs.size() > 2 ? static_cast<double>(outputs[0].element_count()) : 0.0;
  return {Flops(GeometryOf(kOp, inputs, outputs, attributes)) + elements};
}

constexpr char kConv[] = "conv";
constexpr char kConvTranspose[] = "conv_transpose";
constexpr char kConvWeightGrad[] = "conv_weight_grad";

}  // namespace

ConvGeometry GeometryOf(std::string_view op, std::span<const TensorType> inputs, std::span<const TensorType> outputs,
                        const Attributes& attributes) {
  const Shape& x = op == kConvTranspose ? outputs[0].shape : inputs[0].shape;
  const Shape& w = op == kConvWeightGrad ? outputs[0].shape : inputs[1].shape;
  const Shape& y = op == kConv ? outputs[0].shape : op == kConvTranspose ? inputs[0].shape : inputs[1].shape;
  return {.batch = x[0],
          .input_channels = x[1],
          .output_channels = y[1],
          .groups = attributes.Int("groups", 1),
          .window = ParseWindow(attributes, SpatialDims(w)).value(),
          .input = SpatialDims3(x),
          .output = SpatialDims3(y)};
}

std::vector<OpDefinition> ConvolutionOps() {
  return {
      {.name = kConv,
       .min_inputs = 2,
       .max_inputs = 3,
       .infer = Infer<InferConvOrError>,
       .differentiate = DifferentiateConv,
       .cost = CostOf<kConv>},
      {.name = kConvTranspose,
       .min_inputs = 2,
       .max_inputs = 3,
       .infer = Infer<InferConvTransposeOrError>,
       .differentiate = DifferentiateConvTranspose,
       .cost = CostOf<kConvTranspose>},
      {.name = kConvWeightGrad,
       .min_inputs = 2,
       .max_inputs = 2,
       .infer = Infer<InferConvWeightGradOrError>,
       .differentiate = DifferentiateConvWeightGrad,
       .cost = CostOf<kConvWeightGrad>},
  };
}

namespace ops {
namespace {

// `attributes` as an op carries them, the defaults filled in for `rank` spatial dimensions.
Attributes Written(const ConvAttributes& attributes, int rank) {
  const auto filled = [](const std::vector<int64_t>& values, int size, int64_t value) {
    return values.empty() ? std::vector<int64_t>(size, value) : values;
  };
  rank = std::max(rank, 0);
  return {{"strides", filled(attributes.strides, rank, 1)},
          {"pads", filled(attributes.pads, 2 * rank, 0)},
          {"dilations", filled(attributes.dilations, rank, 1)},
          {"groups", attributes.groups}};
}

// The spatial dimensions of `value`; 0 where an earlier error left no value.
int SpatialRank(Builder& b, ValueId value) { return value == kNoValue ? 0 : b.TypeOf(value).shape.rank() - 2; }

}  // namespace

ValueId Conv(Builder& b, ValueId x, ValueId w, ValueId bias, const ConvAttributes& attributes) {
  Attributes written = Written(attributes, SpatialRank(b, x));
  return bias == kNoValue ? Emit1(b, kConv, {x, w}, std::move(written))
                          : Emit1(b, kConv, {x, w, bias}, std::move(written));
}

ValueId ConvTranspose(Builder& b, ValueId y, ValueId w, ValueId bias, const ConvAttributes& attributes,
                      std::vector<int64_t> output_spatial) {
  Attributes written = Written(attributes, SpatialRank(b, y));
  written.Set("output_spatial", std::move(output_spatial));
  return bias == kNoValue ? Emit1(b, kConvTranspose, {y, w}, std::move(written))
                          : Emit1(b, kConvTranspose, {y, w, bias}, std::move(written));
}

std::vector<int64_t> ConvTransposeOutput(std::span<const int64_t> input_spatial, std::span<const int64_t> kernel,
                                         const ConvAttributes& attributes, std::span<const int64_t> output_padding) {
  const size_t rank = input_spatial.size();
  const auto entry = [](std::span<const int64_t> values, size_t index, int64_t fallback) {
    return index < values.size() ? values[index] : fallback;
  };
  std::vector<int64_t> output(rank);
  for (size_t index = 0; index < rank; ++index) {
    // 128 bits, since the operands may come from a file; what does not fit becomes 0, which inference rejects.
    const __int128 size = (static_cast<__int128>(input_spatial[index]) - 1) * entry(attributes.strides, index, 1) -
                          entry(attributes.pads, index, 0) - entry(attributes.pads, rank + index, 0) +
                          static_cast<__int128>(entry(attributes.dilations, index, 1)) * (entry(kernel, index, 1) - 1) +
                          1 + entry(output_padding, index, 0);
    output[index] = size < 1 || size > infer::kMaxElements ? 0 : static_cast<int64_t>(size);
  }
  return output;
}

ValueId ConvWeightGrad(Builder& b, ValueId x, ValueId g, const ConvAttributes& attributes,
                       std::vector<int64_t> kernel) {
  Attributes written = Written(attributes, SpatialRank(b, x));
  written.Set("kernel", std::move(kernel));
  return Emit1(b, kConvWeightGrad, {x, g}, std::move(written));
}

}  // namespace ops
}  // namespace gantry
