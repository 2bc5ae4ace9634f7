// Small networks for tests: convolutions, batch norm, leaky relu and tanh as in a DCGAN, at 8x8.
#pragma once

#include "ops/functional.h"
#include "runtime/gan/gan_step.h"

namespace gantry::testing {

struct SmallGan {
  std::vector<GanRole> generators, discriminators;
};

inline ValueId AddParameter(Program& p, std::string name, DataType dtype, Shape shape, double deviation = 0.2) {
  return p.AddState(std::move(name), "", StateRole::kParameter, {dtype, std::move(shape)},
                    {.kind = Initializer::Kind::kNormal, .a = 0.0, .b = deviation});
}

inline ValueId AddBatchNorm(Program& p, const std::string& name, ValueId x) {
  const TensorType type = p.TypeOf(x);
  const Shape channels{1, type.shape[1], 1, 1};
  const ValueId scale = p.AddState(name + ".weight", "", StateRole::kParameter, {type.dtype, channels},
                                   {.kind = Initializer::Kind::kNormal, .a = 1.0, .b = 0.02});
  const ValueId bias = p.AddState(name + ".bias", "", StateRole::kParameter, {type.dtype, channels}, {});
  const ValueId running = p.AddState(name + ".running_mean", "", StateRole::kStatistic, {type.dtype, channels}, {});
  const ops::Normalized normalized = ops::Normalize(p, x, scale, bias, {0, 2, 3}, 1e-5);
  const ValueId update[] = {running, normalized.mean};
  p.UpdateState(name + ".running_mean",
                p.Emit("lerp_update", update, {{"count", int64_t{1}}, {"weight", 0.1}, {"scale", 1.0}})[0]);
  return normalized.y;
}

// Generator: latent [batch, 6, 1, 1] -> [batch, channels, 8, 8]. Discriminator: that -> [batch, 1, 1, 1].
inline SmallGan MakeSmallGan(int64_t batch, DataType dtype, int64_t channels = 3, int64_t width = 4) {
  SmallGan gan;
  Program g;
  const ValueId noise = g.AddInput("noise", {dtype, Shape{batch, 6, 1, 1}});
  ValueId x = ops::ConvTranspose(g, noise, AddParameter(g, "0.weight", dtype, Shape{6, 2 * width, 2, 2}), kNoValue, {}, {2, 2});
  x = ops::Relu(g, AddBatchNorm(g, "1", x));
  const ops::ConvAttributes down{.strides = {2, 2}, .pads = {1, 1, 1, 1}};
  x = ops::ConvTranspose(g, x, AddParameter(g, "3.weight", dtype, Shape{2 * width, width, 4, 4}), kNoValue, down, {4, 4});
  x = ops::Relu(g, AddBatchNorm(g, "4", x));
  x = ops::ConvTranspose(g, x, AddParameter(g, "6.weight", dtype, Shape{width, channels, 4, 4}),
                         AddParameter(g, "6.bias", dtype, Shape{channels}), down, {8, 8});
  g.AddOutput("image", ops::Tanh(g, x));

  Program d;
  const ValueId image = d.AddInput("image", {dtype, Shape{batch, channels, 8, 8}});
  x = ops::Conv(d, image, AddParameter(d, "0.weight", dtype, Shape{width, channels, 4, 4}),
                AddParameter(d, "0.bias", dtype, Shape{width}), down);
  x = ops::LeakyRelu(d, x, 0.2);
  x = ops::Conv(d, x, AddParameter(d, "2.weight", dtype, Shape{2 * width, width, 4, 4}), kNoValue, down);
  x = ops::LeakyRelu(d, AddBatchNorm(d, "3", x), 0.2);
  x = ops::Conv(d, x, AddParameter(d, "5.weight", dtype, Shape{1, 2 * width, 2, 2}), kNoValue, {});
  d.AddOutput("logit", x);

  gan.generators.push_back({"generator", {"small", std::move(g)}, {}});
  gan.discriminators.push_back({"discriminator", {"small", std::move(d)}, {}});
  return gan;
}

}  // namespace gantry::testing
