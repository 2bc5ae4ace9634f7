// The panel convolutions against a plain loop in double, in all directions, formats, algorithms and instruction sets.
#include "ops/cpu/panel/panel_conv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace gantry::cpu {
namespace {

constexpr float kCanary = 12345.0f;

// 64-byte aligned floats, filled with NaN, with a guard behind them that shows writes past the end.
class Floats {
 public:
  explicit Floats(int64_t count) : count_(count), data_(Allocate(count + 16), &std::free) {
    std::fill_n(data_.get(), count, std::nanf(""));
    std::fill_n(data_.get() + count, 16, kCanary);
  }
  ~Floats() {
    for (int64_t i = 0; i < 16; ++i) EXPECT_EQ(data_.get()[count_ + i], kCanary) << "written past the end";
  }
  Floats(Floats&&) = delete;
  float* data() { return data_.get(); }
  float& operator[](int64_t i) { return data_.get()[i]; }
  int64_t count() const { return count_; }

 private:
  static float* Allocate(int64_t count) {
    return static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>((count * 4 + 63) / 64 * 64)));
  }
  int64_t count_;
  std::unique_ptr<float, decltype(&std::free)> data_;
};

std::vector<float> Random(int64_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// Calls visit(input index, output index, weight index) for every product of the convolution.
template <typename Visit>
void ForEachProduct(const ConvGeometry& g, const Visit& visit) {
  for (int64_t n = 0; n < g.batch; ++n) {
    for (int64_t o = 0; o < g.out_channels; ++o) {
      for (int64_t y = 0; y < g.out_h; ++y) {
        for (int64_t x = 0; x < g.out_w; ++x) {
          const int64_t output = ((n * g.out_channels + o) * g.out_h + y) * g.out_w + x;
          for (int64_t c = 0; c < g.in_channels; ++c) {
            for (int64_t ky = 0; ky < g.kernel_h; ++ky) {
              for (int64_t kx = 0; kx < g.kernel_w; ++kx) {
                const int64_t in_y = y * g.stride_h - g.pad_top + ky * g.dilation_h;
                const int64_t in_x = x * g.stride_w - g.pad_left + kx * g.dilation_w;
                if (in_y < 0 || in_y >= g.in_h || in_x < 0 || in_x >= g.in_w) continue;
                visit(((n * g.in_channels + c) * g.in_h + in_y) * g.in_w + in_x, output,
                      ((o * g.in_channels + c) * g.kernel_h + ky) * g.kernel_w + kx);
              }
            }
          }
        }
      }
    }
  }
}

struct Problem {
  ConvGeometry g;
  std::vector<float> input, weights, output;  // `output` is the output gradient where that is an operand

  Problem(const ConvGeometry& geometry, std::mt19937& random)
      : g(geometry),
        input(Random(g.batch * g.in_channels * g.in_h * g.in_w, random)),
        weights(Random(g.weight_count(), random)),
        output(Random(g.batch * g.out_channels * g.out_h * g.out_w, random)) {}

  // The result in double and, per element, the sum of the magnitudes that rounding scales with.
  void Solve(Direction direction, std::vector<double>& result, std::vector<double>& scale) const {
    const auto size = direction == Direction::kForward         ? output.size()
                      : direction == Direction::kInputGradient ? input.size()
                                                               : weights.size();
    result.assign(size, 0.0);
    scale.assign(size, 0.0);
    ForEachProduct(g, [&](int64_t in, int64_t out, int64_t weight) {
      const double product = direction == Direction::kForward         ? 1.0 * input[in] * weights[weight]
                             : direction == Direction::kInputGradient ? 1.0 * output[out] * weights[weight]
                                                                      : 1.0 * input[in] * output[out];
      const int64_t at = direction == Direction::kForward ? out : direction == Direction::kInputGradient ? in : weight;
      result[at] += product;
      scale[at] += std::abs(product);
    });
  }
};

std::string Describe(const ConvGeometry& g) {
  return absl::StrFormat("n%d c%d o%d in %dx%d out %dx%d k%dx%d s%dx%d p%d,%d d%dx%d", g.batch, g.in_channels,
                         g.out_channels, g.in_h, g.in_w, g.out_h, g.out_w, g.kernel_h, g.kernel_w, g.stride_h,
                         g.stride_w, g.pad_top, g.pad_left, g.dilation_h, g.dilation_w);
}

// Runs `direction` with operands in the formats of `options`; `bias` and `slope` are the epilogue of the image
// directions.
std::vector<float> Compute(const Problem& p, Direction direction, const ConvOptions& options,
                           const std::vector<float>& bias, float slope, int threads) {
  const ConvGeometry& g = p.g;
  absl::StatusOr<PanelConv> conv = PanelConv::Create(g, direction, options);
  EXPECT_TRUE(conv.ok()) << conv.status();
  const int64_t input_count = options.input_format == ImageFormat::kPanel
                                  ? PanelFloats(g.batch, g.in_channels, g.in_h, g.in_w)
                                  : static_cast<int64_t>(p.input.size());
  const int64_t output_count = options.output_format == ImageFormat::kPanel
                                   ? PanelFloats(g.batch, g.out_channels, g.out_h, g.out_w)
                                   : static_cast<int64_t>(p.output.size());
  Floats input(input_count), output(output_count), packed(conv->PackedWeightFloats());
  Floats scratch(conv->ScratchFloats(threads)), weights(g.weight_count());
  const Epilogue epilogue{bias.empty() ? nullptr : bias.data(), slope};
  if (direction != Direction::kInputGradient) {
    if (options.input_format == ImageFormat::kPanel) {
      PlainToPanel(p.input.data(), g.batch, g.in_channels, g.in_h, g.in_w, input.data(), threads);
    } else {
      std::copy(p.input.begin(), p.input.end(), input.data());
    }
  }
  if (direction != Direction::kForward) {
    if (options.output_format == ImageFormat::kPanel) {
      PlainToPanel(p.output.data(), g.batch, g.out_channels, g.out_h, g.out_w, output.data(), threads);
    } else {
      std::copy(p.output.begin(), p.output.end(), output.data());
    }
  }
  if (direction != Direction::kWeightGradient) {
    std::copy(p.weights.begin(), p.weights.end(), weights.data());
    conv->PackWeights(weights.data(), packed.data(), threads);
  }
  const auto plain = [&](Floats& image, ImageFormat format, int64_t channels, int64_t h, int64_t w) {
    std::vector<float> result(g.batch * channels * h * w);
    if (format == ImageFormat::kPanel) {
      for (int64_t pixel = 0; pixel < h * w; ++pixel) {
        for (int64_t n = 0; n < g.batch; ++n) {
          for (int64_t c = channels; c < PanelCount(channels) * 16; ++c) {
            EXPECT_EQ(image[((pixel * PanelCount(channels) + c / 16) * g.batch + n) * 16 + c % 16], 0.0f)
                << "channel tail";
          }
        }
      }
      PanelToPlain(image.data(), g.batch, channels, h, w, result.data(), 1);
    } else {
      std::copy_n(image.data(), result.size(), result.begin());
    }
    return result;
  };
  switch (direction) {
    case Direction::kForward:
      conv->Forward(input.data(), packed.data(), epilogue, output.data(), scratch.data(), threads);
      return plain(output, options.output_format, g.out_channels, g.out_h, g.out_w);
    case Direction::kInputGradient:
      conv->InputGradient(output.data(), packed.data(), epilogue, input.data(), scratch.data(), threads);
      return plain(input, options.input_format, g.in_channels, g.in_h, g.in_w);
    case Direction::kWeightGradient:
      conv->WeightGradient(input.data(), output.data(), false, weights.data(), scratch.data(), threads);
      return std::vector<float>(weights.data(), weights.data() + weights.count());
  }
  return {};
}

// Largest |f32 - double| over the sum of magnitudes that a result may show.
double Tolerance(Algorithm algorithm) { return algorithm == Algorithm::kWinograd4 ? 8e-6 : 2e-6; }

void Check(const Problem& p, Direction direction, const ConvOptions& options, bool with_epilogue, int threads,
           std::mt19937& random) {
  std::vector<double> expected, scale;
  p.Solve(direction, expected, scale);
  std::vector<float> bias;
  float slope = 1.0f;
  if (with_epilogue && direction != Direction::kWeightGradient) {
    const int64_t channels = direction == Direction::kForward ? p.g.out_channels : p.g.in_channels;
    const int64_t plane = static_cast<int64_t>(expected.size()) / channels / p.g.batch;
    bias = Random(channels, random);
    slope = 0.2f;
    for (size_t i = 0; i < expected.size(); ++i) {
      const double shift = bias[static_cast<int64_t>(i) / plane % channels];
      const double value = expected[i] + shift;
      scale[i] += std::abs(shift);
      expected[i] = value > 0 ? value : slope * value;
    }
  }
  // Winograd's sums mix neighbours, so that an error scales with the largest of them, and with terms that cancel: an
  // output that sees only padding is not exactly zero.
  if (options.algorithm != Algorithm::kDirect) {
    const int64_t terms = direction == Direction::kForward         ? p.g.in_channels
                          : direction == Direction::kInputGradient ? p.g.out_channels
                                                                   : p.g.batch * p.g.out_h * p.g.out_w;
    const double largest = std::max(*std::max_element(scale.begin(), scale.end()), static_cast<double>(terms));
    std::fill(scale.begin(), scale.end(), largest);
  }
  const std::vector<float> actual = Compute(p, direction, options, bias, slope, threads);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], Tolerance(options.algorithm) * scale[i] + 1e-30)
        << Name(direction) << " " << Name(options.algorithm) << " " << Name(options.isa) << " element " << i << " "
        << Describe(p.g) << " threads " << threads;
  }
}

std::vector<Isa> AvailableIsas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (IsaAvailable(isa)) isas.push_back(isa);
  }
  return isas;
}

ConvGeometry RandomGeometry(std::mt19937& random) {
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (;;) {
    ConvGeometry g{.batch = pick(0, 3) == 0 ? pick(1, 70) : pick(1, 9),
                   .in_channels = pick(1, 40),
                   .out_channels = pick(1, 40),
                   .in_h = pick(1, 9),
                   .in_w = pick(1, 9),
                   .kernel_h = pick(1, 4),
                   .kernel_w = pick(1, 5),
                   .stride_h = pick(1, 3),
                   .stride_w = pick(1, 3),
                   .pad_top = pick(0, 2),
                   .pad_left = pick(0, 3),
                   .dilation_h = pick(1, 2),
                   .dilation_w = pick(1, 3)};
    const int64_t height = g.in_h + g.pad_top + pick(0, 2) - (g.kernel_h - 1) * g.dilation_h;
    const int64_t width = g.in_w + g.pad_left + pick(0, 3) - (g.kernel_w - 1) * g.dilation_w;
    if (height < 1 || width < 1) continue;
    g.out_h = (height - 1) / g.stride_h + 1;
    g.out_w = (width - 1) / g.stride_w + 1;
    if (g.flops() < 2e7) return g;
  }
}

constexpr Direction kDirections[] = {Direction::kForward, Direction::kInputGradient, Direction::kWeightGradient};

TEST(PanelLayoutTest, ReorderMatchesDefinition) {
  std::mt19937 random(1);
  for (const auto& [batch, channels, height, width] :
       {std::array<int64_t, 4>{1, 1, 1, 1}, {3, 17, 5, 7}, {64, 3, 4, 4}, {2, 48, 1, 33}, {70, 16, 2, 3}}) {
    const std::vector<float> plain = Random(batch * channels * height * width, random);
    Floats panel(PanelFloats(batch, channels, height, width));
    PlainToPanel(plain.data(), batch, channels, height, width, panel.data(), 2);
    for (int64_t n = 0; n < batch; ++n) {
      for (int64_t c = 0; c < PanelCount(channels) * 16; ++c) {
        for (int64_t p = 0; p < height * width; ++p) {
          const float expected = c < channels ? plain[(n * channels + c) * height * width + p] : 0.0f;
          ASSERT_EQ(panel[((p * PanelCount(channels) + c / 16) * batch + n) * 16 + c % 16], expected);
        }
      }
    }
    std::vector<float> back(plain.size());
    PanelToPlain(panel.data(), batch, channels, height, width, back.data(), 2);
    EXPECT_EQ(back, plain);
  }
}

TEST(PanelConvTest, DirectMatchesPlainLoopOnRandomGeometries) {
  std::mt19937 random(2);
  for (Isa isa : AvailableIsas()) {
    for (int trial = 0; trial < 60; ++trial) {
      const Problem problem(RandomGeometry(random), random);
      ConvOptions options{.isa = isa};
      if (trial % 4 == 1) options.input_format = ImageFormat::kPlain;
      if (trial % 4 == 2) options.output_format = ImageFormat::kPlain;
      if (trial % 8 == 3) options.input_format = options.output_format = ImageFormat::kPlain;
      for (Direction direction : kDirections) Check(problem, direction, options, trial % 2 == 0, 1 + trial % 3, random);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(PanelConvTest, WinogradMatchesPlainLoop) {
  std::mt19937 random(7);
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (Isa isa : AvailableIsas()) {
    for (Algorithm algorithm : {Algorithm::kWinograd2, Algorithm::kWinograd3, Algorithm::kWinograd4}) {
      int tried = 0;
      while (tried < 25) {
        const int64_t stride = pick(1, 2), kernel = stride * pick(2, 3);
        ConvGeometry g{.batch = tried % 5 == 0 ? pick(1, 70) : pick(1, 9),
                       .in_channels = pick(1, 40),
                       .out_channels = pick(1, 40),
                       .in_h = pick(1, 20),
                       .in_w = pick(1, 20),
                       .out_h = pick(1, 11),
                       .out_w = pick(1, 11),
                       .kernel_h = kernel,
                       .kernel_w = kernel,
                       .stride_h = stride,
                       .stride_w = stride,
                       .pad_top = pick(0, 3),
                       .pad_left = pick(0, 3)};
        if (tried % 3 == 0) g.in_h = stride * g.out_h, g.in_w = stride * g.out_w, g.pad_top = g.pad_left = 1;
        ConvOptions options{.algorithm = algorithm, .isa = isa};
        if (tried % 7 == 3) options.input_format = options.output_format = ImageFormat::kPlain;
        if (g.flops() > 3e7 || !PanelConv::Supports(g, Direction::kForward, options)) continue;
        ++tried;
        const Problem problem(g, random);
        for (Direction direction : kDirections)
          Check(problem, direction, options, tried % 2 == 0, 1 + tried % 3, random);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// RMS and largest error over the RMS of the result, on normal data with 64 to 128 channels. Header comments quote these
// figures.
TEST(PanelConvTest, AccuracyAgainstDouble) {
  std::mt19937 random(8);
  for (const ConvGeometry& g : {ConvGeometry{.batch = 8,
                               .in_channels = 64,
                               .out_channels = 128,
                               .in_h = 8,
                               .in_w = 8,
                               .out_h = 4,
                               .out_w = 4,
                               .kernel_h = 4,
                               .kernel_w = 4,
                               .stride_h = 2,
                               .stride_w = 2,
                               .pad_top = 1,
                               .pad_left = 1},
                                ConvGeometry{.batch = 8,
                                .in_channels = 64,
                                .out_channels = 128,
                                .in_h = 4,
                                .in_w = 4,
                                .out_h = 4,
                                .out_w = 4,
                                .kernel_h = 3,
                                .kernel_w = 3,
                                .pad_top = 1,
                                .pad_left = 1}}) {
    const Problem problem(g, random);
    for (Direction direction : kDirections) {
      std::vector<double> expected, scale;
      problem.Solve(direction, expected, scale);
      double size = 0;
      for (double value : expected) size += value * value;
      size = std::sqrt(size / static_cast<double>(expected.size()));
      for (Algorithm algorithm : {Algorithm::kDirect, Algorithm::kWinograd2, Algorithm::kWinograd3, Algorithm::kWinograd4}) {
        const std::vector<float> actual = Compute(problem, direction, {.algorithm = algorithm}, {}, 1.0f, 2);
        double squares = 0, largest = 0;
        for (size_t i = 0; i < actual.size(); ++i) {
          squares += (actual[i] - expected[i]) * (actual[i] - expected[i]);
          largest = std::max(largest, std::abs(actual[i] - expected[i]));
        }
        const double rms = std::sqrt(squares / static_cast<double>(expected.size())) / size;
        const std::string what =
            absl::StrFormat("%dx%d %s %s", g.kernel_h, g.kernel_w, Name(direction), Name(algorithm));
        std::printf("%-32s RMS error %.1e, largest %.1e\n", what.c_str(), rms, largest / size);
        // What a product rounds, by what the transforms make of it (WinogradKernels::amplification).
        const double factor = algorithm == Algorithm::kDirect      ? 1
                              : algorithm == Algorithm::kWinograd2 ? (g.kernel_h == 4 ? 1.2 : 1.7)
                              : algorithm == Algorithm::kWinograd3 ? (g.kernel_h == 4 ? 1.7 : 2.7)
                                                                   : (g.kernel_h == 4 ? 2.9 : 4.8);
        const double most = 1.6e-7 * factor;
        EXPECT_LT(rms, most) << what;
        EXPECT_LT(largest / size, 12 * most) << what;
      }
    }
  }
}

TEST(PanelConvTest, ChosenAlgorithmIsSupportedAndUsesWinogradWhereItPays) {
  const auto halving = [](int64_t batch, int64_t in, int64_t out, int64_t size) {
    return ConvGeometry{.batch = batch,
                        .in_channels = in,
                        .out_channels = out,
                        .in_h = size,
                        .in_w = size,
                        .out_h = size / 2,
                        .out_w = size / 2,
                        .kernel_h = 4,
                        .kernel_w = 4,
                        .stride_h = 2,
                        .stride_w = 2,
                        .pad_top = 1,
                        .pad_left = 1};
  };
  for (Direction direction : kDirections) {
    const bool image = direction != Direction::kWeightGradient;
    EXPECT_EQ(ChooseAlgorithm(halving(64, 64, 128, 16), direction), Algorithm::kWinograd4);
    EXPECT_EQ(ChooseAlgorithm(halving(64, 128, 256, 8), direction), image ? Algorithm::kWinograd2 : Algorithm::kWinograd4);
    EXPECT_EQ(ChooseAlgorithm({.batch = 64,
                               .in_channels = 64,
                               .out_channels = 64,
                               .in_h = 16,
                               .in_w = 16,
                               .out_h = 16,
                               .out_w = 16,
                               .kernel_h = 3,
                               .kernel_w = 3,
                               .pad_top = 1,
                               .pad_left = 1},
                              direction),
              image ? Algorithm::kWinograd3 : Algorithm::kWinograd4);
    EXPECT_EQ(ChooseAlgorithm(
                  {.batch = 64, .in_channels = 64, .out_channels = 64, .in_h = 8, .in_w = 8, .out_h = 8, .out_w = 8},
                  direction),
              Algorithm::kDirect);
    // One image: packing nine or more times the weights for a few products cannot pay.
    EXPECT_EQ(ChooseAlgorithm(halving(1, 256, 512, 8), Direction::kForward, 1), Algorithm::kDirect);
  }
  std::mt19937 random(9);
  for (int trial = 0; trial < 300; ++trial) {
    const ConvGeometry g = RandomGeometry(random);
    for (Direction direction : kDirections) {
      EXPECT_TRUE(PanelConv::Supports(g, direction, {.algorithm = ChooseAlgorithm(g, direction)})) << Describe(g);
    }
  }
}

TEST(PanelConvTest, PlainImagesOfFewChannels) {
  std::mt19937 random(3);
  for (Isa isa : AvailableIsas()) {
    for (int64_t channels : {1, 3, 5}) {
      for (int64_t kernel : {3, 4}) {
        const Problem problem({.batch = 9,
                               .in_channels = channels,
                               .out_channels = 33,
                               .in_h = 10,
                               .in_w = 12,
                               .out_h = 5,
                               .out_w = 6,
                               .kernel_h = kernel,
                               .kernel_w = kernel,
                               .stride_h = 2,
                               .stride_w = 2,
                               .pad_top = 1,
                               .pad_left = 1},
                              random);
        for (Direction direction : kDirections) {
          Check(problem, direction, {.input_format = ImageFormat::kPlain, .isa = isa}, kernel == 4, 2, random);
        }
      }
    }
  }
}

TEST(PanelConvTest, HeadOfOneChannelAndFirstLayerOfAGenerator) {
  std::mt19937 random(4);
  const Problem head(
      {.batch = 17, .in_channels = 64, .out_channels = 1, .in_h = 4, .in_w = 4, .kernel_h = 4, .kernel_w = 4}, random);
  const Problem first(
      {.batch = 17, .in_channels = 80, .out_channels = 100, .in_h = 4, .in_w = 4, .kernel_h = 4, .kernel_w = 4},
      random);
  for (Isa isa : AvailableIsas()) {
    for (Direction direction : kDirections) {
      Check(head, direction, {.output_format = ImageFormat::kPlain, .isa = isa}, true, 2, random);
      Check(first, direction, {.output_format = ImageFormat::kPlain, .isa = isa}, true, 2, random);
    }
  }
}

TEST(PanelConvTest, WeightGradientAccumulates) {
  std::mt19937 random(5);
  const Problem problem({.batch = 5,
                         .in_channels = 3,
                         .out_channels = 20,
                         .in_h = 6,
                         .in_w = 6,
                         .out_h = 3,
                         .out_w = 3,
                         .kernel_h = 4,
                         .kernel_w = 4,
                         .stride_h = 2,
                         .stride_w = 2,
                         .pad_top = 1,
                         .pad_left = 1},
                        random);
  for (ImageFormat format : {ImageFormat::kPlain, ImageFormat::kPanel}) {
    const ConvOptions options{.input_format = format, .output_format = ImageFormat::kPlain};
    const std::vector<float> once = Compute(problem, Direction::kWeightGradient, options, {}, 1.0f, 1);
    const PanelConv conv = *PanelConv::Create(problem.g, Direction::kWeightGradient, options);
    std::vector<float> input = problem.input;
    if (format == ImageFormat::kPanel) {
      input.resize(PanelFloats(5, 3, 6, 6));
      PlainToPanel(problem.input.data(), 5, 3, 6, 6, input.data(), 1);
    }
    Floats scratch(conv.ScratchFloats(2)), sum(problem.g.weight_count());
    std::fill_n(sum.data(), sum.count(), 10.0f);
    conv.WeightGradient(input.data(), problem.output.data(), true, sum.data(), scratch.data(), 2);
    for (int64_t i = 0; i < sum.count(); ++i) ASSERT_EQ(sum[i], 10.0f + once[i]);
  }
}

TEST(PanelConvTest, ThreadsDoNotChangeABit) {
  std::mt19937 random(6);
  for (int trial = 0; trial < 12; ++trial) {
    const Problem problem(RandomGeometry(random), random);
    const ConvOptions options{.input_format = trial % 2 == 0 ? ImageFormat::kPlain : ImageFormat::kPanel};
    for (Direction direction : kDirections) {
      EXPECT_EQ(Compute(problem, direction, options, {}, 0.1f, 1), Compute(problem, direction, options, {}, 0.1f, 5));
    }
  }
}

// 10 outputs: three tiles of F(3,2) and one of a single output, points that need fewer tiles than others.
TEST(PanelConvTest, ThreadsDoNotChangeABitOfWinogradForms) {
  std::mt19937 random(9);
  for (const Isa isa : AvailableIsas()) {
    for (const Algorithm algorithm : {Algorithm::kWinograd2, Algorithm::kWinograd3, Algorithm::kWinograd4}) {
      const Problem problem({.batch = 5, .in_channels = 20, .out_channels = 70, .in_h = 20, .in_w = 18, .out_h = 10, .out_w = 9,
                             .kernel_h = 4, .kernel_w = 4, .stride_h = 2, .stride_w = 2, .pad_top = 1, .pad_left = 1},
                            random);
      const ConvOptions options{.algorithm = algorithm, .isa = isa};
      for (Direction direction : kDirections) {
        const auto one = Compute(problem, direction, options, {}, 0.1f, 1);
        for (int threads : {2, 3, 7}) EXPECT_EQ(one, Compute(problem, direction, options, {}, 0.1f, threads)) << threads << " threads";
      }
    }
  }
}

// Images [begin, begin + count) of a problem as a problem of their own.
Problem PartOf(const Problem& whole, int64_t begin, int64_t count) {
  Problem part = whole;
  part.g.batch = count;
  for (std::vector<float>* images : {&part.input, &part.output}) {
    const auto image = static_cast<int64_t>(images->size()) / whole.g.batch;
    *images = std::vector<float>(images->begin() + begin * image, images->begin() + (begin + count) * image);
  }
  return part;
}

// Where a budget is small, convolutions run on parts of the batch: runtime/plan/split_batch.h.
TEST(PanelConvTest, APartOfTheBatchHasTheBitsOfTheWhole) {
  std::mt19937 random(10);
  const std::vector<float> none;
  for (const Isa isa : AvailableIsas()) {
    for (const Algorithm algorithm : {Algorithm::kDirect, Algorithm::kWinograd2, Algorithm::kWinograd3, Algorithm::kWinograd4}) {
      for (const int64_t in_channels : {3, 20}) {
        const Problem whole({.batch = 20, .in_channels = in_channels, .out_channels = 36, .in_h = 20, .in_w = 18, .out_h = 10, .out_w = 9,
                             .kernel_h = 4, .kernel_w = 4, .stride_h = 2, .stride_w = 2, .pad_top = 1, .pad_left = 1},
                            random);
        for (const ImageFormat input_format : {ImageFormat::kPanel, ImageFormat::kPlain}) {
          if (input_format == ImageFormat::kPlain && in_channels > 3) continue;
          const ConvOptions options{.algorithm = algorithm, .input_format = input_format, .isa = isa};
          if (!PanelConv::Supports(whole.g, Direction::kForward, options)) continue;
          for (const Direction direction : {Direction::kForward, Direction::kInputGradient}) {
            const std::vector<float> all = Compute(whole, direction, options, none, 0.1f, 2);
            for (const int64_t images : {8, 16}) {
              std::vector<float> parts;
              for (int64_t begin = 0; begin < 20; begin += images) {
                const std::vector<float> part = Compute(PartOf(whole, begin, std::min(images, 20 - begin)), direction, options, none, 0.1f, 2);
                parts.insert(parts.end(), part.begin(), part.end());
              }
              EXPECT_EQ(all, parts) << Name(direction) << " " << Name(algorithm) << " " << Name(isa) << " " << in_channels << " channels, "
                                    << images << " images";
            }
          }
        }
      }
    }
  }
}

TEST(PanelConvTest, AWeightGradientOfImagesAmongOthers) {
  std::mt19937 random(11);
  for (const Isa isa : AvailableIsas()) {
    for (const Algorithm algorithm : {Algorithm::kDirect, Algorithm::kWinograd2, Algorithm::kWinograd4}) {
      for (const ImageFormat input_format : {ImageFormat::kPanel, ImageFormat::kPlain}) {
        const Problem whole({.batch = 24, .in_channels = 3, .out_channels = 40, .in_h = 20, .in_w = 18, .out_h = 10, .out_w = 9,
                             .kernel_h = 4, .kernel_w = 4, .stride_h = 2, .stride_w = 2, .pad_top = 1, .pad_left = 1},
                            random);
        const ConvGeometry& g = whole.g;
        const Problem part = PartOf(whole, 8, 9);
        const ConvOptions options{.algorithm = algorithm, .input_format = input_format, .isa = isa};
        const std::vector<float> alone = Compute(part, Direction::kWeightGradient, options, {}, 1.0f, 2);
        const PanelConv conv = *PanelConv::Create(part.g, Direction::kWeightGradient, options);
        Floats input(PanelFloats(24, 3, 20, 18)), output(PanelFloats(24, 40, 10, 9)), scratch(conv.ScratchFloats(2)), sum(g.weight_count());
        const bool panel = input_format == ImageFormat::kPanel;
        if (panel) PlainToPanel(whole.input.data(), 24, 3, 20, 18, input.data(), 1);
        else std::copy(whole.input.begin(), whole.input.end(), input.data());
        PlainToPanel(whole.output.data(), 24, 40, 10, 9, output.data(), 1);
        conv.WeightGradient(input.data() + 8 * (panel ? 16 : 3 * 20 * 18), output.data() + 8 * 16, false, sum.data(), scratch.data(), 2, 24);
        EXPECT_EQ(alone, std::vector<float>(sum.data(), sum.data() + sum.count())) << Name(algorithm) << " " << Name(isa);
      }
    }
  }
}

// Large gradients come in pieces: runtime/partition/split_gradients.h.
TEST(PanelConvTest, RowsOfAWeightGradientHaveTheBitsOfTheWhole) {
  std::mt19937 random(12);
  constexpr int64_t kRows = 72, kBatch = 16, kHeight = 24, kWidth = 20;
  for (const Isa isa : AvailableIsas()) {
    for (const Algorithm algorithm : {Algorithm::kDirect, Algorithm::kWinograd2, Algorithm::kWinograd3, Algorithm::kWinograd4}) {
      for (const int64_t in_channels : {3, 20}) {
        const Problem whole({.batch = kBatch, .in_channels = in_channels, .out_channels = kRows, .in_h = kHeight, .in_w = kWidth, .out_h = kHeight / 2, .out_w = kWidth / 2,
                             .kernel_h = 4, .kernel_w = 4, .stride_h = 2, .stride_w = 2, .pad_top = 1, .pad_left = 1},
                            random);
        for (const ImageFormat input_format : {ImageFormat::kPanel, ImageFormat::kPlain}) {
          if (input_format == ImageFormat::kPlain && in_channels > 3) continue;
          const ConvOptions options{.algorithm = algorithm, .input_format = input_format, .isa = isa};
          const std::vector<float> all = Compute(whole, Direction::kWeightGradient, options, {}, 1.0f, 2);
          Floats input(PanelFloats(kBatch, in_channels, kHeight, kWidth)), output(PanelFloats(kBatch, kRows, kHeight / 2, kWidth / 2));
          if (input_format == ImageFormat::kPanel) PlainToPanel(whole.input.data(), kBatch, in_channels, kHeight, kWidth, input.data(), 1);
          else std::copy(whole.input.begin(), whole.input.end(), input.data());
          PlainToPanel(whole.output.data(), kBatch, kRows, kHeight / 2, kWidth / 2, output.data(), 1);
          for (const int64_t rows : {16, 32}) {
            std::vector<float> pieces;
            for (int64_t begin = 0; begin < kRows; begin += rows) {
              ConvGeometry piece = whole.g;
              piece.out_channels = std::min(rows, kRows - begin);
              const PanelConv conv = *PanelConv::Create(piece, Direction::kWeightGradient, options);
              Floats scratch(conv.ScratchFloats(2)), sum(piece.weight_count());
              conv.WeightGradient(input.data(), output.data() + begin * kBatch, false, sum.data(), scratch.data(), 2, 0, kRows);
              pieces.insert(pieces.end(), sum.data(), sum.data() + sum.count());
            }
            EXPECT_EQ(all, pieces) << Name(algorithm) << " " << Name(isa) << " " << in_channels << " channels, " << rows << " rows";
          }
        }
      }
    }
  }
}

TEST(PanelConvTest, RejectsImpossibleSizes) {
  EXPECT_EQ(PanelConv::Create({.batch = 0}, Direction::kForward, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PanelConv::Create({.stride_h = -1}, Direction::kForward, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PanelConv::Create({.batch = 1 << 20, .in_channels = 1 << 20, .in_h = 1 << 20}, Direction::kForward, {})
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace gantry::cpu
