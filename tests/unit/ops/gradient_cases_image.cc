#include "ops/functional.h"
#include "tests/unit/ops/gradient_cases.h"

namespace gantry::test {
namespace {

using Ids = std::span<const ValueId>;
using Values = std::vector<ValueId>;
using Ints = std::vector<int64_t>;

Attributes ConvAttributes(Ints strides, Ints pads, Ints dilations, int64_t groups) {
  return {{"strides", std::move(strides)},
          {"pads", std::move(pads)},
          {"dilations", std::move(dilations)},
          {"groups", groups}};
}

Attributes With(Attributes attributes, std::string name, AttributeValue value) {
  attributes.Set(std::move(name), std::move(value));
  return attributes;
}

ops::PoolAttributes Pool(Ints kernel, Ints strides, Ints pads, bool count_include_pad = false) {
  ops::PoolAttributes attributes;
  attributes.kernel = std::move(kernel);
  attributes.strides = std::move(strides);
  attributes.pads = std::move(pads);
  attributes.count_include_pad = count_include_pad;
  return attributes;
}

Attributes ResizeAttributes(std::string mode, std::string coordinates) {
  return {{"mode", std::move(mode)},
          {"coordinates", std::move(coordinates)},
          {"rounding", std::string("round_prefer_floor")}};
}

// A 2 x 3 grid over a 5 x 4 image, its edges padded unevenly.
const Attributes& Strided() {
  static const auto* const attributes = new Attributes(ConvAttributes({2, 1}, {1, 0, 1, 1}, {1, 1}, 1));
  return *attributes;
}

}  // namespace

std::vector<GradientCase> ConvolutionGradientCases() {
  return {
      {.name = "Conv", .op = "conv", .inputs = {{{2, 3, 5, 4}}, {{4, 3, 3, 3}}}, .attributes = Strided()},
      {.name = "ConvBias", .op = "conv", .inputs = {{{2, 3, 5, 4}}, {{4, 3, 3, 3}}, {{4}}}, .attributes = Strided()},
      {.name = "ConvGroupsDilated",
       .op = "conv",
       .inputs = {{{1, 4, 6, 5}}, {{6, 2, 2, 2}}},
       .attributes = ConvAttributes({1, 2}, {0, 1, 1, 0}, {2, 2}, 2)},
      {.name = "Conv1d",
       .op = "conv",
       .inputs = {{{2, 2, 7}}, {{3, 2, 4}}},
       .attributes = ConvAttributes({2}, {1, 1}, {1}, 1)},
      {.name = "Conv3d",
       .op = "conv",
       .inputs = {{{1, 2, 3, 3, 4}}, {{2, 2, 2, 3, 2}}},
       .attributes = ConvAttributes({1, 1, 2}, {0, 1, 0, 1, 1, 0}, {1, 1, 1}, 1)},
      {.name = "ConvTranspose",
       .op = "conv_transpose",
       .inputs = {{{2, 4, 3, 3}}, {{4, 3, 3, 3}}, {{3}}},
       .attributes = With(Strided(), "output_spatial", Ints{5, 4})},
      {.name = "ConvTransposeGroups",
       .op = "conv_transpose",
       .inputs = {{{2, 4, 2, 3}}, {{4, 3, 2, 2}}},
       .attributes = With(ConvAttributes({2, 2}, {0, 1, 0, 0}, {1, 1}, 2), "output_spatial", Ints{5, 5})},
      {.name = "ConvWeightGrad",
       .op = "conv_weight_grad",
       .inputs = {{{2, 3, 5, 4}}, {{2, 4, 3, 3}}},
       .attributes = With(Strided(), "kernel", Ints{3, 3})},
  };
}

std::vector<GradientCase> PoolingGradientCases() {
  const GradientInput image = {{2, 2, 5, 6}, -2.0, 2.0, {}, true};
  return {
      {.name = "AvgPool",
       .op = "avg_pool",
       .inputs = {{{2, 2, 5, 6}}},
       .build =
           [](Builder& b, Ids x) {
             return Values{ops::Square(b, ops::AvgPool(b, x[0], Pool({3, 2}, {2, 2}, {1, 0, 1, 0})))};
           }},
      {.name = "AvgPoolGrad",
       .op = "avg_pool_grad",
       .inputs = {{{1, 2, 3, 3}}, {{1, 2, 5, 6}}},
       // The gradient of avg_pool in x, times x: its own gradients are avg_pool and avg_pool_grad again.
       .build =
           [](Builder& b, Ids x) {
             Attributes attributes = {{"kernel", Ints{3, 2}},        {"strides", Ints{2, 2}},
                                      {"pads", Ints{1, 0, 1, 0}},    {"dilations", Ints{1, 1}},
                                      {"ceil_mode", int64_t{0}},     {"count_include_pad", int64_t{1}},
                                      {"output_spatial", Ints{5, 6}}};
             return Values{ops::Mul(b, ops::Emit1(b, "avg_pool_grad", {x[0]}, std::move(attributes)), x[1])};
           }},
      {.name = "MaxPool",
       .op = "max_pool",
       .inputs = {image},
       .build =
           [](Builder& b, Ids x) {
             return Values{ops::Square(b, ops::MaxPool(b, x[0], Pool({3, 2}, {2, 2}, {1, 0, 1, 0})))};
           }},
      {.name = "MaxPoolGrad",
       .op = "max_pool_grad",
       .inputs = {{{2, 2, 3, 3}}, image},
       .attributes = {{"kernel", Ints{3, 2}},
                      {"strides", Ints{2, 2}},
                      {"pads", Ints{1, 0, 1, 0}},
                      {"dilations", Ints{1, 1}},
                      {"ceil_mode", int64_t{0}}}},
      {.name = "MaxPoolSelect",
       .op = "max_pool_select",
       .inputs = {{{2, 2, 5, 6}}, image},
       .attributes = {{"kernel", Ints{3, 2}},
                      {"strides", Ints{2, 2}},
                      {"pads", Ints{1, 0, 1, 0}},
                      {"dilations", Ints{1, 1}},
                      {"ceil_mode", int64_t{0}}}},
  };
}

std::vector<GradientCase> ResizeGradientCases() {
  std::vector<GradientCase> cases;
  for (const char* mode : {"nearest", "linear"}) {
    for (const char* coordinates : {"asymmetric", "half_pixel", "align_corners"}) {
      cases.push_back(
          {.name = absl::StrCat("Resize_", mode, "_", coordinates),
           .op = "resize",
           .inputs = {{{1, 2, 3, 4}}},
           .build = [mode, coordinates](Builder& b, Ids x) {
             return Values{ops::Square(b, ops::Resize(b, x[0], {5, 3}, ResizeAttributes(mode, coordinates)))};
           }});
    }
  }
  Attributes attributes = ResizeAttributes("linear", "half_pixel");
  attributes.Set("output_spatial", Ints{3, 4});
  cases.push_back({.name = "ResizeGrad", .op = "resize_grad", .inputs = {{{1, 2, 5, 3}}}, .attributes = attributes});
  return cases;
}

std::vector<GradientCase> NormalizationGradientCases() {
  const auto Norm = [](Ints axes) { return Attributes{{"axes", std::move(axes)}, {"eps", 1e-3}}; };
  return {
      {.name = "BatchNorm",
       .op = "normalize",
       .inputs = {{{4, 3, 2, 2}}, {{1, 3, 1, 1}}, {{1, 3, 1, 1}}},
       .attributes = Norm({0, 2, 3})},
      {.name = "LayerNorm",
       .op = "normalize",
       .inputs = {{{3, 2, 4}}, {{2, 4}}, {{1, 1, 4}}},
       .attributes = Norm({1, 2})},
      {.name = "GroupNorm",
       .op = "normalize",
       .inputs = {{{2, 2, 3, 4}}, {{1, 2, 3, 1}}, {{1, 2, 3, 1}}},
       .attributes = Norm({2, 3})},
      // With the statistics of its own x, as gradient programs emit it.
      {.name = "NormalizeGrad",
       .op = "normalize_grad",
       .inputs = {{{4, 3, 2}}, {{4, 3, 2}}, {{1, 3, 1}}},
       .build =
           [Norm](Builder& b, Ids v) {
             const ValueId zero = ops::Fill(b, DataType::kF64, {1, 3, 1}, 0.0);
             const ops::Normalized n = ops::Normalize(b, v[1], v[2], zero, {0, 2}, 1e-3);
             return b.Emit("normalize_grad", Values{v[0], v[1], v[2], n.mean, n.variance}, Norm({0, 2}));
           }},
  };
}

}  // namespace gantry::test
