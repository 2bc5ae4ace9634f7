#include "ops/convolution.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ops/functional.h"
#include "tests/support/conv_case.h"
#include "tests/support/run_op.h"

namespace gantry {
namespace {

using test::ConvCase;
using test::InferOp;
using test::MakeTensor;
using test::RandomConvCase;
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

TEST(ConvTest, SlidesTheKernelOverTheLine) {
  const Tensor x = MakeTensor({1, 1, 4}, {1, 2, 3, 4});
  const Tensor w = MakeTensor({1, 1, 3}, {1, 10, 100});
  EXPECT_THAT(Values(RunOp("conv", {x, w}, {})), ElementsAre(321, 432));
  EXPECT_THAT(Values(RunOp("conv", {x, w}, {{"pads", Ints{1, 1}}})), ElementsAre(210, 321, 432, 43));
  EXPECT_THAT(Values(RunOp("conv", {x, w}, {{"pads", Ints{2, 0}}})), ElementsAre(100, 210, 321, 432));
  EXPECT_THAT(Values(RunOp("conv", {x, w}, {{"pads", Ints{1, 1}}, {"strides", Ints{3}}})), ElementsAre(210, 43));
  EXPECT_THAT(Values(RunOp("conv", {x, w}, {{"pads", Ints{1, 1}}, {"dilations", Ints{2}}})), ElementsAre(420, 31));
}

TEST(ConvTest, GroupsSeeTheirOwnChannelsOnly) {
  const Tensor x = MakeTensor({1, 4, 1}, {1, 2, 3, 4});
  const Tensor w = MakeTensor({2, 2, 1}, {1, 10, 1, 10});
  EXPECT_THAT(Values(RunOp("conv", {x, w}, {{"groups", int64_t{2}}})), ElementsAre(21, 43));
}

TEST(ConvTest, AddsTheBiasThenAppliesTheFusedActivation) {
  const Tensor x = MakeTensor({1, 1, 2}, {1, -2});
  const Tensor w = MakeTensor({2, 1, 1}, {1, -1});
  const Tensor bias = MakeTensor({2}, {0.5, 1});
  EXPECT_THAT(Values(RunOp("conv", {x, w, bias}, {})), ElementsAre(1.5, -1.5, 0, 3));
  EXPECT_THAT(Values(RunOp("conv", {x, w, bias}, {{"slope", 0.5}})), ElementsAre(1.5, -0.75, 0, 3));
}

TEST(ConvTransposeTest, SpreadsTheKernelOverTheLine) {
  const Tensor y = MakeTensor({1, 1, 2}, {1, 2});
  const Tensor w = MakeTensor({1, 1, 3}, {1, 10, 100});
  EXPECT_THAT(Values(RunOp("conv_transpose", {y, w}, {{"output_spatial", Ints{4}}})), ElementsAre(1, 12, 120, 200));
  EXPECT_THAT(Values(RunOp("conv_transpose", {y, w}, {{"strides", Ints{2}}, {"output_spatial", Ints{5}}})),
              ElementsAre(1, 10, 102, 20, 200));
  // One more place of output padding: no window reaches it.
  EXPECT_THAT(Values(RunOp("conv_transpose", {y, w}, {{"strides", Ints{2}}, {"output_spatial", Ints{6}}})),
              ElementsAre(1, 10, 102, 20, 200, 0));
  const Tensor bias = MakeTensor({1}, {-50});
  EXPECT_THAT(Values(RunOp("conv_transpose", {y, w, bias}, {{"output_spatial", Ints{4}}, {"slope", 0.0}})),
              ElementsAre(0, 0, 70, 150));
}

TEST(ConvTransposeTest, OutputSizeIsPyTorchs) {
  const ops::ConvAttributes attributes{.strides = {2, 3}, .pads = {1, 0, 2, 1}, .dilations = {1, 2}};
  EXPECT_THAT(ops::ConvTransposeOutput(Ints{4, 5}, Ints{4, 3}, attributes, Ints{1, 0}),
              ElementsAre(3 * 2 - 3 + 3 + 1 + 1, 4 * 3 - 1 + 4 + 1));
  EXPECT_THAT(ops::ConvTransposeOutput(Ints{INT64_MAX}, Ints{INT64_MAX}, {.strides = {INT64_MAX}}, {}), ElementsAre(0));
  EXPECT_THAT(ops::ConvTransposeOutput(Ints{1}, Ints{1}, {.pads = {5, 5}}, {}), ElementsAre(0));
}

TEST(ConvWeightGradTest, CorrelatesInputAndGradient) {
  const Tensor x = MakeTensor({2, 1, 3}, {1, 2, 3, 10, 20, 30});
  const Tensor g = MakeTensor({2, 1, 2}, {1, 10, 1, 1});
  EXPECT_THAT(Values(RunOp("conv_weight_grad", {x, g}, {{"kernel", Ints{2}}})), ElementsAre(21 + 30, 32 + 50));
}

// The definition, term by term.
Tensor ConvByDefinition(const Tensor& x, const Tensor& w, const ConvCase& geometry) {
  Tensor y = MakeTensor(geometry.y, std::vector<double>(geometry.y.element_count(), 0.0));
  const int rank = geometry.x.rank() - 2;
  const Ints strides = geometry.conv.Ints("strides"), pads = geometry.conv.Ints("pads");
  const Ints dilations = geometry.conv.Ints("dilations");
  const int64_t group_outputs = geometry.w[0] / geometry.conv.Int("groups"), group_inputs = geometry.w[1];
  const auto index_of = [](int64_t flat, const Shape& shape) {
    Ints index(shape.rank());
    for (int axis = shape.rank() - 1; axis >= 0; --axis) {
      index[axis] = flat % shape[axis];
      flat /= shape[axis];
    }
    return index;
  };
  const Ints x_strides = geometry.x.Strides();
  for (size_t y_flat = 0; y_flat < y.values.size(); ++y_flat) {
    const Ints q = index_of(static_cast<int64_t>(y_flat), geometry.y);
    for (size_t w_flat = 0; w_flat < w.values.size(); ++w_flat) {
      const Ints t = index_of(static_cast<int64_t>(w_flat), geometry.w);
      if (t[0] != q[1]) continue;
      int64_t x_flat = q[0] * x_strides[0] + (q[1] / group_outputs * group_inputs + t[1]) * x_strides[1];
      bool inside = true;
      for (int axis = 0; axis < rank; ++axis) {
        const int64_t place = q[2 + axis] * strides[axis] - pads[axis] + t[2 + axis] * dilations[axis];
        inside = inside && place >= 0 && place < geometry.x[2 + axis];
        x_flat += place * x_strides[2 + axis];
      }
      if (inside) y.values[y_flat] += x.values[x_flat] * w.values[w_flat];
    }
  }
  return y;
}

TEST(ConvTest, EqualsTheDefinitionInAnyGeometry) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 200; ++round) {
    const ConvCase geometry = RandomConvCase(random);
    const Tensor x = RandomTensor(geometry.x, random), w = RandomTensor(geometry.w, random);
    const auto y = RunOp("conv", {x, w}, geometry.conv);
    ASSERT_TRUE(y.ok()) << y.status();
    ASSERT_EQ((*y)[0].type.shape, geometry.y) << geometry.ToString();
    ASSERT_LT(RelativeDifference((*y)[0], ConvByDefinition(x, w, geometry)), 1e-14) << geometry.ToString();
  }
}

// <conv(x, w), y> = <x, conv_transpose(y, w)> = <w, conv_weight_grad(x, y)>.
TEST(ConvTest, TheThreeOpsAreAdjointInAnyGeometry) {
  std::mt19937_64 random(12);
  for (int round = 0; round < 300; ++round) {
    const ConvCase geometry = RandomConvCase(random);
    const Tensor x = RandomTensor(geometry.x, random), w = RandomTensor(geometry.w, random);
    const Tensor y = RandomTensor(geometry.y, random);
    const auto forward = RunOp("conv", {x, w}, geometry.conv);
    const auto back = RunOp("conv_transpose", {y, w}, geometry.transpose);
    const auto weight = RunOp("conv_weight_grad", {x, y}, geometry.weight_grad);
    ASSERT_TRUE(forward.ok() && back.ok() && weight.ok()) << geometry.ToString();
    const double product = Dot((*forward)[0], y);
    ASSERT_NEAR(Dot(x, (*back)[0]), product, 1e-11) << geometry.ToString();
    ASSERT_NEAR(Dot(w, (*weight)[0]), product, 1e-11) << geometry.ToString();
  }
}

TEST(ConvTest, ThreadsChangeNoBitAndF32AccumulatesInDouble) {
  std::mt19937_64 random(13);
  for (int round = 0; round < 40; ++round) {
    const ConvCase geometry = RandomConvCase(random);
    const Tensor x = RandomTensor(geometry.x, random, DataType::kF32),
                 w = RandomTensor(geometry.w, random, DataType::kF32);
    const Tensor y = RandomTensor(geometry.y, random, DataType::kF32);
    const auto check = [&](std::string_view op, const Tensor& a, const Tensor& b, const Attributes& attributes) {
      const auto exact = RunOp(op, {Cast(a, DataType::kF64), Cast(b, DataType::kF64)}, attributes);
      ASSERT_TRUE(exact.ok()) << exact.status();
      for (int threads : {1, 2, 3}) {
        const auto result = RunOp(op, {a, b}, attributes, {.thread_count = threads});
        ASSERT_TRUE(result.ok()) << result.status();
        ASSERT_EQ((*result)[0].values, Cast((*exact)[0], DataType::kF32).values) << op << " " << geometry.ToString();
      }
    };
    check("conv", x, w, geometry.conv);
    check("conv_transpose", y, w, geometry.transpose);
    check("conv_weight_grad", x, y, geometry.weight_grad);
  }
}

TEST(ConvTest, AnEmptyBatchGivesAnEmptyResultAndZeroWeightGradients) {
  const ConvCase geometry = test::MakeConvCase(2, 0, 2, 5, 3, 3, 2, 1);
  const Tensor x = MakeTensor(geometry.x, {}), y = MakeTensor(geometry.y, {});
  const Tensor w = MakeTensor(geometry.w, std::vector<double>(54, 1.0));
  EXPECT_TRUE(Values(RunOp("conv", {x, w}, geometry.conv)).empty());
  EXPECT_TRUE(Values(RunOp("conv_transpose", {y, w}, geometry.transpose)).empty());
  EXPECT_EQ(Values(RunOp("conv_weight_grad", {x, y}, geometry.weight_grad)), std::vector<double>(54, 0.0));
}

TEST(ConvTest, CountsEveryTap) {
  const std::vector<TensorType> types = {{DataType::kF32, {2, 3, 8, 8}}, {DataType::kF32, {5, 3, 4, 4}}};
  const std::vector<TensorType> outputs = {{DataType::kF32, {2, 5, 4, 4}}};
  const Attributes attributes = {{"strides", Ints{2, 2}}, {"pads", Ints{1, 1, 1, 1}}};
  EXPECT_EQ(FindOp("conv")->cost(types, outputs, attributes).flops, 2.0 * 2 * 5 * 16 * 3 * 16);
}

TEST(ConvShapeTest, ErrorsNameShapesAndAttributes) {
  EXPECT_EQ(Error("conv", {{2, 3, 8, 8}, {4, 2, 3, 3}}, {{"groups", int64_t{2}}}),
            "x has 3 channels, but w with groups 2 takes 4; inputs f32[2,3,8,8] f32[4,2,3,3] {groups=2}");
  EXPECT_THAT(Error("conv", {{2, 4, 8, 8}, {3, 2, 3, 3}}, {{"groups", int64_t{2}}}),
              HasSubstr("groups 2 does not divide the 3 channels"));
  EXPECT_THAT(
      Error("conv", {{2, 3, 4, 4}, {4, 3, 7, 7}}, {{"pads", Ints{1, 1, 1, 1}}}),
      HasSubstr(
          "spatial dimension 0: a kernel of 7 with dilation 1 spans 7 places, but the input has 4 and pads 1 + 1"));
  EXPECT_THAT(
      Error("conv_transpose", {{1, 4, 4, 4}, {4, 3, 4, 4}}, {{"strides", Ints{2, 2}}, {"output_spatial", Ints{9, 10}}}),
      HasSubstr("a convolution over spatial [9,10] gives [3,4], but the input has [4,4]"));
  EXPECT_THAT(Error("conv", {{2, 3, 8, 8}, {4, 3, 3, 3}, {3}}, {}), HasSubstr("bias must have shape [4], got f32[3]"));
}

TEST(ConvShapeTest, HostileAttributesAreErrors) {
  const std::vector<Shape> shapes = {{1, 2, 8, 8}, {2, 2, 3, 3}};
  const int64_t huge = INT64_MAX;
  for (const Attributes& attributes :
       std::vector<Attributes>{{{"strides", Ints{0, 1}}},
                               {{"strides", Ints{-1, 1}}},
                               {{"strides", Ints{1}}},
                               {{"strides", int64_t{1}}},
                               {{"strides", Ints{huge, 1}}},
                               {{"pads", Ints{-1, 0, 0, 0}}},
                               {{"pads", Ints{0, 0}}},
                               {{"pads", Ints{huge, huge, huge, huge}}},
                               {{"pads", std::string("same")}},
                               {{"dilations", Ints{0, 1}}},
                               {{"dilations", Ints{huge, huge}}},
                               {{"dilations", Ints{INT32_MAX, 1}}},
                               {{"groups", int64_t{0}}},
                               {{"groups", int64_t{-2}}},
                               {{"groups", int64_t{3}}},
                               {{"groups", huge}},
                               {{"groups", 1.0}},
                               {{"slope", -0.5}},
                               {{"slope", std::nan("")}},
                               {{"pads", Ints{INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX}}}}) {
    Error("conv", shapes, attributes);
  }
  EXPECT_THAT(Error("conv", {{1, 2, 8, 8}, {2, 2, 0, 3}}, {}), HasSubstr("kernel [0,3]"));
  EXPECT_THAT(Error("conv", {{1, 2, 8, 8}, {0, 2, 3, 3}}, {}), HasSubstr("no channels"));
  EXPECT_THAT(Error("conv", {{1, 2, 0, 8}, {2, 2, 1, 1}}, {}), HasSubstr("spatial dimension 0"));
  Error("conv", {{1, 2}, {2, 2}}, {});
  Error("conv", {{1, 2, 1, 1, 1, 1}, {2, 2, 1, 1, 1, 1}}, {});
  Error("conv", {{1, 2, 8, 8}, {2, 2, 3}}, {});
  for (const Ints& spatial :
       {Ints{}, Ints{4}, Ints{0, 4}, Ints{-1, 4}, Ints{huge, huge}, Ints{int64_t{1} << 39, int64_t{1} << 39}}) {
    Error("conv_transpose", {{1, 2, 2, 2}, {2, 2, 3, 3}}, {{"output_spatial", spatial}});
  }
  for (const Ints& kernel : {Ints{}, Ints{3}, Ints{0, 3}, Ints{huge, 3}, Ints{9, 9}, Ints{2, 2}}) {
    Error("conv_weight_grad", {{1, 2, 8, 8}, {1, 2, 6, 6}}, {{"kernel", kernel}});
  }
  Error("conv_weight_grad", {{2, 2, 8, 8}, {1, 2, 6, 6}}, {{"kernel", Ints{3, 3}}});
  Error("conv_weight_grad", {{1, 2, 8, 8}, {1, 3, 6, 6}}, {{"kernel", Ints{3, 3}}, {"groups", int64_t{2}}});
}

}  // namespace
}  // namespace gantry
