#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

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

Attributes Over(Ints axes, double eps = 1e-5) { return {{"axes", std::move(axes)}, {"eps", eps}}; }

TEST(NormalizeTest, HandComputed) {
  const Tensor x = MakeTensor({2, 2}, {1, 10, 5, 30});
  const auto outputs = RunOp("normalize", {x, MakeTensor({2}, {1, 2}), MakeTensor({1, 2}, {0, 100})}, Over({0}, 0.0));
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_THAT((*outputs)[0].values, ElementsAre(-1, 98, 1, 102));
  EXPECT_EQ((*outputs)[1].type.shape, Shape({1, 2}));
  EXPECT_THAT((*outputs)[1].values, ElementsAre(3, 20));
  EXPECT_THAT((*outputs)[2].values, ElementsAre(4, 100));
}

TEST(NormalizeTest, AppliesTheFusedActivation) {
  Attributes attributes = Over({0}, 0.0);
  attributes.Set("slope", 0.25);
  const auto outputs =
      RunOp("normalize", {MakeTensor({2}, {1, 3}), MakeTensor({}, {1}), MakeTensor({1}, {0})}, attributes);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_THAT((*outputs)[0].values, ElementsAre(-0.25, 1));
}

// A large common offset loses no digits: the variance is taken around the mean, not as a difference of squares.
TEST(NormalizeTest, IsAccurateAroundALargeMean) {
  const Tensor x = MakeTensor({4}, {1e7 + 1, 1e7 + 2, 1e7 + 3, 1e7 + 4}, DataType::kF32);
  const Tensor one = MakeTensor({1}, {1}, DataType::kF32), zero = MakeTensor({1}, {0}, DataType::kF32);
  const auto outputs = RunOp("normalize", {x, one, zero}, Over({0}, 0.0));
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_FLOAT_EQ((*outputs)[2].values[0], 1.25);
  EXPECT_FLOAT_EQ((*outputs)[0].values[3], 1.5 / std::sqrt(1.25));
}

struct NormCase {
  Shape x, parameter, statistics;
  Attributes attributes;
};

NormCase RandomNormCase(std::mt19937_64& random) {
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  const int64_t rank = draw(1, 5);
  Ints x, parameter, statistics, axes;
  for (int64_t axis = 0; axis < rank; ++axis) {
    x.push_back(draw(1, 4));
    parameter.push_back(draw(0, 1) == 0 ? 1 : x.back());
    statistics.push_back(x.back());
    if (draw(0, 1) == 0) continue;
    axes.push_back(draw(0, 1) == 0 ? axis : axis - rank);
    statistics.back() = 1;
  }
  if (axes.empty()) {  // no axes: all of them
    statistics.assign(rank, 1);
  }
  return {Shape(x), Shape(parameter), Shape(statistics), Over(axes, 0.1)};
}

// dx, dscale and dbias against central differences of <g, y>.
TEST(NormalizeGradTest, EqualsDifferencesInAnyGeometry) {
  std::mt19937_64 random(41);
  for (int round = 0; round < 60; ++round) {
    const NormCase geometry = RandomNormCase(random);
    std::vector<Tensor> inputs = {RandomTensor(geometry.x, random), RandomTensor(geometry.parameter, random),
                                  RandomTensor(geometry.parameter, random)};
    const Tensor g = RandomTensor(geometry.x, random);
    const auto outputs = RunOp("normalize", inputs, geometry.attributes);
    ASSERT_TRUE(outputs.ok()) << outputs.status() << geometry.attributes.ToString();
    ASSERT_EQ((*outputs)[1].type.shape, geometry.statistics);
    const auto gradients =
        RunOp("normalize_grad", {g, inputs[0], inputs[1], (*outputs)[1], (*outputs)[2]}, geometry.attributes);
    ASSERT_TRUE(gradients.ok()) << gradients.status();
    for (size_t input = 0; input < 3; ++input) {
      for (size_t i = 0; i < inputs[input].values.size(); ++i) {
        const auto loss = [&](double step) {
          std::vector<Tensor> moved = inputs;
          moved[input].values[i] += step;
          return Dot((*RunOp("normalize", moved, geometry.attributes))[0], g);
        };
        const double difference = (loss(1e-4) - loss(-1e-4)) / 2e-4;
        ASSERT_NEAR((*gradients)[input].values[i], difference, 2e-6 * (1 + std::abs(difference)))
            << geometry.x.ToString() << geometry.attributes.ToString() << " input " << input;
      }
    }
  }
}

TEST(NormalizeShapeTest, ErrorsNameShapesAndAttributes) {
  const auto error = [](std::string_view op, std::vector<Shape> shapes, const Attributes& attributes) {
    std::vector<TensorType> types;
    for (const Shape& shape : shapes) types.push_back({DataType::kF32, shape});
    const auto outputs = InferOp(op, types, attributes);
    EXPECT_FALSE(outputs.ok()) << op << attributes.ToString();
    return std::string(Message(outputs.status()));
  };
  EXPECT_EQ(error("normalize", {{2, 3, 4}, {3}, {4}}, Over({0})), "scale f32[3] does not broadcast to x f32[2,3,4]");
  EXPECT_EQ(error("normalize", {{2, 3, 1}, {3, 4}, {1}}, Over({0})),
            "scale f32[3,4] does not broadcast to x f32[2,3,1]");
  EXPECT_EQ(error("normalize", {{2, 0}, {1}, {1}}, Over({1})),
            "x is f32[2,0]: there is nothing to normalize over axis 1");
  error("normalize", {{2, 3}, {1}, {1}}, {});
  error("normalize", {{2, 3}, {1}, {1}}, {{"axes", Ints{0}}});
  error("normalize", {{2, 3}, {1}, {1}}, Over({2}));
  error("normalize", {{2, 3}, {1}, {1}}, Over({0, -2}));
  error("normalize", {{2, 3}, {1}, {1}}, Over({0}, -1.0));
  error("normalize", {{2, 3}, {1}, {1}}, Over({0}, std::nan("")));
  error("normalize", {{}, {1}, {1}}, Over({}));
  EXPECT_THAT(error("normalize_grad", {{2, 3}, {2, 3}, {1}, {2, 1}, {1, 3}}, Over({0})),
              HasSubstr("mean must have shape [1,3]"));
  EXPECT_THAT(error("normalize_grad", {{2, 1}, {2, 3}, {1}, {1, 3}, {1, 3}}, Over({0})),
              HasSubstr("g must have shape [2,3]"));
}

}  // namespace
}  // namespace gantry
