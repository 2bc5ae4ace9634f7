// The matrix products of the panel kernels by themselves: against sums in double, and each pair of result panels to the bit against
// two single products.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "ops/cpu/panel/panel_kernels.h"

namespace gantry::cpu {
namespace {

std::vector<float> Random(int64_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

std::vector<Isa> Available() {
  std::vector<Isa> available;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (IsaAvailable(isa)) available.push_back(isa);
  }
  return available;
}

int64_t Draw(std::mt19937& random, int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random); }

// Random operands for two result panels: panel i of A at a[i]; B's panel i for result panel q at b_values + q * b_step + offsets[i],
// in an order that is not the one in memory.
struct Product {
  int64_t panels, b_step;
  bool accumulate;
  float slope;
  std::vector<float> a_values, b_values, bias;  // bias may be empty
  std::vector<const float*> a;
  std::vector<int64_t> offsets;

  // Floats of each panel of A and of B.
  Product(std::mt19937& random, int64_t a_floats, int64_t b_floats)
      : panels(Draw(random, 1, kChunkPanels)), b_step(panels * b_floats + 16 * Draw(random, 0, 3)), accumulate(Draw(random, 0, 1) != 0),
        slope(Draw(random, 0, 1) != 0 ? 0.2f : 1.0f), a_values(Random(panels * a_floats, random)), b_values(Random(2 * b_step, random)) {
    if (Draw(random, 0, 1) != 0) bias = Random(32, random);
    for (int64_t i = 0; i < panels; ++i) {
      a.push_back(a_values.data() + (panels - 1 - i) * a_floats);
      offsets.push_back((i + panels / 2) % panels * b_floats);
    }
  }
};

// One panel's result against the same sum in double.
void ExpectNear(const std::vector<double>& expected, const std::vector<double>& sizes, const float* result, const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i) {
    // Each of n products in a row adds at most one rounding of the sum of sizes; 2^-24 each.
    ASSERT_NEAR(expected[i], static_cast<double>(result[i]), 6e-8 * 300 * sizes[i]) << what << " at " << i;
  }
}

// `actual` [rows, 16] is near the sums in double over panels i and k of product(i, k, row, column), on top of `before` where there is any, after
// finish(sum, column).
template <typename Term, typename Finish>
void ExpectSums(int64_t rows, int64_t panels, int64_t k_count, const float* before, Term product, Finish finish, const float* actual,
                const std::string& what) {
  std::vector<double> expected(static_cast<size_t>(rows * 16)), sizes(expected.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t column = 0; column < 16; ++column) {
      const size_t at = static_cast<size_t>(r * 16 + column);
      double sum = before != nullptr ? static_cast<double>(before[at]) : 0.0;
      double size = std::abs(sum);
      for (int64_t i = 0; i < panels; ++i) {
        for (int64_t k = 0; k < k_count; ++k) {
          const double one = product(i, k, r, column);
          sum += one;
          size += std::abs(one);
        }
      }
      expected[at] = finish(sum, column);
      sizes[at] = size + 1;
    }
  }
  ExpectNear(expected, sizes, actual, what);
}

TEST(PanelGemmTest, PairIsTwoSingleProducts) {
  std::mt19937 random(1);
  for (const Isa isa : Available()) {
    const PanelKernels& kernels = KernelsFor(isa);
    EXPECT_EQ(kernels.gemm_pair != nullptr, isa == Isa::kAvx512);
    for (int round = 0; round < 200; ++round) {
      const int64_t rows = Draw(random, 1, 70);
      Product p(random, rows * 16, 256);
      const int64_t k_count = Draw(random, 0, 1) != 0 ? 16 : Draw(random, 1, 15);
      const int64_t c_step = rows * 16 + 16 * Draw(random, 0, 2);
      const std::vector<float> start = Random(2 * c_step, random);
      std::vector<float> singles = start, pair = start;
      for (int64_t q = 0; q < 2; ++q) {
        kernels.gemm(rows, p.panels, p.a.data(), p.b_values.data() + q * p.b_step, p.offsets.data(), k_count,
                     singles.data() + q * c_step, p.accumulate, p.bias.empty() ? nullptr : p.bias.data() + q * 16, p.slope, nullptr);
        ExpectSums(
            rows, p.panels, k_count, p.accumulate ? start.data() + q * c_step : nullptr,
            [&](int64_t i, int64_t k, int64_t r, int64_t column) {
              return static_cast<double>(p.a[static_cast<size_t>(i)][r * 16 + k]) *
                     static_cast<double>(p.b_values[static_cast<size_t>(q * p.b_step + p.offsets[static_cast<size_t>(i)] + k * 16 + column)]);
            },
            [&](double sum, int64_t column) {
              if (!p.bias.empty()) sum += static_cast<double>(p.bias[static_cast<size_t>(q * 16 + column)]);
              return sum > 0 ? sum : sum * static_cast<double>(p.slope);
            },
            singles.data() + q * c_step, std::string(Name(isa)) + " gemm");
      }
      if (kernels.gemm_pair == nullptr) continue;
      kernels.gemm_pair(rows, p.panels, p.a.data(), p.b_values.data(), p.b_step, p.offsets.data(), k_count, pair.data(), c_step,
                        p.accumulate, p.bias.empty() ? nullptr : p.bias.data(), p.slope,
                        round % 2 == 0 ? p.b_values.data() : nullptr);
      // Also what lies between the two panels, which neither may touch.
      ASSERT_EQ(std::memcmp(singles.data(), pair.data(), singles.size() * sizeof(float)), 0)
          << Name(isa) << ", rows " << rows << ", panels " << p.panels << ", k " << k_count;
    }
  }
}

TEST(PanelGemmTest, TransposedPairIsTwoSingleProducts) {
  std::mt19937 random(2);
  for (const Isa isa : Available()) {
    const PanelKernels& kernels = KernelsFor(isa);
    EXPECT_EQ(kernels.gemm_transposed_pair != nullptr, isa == Isa::kAvx512);
    for (int round = 0; round < 200; ++round) {
      const int64_t k_count = Draw(random, 1, 150);  // below, at and above a group of 64
      Product p(random, k_count * 16, k_count * 16);
      const int64_t rows = Draw(random, 0, 1) != 0 ? 16 : Draw(random, 1, 15);
      const int64_t c_step = 256 + 16 * Draw(random, 0, 2);
      std::vector<const float*> b;
      for (const int64_t offset : p.offsets) b.push_back(p.b_values.data() + offset);
      const std::vector<float> start = Random(2 * c_step, random);
      std::vector<float> singles = start, pair = start;
      for (int64_t q = 0; q < 2; ++q) {
        std::vector<const float*> second = b;
        for (const float*& panel : second) panel += q * p.b_step;
        kernels.gemm_transposed(rows, p.panels, p.a.data(), second.data(), k_count, singles.data() + q * c_step, p.accumulate, nullptr);
        ExpectSums(
            rows, p.panels, k_count, p.accumulate ? start.data() + q * c_step : nullptr,
            [&](int64_t i, int64_t k, int64_t r, int64_t column) {
              return static_cast<double>(p.a[static_cast<size_t>(i)][k * 16 + r]) * static_cast<double>(second[static_cast<size_t>(i)][k * 16 + column]);
            },
            [](double sum, int64_t) { return sum; }, singles.data() + q * c_step, std::string(Name(isa)) + " gemm_transposed");
      }
      if (kernels.gemm_transposed_pair == nullptr) continue;
      kernels.gemm_transposed_pair(rows, p.panels, p.a.data(), b.data(), p.b_step, k_count, pair.data(), c_step, p.accumulate,
                                   round % 2 == 0 ? b.data() : nullptr);
      ASSERT_EQ(std::memcmp(singles.data(), pair.data(), singles.size() * sizeof(float)), 0)
          << Name(isa) << ", rows " << rows << ", panels " << p.panels << ", k " << k_count;
    }
  }
}

}  // namespace
}  // namespace gantry::cpu
