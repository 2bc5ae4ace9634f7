#include "comm/reduce.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace gantry {
namespace {

std::vector<const reduce::Kernels*> AllKernels() {
  std::vector<const reduce::Kernels*> kernels = {&reduce::kPortable};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) kernels.push_back(&reduce::kAvx2);
#endif
  return kernels;
}

template <typename T>
std::vector<T> Result(const reduce::Kernels& kernels, ElementType type, ReduceOp op,
                      const std::vector<std::vector<T>>& sources) {
  std::vector<const std::byte*> from;
  for (const std::vector<T>& source : sources) from.push_back(reinterpret_cast<const std::byte*>(source.data()));
  std::vector<T> result(sources[0].size());
  std::byte* to = reinterpret_cast<std::byte*>(result.data());
  kernels.kernel[static_cast<int>(type)][static_cast<int>(op)](from.data(), static_cast<int>(from.size()), &to, 1,
                                                               static_cast<int64_t>(result.size()));
  return result;
}

double HalfToDouble(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return exponent == 0 ? sign * std::ldexp(mantissa, -24) : sign * std::ldexp(1024 + mantissa, exponent - 25);
}

// One source: every value comes back as it is (NaNs as NaNs), in every instruction set alike.
TEST(ReduceTest, EveryHalfComesBack) {
  std::vector<uint16_t> all(65536);
  for (int i = 0; i < 65536; ++i) all[i] = static_cast<uint16_t>(i);
  for (const ElementType type : {ElementType::kF16, ElementType::kBf16}) {
    for (const reduce::Kernels* kernels : AllKernels()) {
      const std::vector<uint16_t> result = Result<uint16_t>(*kernels, type, ReduceOp::kSum, {all});
      for (int i = 0; i < 65536; ++i) {
        const int infinity = type == ElementType::kF16 ? 0x7c00 : 0x7f80;
        if ((i & 0x7fff) <= infinity) {
          ASSERT_EQ(result[i], i);
        } else {
          ASSERT_GT(result[i] & 0x7fff, infinity) << i;
        }
      }
    }
  }
}

// Sums of two halves, where f32 is exact, against rounding by search.
TEST(ReduceTest, HalvesRoundToNearestEven) {
  std::mt19937 random(1);
  std::vector<uint16_t> a(20000), b(20000);
  for (size_t i = 0; i < a.size(); ++i) {
    a[i] = static_cast<uint16_t>(random());
    b[i] = static_cast<uint16_t>(random());
    if (i % 3 == 0) b[i] = static_cast<uint16_t>((a[i] ^ 0x8000) + random() % 64);  // cancels: small results
  }
  for (const reduce::Kernels* kernels : AllKernels()) {
    const std::vector<uint16_t> result = Result<uint16_t>(*kernels, ElementType::kF16, ReduceOp::kSum, {a, b});
    for (size_t i = 0; i < a.size(); ++i) {
      const double sum = static_cast<float>(HalfToDouble(a[i])) + static_cast<float>(HalfToDouble(b[i]));
      if (std::isnan(sum)) {
        ASSERT_TRUE(std::isnan(HalfToDouble(result[i])));
        continue;
      }
      if (std::abs(sum) >= 65520) {
        ASSERT_EQ(HalfToDouble(result[i]), std::copysign(std::numeric_limits<double>::infinity(), sum));
        continue;
      }
      // No neighbour is nearer, and of two as near it is the even one.
      const double error = std::abs(HalfToDouble(result[i]) - sum);
      for (const int step : {-1, 1}) {
        if ((result[i] & 0x7fff) == 0 && step < 0) continue;
        const uint16_t neighbour = static_cast<uint16_t>(result[i] + step);
        if ((neighbour & 0x7fff) >= 0x7c00) continue;
        const double other = std::abs(HalfToDouble(neighbour) - sum);
        ASSERT_LE(error, other) << a[i] << " + " << b[i];
        if (error == other) {
          ASSERT_EQ(result[i] & 1, 0);
        }
      }
    }
  }
}

TEST(ReduceTest, InstructionSetsAgreeToTheBit) {
  std::mt19937 random(2);
  for (int type = 0; type < kElementTypes; ++type) {
    for (int op = 0; op < kReduceOps; ++op) {
      for (const int sources : {1, 2, 3, 4, 5, 8}) {
        const int count = 2100 + static_cast<int>(random() % 17);
        std::vector<std::vector<uint64_t>> memory(sources, std::vector<uint64_t>(count));
        for (auto& source : memory) {
          for (uint64_t& word : source) word = static_cast<uint64_t>(random()) << 32 | random();
        }
        // Finite numbers: payloads of NaNs are not promised.
        for (auto& source : memory) {
          if (type == static_cast<int>(ElementType::kF64))
            for (uint64_t& word : source) word &= ~(uint64_t{1} << 62);
          if (type == static_cast<int>(ElementType::kF32))
            for (uint64_t& word : source) word &= 0xbfffffffbfffffffu;
          if (type == static_cast<int>(ElementType::kF16) || type == static_cast<int>(ElementType::kBf16)) {
            for (uint64_t& word : source) word &= 0xbfffbfffbfffbfffu;
          }
        }
        const auto t = static_cast<ElementType>(type);
        std::vector<std::vector<std::byte>> results;
        for (const reduce::Kernels* kernels : AllKernels()) {
          // In place over all sources, as an all-reduce does it.
          std::vector<std::vector<uint64_t>> copy = memory;
          std::vector<const std::byte*> from;
          std::vector<std::byte*> to;
          for (auto& source : copy) {
            to.push_back(reinterpret_cast<std::byte*>(source.data()));
            from.push_back(to.back());
          }
          kernels->kernel[type][op](from.data(), sources, to.data(), sources, count);
          for (std::byte* destination : to) results.emplace_back(destination, destination + count * SizeBytes(t));
        }
        for (size_t i = 1; i < results.size(); ++i)
          ASSERT_EQ(results[i], results[0]) << Name(t) << " " << Name(static_cast<ReduceOp>(op));
      }
    }
  }
}

TEST(ReduceTest, NanWinsAndSumsKeepTheirOrder) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const reduce::Kernels* kernels : AllKernels()) {
    for (const ReduceOp op : {ReduceOp::kMin, ReduceOp::kMax}) {
      for (int place = 0; place < 3; ++place) {
        std::vector<std::vector<float>> sources(3, std::vector<float>(19, 1.0f));
        sources[place].assign(19, nan);
        for (const float value : Result<float>(*kernels, ElementType::kF32, op, sources))
          EXPECT_TRUE(std::isnan(value));
      }
    }
    // (1e8 + 1) - 1e8 is 0 in f32, (1e8 - 1e8) + 1 is 1.
    const std::vector<std::vector<float>> one = {std::vector<float>(9, 1e8f), std::vector<float>(9, 1.0f),
                                                 std::vector<float>(9, -1e8f)};
    const std::vector<std::vector<float>> two = {one[0], one[2], one[1]};
    for (const float value : Result<float>(*kernels, ElementType::kF32, ReduceOp::kSum, one)) EXPECT_EQ(value, 0.0f);
    for (const float value : Result<float>(*kernels, ElementType::kF32, ReduceOp::kSum, two)) EXPECT_EQ(value, 1.0f);
    EXPECT_EQ(Result<int8_t>(*kernels, ElementType::kI8, ReduceOp::kSum, {{100}, {100}})[0], -56);  // wraps
  }
}

// A sum in parts, as it goes from node to node, ends in the bits of the whole, wherever it is cut.
TEST(ReduceTest, PartsOfASumEndInTheBitsOfTheWhole) {
  constexpr int kSources = 5;
  constexpr int64_t kCount = 3001;
  std::mt19937_64 random(7);
  std::vector<std::vector<uint64_t>> values(kSources, std::vector<uint64_t>(kCount));
  for (std::vector<uint64_t>& source : values) {
    // No NaNs, of which a sum of two may keep either, and no infinities, in any of the types.
    for (uint64_t& value : source) value = random() & 0xbfffbfffbfffbfffu;
  }
  std::vector<const std::byte*> from;
  for (const std::vector<uint64_t>& source : values) from.push_back(reinterpret_cast<const std::byte*>(source.data()));
  for (const reduce::Kernels* kernels : AllKernels()) {
    for (int type = 0; type < kElementTypes; ++type) {
      for (int op = 0; op < kReduceOps; ++op) {
        const auto size = static_cast<size_t>(kCount * SizeBytes(static_cast<ElementType>(type)));
        std::vector<std::byte> whole(size), parts(size);
        std::vector<uint64_t> partial(kCount);
        std::byte* to = whole.data();
        kernels->kernel[type][op](from.data(), kSources, &to, 1, kCount);
        for (int cut = 1; cut < kSources; ++cut) {
          auto* kept = reinterpret_cast<std::byte*>(partial.data());
          kernels->fold[type][op](nullptr, from.data(), cut, kept, true, kCount);
          if (cut > 1) kernels->fold[type][op](kept, from.data(), 0, kept, true, kCount);  // a part with nothing to add
          kernels->fold[type][op](kept, from.data() + cut, kSources - cut, parts.data(), false, kCount);
          ASSERT_EQ(std::memcmp(whole.data(), parts.data(), size), 0)
              << Name(static_cast<ElementType>(type)) << " " << Name(static_cast<ReduceOp>(op)) << " cut at " << cut;
        }
      }
    }
  }
}

}  // namespace
}  // namespace gantry
