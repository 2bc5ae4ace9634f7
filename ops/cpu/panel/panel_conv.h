// 2-D convolution (groups = 1) in f32 on the panel layout, forward, input gradient and weight gradient. The input
// gradient serves as the transposed convolution as well. Weights are row-major [out_channels, in_channels, kernel_h,
// kernel_w]; the two directions that read them take them packed, so that one packing serves many calls.
//
// Each direction is a sum of matrix products per pixel over the taps inside the image. A small tile of the result stays
// in registers, a 16 KiB chunk of weights (weight gradient: of the output gradient) in the first-level cache.
//
// A result depends neither on the number of threads nor on the run: each element is summed in one fixed order.
// Different instruction sets round differently.
#pragma once

#include <cstdint>
#include <string_view>

#include "memory/status.h"
#include "ops/cpu/panel/panel_isa.h"
#include "ops/cpu/panel/panel_kernels.h"
#include "ops/cpu/panel/panel_layout.h"

namespace gantry::cpu {

// input [batch, in_channels, in_h, in_w], output [batch, out_channels, out_h, out_w]. Output (y, x) sees input
// (y * stride_h - pad_top + ky * dilation_h, x * stride_w - pad_left + kx * dilation_w); what falls outside counts as
// zero, so the padding below and to the right follows from the output's size.
struct ConvGeometry {
  int64_t batch = 1, in_channels = 1, out_channels = 1;
  int64_t in_h = 1, in_w = 1, out_h = 1, out_w = 1;
  int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1;
  int64_t pad_top = 0, pad_left = 0, dilation_h = 1, dilation_w = 1;

  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t weight_count() const { return out_channels * in_channels * taps(); }
  // Multiplications and additions of one direction, every tap counted.
  double flops() const {
    return 2.0 * static_cast<double>(batch * out_h * out_w) * static_cast<double>(weight_count());
  }
};

// What the panel operands of a weight gradient have in memory: images, and panels of channels of the output gradient; at least the
// geometry's, which are a part of them.
struct GradientOperands {
  int64_t input_images, output_images;
  int64_t output_panels;
};

enum class Direction : uint8_t { kForward, kInputGradient, kWeightGradient };

enum class Algorithm : uint8_t {
  kDirect,     // any geometry
  kWinograd2,  // F(2x2,..) per phase: 4x4 stride 2 and 2x2 (packed weights 2.25 times as large), 3x3 and 6x6 stride 2
               // (1.8 times)
  kWinograd3,  // F(3x3,..) likewise: 4 and 2.8 times the weights
  kWinograd4,  // F(4x4,..) likewise: 6.25 and 4 times the weights
};

// How an image operand lies in memory.
enum class ImageFormat : uint8_t { kPlain, kPanel };

std::string_view Name(Direction direction);
std::string_view Name(Algorithm algorithm);

struct ConvOptions {
  Algorithm algorithm = Algorithm::kDirect;
  ImageFormat input_format = ImageFormat::kPanel;   // of the input or its gradient
  ImageFormat output_format = ImageFormat::kPanel;  // of the output or its gradient
  Isa isa = BestIsa();
};

// One direction of one geometry. Immutable and small; its functions may be called from several threads at once, each
// with its own scratch. All buffers are 64-byte aligned and do not overlap. Nothing allocates.
class PanelConv {
 public:
  // kInvalidArgument for sizes < 1 or too large to index, kUnimplemented where the algorithm or the instruction set
  // does not serve (see Supports).
  static absl::StatusOr<PanelConv> Create(const ConvGeometry& geometry, Direction direction,
                                          const ConvOptions& options);
  static bool Supports(const ConvGeometry& geometry, Direction direction, const ConvOptions& options);

  // Size of the packed weights; 0 for the weight gradient.
  int64_t PackedWeightFloats() const;
  int64_t ScratchFloats(int thread_count) const;

  void PackWeights(const float* weights, float* packed, int thread_count) const;

  // output = conv(input, weights), then `epilogue` over the output's channels.
  void Forward(const float* input, const float* packed_weights, const Epilogue& epilogue, float* output, float* scratch,
               int thread_count) const;
  // input_gradient = the adjoint of conv applied to output_gradient, then `epilogue` over the input's channels.
  void InputGradient(const float* output_gradient, const float* packed_weights, const Epilogue& epilogue,
                     float* input_gradient, float* scratch, int thread_count) const;
  // weight_gradient[out_channels, in_channels, kernel_h, kernel_w] = (accumulate ? itself : 0) + gradient. `images`: of a larger batch of
  // so many images (0: no more than the geometry's), only those from the two pointers on are summed. A panel operand's next image is 16
  // floats on, a plain one's a whole image. `out_channels`: likewise, of an output gradient in panels with so many channels, the geometry's from the pointer on,
  // which stands at a panel.
  void WeightGradient(const float* input, const float* output_gradient, bool accumulate, float* weight_gradient,
                      float* scratch, int thread_count, int64_t images = 0, int64_t out_channels = 0) const;

  const ConvGeometry& geometry() const { return geometry_; }
  const ConvOptions& options() const { return options_; }
  Direction direction() const { return direction_; }

 private:
  bool plain_input() const;
  const WinogradKernels& transforms() const;

  PanelConv(const ConvGeometry& geometry, Direction direction, const ConvOptions& options)
      : geometry_(geometry), direction_(direction), options_(options) {}

  ConvGeometry geometry_;
  Direction direction_;
  ConvOptions options_;
};

// The fastest algorithm by a model of its products and memory traffic (constants measured on Zen 3, AVX2), among those that round
// little: for images, forms whose amplification (WinogradKernels) is below 3. Packed weights, which lie beside a step's activations, have a
// price by the float.
// `calls_per_packing`: how often packed weights are used before they change; it does not matter to the weight gradient.
// The model is of panel images; with a plain image of few channels on the input's side kDirect is best.
Algorithm ChooseAlgorithm(const ConvGeometry& geometry, Direction direction, int calls_per_packing = 2);

}  // namespace gantry::cpu
