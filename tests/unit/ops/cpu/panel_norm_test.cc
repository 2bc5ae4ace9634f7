// Batch norm and channel sums on panels against plain loops in double.
#include "ops/cpu/panel/panel_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace gantry::cpu {
namespace {

std::vector<float> Random(int64_t count, std::mt19937& random, float mean = 0.0f) {
  std::normal_distribution<float> normal(mean, 1.0f);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// 64-byte aligned copies of what the kernels read and write.
class Panel {
 public:
  explicit Panel(int64_t count) : storage_(count + 16, std::nanf("")) {}
  Panel(const PanelShape& s, const std::vector<float>& plain)
      : Panel(PanelFloats(s.batch, s.channels, s.height, s.width)) {
    PlainToPanel(plain.data(), s.batch, s.channels, s.height, s.width, data(), 1);
  }
  float* data() {
    const uintptr_t address = reinterpret_cast<uintptr_t>(storage_.data());
    return storage_.data() + (64 - address % 64) % 64 / sizeof(float);
  }
  std::vector<float> Plain(const PanelShape& s) {
    for (int64_t pixel = 0; pixel < s.height * s.width; ++pixel) {
      for (int64_t n = 0; n < s.batch; ++n) {
        for (int64_t c = s.channels; c < PanelCount(s.channels) * 16; ++c) {
          EXPECT_EQ(data()[((pixel * PanelCount(s.channels) + c / 16) * s.batch + n) * 16 + c % 16], 0.0f);
        }
      }
    }
    std::vector<float> plain(s.batch * s.channels * s.height * s.width);
    PanelToPlain(data(), s.batch, s.channels, s.height, s.width, plain.data(), 1);
    return plain;
  }

 private:
  std::vector<float> storage_;
};

const PanelShape kShapes[] = {{64, 64, 4, 4}, {3, 5, 7, 5}, {1, 20, 1, 3}, {200, 17, 2, 1}, {7, 48, 9, 3}};

// The elements of one channel, as indices into the plain tensor.
std::vector<int64_t> ChannelIndices(const PanelShape& s, int64_t channel) {
  std::vector<int64_t> indices;
  for (int64_t n = 0; n < s.batch; ++n) {
    for (int64_t p = 0; p < s.height * s.width; ++p)
      indices.push_back((n * s.channels + channel) * s.height * s.width + p);
  }
  return indices;
}

class PanelNormTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!IsaAvailable(GetParam())) GTEST_SKIP() << "this machine does not have " << Name(GetParam());
  }
};

TEST_P(PanelNormTest, ForwardAndBackwardMatchPlainLoops) {
  std::mt19937 random(1);
  constexpr float kEpsilon = 1e-5f;
  for (const PanelShape& s : kShapes) {
    for (const float slope : {1.0f, 0.2f}) {
      const int64_t count = s.batch * s.channels * s.height * s.width;
      // A mean that is large against the deviation: E[x^2] - E[x]^2 in f32 would have no correct digit.
      const std::vector<float> x = Random(count, random, 300.0f), dy = Random(count, random);
      const std::vector<float> gamma = Random(s.channels, random), beta = Random(s.channels, random);
      Panel x_panel(s, x), dy_panel(s, dy), y_panel(PanelFloats(s.batch, s.channels, s.height, s.width));
      Panel dx_panel(PanelFloats(s.batch, s.channels, s.height, s.width)), scratch(NormScratchFloats(s));
      std::vector<float> mean(s.channels), variance(s.channels), dgamma(s.channels), dbeta(s.channels);
      BatchStatistics(s, x_panel.data(), mean.data(), variance.data(), scratch.data(), 2, GetParam());
      BatchNormalize(s, x_panel.data(), mean.data(), variance.data(), gamma.data(), beta.data(), kEpsilon, slope,
                     y_panel.data(), 2, GetParam());
      BatchNormBackward(s,
                        {.dy = dy_panel.data(),
                         .x = x_panel.data(),
                         .y = slope != 1.0f ? y_panel.data() : nullptr,
                         .gamma = gamma.data(),
                         .mean = mean.data(),
                         .variance = variance.data(),
                         .epsilon = kEpsilon,
                         .slope = slope,
                         .dx = dx_panel.data(),
                         .dgamma = dgamma.data(),
                         .dbeta = dbeta.data()},
                        scratch.data(), 2, GetParam());
      const std::vector<float> y = y_panel.Plain(s), dx = dx_panel.Plain(s);
      for (int64_t channel = 0; channel < s.channels; ++channel) {
        const std::vector<int64_t> indices = ChannelIndices(s, channel);
        const double size = static_cast<double>(indices.size());
        double sum = 0, squares = 0, gradient = 0, moment = 0;
        for (int64_t i : indices) sum += x[i];
        for (int64_t i : indices) squares += (x[i] - sum / size) * (x[i] - sum / size);
        const double inverse = 1 / std::sqrt(squares / size + kEpsilon);
        ASSERT_NEAR(mean[channel], sum / size, 3e-5) << "f32 at 300 resolves 3e-5";
        ASSERT_NEAR(variance[channel], squares / size, 3e-7 * squares / size);
        for (int64_t i : indices) {
          const double value = gamma[channel] * (x[i] - sum / size) * inverse + beta[channel];
          ASSERT_NEAR(y[i], value > 0 ? value : slope * value, 2e-4 * inverse + 1e-6);
          const double g = y[i] > 0 ? dy[i] : slope * dy[i];
          gradient += g;
          moment += g * (x[i] - sum / size) * inverse;
        }
        ASSERT_NEAR(dbeta[channel], gradient, 1e-5 * std::sqrt(size));
        ASSERT_NEAR(dgamma[channel], moment, 1e-4 * size);
        for (int64_t i : indices) {
          const double g = y[i] > 0 ? dy[i] : slope * dy[i];
          const double expected =
              gamma[channel] * inverse * (g - gradient / size - (x[i] - sum / size) * inverse * moment / size);
          ASSERT_NEAR(dx[i], expected, 3e-4 * (1 + inverse) * (1 + std::abs(gamma[channel] * inverse)));
        }
      }
    }
  }
}

TEST_P(PanelNormTest, CentredDataIsAccurate) {
  std::mt19937 random(2);
  const PanelShape s{64, 32, 8, 8};
  const int64_t count = s.batch * s.channels * 64;
  const std::vector<float> x = Random(count, random), dy = Random(count, random);
  const std::vector<float> gamma(s.channels, 1.5f), beta(s.channels, 0.25f);
  Panel x_panel(s, x), dy_panel(s, dy), y_panel(PanelFloats(64, 32, 8, 8)), scratch(NormScratchFloats(s));
  std::vector<float> mean(s.channels), variance(s.channels), dgamma(s.channels), dbeta(s.channels);
  BatchStatistics(s, x_panel.data(), mean.data(), variance.data(), scratch.data(), 1, GetParam());
  BatchNormalize(s, x_panel.data(), mean.data(), variance.data(), gamma.data(), beta.data(), 1e-5f, 1.0f,
                 y_panel.data(), 1, GetParam());
  BatchNormBackward(s,
                    {.dy = dy_panel.data(),
                     .x = x_panel.data(),
                     .gamma = gamma.data(),
                     .mean = mean.data(),
                     .variance = variance.data(),
                     .epsilon = 1e-5f,
                     .dx = dy_panel.data(),
                     .dgamma = dgamma.data(),
                     .dbeta = dbeta.data()},  // dx in place of dy
                    scratch.data(), 1, GetParam());
  const std::vector<float> y = y_panel.Plain(s), dx = dy_panel.Plain(s);
  for (int64_t channel = 0; channel < s.channels; ++channel) {
    double sum = 0, squares = 0, gradient = 0, moment = 0;
    const std::vector<int64_t> indices = ChannelIndices(s, channel);
    const double size = static_cast<double>(indices.size());
    for (int64_t i : indices) sum += x[i];
    for (int64_t i : indices) squares += (x[i] - sum / size) * (x[i] - sum / size);
    const double inverse = 1 / std::sqrt(squares / size + 1e-5f);
    for (int64_t i : indices) gradient += dy[i], moment += dy[i] * (x[i] - sum / size) * inverse;
    ASSERT_NEAR(mean[channel], sum / size, 1e-8);
    ASSERT_NEAR(variance[channel], squares / size, 2e-7);
    ASSERT_NEAR(dbeta[channel], gradient, 2e-5);
    ASSERT_NEAR(dgamma[channel], moment, 5e-5);
    for (int64_t i : indices) {
      ASSERT_NEAR(y[i], 1.5 * (x[i] - sum / size) * inverse + 0.25, 2e-6);
      ASSERT_NEAR(dx[i], 1.5 * inverse * (dy[i] - gradient / size - (x[i] - sum / size) * inverse * moment / size),
                  2e-6);
    }
  }
}

TEST_P(PanelNormTest, ChannelSumsMatchAndThreadsDoNotMatter) {
  std::mt19937 random(3);
  for (const PanelShape& s : kShapes) {
    const std::vector<float> x = Random(s.batch * s.channels * s.height * s.width, random);
    Panel panel(s, x), scratch(NormScratchFloats(s));
    std::vector<float> sums(s.channels), again(s.channels);
    ChannelSums(s, panel.data(), sums.data(), scratch.data(), 1, GetParam());
    ChannelSums(s, panel.data(), again.data(), scratch.data(), 3, GetParam());
    EXPECT_EQ(sums, again);
    for (int64_t channel = 0; channel < s.channels; ++channel) {
      double sum = 0;
      for (int64_t i : ChannelIndices(s, channel)) sum += x[i];
      ASSERT_NEAR(sums[channel], sum, 1e-6 * s.batch * s.height * s.width);
    }
  }
}

// Sums over parts of a batch, one after the other: as accurate as over all images, and the same bits whether a call sees all images or some.
TEST_P(PanelNormTest, StepsOverPartsHaveTheBitsOfTheWhole) {
  std::mt19937 random(4);
  const PanelShape whole{27, 20, 5, 4};
  constexpr float kEpsilon = 1e-5f, kSlope = 0.2f;
  constexpr int64_t kPart = 4;
  const int64_t image = 20 * 5 * 4;
  const std::vector<float> x = Random(27 * image, random, 30.0f), dy = Random(27 * image, random), gamma = Random(20, random),
                           beta = Random(20, random);
  const auto Images = [&](const std::vector<float>& plain, int64_t begin, int64_t count) {
    PanelShape shape = whole;
    shape.batch = count;
    return Panel(shape, std::vector<float>(plain.begin() + begin * image, plain.begin() + (begin + count) * image));
  };
  Panel x_panel(whole, x), dy_panel(whole, dy), y_panel(PanelFloats(27, 20, 5, 4)), dx_panel(PanelFloats(27, 20, 5, 4));
  Panel scratch(NormScratchFloats(whole));
  std::vector<float> mean(20), variance(20), dgamma(20), dbeta(20), exact_mean(20), exact_variance(20);
  BatchStatistics(whole, x_panel.data(), mean.data(), variance.data(), scratch.data(), 2, GetParam(), kPart);
  BatchStatistics(whole, x_panel.data(), exact_mean.data(), exact_variance.data(), scratch.data(), 2, GetParam());
  BatchNormalize(whole, x_panel.data(), mean.data(), variance.data(), gamma.data(), beta.data(), kEpsilon, kSlope, y_panel.data(), 2,
                 GetParam());
  BatchNormGradient gradient{.dy = dy_panel.data(), .x = x_panel.data(), .y = y_panel.data(), .gamma = gamma.data(), .mean = mean.data(),
                             .variance = variance.data(), .epsilon = kEpsilon, .slope = kSlope, .dx = dx_panel.data(),
                             .dgamma = dgamma.data(), .dbeta = dbeta.data()};
  BatchNormBackward(whole, gradient, scratch.data(), 2, GetParam(), kPart);
  const std::vector<float> y = y_panel.Plain(whole), dx = dx_panel.Plain(whole);
  for (int64_t channel = 0; channel < 20; ++channel) {
    double sum = 0, squares = 0, gradients = 0;
    const std::vector<int64_t> indices = ChannelIndices(whole, channel);
    const double size = static_cast<double>(indices.size());
    for (int64_t i : indices) sum += x[i];
    for (int64_t i : indices) squares += (x[i] - sum / size) * (x[i] - sum / size);
    for (int64_t i : indices) gradients += y[i] > 0 ? dy[i] : kSlope * dy[i];
    ASSERT_NEAR(mean[channel], sum / size, 3e-6);
    ASSERT_NEAR(variance[channel], squares / size, 3e-7 * squares / size);
    ASSERT_NEAR(variance[channel], exact_variance[channel], 3e-7 * squares / size);
    ASSERT_NEAR(dbeta[channel], gradients, 1e-5 * std::sqrt(size));
  }
  for (const int64_t step : {4, 8, 12}) {
    std::vector<double> moments(40), sums(40);
    std::vector<float> mean_again(20), variance_again(20), dgamma_again(20), dbeta_again(20), dx_again;
    for (const int pass : {0, 1, 2}) {  // moments, sums of gradients, gradients
      for (int64_t begin = 0; begin < 27; begin += step) {
        PanelShape part = whole;
        part.batch = std::min<int64_t>(step, 27 - begin);
        Panel x_part = Images(x, begin, part.batch), dy_part = Images(dy, begin, part.batch), y_part = Images(y, begin, part.batch);
        BatchNormGradient of_part = gradient;
        of_part.dy = dy_part.data(), of_part.x = x_part.data(), of_part.y = y_part.data(), of_part.dx = dy_part.data();
        if (pass == 0) AddMoments(part, x_part.data(), begin, moments.data(), scratch.data(), 2, GetParam(), kPart);
        if (pass == 1) AddGradientSums(part, of_part, begin, sums.data(), scratch.data(), 2, GetParam(), kPart);
        if (pass < 2) continue;
        BatchNormInputGradient(part, of_part, 27.0 * part.height * part.width, sums.data(), scratch.data(), 2, GetParam());
        const std::vector<float> dx_part = dy_part.Plain(part);
        dx_again.insert(dx_again.end(), dx_part.begin(), dx_part.end());
      }
      if (pass == 0) FinishMoments(20, 27 * 5 * 4, moments.data(), mean_again.data(), variance_again.data());
      if (pass == 1) FinishGradientSums(20, sums.data(), variance.data(), kEpsilon, dgamma_again.data(), dbeta_again.data());
    }
    EXPECT_EQ(mean, mean_again) << step;
    EXPECT_EQ(variance, variance_again) << step;
    EXPECT_EQ(dgamma, dgamma_again) << step;
    EXPECT_EQ(dbeta, dbeta_again) << step;
    EXPECT_EQ(dx, dx_again) << step;
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, PanelNormTest, testing::Values(Isa::kPortable, Isa::kAvx2, Isa::kAvx512),
                         [](const auto& info) { return std::string(Name(info.param)); });

}  // namespace
}  // namespace gantry::cpu
