#include "ops/infer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace gantry::infer {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(InferTest, ShapesAreBounded) {
  EXPECT_TRUE(CheckShape({}).ok());
  EXPECT_TRUE(CheckShape({1 << 20, 1 << 20}).ok());
  EXPECT_TRUE(CheckShape({0, 3}).ok());
  EXPECT_FALSE(CheckShape({1 << 20, 1 << 20, 2}).ok());
  EXPECT_FALSE(CheckShape({int64_t{1} << 62, int64_t{1} << 62, 0}).ok());
  EXPECT_THAT(Message(CheckShape({2, -1})), HasSubstr("[2,-1]"));
  EXPECT_FALSE(CheckShape({1, 1, 1, 1, 1, 1, 1, 1, 1}).ok());
}

TEST(InferTest, TypesAreCompared) {
  const std::vector<TensorType> mixed = {{DataType::kF32, {2}}, {DataType::kF64, {3}}};
  EXPECT_TRUE(RequireFloat(mixed).ok());
  EXPECT_THAT(Message(RequireSameFloat(mixed)), HasSubstr("f32[2], f64[3]"));
  EXPECT_THAT(Message(RequireSameShape(mixed)), HasSubstr("f32[2], f64[3]"));
  EXPECT_FALSE(RequireFloat(std::vector<TensorType>{{DataType::kI32, {2}}}).ok());
  EXPECT_THAT(Message(Broadcast(mixed).status()), HasSubstr("[2] and [3]"));
  EXPECT_THAT(Message(RequireRank(mixed[0], "x", 2, 4)), HasSubstr("x must have 2 to 4 dimensions, got f32[2]"));
}

TEST(InferTest, AttributesAreChecked) {
  const Attributes attributes = {{"count", int64_t{3}},
                                 {"rate", 0.5},
                                 {"nan", std::nan("")},
                                 {"infinite", std::numeric_limits<double>::infinity()},
                                 {"mode", std::string("nearest")},
                                 {"axes", std::vector<int64_t>{-1, 0}},
                                 {"twice", std::vector<int64_t>{1, -2}},
                                 {"none", std::vector<int64_t>{}},
                                 {"dims", std::vector<int64_t>{2, -3}},
                                 {"dtype", std::string("f16")},
                                 {"long", std::vector<int64_t>(1000000, 1)}};
  EXPECT_EQ(*IntAttribute(attributes, "count", 0, 3), 3);
  EXPECT_FALSE(IntAttribute(attributes, "count", 0, 2).ok());
  EXPECT_THAT(Message(IntAttribute(attributes, "absent").status()), HasSubstr("'absent'"));
  EXPECT_FALSE(IntAttribute(attributes, "rate").ok());
  EXPECT_EQ(*FloatAttribute(attributes, "count"), 3.0);
  EXPECT_FALSE(FloatAttribute(attributes, "nan").ok());
  EXPECT_FALSE(FloatAttribute(attributes, "infinite").ok());
  EXPECT_TRUE(FloatAttribute(attributes, "infinite", false).ok());
  EXPECT_FALSE(StringAttribute(attributes, "mode", {"linear"}).ok());
  EXPECT_EQ(*StringAttribute(attributes, "mode", {"linear", "nearest"}), "nearest");
  EXPECT_THAT(*AxesAttribute(attributes, "axes", 3), ElementsAre(0, 2));
  EXPECT_THAT(*AxesAttribute(attributes, "none", 3), ElementsAre(0, 1, 2));
  EXPECT_FALSE(AxesAttribute(attributes, "twice", 3).ok());
  EXPECT_FALSE(AxesAttribute(attributes, "axes", 0).ok());
  EXPECT_FALSE(ShapeAttribute(attributes, "dims").ok());
  EXPECT_FALSE(DataTypeAttribute(attributes, "dtype").ok());
  EXPECT_FALSE(IntsAttribute(attributes, "long").ok());
  EXPECT_FALSE(IntsAttribute(attributes, "axes", 3).ok());
  EXPECT_FALSE(IntsAttribute(attributes, "axes", 2, 0).ok());
}

}  // namespace
}  // namespace gantry::infer
