// What lowering puts in place of convolutions and around them. These ops run on the panel layout (panel/panel_layout.h) and
// exist only in lowered programs, so they have no gradient. Lowering sets the layouts of their results.
//
//   "reorder"(x) {layout}: x in the other layout.
//   "pack_weights"(w) {geometry, direction, algorithm, formats, floats}: w as panel_conv reads it, f32[floats].
//   "panel_conv"(x, packed [, bias]) {geometry, direction, algorithm, formats, slope}: conv ("forward") or conv_transpose
//     ("input_gradient"), bias and leaky_relu included.
//   "panel_conv_weight_grad"(x, g [, into]) {geometry, algorithm, formats, images, rows}: conv_weight_grad, added to `into`. `images`: of how
//     many images the products are summed at a time, each sum added to those before (runtime/plan/split_batch.h); without it, of all.
//     `rows`: of g with so many channels (the second number), the geometry's from the first number on, a multiple of 16.
#include "ops/cpu/panel_ops.h"

#include <cstring>

#include "ops/op_definition.h"

namespace gantry {
namespace cpu {

std::vector<int64_t> ToInts(const ConvGeometry& g) {
  return {g.batch,    g.in_channels, g.out_channels, g.in_h,    g.in_w,     g.out_h,      g.out_w,     g.kernel_h,
          g.kernel_w, g.stride_h,    g.stride_w,     g.pad_top, g.pad_left, g.dilation_h, g.dilation_w};
}

ConvGeometry GeometryOf(const Attributes& attributes) {
  const std::vector<int64_t> v = attributes.Ints("geometry");
  ConvGeometry g;
  if (v.size() != 15) return g;
  g.batch = v[0], g.in_channels = v[1], g.out_channels = v[2], g.in_h = v[3], g.in_w = v[4], g.out_h = v[5], g.out_w = v[6];
  g.kernel_h = v[7], g.kernel_w = v[8], g.stride_h = v[9], g.stride_w = v[10], g.pad_top = v[11], g.pad_left = v[12];
  g.dilation_h = v[13], g.dilation_w = v[14];
  return g;
}

Direction DirectionOf(const Attributes& attributes) {
  for (Direction direction : {Direction::kForward, Direction::kInputGradient}) {
    if (Name(direction) == attributes.String("direction")) return direction;
  }
  return Direction::kWeightGradient;
}

ConvOptions OptionsOf(const Attributes& attributes) {
  ConvOptions options;
  for (Algorithm algorithm : {Algorithm::kDirect, Algorithm::kWinograd2, Algorithm::kWinograd3, Algorithm::kWinograd4}) {
    if (Name(algorithm) == attributes.String("algorithm")) options.algorithm = algorithm;
  }
  const std::vector<int64_t> formats = attributes.Ints("formats", {1, 1});
  options.input_format = formats[0] != 0 ? ImageFormat::kPanel : ImageFormat::kPlain;
  options.output_format = formats[1] != 0 ? ImageFormat::kPanel : ImageFormat::kPlain;
  return options;
}

Attributes ConvAttributesOf(const ConvGeometry& geometry, Direction direction, const ConvOptions& options) {
  return {{"geometry", ToInts(geometry)},
          {"direction", std::string(Name(direction))},
          {"algorithm", std::string(Name(options.algorithm))},
          {"formats", std::vector<int64_t>{options.input_format == ImageFormat::kPanel ? 1 : 0,
                                           options.output_format == ImageFormat::kPanel ? 1 : 0}}};
}

namespace {

Cost ConvCost(std::span<const TensorType>, std::span<const TensorType>, const Attributes& attributes) {
  return {GeometryOf(attributes).flops()};
}

absl::StatusOr<PanelConv> ConvOf(const Attributes& attributes) {
  return PanelConv::Create(GeometryOf(attributes), DirectionOf(attributes), OptionsOf(attributes));
}

class ReorderKernel final : public Kernel {
 public:
  explicit ReorderKernel(const KernelRequest& request)
      : shape_(request.inputs[0].shape), to_panel_(request.outputs[0].layout == TensorLayout::kPanel),
        threads_(request.thread_count) {}
  std::string_view implementation() const override { return "panel reorder"; }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* from = static_cast<const float*>(arguments.inputs[0]);
    auto* to = static_cast<float*>(arguments.outputs[0]);
    const auto reorder = to_panel_ ? PlainToPanel : PanelToPlain;
    reorder(from, shape_[0], shape_[1], shape_[2], shape_[3], to, threads_);
    return absl::OkStatus();
  }

 private:
  const Shape shape_;
  const bool to_panel_;
  const int threads_;
};

class PackWeightsKernel final : public Kernel {
 public:
  PackWeightsKernel(PanelConv conv, int threads) : conv_(conv), threads_(threads) {}
  std::string_view implementation() const override { return "panel pack"; }
  absl::Status Run(const KernelArguments& arguments) override {
    conv_.PackWeights(static_cast<const float*>(arguments.inputs[0]), static_cast<float*>(arguments.outputs[0]), threads_);
    return absl::OkStatus();
  }

 private:
  const PanelConv conv_;
  const int threads_;
};

class PanelConvKernel final : public Kernel {
 public:
  PanelConvKernel(PanelConv conv, bool bias, const Attributes& attributes, int threads)
      : conv_(conv), bias_(bias), threads_(threads),
        name_(absl::StrFormat("panel %s %s", Name(conv.options().algorithm), Name(conv.options().isa))) {
    epilogue_.slope = static_cast<float>(attributes.Float("slope", 1.0));
  }
  size_t scratch_bytes() const override { return conv_.ScratchFloats(threads_) * sizeof(float); }
  std::string_view implementation() const override { return name_; }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* x = static_cast<const float*>(arguments.inputs[0]);
    const auto* packed = static_cast<const float*>(arguments.inputs[1]);
    auto* y = static_cast<float*>(arguments.outputs[0]);
    auto* scratch = static_cast<float*>(arguments.scratch);
    Epilogue epilogue = epilogue_;
    if (bias_) epilogue.bias = static_cast<const float*>(arguments.inputs[2]);
    const auto run = conv_.direction() == Direction::kForward ? &PanelConv::Forward : &PanelConv::InputGradient;
    (conv_.*run)(x, packed, epilogue, y, scratch, threads_);
    return absl::OkStatus();
  }

 private:
  const PanelConv conv_;
  const bool bias_;
  const int threads_;
  const std::string name_;
  Epilogue epilogue_;
};

class PanelWeightGradientKernel final : public Kernel {
 public:
  // The kernel for so many images at a time as `images` says, and for the rest.
  static absl::StatusOr<std::unique_ptr<Kernel>> Make(const KernelRequest& request) {
    ConvGeometry part = GeometryOf(request.attributes);
    const int64_t batch = part.batch, images = std::min(request.attributes.Int("images", batch), batch);
    const ConvOptions options = OptionsOf(request.attributes);
    part.batch = images;
    GANTRY_ASSIGN_OR_RETURN(const PanelConv conv, PanelConv::Create(part, Direction::kWeightGradient, options));
    if (batch % images != 0) part.batch = batch % images;
    GANTRY_ASSIGN_OR_RETURN(const PanelConv rest, PanelConv::Create(part, Direction::kWeightGradient, options));
    return std::unique_ptr<Kernel>(new PanelWeightGradientKernel(conv, rest, batch, request));
  }
  size_t scratch_bytes() const override { return std::max(conv_.ScratchFloats(threads_), rest_.ScratchFloats(threads_)) * sizeof(float); }
  std::string_view implementation() const override { return name_; }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* const x = static_cast<const float*>(arguments.inputs[0]);
    const auto* const g = static_cast<const float*>(arguments.inputs[1]);
    auto* const sum = static_cast<float*>(arguments.outputs[0]);
    if (has_into_ && arguments.inputs[2] != sum) {
      std::memcpy(sum, arguments.inputs[2], static_cast<size_t>(conv_.geometry().weight_count()) * sizeof(float));
    }
    const ConvGeometry& geometry = conv_.geometry();
    const ConvOptions& options = conv_.options();
    const int64_t x_step = options.input_format == ImageFormat::kPanel ? 16 : geometry.in_channels * geometry.in_h * geometry.in_w;
    const int64_t g_step = options.output_format == ImageFormat::kPanel ? 16 : geometry.out_channels * geometry.out_h * geometry.out_w;
    const auto* const first = g + first_row_ * batch_;  // of panels, 16 channels of all images each
    for (int64_t image = 0; image < batch_; image += geometry.batch) {
      const PanelConv& conv = batch_ - image < geometry.batch ? rest_ : conv_;
      conv.WeightGradient(x + image * x_step, first + image * g_step, has_into_ || image > 0, sum, static_cast<float*>(arguments.scratch), threads_,
                          batch_, channels_);
    }
    return absl::OkStatus();
  }

 private:
  PanelWeightGradientKernel(const PanelConv& conv, const PanelConv& rest, int64_t batch, const KernelRequest& request)
      : conv_(conv), rest_(rest), batch_(batch), has_into_(request.inputs.size() > 2), threads_(request.thread_count),
        name_(absl::StrFormat("panel %s %s", Name(conv.options().algorithm), Name(conv.options().isa))) {
    if (const std::vector<int64_t> rows = request.attributes.Ints("rows"); !rows.empty()) first_row_ = rows[0], channels_ = rows[1];
  }

  const PanelConv conv_, rest_;
  const int64_t batch_;
  int64_t first_row_ = 0, channels_ = 0;  // 0: the geometry's
  const bool has_into_;
  const int threads_;
  const std::string name_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Kernel>> MakePanelKernel(const KernelRequest& request) {
  const std::string_view name = request.op.name;
  if (name == "reorder") return std::make_unique<ReorderKernel>(request);
  if (name != "pack_weights" && name != "panel_conv" && name != "panel_conv_weight_grad") return nullptr;
  if (name == "panel_conv_weight_grad") return PanelWeightGradientKernel::Make(request);
  GANTRY_ASSIGN_OR_RETURN(PanelConv conv, ConvOf(request.attributes));
  if (name == "pack_weights") return std::make_unique<PackWeightsKernel>(conv, request.thread_count);
  return std::make_unique<PanelConvKernel>(conv, request.inputs.size() > 2, request.attributes, request.thread_count);
}

}  // namespace cpu

std::vector<OpDefinition> PanelOps() {
  using Types = absl::StatusOr<std::vector<TensorType>>;
  using Inputs = std::span<const TensorType>;
  std::vector<OpDefinition> ops;
  ops.push_back({.name = "reorder", .infer = [](Inputs inputs, const Attributes&) -> Types {
                   if (inputs[0].dtype != DataType::kF32 || inputs[0].shape.rank() != 4) {
                     return absl::InvalidArgumentError("takes f32 of four dimensions");
                   }
                   return std::vector<TensorType>{{DataType::kF32, inputs[0].shape}};
                 }});
  ops.push_back({.name = "pack_weights", .infer = [](Inputs, const Attributes& attributes) -> Types {
                   GANTRY_ASSIGN_OR_RETURN(const cpu::PanelConv conv, cpu::ConvOf(attributes));
                   return std::vector<TensorType>{{DataType::kF32, Shape{conv.PackedWeightFloats()}}};
                 }});
  ops.push_back({.name = "panel_conv", .min_inputs = 2, .max_inputs = 3,
                 .infer = [](Inputs, const Attributes& attributes) -> Types {
                   const cpu::ConvGeometry g = cpu::GeometryOf(attributes);
                   return cpu::DirectionOf(attributes) == cpu::Direction::kForward
                              ? std::vector<TensorType>{{DataType::kF32, Shape{g.batch, g.out_channels, g.out_h, g.out_w}}}
                              : std::vector<TensorType>{{DataType::kF32, Shape{g.batch, g.in_channels, g.in_h, g.in_w}}};
                 },
                 .cost = cpu::ConvCost});
  ops.push_back({.name = "panel_conv_weight_grad", .min_inputs = 2, .max_inputs = 3,
                 .infer = [](Inputs inputs, const Attributes& attributes) -> Types {
                   const cpu::ConvGeometry g = cpu::GeometryOf(attributes);
                   const TensorType gradient{DataType::kF32, Shape{g.out_channels, g.in_channels, g.kernel_h, g.kernel_w}};
                   if (inputs.size() > 2 && !(inputs[2] == gradient)) {
                     return absl::InvalidArgumentError(absl::StrFormat("it adds to %s, not to %s", gradient.ToString(), inputs[2].ToString()));
                   }
                   if (const std::vector<int64_t> rows = attributes.Ints("rows");
                       !rows.empty() && (rows.size() != 2 || rows[0] < 0 || rows[0] % 16 != 0 || rows[1] - rows[0] < g.out_channels)) {
                     return absl::InvalidArgumentError("attribute 'rows' must be the first of the rows, a multiple of 16, and how many channels there are");
                   }
                   if (attributes.Int("images", 1) < 1) return absl::InvalidArgumentError("attribute 'images' must be at least 1");
                   return std::vector<TensorType>{gradient};
                 },
                 .cost = cpu::ConvCost,
                 .in_place = {{0, 2}}});
  return ops;
}

}  // namespace gantry
