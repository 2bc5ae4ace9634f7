#include "ops/cpu/vector/vector_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <vector>

namespace gantry::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class VectorKernelsTest : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!IsaAvailable(GetParam())) GTEST_SKIP() << "this processor has no " << Name(GetParam());
  }
  const VectorKernels& kernels() const { return VectorKernelsFor(GetParam()); }
  std::vector<float> Apply(UnaryOp op, const std::vector<float>& x, std::vector<float> parameters = {0, 0}) const {
    std::vector<float> out(x.size());
    kernels().unary[static_cast<int>(op)](x.data(), out.data(), static_cast<int64_t>(x.size()), parameters.data());
    return out;
  }
};

INSTANTIATE_TEST_SUITE_P(Isas, VectorKernelsTest, ::testing::Values(Isa::kPortable, Isa::kAvx2, Isa::kAvx512),
                         [](const auto& info) { return std::string(Name(info.param)); });

// The error of `found` in units of the last place of the f32 nearest to `expected`.
double UlpError(float found, double expected) {
  const float rounded = static_cast<float>(expected);
  const double unit = std::max<double>(std::nextafter(std::abs(rounded), kInfinity) - std::abs(rounded), 1e-45);
  return std::abs(static_cast<double>(found) - expected) / unit;
}

struct Accuracy {
  const char* name;
  UnaryOp op;
  std::function<double(double)> truth;
  float low, high;
  double ulps;
};

double Sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

TEST_P(VectorKernelsTest, FunctionsAreAccurate) {
  const Accuracy table[] = {
      {"exp", UnaryOp::kExp, [](double x) { return std::exp(x); }, -103.0f, 88.7f, 1.5},
      {"exp near 0", UnaryOp::kExp, [](double x) { return std::exp(x); }, -1.0f, 1.0f, 1.5},
      {"log", UnaryOp::kLog, [](double x) { return std::log(x); }, 1e-3f, 100.0f, 2.0},
      {"log near 1", UnaryOp::kLog, [](double x) { return std::log(x); }, 0.9f, 1.1f, 2.0},
      {"tanh", UnaryOp::kTanh, [](double x) { return std::tanh(x); }, -10.0f, 10.0f, 2.0},
      {"tanh near 0", UnaryOp::kTanh, [](double x) { return std::tanh(x); }, -0.1f, 0.1f, 2.0},
      {"sigmoid", UnaryOp::kSigmoid, Sigmoid, -80.0f, 20.0f, 2.5},
      {"softplus", UnaryOp::kSoftplus, [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); },
       -80.0f, 80.0f, 2.5},
      {"softplus near 0", UnaryOp::kSoftplus,
       [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }, -2.0f, 2.0f, 2.5},
      {"erf", UnaryOp::kErf, [](double x) { return std::erf(x); }, -5.0f, 5.0f, 2.0},
      {"silu", UnaryOp::kSilu, [](double x) { return x * Sigmoid(x); }, -60.0f, 60.0f, 3.5},
      {"sqrt", UnaryOp::kSqrt, [](double x) { return std::sqrt(x); }, 0.0f, 1e6f, 0.51},
      {"rsqrt", UnaryOp::kRsqrt, [](double x) { return 1.0 / std::sqrt(x); }, 1e-6f, 1e6f, 1.5},
      {"reciprocal", UnaryOp::kReciprocal, [](double x) { return 1.0 / x; }, 0.1f, 10.0f, 0.51},
  };
  for (const Accuracy& one : table) {
    std::mt19937 random(7);
    std::uniform_real_distribution<float> uniform(one.low, one.high);
    std::vector<float> x(100003);
    for (float& value : x) value = uniform(random);
    x[0] = one.low;
    x[1] = one.high;
    const std::vector<float> found = Apply(one.op, x);
    double worst = 0.0;
    size_t place = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double error = UlpError(found[i], one.truth(x[i]));
      if (error > worst || std::isnan(error)) worst = error, place = i;
      ASSERT_FALSE(std::isnan(error)) << one.name << " at " << x[i];
    }
    RecordProperty(one.name, std::to_string(worst));
    EXPECT_LE(worst, one.ulps) << one.name << " at " << x[place] << ": " << found[place];
  }
}

// For negative arguments 1 + erf cancels; the result is held to the size of the argument.
TEST_P(VectorKernelsTest, GeluIsAccurateBesideItsArgument) {
  std::vector<float> x;
  for (float value = -8.0f; value <= 8.0f; value += 1e-4f) x.push_back(value);
  const std::vector<float> found = Apply(UnaryOp::kGelu, x);
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = 0.5 * x[i] * (1.0 + std::erf(x[i] / std::sqrt(2.0)));
    ASSERT_NEAR(found[i], expected, 2e-7 * std::abs(x[i])) << x[i];
  }
}

TEST_P(VectorKernelsTest, EdgesAreAsInTheLibrary) {
  const std::vector<float> x = {0.0f, -0.0f, kInfinity, -kInfinity, kNan, 1e-40f, 200.0f, -200.0f, 1.0f, 3.4e38f};
  const auto Check = [&](UnaryOp op, double (*truth)(double), const char* name) {
    const std::vector<float> found = Apply(op, x);
    for (size_t i = 0; i < x.size(); ++i) {
      const auto expected = static_cast<float>(truth(x[i]));
      if (std::isnan(expected)) {
        EXPECT_TRUE(std::isnan(found[i])) << name << " of " << x[i] << " is " << found[i];
      } else if (std::isinf(expected)) {
        EXPECT_EQ(found[i], expected) << name << " of " << x[i];
      } else {
        EXPECT_NEAR(found[i], expected, 2e-7 * std::abs(expected)) << name << " of " << x[i];
      }
    }
  };
  Check(
      UnaryOp::kExp, [](double v) { return std::exp(v); }, "exp");
  Check(
      UnaryOp::kLog, [](double v) { return std::log(v); }, "log");
  Check(
      UnaryOp::kTanh, [](double v) { return std::tanh(v); }, "tanh");
  Check(
      UnaryOp::kErf, [](double v) { return std::erf(v); }, "erf");
  Check(UnaryOp::kSigmoid, Sigmoid, "sigmoid");
  Check(
      UnaryOp::kSoftplus,
      [](double v) { return std::max(v, 0.0) + std::log1p(std::exp(-std::abs(v))) + (v != v ? v : 0); }, "softplus");
  Check(
      UnaryOp::kSqrt, [](double v) { return std::sqrt(v); }, "sqrt");
  Check(
      UnaryOp::kReciprocal, [](double v) { return static_cast<double>(1.0f / static_cast<float>(v)); }, "reciprocal");
}

// Small results of exp and small arguments of log are denormal: right to the last denormal bit.
TEST_P(VectorKernelsTest, DenormalsAreKept) {
  const std::vector<float> x = {-87.5f, -90.0f, -95.0f, -100.0f, -103.0f};
  const std::vector<float> exponentials = Apply(UnaryOp::kExp, x);
  const std::vector<float> back = Apply(UnaryOp::kLog, exponentials);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_LE(UlpError(exponentials[i], std::exp(static_cast<double>(x[i]))), 1.5) << x[i];
    EXPECT_LE(UlpError(back[i], std::log(static_cast<double>(exponentials[i]))), 2.0) << x[i];
  }
}

TEST_P(VectorKernelsTest, SumsAreInDouble) {
  std::vector<float> x(100001, 1e-4f);
  x[0] = 1e4f;
  double expected = 0.0, squares = 0.0;
  for (float value : x) expected += value, squares += static_cast<double>(value) * value;
  EXPECT_NEAR(kernels().sum(x.data(), static_cast<int64_t>(x.size())), expected, 1e-9 * expected);
  EXPECT_NEAR(kernels().sum_squares(x.data(), static_cast<int64_t>(x.size())), squares, 1e-9 * squares);
  x[77777] = 2e4f;
  for (int64_t count : {1, 15, 16, 17, 100001}) {
    EXPECT_EQ(kernels().max(x.data(), count), count > 77777 ? 2e4f : 1e4f);
  }
  x[100000] = kNan;
  EXPECT_TRUE(std::isnan(kernels().max(x.data(), 100001)));
}

}  // namespace
}  // namespace gantry::cpu
