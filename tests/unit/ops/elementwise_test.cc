// The reference kernels of the elementwise ops against the C library, and their edges.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/support/run_op.h"

namespace gantry::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const double kInfinity = std::numeric_limits<double>::infinity();

std::vector<double> Values(std::string_view op, const std::vector<Tensor>& inputs, const Attributes& attributes = {}) {
  const auto outputs = RunOp(op, inputs, attributes);
  EXPECT_TRUE(outputs.ok()) << op << ": " << outputs.status();
  return outputs.ok() ? (*outputs)[0].values : std::vector<double>{};
}

struct UnaryTruth {
  std::string_view op;
  std::function<double(double)> truth;
  Attributes attributes = {};
};

double Sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

TEST(ElementwiseTest, UnaryValues) {
  const UnaryTruth table[] = {
      {"neg", [](double x) { return -x; }},
      {"abs", [](double x) { return std::abs(x); }},
      {"sign", [](double x) { return x > 0   ? 1.0
                                     : x < 0 ? -1.0
                                             : 0.0; }},
      {"sqrt", [](double x) { return std::sqrt(x); }},
      {"rsqrt", [](double x) { return 1.0 / std::sqrt(x); }},
      {"exp", [](double x) { return std::exp(x); }},
      {"log", [](double x) { return std::log(x); }},
      {"square", [](double x) { return x * x; }},
      {"reciprocal", [](double x) { return 1.0 / x; }},
      {"erf", [](double x) { return std::erf(x); }},
      {"sigmoid", Sigmoid},
      {"tanh", [](double x) { return std::tanh(x); }},
      {"softplus", [](double x) { return x > 30 ? x : std::log1p(std::exp(x)); }},
      {"silu", [](double x) { return x * Sigmoid(x); }},
      {"gelu", [](double x) { return x / 2 * (1 + std::erf(x / std::sqrt(2.0))); }},
      {"scale", [](double x) { return 1.5 * x - 2.0; }, {{"alpha", 1.5}, {"beta", -2.0}}},
      {"clip", [](double x) { return std::min(std::max(x, -0.5), 2.0); }, {{"low", -0.5}, {"high", 2.0}}},
      {"clip", [](double x) { return std::max(x, 0.25); }, {{"low", 0.25}, {"high", kInfinity}}},
      {"leaky_relu", [](double x) { return x > 0 ? x : 0.2 * x; }, {{"slope", 0.2}}},
      {"leaky_relu", [](double x) { return x > 0 ? x : 0.0; }, {{"slope", 0.0}}},
  };
  const std::vector<double> x = {-30.0, -2.5, -1.0, -0.125, 0.0, 0.25, 1.0, 3.0, 40.0};
  for (const UnaryTruth& one : table) {
    const std::vector<double> f64 = Values(one.op, {MakeTensor({9}, x)}, one.attributes);
    const std::vector<double> f32 = Values(one.op, {MakeTensor({9}, x, DataType::kF32)}, one.attributes);
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = one.truth(x[i]);
      if (std::isnan(expected)) {
        EXPECT_TRUE(std::isnan(f64[i]) && std::isnan(f32[i])) << one.op << " of " << x[i];
      } else if (std::isinf(expected)) {
        EXPECT_EQ(f64[i], expected) << one.op << " of " << x[i];
        EXPECT_EQ(f32[i], expected) << one.op << " of " << x[i];
      } else {
        EXPECT_NEAR(f64[i], expected, 1e-14 * (1 + std::abs(expected))) << one.op << " of " << x[i];
        EXPECT_NEAR(f32[i], expected, 1e-6 * (0.3 + std::abs(expected))) << one.op << " of " << x[i];
      }
    }
  }
}

TEST(ElementwiseTest, NothingOverflowsOnTheWay) {
  EXPECT_THAT(Values("sigmoid", {MakeTensor({2}, {1e4, -1e4})}), ElementsAre(1.0, 0.0));
  EXPECT_THAT(Values("softplus", {MakeTensor({2}, {1e4, -1e4})}), ElementsAre(1e4, 0.0));
  EXPECT_THAT(Values("tanh", {MakeTensor({2}, {1e4, -1e4})}), ElementsAre(1.0, -1.0));
}

TEST(ElementwiseTest, BinaryBroadcasts) {
  const Tensor column = MakeTensor({2, 1}, {1, 2}), row = MakeTensor({3}, {10, 20, 40});
  EXPECT_THAT(Values("add", {column, row}), ElementsAre(11, 21, 41, 12, 22, 42));
  EXPECT_THAT(Values("sub", {column, row}), ElementsAre(-9, -19, -39, -8, -18, -38));
  EXPECT_THAT(Values("mul", {row, column}), ElementsAre(10, 20, 40, 20, 40, 80));
  EXPECT_THAT(Values("div", {row, column}), ElementsAre(10, 20, 40, 5, 10, 20));
  EXPECT_THAT(Values("pow", {column, MakeTensor({2}, {3, -1})}), ElementsAre(1, 1, 8, 0.5));
  EXPECT_THAT(Values("minimum", {column, MakeTensor({}, {1.5})}), ElementsAre(1, 1.5));
  EXPECT_THAT(Values("maximum", {column, MakeTensor({}, {1.5})}), ElementsAre(1.5, 2));
  EXPECT_THAT(Values("greater", {column, MakeTensor({2}, {1, 0})}), ElementsAre(0, 1, 1, 1));
  EXPECT_THAT(Values("equal", {column, MakeTensor({2}, {1, 2})}), ElementsAre(1, 0, 0, 1));
  EXPECT_THAT(Values("add", {MakeTensor({0, 3}, {}), row}), ElementsAre());
}

TEST(ElementwiseTest, MaximaKeepNans) {
  const Tensor x = MakeTensor({2}, {std::nan(""), 1}), y = MakeTensor({2}, {1, std::nan("")});
  for (std::string_view op : {"maximum", "minimum"}) {
    for (double value : Values(op, {x, y})) EXPECT_TRUE(std::isnan(value)) << op;
  }
}

TEST(ElementwiseTest, ActivationGradients) {
  const Tensor g = MakeTensor({3}, {2, 3, 4}), y = MakeTensor({3}, {-1, 0, 0.5});
  EXPECT_THAT(Values("leaky_relu_grad", {g, y}, {{"slope", 0.5}}), ElementsAre(1, 1.5, 4));
  EXPECT_THAT(Values("sigmoid_grad", {g, y}), ElementsAre(-4, 0, 1));
  EXPECT_THAT(Values("tanh_grad", {g, y}), ElementsAre(0, 3, 3));
}

TEST(ElementwiseTest, CastsEndAtTheLimits) {
  const auto Cast = [](std::vector<double> values, DataType from, std::string to) {
    const Shape shape = {static_cast<int64_t>(values.size())};
    return Values("cast", {MakeTensor(shape, std::move(values), from)}, {{"dtype", std::move(to)}});
  };
  EXPECT_THAT(Cast({-1.9, 1.9, 1e30, -1e30, std::nan("")}, DataType::kF64, "i32"),
              ElementsAre(-1, 1, 2147483647, -2147483648.0, 0));
  EXPECT_THAT(Cast({-1.0, 255.9, 300.0}, DataType::kF32, "u8"), ElementsAre(0, 255, 255));
  EXPECT_THAT(Cast({1e19, -1e19}, DataType::kF32, "i64"), ElementsAre(std::ldexp(1.0, 63), -std::ldexp(1.0, 63)));
  EXPECT_THAT(Cast({3, 250}, DataType::kU8, "f32"), ElementsAre(3, 250));
  EXPECT_THAT(Cast({0.1}, DataType::kF64, "f32"), ElementsAre(static_cast<double>(0.1f)));
}

TEST(ElementwiseTest, FillHasEachType) {
  for (const char* dtype : {"f32", "f64", "i32", "i64"}) {
    EXPECT_THAT(
        Values("fill", {}, {{"value", 3.0}, {"dims", std::vector<int64_t>{2, 1}}, {"dtype", std::string(dtype)}}),
        ElementsAre(3, 3));
  }
}

TEST(ElementwiseTest, ErrorsNameTheShapes) {
  const TensorType x = {DataType::kF32, {2, 3}}, y = {DataType::kF32, {4}}, z = {DataType::kF64, {2, 3}};
  const auto Error = [](std::string_view op, std::vector<TensorType> inputs, const Attributes& attributes = {}) {
    const auto outputs = InferOp(op, inputs, attributes);
    EXPECT_EQ(outputs.status().code(), absl::StatusCode::kInvalidArgument) << op;
    return std::string(Message(outputs.status()));
  };
  EXPECT_THAT(Error("add", {x, y}), HasSubstr("shapes [2,3] and [4] do not broadcast: 3 against 4"));
  EXPECT_THAT(Error("mul", {x, z}), HasSubstr("f32[2,3], f64[2,3]"));
  EXPECT_THAT(Error("sigmoid_grad", {x, y}), HasSubstr("f32[2,3], f32[4]"));
  EXPECT_THAT(Error("exp", {{DataType::kI32, {2}}}), HasSubstr("i32[2]"));
  EXPECT_THAT(Error("leaky_relu", {x}, {{"slope", -0.1}}), HasSubstr("slope is -0.1"));
  EXPECT_THAT(Error("clip", {x}, {{"low", 2.0}, {"high", 1.0}}), HasSubstr("low 2 is above high 1"));
  EXPECT_THAT(Error("scale", {x}), HasSubstr("'alpha'"));
  const std::vector<int64_t> huge = {int64_t{1} << 30, 1 << 11};
  EXPECT_THAT(Error("fill", {}, {{"value", 0.0}, {"dims", huge}, {"dtype", std::string("f32")}}),
              HasSubstr("more than 1099511627776 elements"));
  // Each fits, their broadcast does not.
  EXPECT_THAT(Error("add", {{DataType::kF32, {1 << 21, 1}}, {DataType::kF32, {1, 1 << 21}}}),
              HasSubstr("1099511627776"));
}

}  // namespace
}  // namespace gantry::test
