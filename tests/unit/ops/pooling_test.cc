#include "ops/pooling.h"

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
using testing::ElementsAre;
using testing::HasSubstr;
using Ints = std::vector<int64_t>;

std::vector<double> Values(absl::StatusOr<std::vector<Tensor>> outputs) {
  EXPECT_TRUE(outputs.ok()) << outputs.status();
  return outputs.ok() ? (*outputs)[0].values : std::vector<double>();
}

std::string Error(std::string_view op, std::vector<Shape> shapes, const Attributes& attributes) {
  std::vector<TensorType> types;
  for (const Shape& shape : shapes) types.push_back({DataType::kF32, shape});
  const auto outputs = InferOp(op, types, attributes);
  EXPECT_FALSE(outputs.ok()) << op << " " << attributes.ToString();
  return std::string(Message(outputs.status()));
}

Tensor Line(std::vector<double> values) {
  const auto size = static_cast<int64_t>(values.size());
  return MakeTensor({1, 1, size}, std::move(values));
}

TEST(AvgPoolTest, AveragesWindows) {
  const Tensor x = Line({1, 3, 5, 7, 9});
  EXPECT_THAT(Values(RunOp("avg_pool", {x}, {{"kernel", Ints{2}}})), ElementsAre(2, 4, 6, 8));
  EXPECT_THAT(Values(RunOp("avg_pool", {x}, {{"kernel", Ints{2}}, {"strides", Ints{2}}})), ElementsAre(2, 6));
  EXPECT_THAT(Values(RunOp("avg_pool", {x}, {{"kernel", Ints{2}}, {"dilations", Ints{3}}})), ElementsAre(4, 6));
}

TEST(AvgPoolTest, PadsCountOnlyWhereAsked) {
  const Tensor x = Line({1, 3, 5});
  const Attributes attributes = {{"kernel", Ints{2}}, {"strides", Ints{2}}, {"pads", Ints{1, 0}}};
  EXPECT_THAT(Values(RunOp("avg_pool", {x}, attributes)), ElementsAre(1, 4));
  Attributes counted = attributes;
  counted.Set("count_include_pad", int64_t{1});
  EXPECT_THAT(Values(RunOp("avg_pool", {x}, counted)), ElementsAre(0.5, 4));
}

TEST(AvgPoolTest, WhatCeilModeAddsBeyondThePadNeverCounts) {
  const Tensor x = Line({1, 3, 5, 7});
  // The last window covers places 3 (7), 4 (the pad) and 5 (beyond it).
  const Attributes attributes = {{"kernel", Ints{3}},
                                 {"strides", Ints{3}},
                                 {"pads", Ints{0, 1}},
                                 {"ceil_mode", int64_t{1}},
                                 {"count_include_pad", int64_t{1}}};
  EXPECT_THAT(Values(RunOp("avg_pool", {x}, attributes)), ElementsAre(3, 3.5));
}

TEST(PoolTest, CeilModeStartsNoWindowInTheEndPad) {
  const Tensor x = Line({1, 3, 5, 7});
  const auto pooled = [&](int64_t ceil_mode, Ints pads, int64_t stride) {
    return Values(RunOp("max_pool", {x},
                        {{"kernel", Ints{2}}, {"strides", Ints{stride}}, {"pads", pads}, {"ceil_mode", ceil_mode}}));
  };
  EXPECT_THAT(pooled(0, {0, 0}, 3), ElementsAre(3));
  EXPECT_THAT(pooled(1, {0, 0}, 3), ElementsAre(3, 7));
  EXPECT_THAT(pooled(1, {0, 1}, 4), ElementsAre(3));  // place 4 is in the end pad
  EXPECT_THAT(pooled(1, {1, 1}, 5), ElementsAre(1));
  EXPECT_THAT(pooled(1, {1, 1}, 4), ElementsAre(1, 7));
}

TEST(MaxPoolTest, TheFirstMaximumTakesTheGradient) {
  const Tensor x = Line({2, 5, 5, 1, 5});
  const Attributes attributes = {{"kernel", Ints{3}}};
  EXPECT_THAT(Values(RunOp("max_pool", {x}, attributes)), ElementsAre(5, 5, 5));
  EXPECT_THAT(Values(RunOp("max_pool_grad", {Line({1, 10, 100}), x}, attributes)), ElementsAre(0, 11, 100, 0, 0));
  EXPECT_THAT(Values(RunOp("max_pool_select", {Line({1, 2, 3, 4, 5}), x}, attributes)), ElementsAre(2, 2, 3));
}

TEST(MaxPoolTest, PadsAreNeverTheMaximum) {
  EXPECT_THAT(Values(RunOp("max_pool", {Line({-3, -2})}, {{"kernel", Ints{2}}, {"pads", Ints{1, 1}}})),
              ElementsAre(-3, -2, -2));
}

TEST(MaxPoolTest, KeepsNaN) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<double> y = Values(RunOp("max_pool", {Line({1, nan, 3, 4})}, {{"kernel", Ints{2}}}));
  EXPECT_TRUE(std::isnan(y[0]) && std::isnan(y[1]));
  EXPECT_EQ(y[2], 4);
}

struct PoolCase {
  Shape x, y;
  Attributes attributes;
};

PoolCase RandomPoolCase(std::mt19937_64& random) {
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  while (true) {
    const int64_t rank = draw(1, 3);
    std::vector<int64_t> x = {draw(1, 2), draw(1, 3)}, kernel, strides, pads(2 * rank), dilations;
    for (int64_t i = 0; i < rank; ++i) {
      x.push_back(draw(1, 8));
      kernel.push_back(draw(1, 4));
      strides.push_back(draw(1, 3));
      dilations.push_back(draw(1, 2));
      pads[i] = draw(0, kernel[i] / 2);
      pads[rank + i] = draw(0, kernel[i] / 2);
    }
    PoolCase result{Shape(x),
                    {},
                    {{"kernel", kernel},
                     {"strides", strides},
                     {"pads", pads},
                     {"dilations", dilations},
                     {"ceil_mode", draw(0, 1)},
                     {"count_include_pad", draw(0, 1)}}};
    const TensorType types[] = {{DataType::kF64, result.x}};
    const auto outputs = InferOp("avg_pool", types, result.attributes);
    if (!outputs.ok()) continue;  // the kernel does not fit
    result.y = (*outputs)[0].shape;
    return result;
  }
}

TEST(PoolTest, GradientsAreAdjointInAnyGeometry) {
  std::mt19937_64 random(21);
  for (int round = 0; round < 300; ++round) {
    const PoolCase geometry = RandomPoolCase(random);
    const Tensor x = RandomTensor(geometry.x, random), g = RandomTensor(geometry.y, random);
    const Tensor v = RandomTensor(geometry.x, random);
    Attributes back = geometry.attributes;
    back.Set("output_spatial", Ints(geometry.x.dims().begin() + 2, geometry.x.dims().end()));
    const auto average = RunOp("avg_pool", {x}, geometry.attributes);
    const auto average_grad = RunOp("avg_pool_grad", {g}, back);
    const auto select = RunOp("max_pool_select", {v, x}, geometry.attributes);
    const auto max_grad = RunOp("max_pool_grad", {g, x}, geometry.attributes);
    ASSERT_TRUE(average.ok() && average_grad.ok() && select.ok() && max_grad.ok()) << geometry.attributes.ToString();
    ASSERT_NEAR(Dot((*average)[0], g), Dot(x, (*average_grad)[0]), 1e-12) << geometry.attributes.ToString();
    ASSERT_NEAR(Dot((*select)[0], g), Dot(v, (*max_grad)[0]), 1e-12) << geometry.attributes.ToString();
    // x selected at its own maxima is the maximum.
    ASSERT_EQ(Values(RunOp("max_pool_select", {x, x}, geometry.attributes)),
              Values(RunOp("max_pool", {x}, geometry.attributes)));
    // The average of ones is one where pads do not count.
    Attributes uncounted = geometry.attributes;
    uncounted.Set("count_include_pad", int64_t{0});
    const Tensor ones = MakeTensor(geometry.x, std::vector<double>(x.values.size(), 1.0));
    for (double value : Values(RunOp("avg_pool", {ones}, uncounted))) ASSERT_DOUBLE_EQ(value, 1.0);
  }
}

TEST(PoolShapeTest, ErrorsNameShapesAndAttributes) {
  EXPECT_EQ(
      Error("max_pool", {{1, 2, 3, 3}}, {{"kernel", Ints{4, 4}}}),
      "spatial dimension 0: a kernel of 4 with dilation 1 spans 4 places, but the input has 3 and pads 0 + 0; input "
      "f32[1,2,3,3] {kernel=[4,4]}");
  EXPECT_THAT(Error("avg_pool", {{1, 2, 3, 3}}, {{"kernel", Ints{2, 2}}, {"pads", Ints{2, 0, 0, 0}}}),
              HasSubstr("pads 2 + 0 must be smaller than the 2 places that a kernel of 2 spans"));
  EXPECT_THAT(Error("max_pool", {{1, 1, 1}}, {{"kernel", Ints{2}}, {"dilations", Ints{3}}, {"pads", Ints{2, 2}}}),
              HasSubstr("misses the input"));
  EXPECT_THAT(Error("max_pool_grad", {{1, 2, 3, 3}, {1, 2, 3, 3}}, {{"kernel", Ints{2, 2}}}),
              HasSubstr("pooling spatial [3,3] gives [2,2], but g is f32[1,2,3,3]"));
}

TEST(PoolShapeTest, HostileAttributesAreErrors) {
  const int64_t huge = INT64_MAX, large = INT32_MAX;
  for (const Attributes& attributes :
       std::vector<Attributes>{{},
                               {{"kernel", Ints{}}},
                               {{"kernel", Ints{0}}},
                               {{"kernel", Ints{-1}}},
                               {{"kernel", Ints{2, 2}}},
                               {{"kernel", huge}},
                               {{"kernel", Ints{huge}}},
                               {{"kernel", Ints{2}}, {"strides", Ints{0}}},
                               {{"kernel", Ints{2}}, {"pads", Ints{-1, 0}}},
                               {{"kernel", Ints{2}}, {"pads", Ints{large, large}}},
                               {{"kernel", Ints{2}}, {"dilations", Ints{large}}},
                               {{"kernel", Ints{large}}, {"dilations", Ints{large}}, {"pads", Ints{large, large}}},
                               {{"kernel", Ints{2}}, {"dilations", Ints{large}}, {"pads", Ints{large, large}}},
                               {{"kernel", Ints{2}}, {"ceil_mode", int64_t{2}}},
                               {{"kernel", Ints{2}}, {"ceil_mode", std::string("yes")}}}) {
    Error("max_pool", {{1, 1, 5}}, attributes);
    Error("avg_pool", {{1, 1, 5}}, attributes);
  }
  Error("max_pool_select", {{1, 1, 5}, {1, 1, 6}}, {{"kernel", Ints{2}}});
  Error("avg_pool_grad", {{1, 1, 5}}, {{"kernel", Ints{2}}, {"output_spatial", Ints{huge}}});
  Error("avg_pool_grad", {{1, 1, 5}}, {{"kernel", Ints{2}}});
  Error("max_pool", {{1, 5}}, {{"kernel", Ints{2}}});
}

}  // namespace
}  // namespace gantry
