#include "ops/resize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/support/run_op.h"

namespace gantry {
namespace {

using test::InferOp;
using test::MakeTensor;
using test::RandomTensor;
using test::RunOp;
using test::Tensor;
using testing::DoubleNear;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pointwise;
using Ints = std::vector<int64_t>;

std::vector<double> Resized(const std::vector<double>& x, int64_t output, Attributes attributes) {
  attributes.Set("output_spatial", Ints{output});
  const auto outputs = RunOp("resize", {MakeTensor({1, 1, static_cast<int64_t>(x.size())}, x)}, attributes);
  EXPECT_TRUE(outputs.ok()) << outputs.status();
  return outputs.ok() ? (*outputs)[0].values : std::vector<double>();
}

Attributes Linear(std::string coordinates) {
  return {{"mode", std::string("linear")}, {"coordinates", std::move(coordinates)}};
}
Attributes Nearest(std::string coordinates, std::string rounding) {
  return {{"mode", std::string("nearest")}, {"coordinates", std::move(coordinates)}, {"rounding", std::move(rounding)}};
}

TEST(ResizeTest, NearestTakesOneElement) {
  EXPECT_THAT(Resized({1, 2, 3}, 6, Nearest("asymmetric", "floor")), ElementsAre(1, 1, 2, 2, 3, 3));
  EXPECT_THAT(Resized({1, 2, 3}, 6, Nearest("asymmetric", "ceil")), ElementsAre(1, 2, 2, 3, 3, 3));
  EXPECT_THAT(Resized({1, 2, 3, 4}, 2, Nearest("half_pixel", "round_prefer_floor")), ElementsAre(1, 3));
  EXPECT_THAT(Resized({1, 2, 3, 4}, 2, Nearest("half_pixel", "round_prefer_ceil")), ElementsAre(2, 4));
  EXPECT_THAT(Resized({1, 2, 3}, 5, Nearest("align_corners", "floor")), ElementsAre(1, 1, 2, 2, 3));
}

TEST(ResizeTest, LinearWeighsTwoNeighbours) {
  EXPECT_THAT(Resized({0, 4}, 4, Linear("half_pixel")), ElementsAre(0, 1, 3, 4));
  EXPECT_THAT(Resized({0, 4}, 4, Linear("asymmetric")), ElementsAre(0, 2, 4, 4));
  EXPECT_THAT(Resized({0, 4}, 5, Linear("align_corners")), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(Resized({0, 4, 8}, 1, Linear("half_pixel")), ElementsAre(4));
  EXPECT_THAT(Resized({0, 4, 8}, 1, Linear("pytorch_half_pixel")), ElementsAre(0));
  EXPECT_THAT(Resized({0, 4, 8}, 1, Linear("align_corners")), ElementsAre(0));
}

TEST(ResizeTest, GivenScalesSetTheStepWhateverTheSizes) {
  Attributes attributes = Linear("asymmetric");
  attributes.Set("scales", std::vector<double>{2.5});
  EXPECT_THAT(Resized({0, 10, 20}, 7, attributes),
              Pointwise(DoubleNear(1e-12), std::vector<double>{0, 4, 8, 12, 16, 20, 20}));
  // 0.6 as f32 is a little more than 0.6: place 3 is 5 all the same.
  Attributes nearest = Nearest("asymmetric", "floor");
  nearest.Set("scales", std::vector<double>{static_cast<double>(0.6f)});
  EXPECT_THAT(Resized({0, 1, 2, 3, 4, 5}, 4, nearest), ElementsAre(0, 1, 3, 5));
}

TEST(ResizeTest, NearestByAnIntegerRepeatsEveryElementEquallyOften) {
  for (int64_t factor = 1; factor <= 9; ++factor) {
    for (int64_t input = 1; input <= 70; ++input) {
      const std::vector<ResizeSample> samples = ResizeSamples(Nearest("asymmetric", "floor"), 0, input, input * factor);
      for (int64_t index = 0; index < input * factor; ++index) ASSERT_EQ(samples[index].low, index / factor);
    }
  }
}

TEST(ResizeTest, GradIsAdjointInAnyGeometry) {
  std::mt19937_64 random(31);
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  const char* const coordinates[] = {"asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"};
  const char* const roundings[] = {"floor", "round_prefer_floor", "round_prefer_ceil", "ceil"};
  for (int round = 0; round < 200; ++round) {
    const int64_t rank = draw(1, 3);
    Ints x_dims = {2, 3}, y_dims = {2, 3}, input, output;
    std::vector<double> scales;
    for (int64_t i = 0; i < rank; ++i) {
      input.push_back(draw(1, 6));
      output.push_back(draw(1, 7));
      scales.push_back(0.3 + 0.25 * static_cast<double>(draw(1, 10)));
    }
    x_dims.insert(x_dims.end(), input.begin(), input.end());
    y_dims.insert(y_dims.end(), output.begin(), output.end());
    Attributes attributes =
        draw(0, 1) == 0 ? Linear(coordinates[draw(0, 3)]) : Nearest(coordinates[draw(0, 3)], roundings[draw(0, 3)]);
    if (draw(0, 2) == 0) attributes.Set("scales", scales);
    const Tensor x = RandomTensor(Shape(x_dims), random), g = RandomTensor(Shape(y_dims), random);
    Attributes back = attributes;
    attributes.Set("output_spatial", output);
    back.Set("output_spatial", input);
    const auto y = RunOp("resize", {x}, attributes);
    const auto dx = RunOp("resize_grad", {g}, back);
    ASSERT_TRUE(y.ok() && dx.ok()) << attributes.ToString();
    ASSERT_NEAR(Dot((*y)[0], g), Dot(x, (*dx)[0]), 1e-11) << attributes.ToString();
    // The weights of every element of y sum to one.
    const auto ones =
        RunOp("resize", {MakeTensor(Shape(x_dims), std::vector<double>(x.values.size(), 1.0))}, attributes);
    for (double value : (*ones)[0].values) ASSERT_DOUBLE_EQ(value, 1.0);
  }
}

// Along an axis that is cut in parts, each place of the result is the sum of what the parts of the input give, and so is each of the gradient.
TEST(ResizeTest, PartsOfTheInputAddUp) {
  std::mt19937_64 random(37);
  const auto draw = [&](int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random); };
  const char* const coordinates[] = {"asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"};
  for (int round = 0; round < 100; ++round) {
    const int64_t input = draw(2, 9), output = draw(2, 12), cut = draw(1, input - 1), other_cut = draw(1, output - 1);
    const Attributes common = draw(0, 1) == 0 ? Linear(coordinates[draw(0, 3)]) : Nearest(coordinates[draw(0, 3)], "floor");
    const auto run = [&](std::string_view op, const Tensor& x, int64_t extent, Ints part) {
      Attributes attributes = common;
      attributes.Set("output_spatial", Ints{extent});
      if (!part.empty()) attributes.Set("part", std::move(part));
      const auto outputs = RunOp(op, {x}, attributes);
      EXPECT_TRUE(outputs.ok()) << outputs.status();
      return outputs.ok() ? (*outputs)[0].values : std::vector<double>(static_cast<size_t>(extent));
    };
    const auto slice = [](const std::vector<double>& values, int64_t begin, int64_t end) {
      return MakeTensor({1, 1, end - begin}, {values.begin() + begin, values.begin() + end});
    };
    const Tensor x = RandomTensor(Shape{1, 1, input}, random), g = RandomTensor(Shape{1, 1, output}, random);
    const std::vector<double> y = run("resize", x, output, {}), dx = run("resize_grad", g, input, {});
    std::vector<double> y_sum(y.size()), dx_sum(dx.size());
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>(0, cut), {cut, input}}) {
      for (const auto& [first, last] : {std::pair<int64_t, int64_t>(0, other_cut), {other_cut, output}}) {
        const Ints part = {0, input, begin, output, first};
        const std::vector<double> y_part = run("resize", slice(x.values, begin, end), last - first, part);
        const std::vector<double> dx_part = run("resize_grad", slice(g.values, first, last), end - begin, part);
        for (int64_t i = first; i < last; ++i) y_sum[i] += y_part[i - first];
        for (int64_t i = begin; i < end; ++i) dx_sum[i] += dx_part[i - begin];
      }
    }
    EXPECT_THAT(y_sum, Pointwise(DoubleNear(1e-12), y)) << common.ToString();
    EXPECT_THAT(dx_sum, Pointwise(DoubleNear(1e-12), dx)) << common.ToString();
  }
}

TEST(ResizeShapeTest, HostileAttributesAreErrors) {
  const TensorType x[] = {{DataType::kF32, {1, 1, 5}}};
  const double infinity = std::numeric_limits<double>::infinity();
  const auto with = [](Attributes attributes, std::string name, AttributeValue value) {
    if (!attributes.Has("output_spatial")) attributes.Set("output_spatial", Ints{4});
    attributes.Set(std::move(name), std::move(value));
    return attributes;
  };
  const Attributes linear = Linear("half_pixel");
  for (const Attributes& attributes :
       {linear, with(linear, "output_spatial", Ints{0}), with(linear, "output_spatial", Ints{-1}),
        with(linear, "output_spatial", Ints{2, 2}), with(linear, "output_spatial", Ints{INT64_MAX}),
        with(linear, "mode", std::string("cubic")), with(linear, "coordinates", std::string("tf_crop_and_resize")),
        with(linear, "rounding", std::string("up")), with(linear, "scales", std::vector<double>{0.0}),
        with(linear, "scales", std::vector<double>{-1.0}), with(linear, "scales", std::vector<double>{infinity}),
        with(linear, "scales", std::vector<double>{infinity - infinity}),
        with(linear, "scales", std::vector<double>{1e-310}), with(linear, "scales", std::vector<double>{1.0, 1.0}),
        with(linear, "scales", Ints{1}), with(linear, "part", Ints{0, 5, 0, 4}), with(linear, "part", Ints{1, 5, 0, 4, 0}),
        with(linear, "part", Ints{0, 0, 0, 4, 0}), with(linear, "part", Ints{0, 5, -1, 4, 0})}) {
    for (std::string_view op : {"resize", "resize_grad"})
      EXPECT_FALSE(InferOp(op, x, attributes).ok()) << attributes.ToString();
  }
  EXPECT_THAT(std::string(Message(InferOp("resize", x, with(linear, "mode", std::string("cubic"))).status())),
              HasSubstr("attribute 'mode' is 'cubic'; known are nearest, linear"));
  const TensorType empty[] = {{DataType::kF32, {1, 1, 0}}};
  EXPECT_FALSE(InferOp("resize", empty, with(linear, "output_spatial", Ints{4})).ok());
}

}  // namespace
}  // namespace gantry
