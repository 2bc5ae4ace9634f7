#include "runtime/gan/network_builder.h"

#include <cmath>

namespace gantry {

using namespace ops;  // NOLINT: emission reads as formulas

ValueId NetworkBuilder::Parameter(const std::string& name, const Shape& shape, const WeightInit& init, int64_t fan_in) {
  const double per_fan_in = init.deviation / std::sqrt(static_cast<double>(fan_in));
  Initializer initializer;
  switch (init.kind) {
    case WeightInit::Kind::kNormal:
      initializer = {.kind = Initializer::Kind::kNormal, .a = 0.0, .b = init.deviation};
      break;
    case WeightInit::Kind::kFanInNormal:
      initializer = {.kind = Initializer::Kind::kNormal, .a = 0.0, .b = per_fan_in};
      break;
    case WeightInit::Kind::kFanInUniform:
      initializer = {.kind = Initializer::Kind::kUniform, .a = -per_fan_in, .b = per_fan_in};
      break;
    case WeightInit::Kind::kZero:
      break;
  }
  return program().AddState(name, "", StateRole::kParameter, {dtype_, shape}, std::move(initializer));
}

ValueId NetworkBuilder::Constant(const std::string& name, const Shape& shape, double value) {
  return program().AddState(name, "", StateRole::kParameter, {dtype_, shape},
                            {.kind = Initializer::Kind::kConstant, .a = value});
}

void NetworkBuilder::Blend(const std::string& state, ValueId target, ValueId source, double weight, double scale) {
  const ValueId inputs[] = {target, source};
  const std::vector<ValueId> updated =
      program().Emit("lerp_update", inputs, {{"count", int64_t{1}}, {"weight", weight}, {"scale", scale}});
  if (program().status().ok()) program().UpdateState(state, updated[0]);
}

// Algorithm 1 of Miyato et al. 2018: v = W^T u / |W^T u|, u = W v / |W v|, sigma = u^T W v; the gradient of sigma
// passes through W only. W has a row per output. The states u and v begin at any length, since both are normalized
// before use.
ValueId NetworkBuilder::SpectrallyNormalized(const std::string& layer, ValueId weight) {
  Program& p = program();
  const Shape shape = ShapeOf(weight);
  const int64_t rows = shape[0];
  const int64_t columns = shape.element_count() / rows;
  const Initializer normal = {.kind = Initializer::Kind::kNormal, .a = 0.0, .b = 1.0};
  const std::string name_u = layer + ".weight_u";
  const std::string name_v = layer + ".weight_v";
  const ValueId state_u = p.AddState(name_u, "", StateRole::kStatistic, {dtype_, Shape{rows}}, normal);
  const ValueId state_v = p.AddState(name_v, "", StateRole::kStatistic, {dtype_, Shape{columns}}, normal);
  const ValueId matrix = Reshape(p, weight, Shape{rows, columns});
  const ValueId fixed = StopGradient(p, matrix);
  const auto Unit = [&](ValueId x) {
    constexpr double kEpsilon = 1e-12;
    const ValueId length = Sqrt(p, ReduceSum(p, Square(p, x), {}));
    return Div(p, x, Maximum(p, length, Fill(p, dtype_, Shape(), kEpsilon)));
  };
  const ValueId v = Unit(Matmul(p, fixed, Reshape(p, state_u, Shape{rows, 1}), true));  // [columns, 1]
  const ValueId u = Unit(Matmul(p, fixed, v));                                          // [rows, 1]
  Blend(name_u, state_u, Reshape(p, u, Shape{rows}), 1.0, 1.0);
  Blend(name_v, state_v, Reshape(p, v, Shape{columns}), 1.0, 1.0);
  const ValueId sigma = ReduceSum(p, Mul(p, StopGradient(p, u), Matmul(p, matrix, StopGradient(p, v))), {});
  return Div(p, weight, sigma);
}

ValueId NetworkBuilder::Weight(const std::string& layer, const Shape& shape, int64_t fan_in,
                               const ConvolutionLayer& options) {
  if (!options.spectral_norm) return Parameter(layer + ".weight", shape, options.init, fan_in);
  return SpectrallyNormalized(layer, Parameter(layer + ".weight_orig", shape, options.init, fan_in));
}

Shape NetworkBuilder::WeightShape(ValueId x, int64_t first, int64_t second, const ConvolutionLayer& options) {
  std::vector<int64_t> dims = {first, second};
  const int rank = ShapeOf(x).rank() - 2;
  dims.resize(2 + rank, options.kernel);
  if (rank == 3 && options.depth_kernel > 0) dims[2] = options.depth_kernel;
  return Shape(std::move(dims));
}

ValueId NetworkBuilder::Conv(const std::string& layer, ValueId x, const ConvolutionLayer& options) {
  const Shape shape = WeightShape(x, options.out_channels, ShapeOf(x)[1] / options.groups, options);
  const int rank = shape.rank() - 2;
  const ValueId weight = Weight(layer, shape, shape.element_count() / shape[0], options);
  const ValueId bias = options.bias ? Constant(layer + ".bias", Shape{options.out_channels}, 0.0) : kNoValue;
  return ops::Conv(program(), x, weight, bias,
                   {.strides = std::vector<int64_t>(rank, options.stride),
                    .pads = std::vector<int64_t>(2 * rank, options.pad),
                    .groups = options.groups});
}

ValueId NetworkBuilder::ConvTranspose(const std::string& layer, ValueId x, const ConvolutionLayer& options) {
  const Shape input = ShapeOf(x);
  const Shape shape = WeightShape(x, input[1], options.out_channels, options);
  const int rank = shape.rank() - 2;
  const ValueId weight = Weight(layer, shape, shape.element_count() / shape[0], options);
  const ValueId bias = options.bias ? Constant(layer + ".bias", Shape{options.out_channels}, 0.0) : kNoValue;
  const ConvAttributes attributes = {.strides = std::vector<int64_t>(rank, options.stride),
                                     .pads = std::vector<int64_t>(2 * rank, options.pad)};
  std::vector<int64_t> spatial;
  for (int axis = 2; axis < input.rank(); ++axis) {
    spatial.push_back((input[axis] - 1) * options.stride - 2 * options.pad + shape[axis]);
  }
  return ops::ConvTranspose(program(), x, weight, bias, attributes, std::move(spatial));
}

ValueId NetworkBuilder::Linear(const std::string& layer, ValueId x, const ConvolutionLayer& options) {
  const int64_t in = ShapeOf(x)[1];
  const ValueId weight = Weight(layer, Shape{options.out_channels, in}, in, options);
  const ValueId bias = options.bias ? Constant(layer + ".bias", Shape{options.out_channels}, 0.0) : kNoValue;
  return ops::Linear(program(), x, weight, bias);
}

ValueId NetworkBuilder::Normalize(const std::string& layer, ValueId x, std::vector<int64_t> axes, double deviation,
                                  Normalized& normalized) {
  constexpr double kEpsilon = 1e-5;
  const Shape shape = ShapeOf(x);
  const int64_t channels = shape[1];
  const ValueId scale = program().AddState(layer + ".weight", "", StateRole::kParameter, {dtype_, Shape{channels}},
                                           {.kind = Initializer::Kind::kNormal, .a = 1.0, .b = deviation});
  const ValueId bias = Constant(layer + ".bias", Shape{channels}, 0.0);
  Shape aligned(std::vector<int64_t>(shape.rank(), 1));
  aligned[1] = channels;
  normalized = ops::Normalize(program(), x, Reshape(program(), scale, aligned), Reshape(program(), bias, aligned),
                              std::move(axes), kEpsilon);
  return normalized.y;
}

ValueId NetworkBuilder::BatchNorm(const std::string& layer, ValueId x, double deviation) {
  constexpr double kMomentum = 0.1;
  const Shape shape = ShapeOf(x);
  std::vector<int64_t> axes = {0};
  for (int axis = 2; axis < shape.rank(); ++axis) axes.push_back(axis);
  Normalized normalized;
  const ValueId y = Normalize(layer, x, std::move(axes), deviation, normalized);
  const Shape channels{shape[1]};
  const double count = static_cast<double>(shape.element_count() / shape[1]);
  const auto Statistic = [&](const std::string& name, double first, ValueId batch, double scale) {
    const ValueId state = program().AddState(name, "", StateRole::kStatistic, {dtype_, channels},
                                             {.kind = Initializer::Kind::kConstant, .a = first});
    Blend(name, state, Reshape(program(), batch, channels), kMomentum, scale);
  };
  Statistic(layer + ".running_mean", 0.0, normalized.mean, 1.0);
  Statistic(layer + ".running_var", 1.0, normalized.variance,
            count / (count - 1.0));  // the unbiased variance, as PyTorch
  return y;
}

ValueId NetworkBuilder::LayerNorm(const std::string& layer, ValueId x) {
  std::vector<int64_t> axes;
  for (int axis = 1; axis < ShapeOf(x).rank(); ++axis) axes.push_back(axis);
  Normalized normalized;
  return Normalize(layer, x, std::move(axes), 0.0, normalized);
}

ValueId NetworkBuilder::BiasedLeakyRelu(const std::string& layer, ValueId x, double slope) {
  const int64_t channels = ShapeOf(x)[1];
  const ValueId bias = Constant(layer + ".bias", Shape{channels}, 0.0);
  return LeakyRelu(program(), Add(program(), x, Reshape(program(), bias, Shape{1, channels, 1, 1})), slope);
}

absl::StatusOr<Model> NetworkBuilder::Finish(std::string output, ValueId value) {
  program().AddOutput(std::move(output), value);
  GANTRY_RETURN_IF_ERROR(program().status());
  return std::move(model_);
}

}  // namespace gantry
