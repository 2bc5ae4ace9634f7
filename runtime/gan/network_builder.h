// Layers as PyTorch has them, emitted into a model: parameters become states "<layer>.weight", "<layer>.bias".
#pragma once

#include <string>

#include "ops/functional.h"
#include "runtime/graph/model.h"

namespace gantry {

// How the weights of a layer begin. Biases begin at zero.
struct WeightInit {
  enum class Kind : uint8_t { kNormal, kFanInNormal, kFanInUniform, kZero };
  Kind kind = Kind::kNormal;
  double deviation =
      0.02;  // kNormal; kFanInNormal: times 1 / sqrt(fan in); kFanInUniform: within deviation / sqrt(fan in)
};

struct ConvolutionLayer {
  int64_t out_channels = 0;
  int64_t kernel = 3;
  int64_t depth_kernel = 0;  // of the first of three spatial axes; 0: as the others
  int64_t stride = 1;
  int64_t pad = 0;
  int64_t groups = 1;
  bool bias = true;
  bool spectral_norm = false;
  WeightInit init;
};

class NetworkBuilder {
 public:
  NetworkBuilder(std::string name, DataType dtype) : dtype_(dtype) { model_.name = std::move(name); }

  Program& program() { return model_.program; }
  ValueId Input(std::string name, const Shape& shape) { return program().AddInput(std::move(name), {dtype_, shape}); }
  const Shape& ShapeOf(ValueId value) { return program().TypeOf(value).shape; }
  ValueId Parameter(const std::string& name, const Shape& shape, const WeightInit& init, int64_t fan_in);
  // A parameter that begins as a constant.
  ValueId Constant(const std::string& name, const Shape& shape, double value);

  // Convolution with equal kernels, strides and pads on all spatial axes that x has, but for depth_kernel, and transposed convolution
  // with weight [in, out, kernel, ...] (one group).
  ValueId Conv(const std::string& layer, ValueId x, const ConvolutionLayer& options);
  ValueId ConvTranspose(const std::string& layer, ValueId x, const ConvolutionLayer& options);
  // x [N, in] -> [N, out_channels]; uses bias, spectral_norm and init of the options.
  ValueId Linear(const std::string& layer, ValueId x, const ConvolutionLayer& options);
  // With batch statistics and running statistics (momentum 0.1, eps 1e-5); weights begin at N(1, deviation).
  ValueId BatchNorm(const std::string& layer, ValueId x, double deviation);
  // Over all but the batch, with a weight and bias per channel.
  ValueId LayerNorm(const std::string& layer, ValueId x);
  // leaky_relu(x + bias) with a bias per channel.
  ValueId BiasedLeakyRelu(const std::string& layer, ValueId x, double slope);

  absl::StatusOr<Model> Finish(std::string output, ValueId value);

 private:
  // [first, second, kernel of every spatial axis of x].
  Shape WeightShape(ValueId x, int64_t first, int64_t second, const ConvolutionLayer& options);
  // The weight of a layer, divided by its greatest singular value if so asked.
  ValueId Weight(const std::string& layer, const Shape& shape, int64_t fan_in, const ConvolutionLayer& options);
  ValueId SpectrallyNormalized(const std::string& layer, ValueId weight);
  ValueId Normalize(const std::string& layer, ValueId x, std::vector<int64_t> axes, double deviation,
                    ops::Normalized& normalized);
  // target becomes (1 - weight) * target + weight * scale * source.
  void Blend(const std::string& state, ValueId target, ValueId source, double weight, double scale);

  Model model_;
  DataType dtype_;
};

}  // namespace gantry
