#include "ops/cpu/panel/panel_conv.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "ops/cpu/panel/direct_conv.h"
#include "ops/cpu/panel/winograd_conv.h"

namespace gantry::cpu {
namespace {

// Scratch parts start on a cache line.
int64_t RoundUp(int64_t floats) { return (floats + 15) / 16 * 16; }

int64_t InputFloats(const ConvGeometry& g) { return RoundUp(PanelFloats(g.batch, g.in_channels, g.in_h, g.in_w)); }
int64_t OutputFloats(const ConvGeometry& g) { return RoundUp(PanelFloats(g.batch, g.out_channels, g.out_h, g.out_w)); }

// Hands out the parts of the scratch, in one order for ScratchFloats and for the run.
class Scratch {
 public:
  explicit Scratch(float* start) : next_(start) {}
  float* Take(int64_t floats) {
    float* part = next_;
    next_ += RoundUp(floats);
    return part;
  }

 private:
  float* next_;
};

// Index of the form: outputs of a tile less 2.
int FormOf(Algorithm algorithm) { return static_cast<int>(algorithm) - static_cast<int>(Algorithm::kWinograd2); }

// The form for a kernel of three taps per phase, or of two, which Supports then checks.
const WinogradKernels& TransformsFor(Isa isa, const ConvGeometry& g, Algorithm algorithm) {
  return KernelsFor(isa).winograd[g.kernel_h == 3 * g.stride_h ? 1 : 0][FormOf(algorithm)];
}

}  // namespace

std::string_view Name(Direction direction) {
  switch (direction) {
    case Direction::kForward:
      return "forward";
    case Direction::kInputGradient:
      return "input gradient";
    case Direction::kWeightGradient:
      return "weight gradient";
  }
  return "unknown";
}

std::string_view Name(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::kDirect:
      return "direct";
    case Algorithm::kWinograd2:
      return "winograd2";
    case Algorithm::kWinograd3:
      return "winograd3";
    case Algorithm::kWinograd4:
      return "winograd4";
  }
  return "unknown";
}

// A plain image on the input's side is used as it is where padding its channels to 16 would multiply the work.
bool PanelConv::plain_input() const {
  return options_.algorithm == Algorithm::kDirect && options_.input_format == ImageFormat::kPlain &&
         PanelCount(geometry_.in_channels * geometry_.taps()) < PanelCount(geometry_.in_channels) * geometry_.taps();
}

const WinogradKernels& PanelConv::transforms() const {
  return TransformsFor(options_.isa, geometry_, options_.algorithm);
}

bool PanelConv::Supports(const ConvGeometry& geometry, Direction direction, const ConvOptions& options) {
  return Create(geometry, direction, options).ok();
}

absl::StatusOr<PanelConv> PanelConv::Create(const ConvGeometry& g, Direction direction, const ConvOptions& options) {
  const int64_t sizes[] = {g.batch,    g.in_channels, g.out_channels, g.in_h,     g.in_w,       g.out_h,     g.out_w,
                           g.kernel_h, g.kernel_w,    g.stride_h,     g.stride_w, g.dilation_h, g.dilation_w};
  constexpr int64_t kLargest = int64_t{1} << 24;
  for (int64_t size : sizes) {
    if (size < 1 || size > kLargest) {
      return absl::InvalidArgumentError(absl::StrFormat("convolution size %d is outside [1, %d]", size, kLargest));
    }
  }
  if (std::min(g.pad_top, g.pad_left) < -kLargest || std::max(g.pad_top, g.pad_left) > kLargest) {
    return absl::InvalidArgumentError(
        absl::StrFormat("convolution pads %d, %d are outside [-%d, %d]", g.pad_top, g.pad_left, kLargest, kLargest));
  }
  // Every buffer must be indexable; the product is checked in double, which cannot overflow.
  const double floats[] = {1.0 * g.batch * (g.in_channels + 15.0) * g.in_h * g.in_w,
                           1.0 * g.batch * (g.out_channels + 15.0) * g.out_h * g.out_w,
                           1.0 * (g.in_channels + 15.0) * (g.out_channels + 15.0) * g.kernel_h * g.kernel_w,
                           1.0 * (g.in_channels + 15.0) * g.kernel_h * g.kernel_w * g.batch * 16};
  for (double count : floats) {
    if (count > 1e15)
      return absl::InvalidArgumentError(absl::StrFormat("a convolution operand has %g elements", count));
  }
  if (!IsaAvailable(options.isa)) {
    return absl::UnimplementedError(
        absl::StrFormat("this machine or build cannot run the %s panel kernels", Name(options.isa)));
  }
  const PanelConv conv(g, direction, options);
  if (options.algorithm != Algorithm::kDirect && !winograd::Supports(g, conv.transforms())) {
    return absl::UnimplementedError(
        absl::StrFormat("%s serves 4x4 and 6x6 kernels of stride 2, 2x2 and 3x3 of stride 1, not %dx%d of "
                        "stride %dx%d, dilation %dx%d, pads %d, %d",
                        Name(options.algorithm), g.kernel_h, g.kernel_w, g.stride_h, g.stride_w, g.dilation_h,
                        g.dilation_w, g.pad_top, g.pad_left));
  }
  return conv;
}

Algorithm ChooseAlgorithm(const ConvGeometry& g, Direction direction, int calls_per_packing) {
  // Nanoseconds of one thread, up to a common factor: a step of 16 products, a float that a transform writes and a
  // product reads again, a float of packed weights. The weight gradient reduces as many floats as the others pack.
  constexpr double kStepNs = 0.35, kTransformNs = 0.45, kPackNs = 0.5;
  const double channel_steps = static_cast<double>(PanelCount(g.in_channels) * PanelCount(g.out_channels)) * 16.0;
  const bool weight_gradient = direction == Direction::kWeightGradient;
  // Packed weights lie beside the activations of a step: what each float of them has to save. A share of a step, so by the image, and something
  // more, because they are most of the memory where images are few.
  constexpr double kHeldNs = 0.01, kHeldImages = 40;
  const double batch = static_cast<double>(g.batch);
  const double packed_ns = weight_gradient ? 0.5 * kPackNs : kPackNs / std::max(calls_per_packing, 1) + kHeldNs * (batch + kHeldImages);
  const auto taps_inside = [](int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    double count = 0;
    for (int64_t tap = 0; tap < kernel; ++tap) {
      // Outputs o with 0 <= o * stride + first < in.
      const int64_t first = tap * dilation - pad;
      const int64_t low = first >= 0 ? 0 : (-first + stride - 1) / stride;
      const int64_t high = first >= in ? 0 : std::min(out, (in - first + stride - 1) / stride);
      count += static_cast<double>(std::max<int64_t>(0, high - low));
    }
    return count;
  };
  const double pixels = taps_inside(g.in_h, g.out_h, g.kernel_h, g.stride_h, g.pad_top, g.dilation_h) *
                        taps_inside(g.in_w, g.out_w, g.kernel_w, g.stride_w, g.pad_left, g.dilation_w);
  // The errors of images add up from layer to layer, and decide at the kinks of activations; a weight gradient's go no further.
  constexpr double kMostAmplification = 2.81;
  Algorithm best = Algorithm::kDirect;
  double best_ns = pixels * batch * channel_steps * kStepNs +
                   static_cast<double>(g.taps()) * channel_steps * 16.0 * packed_ns;
  for (Algorithm algorithm : {Algorithm::kWinograd2, Algorithm::kWinograd3, Algorithm::kWinograd4}) {
    const int64_t outputs = FormOf(algorithm) + 2;
    const WinogradKernels& transforms = TransformsFor(Isa::kPortable, g, algorithm);
    if (!winograd::Supports(g, transforms)) continue;
    if (!weight_gradient && transforms.amplification > kMostAmplification) continue;
    // Per dimension: a last tile that is not full needs no product of the last point, one of a single output and two taps needs two.
    const auto positions = [&](int64_t size) {
      const int64_t rest = size % outputs;
      const int64_t last = rest == 0 ? 0 : rest == 1 && transforms.has_singles() ? 2 : transforms.points() - 1;
      return static_cast<double>(size / outputs * transforms.points() + last);
    };
    const double products = positions(g.out_h) * positions(g.out_w);
    const double points = static_cast<double>(transforms.points() * transforms.points());
    const double phases = static_cast<double>(g.stride_h * g.stride_w);
    const double panels =
        phases * static_cast<double>(PanelCount(g.in_channels)) + static_cast<double>(PanelCount(g.out_channels));
    const double ns = products * batch * (phases * channel_steps * kStepNs + panels * 16.0 * kTransformNs) +
                      points * phases * channel_steps * 16.0 * packed_ns;
    if (ns < best_ns) {
      best = algorithm;
      best_ns = ns;
    }
  }
  return best;
}

int64_t PanelConv::PackedWeightFloats() const {
  const bool plain = plain_input();
  if (options_.algorithm != Algorithm::kDirect && direction_ != Direction::kWeightGradient) {
    return winograd::WeightFloats(geometry_, transforms());
  }
  switch (direction_) {
    case Direction::kForward:
      return plain ? direct::PlainForwardWeightFloats(geometry_) : direct::ForwardWeightFloats(geometry_);
    case Direction::kInputGradient:
      return plain ? direct::PlainInputGradientWeightFloats(geometry_) : direct::InputGradientWeightFloats(geometry_);
    case Direction::kWeightGradient:
      return 0;
  }
  return 0;
}

void PanelConv::PackWeights(const float* weights, float* packed, int thread_count) const {
  const bool plain = plain_input();
  const ConvGeometry& g = geometry_;
  const PanelKernels& kernels = KernelsFor(options_.isa);
  const bool transformed = options_.algorithm != Algorithm::kDirect;
  if (direction_ == Direction::kForward) {
    if (transformed)
      winograd::PackForward(g, kernels, transforms(), weights, packed, thread_count);
    else if (plain)
      direct::PackPlainForward(g, weights, packed, thread_count);
    else
      direct::PackForward(g, kernels, weights, packed, thread_count);
  } else if (direction_ == Direction::kInputGradient) {
    if (transformed)
      winograd::PackInputGradient(g, kernels, transforms(), weights, packed, thread_count);
    else if (plain)
      direct::PackPlainInputGradient(g, weights, packed, thread_count);
    else
      direct::PackInputGradient(g, kernels, weights, packed, thread_count);
  }
}

int64_t PanelConv::ScratchFloats(int thread_count) const {
  const bool plain = plain_input();
  int64_t floats = 0;
  if (options_.input_format == ImageFormat::kPlain && !plain) floats += InputFloats(geometry_);
  if (options_.output_format == ImageFormat::kPlain) floats += OutputFloats(geometry_);
  if (options_.algorithm != Algorithm::kDirect) {
    floats += direction_ == Direction::kWeightGradient
                  ? winograd::WeightGradientScratchFloats(geometry_, transforms(), thread_count)
                  : winograd::ImageScratchFloats(geometry_, transforms());
    return RoundUp(floats);
  }
  switch (direction_) {
    case Direction::kForward:
      if (plain) floats += direct::PlainForwardScratchFloats(geometry_, thread_count);
      break;
    case Direction::kInputGradient:
      if (plain) floats += direct::PlainInputGradientScratchFloats(geometry_, thread_count);
      break;
    case Direction::kWeightGradient:
      floats +=
          plain ? direct::PlainWeightGradientScratchFloats(geometry_) : direct::WeightGradientScratchFloats(geometry_);
      break;
  }
  return RoundUp(floats);
}

void PanelConv::Forward(const float* input, const float* packed_weights, const Epilogue& epilogue, float* output,
                        float* scratch, int thread_count) const {
  assert(direction_ == Direction::kForward);
  const ConvGeometry& g = geometry_;
  const PanelKernels& kernels = KernelsFor(options_.isa);
  Scratch parts(scratch);
  const bool plain = plain_input();
  if (options_.input_format == ImageFormat::kPlain && !plain) {
    float* panels = parts.Take(InputFloats(g));
    PlainToPanel(input, g.batch, g.in_channels, g.in_h, g.in_w, panels, thread_count);
    input = panels;
  }
  const bool plain_output = options_.output_format == ImageFormat::kPlain;
  float* result = plain_output ? parts.Take(OutputFloats(g)) : output;
  if (plain) {
    direct::PlainForward(g, kernels, input, packed_weights, epilogue, result,
                         parts.Take(direct::PlainForwardScratchFloats(g, thread_count)), thread_count);
  } else if (options_.algorithm != Algorithm::kDirect) {
    winograd::Forward(g, kernels, transforms(), input, packed_weights, epilogue, result,
                      parts.Take(winograd::ImageScratchFloats(g, transforms())), thread_count);
  } else {
    direct::Forward(g, kernels, input, packed_weights, epilogue, result, thread_count);
  }
  if (plain_output) PanelToPlain(result, g.batch, g.out_channels, g.out_h, g.out_w, output, thread_count);
}

void PanelConv::InputGradient(const float* output_gradient, const float* packed_weights, const Epilogue& epilogue,
                              float* input_gradient, float* scratch, int thread_count) const {
  assert(direction_ == Direction::kInputGradient);
  const ConvGeometry& g = geometry_;
  const PanelKernels& kernels = KernelsFor(options_.isa);
  Scratch parts(scratch);
  if (options_.output_format == ImageFormat::kPlain) {
    float* panels = parts.Take(OutputFloats(g));
    PlainToPanel(output_gradient, g.batch, g.out_channels, g.out_h, g.out_w, panels, thread_count);
    output_gradient = panels;
  }
  if (plain_input()) {
    direct::PlainInputGradient(g, kernels, output_gradient, packed_weights, epilogue, input_gradient,
                               parts.Take(direct::PlainInputGradientScratchFloats(g, thread_count)), thread_count);
    return;
  }
  const bool plain_result = options_.input_format == ImageFormat::kPlain;
  float* result = plain_result ? parts.Take(InputFloats(g)) : input_gradient;
  if (options_.algorithm != Algorithm::kDirect) {
    winograd::InputGradient(g, kernels, transforms(), output_gradient, packed_weights, epilogue, result,
                            parts.Take(winograd::ImageScratchFloats(g, transforms())), thread_count);
  } else {
    direct::InputGradient(g, kernels, output_gradient, packed_weights, epilogue, result, thread_count);
  }
  if (plain_result) PanelToPlain(result, g.batch, g.in_channels, g.in_h, g.in_w, input_gradient, thread_count);
}

void PanelConv::WeightGradient(const float* input, const float* output_gradient, bool accumulate,
                               float* weight_gradient, float* scratch, int thread_count, int64_t images, int64_t out_channels) const {
  assert(direction_ == Direction::kWeightGradient);
  const ConvGeometry& g = geometry_;
  const int64_t part_of = images == 0 ? g.batch : images;
  GradientOperands operands{part_of, part_of, PanelCount(out_channels == 0 ? g.out_channels : out_channels)};
  const PanelKernels& kernels = KernelsFor(options_.isa);
  Scratch parts(scratch);
  const bool plain = plain_input();
  if (options_.input_format == ImageFormat::kPlain && !plain) {
    float* panels = parts.Take(InputFloats(g));
    PlainToPanel(input, g.batch, g.in_channels, g.in_h, g.in_w, panels, thread_count);
    input = panels;
    operands.input_images = g.batch;
  }
  if (options_.output_format == ImageFormat::kPlain) {
    float* panels = parts.Take(OutputFloats(g));
    PlainToPanel(output_gradient, g.batch, g.out_channels, g.out_h, g.out_w, panels, thread_count);
    output_gradient = panels;
    operands.output_images = g.batch;
  }
  if (plain) {
    direct::PlainWeightGradient(g, operands, kernels, input, output_gradient, accumulate, weight_gradient,
                                parts.Take(direct::PlainWeightGradientScratchFloats(g)), thread_count);
  } else if (options_.algorithm != Algorithm::kDirect) {
    winograd::WeightGradient(g, operands, kernels, transforms(), input, output_gradient, accumulate, weight_gradient,
                             parts.Take(winograd::WeightGradientScratchFloats(g, transforms(), thread_count)),
                             thread_count);
  } else {
    direct::WeightGradient(g, operands, kernels, input, output_gradient, accumulate, weight_gradient,
                           parts.Take(direct::WeightGradientScratchFloats(g)), thread_count);
  }
}

}  // namespace gantry::cpu
