#include "ops/resize.h"

#include <algorithm>
#include <cmath>

#include "ops/functional.h"
#include "ops/infer.h"
#include "ops/window.h"

namespace gantry {
namespace {

constexpr char kDefaultCoordinates[] = "half_pixel";
constexpr double kSmallestScale = 1e-12;
constexpr char kDefaultRounding[] = "round_prefer_floor";

absl::Status CheckAttributes(const Attributes& attributes, int spatial_rank) {
  GANTRY_RETURN_IF_ERROR(infer::StringAttribute(attributes, "mode", {"nearest", "linear"}).status());
  if (attributes.Has("coordinates")) {
    GANTRY_RETURN_IF_ERROR(infer::StringAttribute(attributes, "coordinates",
                                                  {"asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"})
                               .status());
  }
  if (attributes.Has("rounding")) {
    GANTRY_RETURN_IF_ERROR(
        infer::StringAttribute(attributes, "rounding", {"floor", "round_prefer_floor", "round_prefer_ceil", "ceil"})
            .status());
  }
  if (attributes.Has("part")) {
    GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> part, infer::IntsAttribute(attributes, "part", 5, 0, infer::kMaxElements));
    if (part[0] >= spatial_rank || part[1] < 1 || part[3] < 1) {
      return absl::InvalidArgumentError(absl::StrFormat("attribute 'part' is of dimension %d of %d, from %d to %d places", part[0], spatial_rank,
                                                        part[1], part[3]));
    }
  }
  if (!attributes.Has("scales")) return absl::OkStatus();
  const auto* scales = std::get_if<std::vector<double>>(attributes.Find("scales"));
  if (scales == nullptr || static_cast<int>(scales->size()) != spatial_rank) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "attribute 'scales' must be a list of %d numbers, one for each spatial dimension", spatial_rank));
  }
  for (double scale : *scales) {
    if (!(scale >= kSmallestScale && scale <= 1 / kSmallestScale)) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "attribute 'scales' holds %g; every scale must be from %g to %g", scale, kSmallestScale, 1 / kSmallestScale));
    }
  }
  return absl::OkStatus();
}

infer::Outputs InferResize(infer::Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireFloat(inputs));
  const TensorType& x = inputs[0];
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(x, "x", 3, 5));
  const int rank = x.shape.rank() - 2;
  GANTRY_RETURN_IF_ERROR(CheckAttributes(attributes, rank));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> spatial,
                          infer::IntsAttribute(attributes, "output_spatial", rank, 1, infer::kMaxElements));
  std::vector<int64_t> dims = {x.shape[0], x.shape[1]};
  for (int index = 0; index < rank; ++index) {
    if (x.shape[2 + index] < 1) {
      return absl::InvalidArgumentError(absl::StrFormat("x is %s: there is nothing to resize", x.ToString()));
    }
    dims.push_back(spatial[index]);
  }
  return infer::One(x.dtype, Shape(std::move(dims)));
}

// Emits `op` back from the output's spatial size to the input's.
void DifferentiateTo(std::string_view op, GradientContext& context) {
  if (!context.wanted[0]) return;
  Builder& b = context.builder;
  const std::span<const int64_t> spatial = SpatialDims(b.TypeOf(context.inputs[0]).shape);
  Attributes attributes = context.attributes;
  attributes.Set("output_spatial", std::vector<int64_t>(spatial.begin(), spatial.end()));
  context.input_gradients[0] = ops::Emit1(b, op, {context.output_gradients[0]}, std::move(attributes));
}
void DifferentiateResize(GradientContext& context) { DifferentiateTo("resize_grad", context); }
void DifferentiateResizeGrad(GradientContext& context) { DifferentiateTo("resize", context); }

// Of the larger of both tensors: a copy for each element, or a product and a sum for each corner.
Cost ResizeCost(std::span<const TensorType> inputs, std::span<const TensorType> outputs, const Attributes& attributes) {
  const double elements = static_cast<double>(std::max(inputs[0].element_count(), outputs[0].element_count()));
  return {attributes.String("mode") == "nearest" ? elements : elements * std::exp2(inputs[0].shape.rank() - 1)};
}

// The position in the input that element `index` of the output is taken at; ONNX operator Resize, version 18.
double Position(const std::string& coordinates, double index, double input, double output, double step) {
  if (coordinates == "asymmetric") return index * step;
  if (coordinates == "align_corners") return output == 1 ? 0.0 : index * (input - 1) / (output - 1);
  if (coordinates == "pytorch_half_pixel" && output == 1) return 0.0;
  return (index + 0.5) * step - 0.5;
}

double Round(const std::string& rounding, double position) {
  if (std::abs(position) < 8388608.0) position = static_cast<double>(static_cast<float>(position));
  if (rounding == "floor") return std::floor(position);
  if (rounding == "ceil") return std::ceil(position);
  return rounding == "round_prefer_ceil" ? std::floor(position + 0.5) : std::ceil(position - 0.5);
}

}  // namespace

std::vector<ResizeSample> ResizeSamples(const Attributes& attributes, int dimension, int64_t input, int64_t output) {
  const bool nearest = attributes.String("mode") == "nearest";
  const std::string coordinates = attributes.String("coordinates", kDefaultCoordinates);
  const std::string rounding = attributes.String("rounding", kDefaultRounding);
  const std::vector<double> scales = attributes.Floats("scales");
  const std::vector<int64_t> part = attributes.Ints("part");
  const bool in_part = !part.empty() && part[0] == dimension;
  const int64_t whole_input = in_part ? part[1] : input, first_input = in_part ? part[2] : 0;
  const int64_t whole_output = in_part ? part[3] : output, first_output = in_part ? part[4] : 0;
  const double step =
      scales.empty() ? static_cast<double>(whole_input) / static_cast<double>(whole_output) : 1.0 / scales[dimension];
  const double last = static_cast<double>(whole_input - 1);
  std::vector<ResizeSample> samples(output);
  for (int64_t index = 0; index < output; ++index) {
    double position = Position(coordinates, static_cast<double>(first_output + index), static_cast<double>(whole_input),
                               static_cast<double>(whole_output), step);
    if (nearest) position = Round(rounding, position);
    position = std::clamp(position, 0.0, last);
    ResizeSample& sample = samples[index];
    sample.low = std::min(static_cast<int64_t>(position), whole_input - 1);
    sample.high = std::min(sample.low + 1, whole_input - 1);
    sample.high_weight = sample.high == sample.low ? 0.0 : position - static_cast<double>(sample.low);
    sample.low_weight = 1.0 - sample.high_weight;
    for (auto [place, weight] : {std::pair(&sample.low, &sample.low_weight), std::pair(&sample.high, &sample.high_weight)}) {
      *place -= first_input;
      if (*place >= 0 && *place < input) continue;
      *place = 0;
      *weight = 0.0;
    }
  }
  return samples;
}

std::vector<OpDefinition> ResizeOps() {
  return {
      {.name = "resize", .infer = InferResize, .differentiate = DifferentiateResize, .cost = ResizeCost},
      {.name = "resize_grad", .infer = InferResize, .differentiate = DifferentiateResizeGrad, .cost = ResizeCost},
  };
}

namespace ops {

ValueId Resize(Builder& b, ValueId x, std::vector<int64_t> output_spatial, Attributes attributes) {
  attributes.Set("output_spatial", std::move(output_spatial));
  return Emit1(b, "resize", {x}, std::move(attributes));
}

}  // namespace ops
}  // namespace gantry
