#include "memory/tier/copy_encoding.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace gantry {
namespace {

std::vector<std::byte> Buffer() { return std::vector<std::byte>(kEncodedChunkBytes + kEncodedSlackBytes); }

// Encodes into a buffer of exactly the promised room, decodes from it, and compares bits.
int64_t ExpectSameBits(const std::vector<float>& values) {
  std::vector<std::byte> encoded = Buffer();
  const int64_t bytes = EncodeChunk(CopyEncoding::kZeros, values, encoded.data());
  std::vector<float> back(values.size(), 7.0f);
  EXPECT_TRUE(DecodeChunk(CopyEncoding::kZeros, encoded.data(), bytes, back));
  EXPECT_EQ(std::memcmp(back.data(), values.data(), values.size() * sizeof(float)), 0);
  EXPECT_LE(bytes, static_cast<int64_t>(values.size() * sizeof(float)));
  return bytes;
}

TEST(ZeroBitmapTest, EveryLengthAndDensityComesBackToTheBit) {
  std::mt19937 random(1);
  for (const int64_t count : {1, 2, 7, 31, 32, 33, 63, 64, 65, 127, 128, 1000, 4096, 65535, 65536}) {
    for (const double density : {0.0, 0.01, 0.5, 0.97, 1.0}) {
      std::vector<float> values(count);
      int64_t kept = 0;
      for (float& value : values) {
        value = std::uniform_real_distribution<>()(random) < density
                    ? std::bit_cast<float>(static_cast<uint32_t>(random()) | 1u)
                    : 0.0f;
        kept += value != 0.0f || std::isnan(value);
      }
      const int64_t packed = 8 + (count + 63) / 64 * 8 + 4 * kept;
      EXPECT_EQ(ExpectSameBits(values), std::min(packed, 4 * count)) << count << " " << density;
    }
  }
}

TEST(ZeroBitmapTest, TheOtherZeroNansAndDenormalsAreKept) {
  std::vector<float> values(256, 0.0f);
  values[3] = -0.0f;
  values[64] = std::numeric_limits<float>::quiet_NaN();
  values[65] = std::bit_cast<float>(0xff812345u);  // a signalling NaN with a payload
  values[130] = std::numeric_limits<float>::denorm_min();
  values[255] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(ExpectSameBits(values), 8 + 4 * 8 + 5 * 4);
  // Relus that multiply by 0 make minus zeros.
  for (float& value : values) value = value == 0.0f ? -value : value;
  EXPECT_EQ(ExpectSameBits(values), 8 + 4 * 8 + 5 * 4);
}

TEST(ZeroBitmapTest, DamageIsFoundOrHarmless) {
  std::mt19937 random(2);
  std::vector<float> values(1000);
  for (float& value : values) value = random() % 2 == 0 ? 0.0f : 1.5f;
  std::vector<std::byte> encoded = Buffer();
  const int64_t bytes = EncodeChunk(CopyEncoding::kZeros, values, encoded.data());
  std::vector<float> back(values.size());
  const int64_t header = 8 + (1000 + 63) / 64 * 8;
  for (int64_t at = 0; at < header; ++at) {  // any one bit of the bitmap changes how many there must be
    std::vector<std::byte> damaged = encoded;
    damaged[at] ^= std::byte{1} << (at % 8);
    EXPECT_FALSE(DecodeChunk(CopyEncoding::kZeros, damaged.data(), bytes, back)) << at;
  }
  for (const int64_t wrong : {int64_t{0}, header - 1, bytes - 4, bytes + 4, int64_t{4001}}) {
    EXPECT_FALSE(DecodeChunk(CopyEncoding::kZeros, encoded.data(), wrong, back)) << wrong;
  }
}

// Round to nearest, ties to even, by search: the nearer of the two neighbours whose low half is zero.
float Nearest(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const float low = std::bit_cast<float>(bits & 0xffff0000u);
  const uint64_t next = uint64_t{bits & 0xffff0000u} + 0x10000u;
  const double high = (next & 0x7fffffffu) == 0x7f800000u
                          ? std::copysign(std::ldexp(1.0, 128), value)
                          : static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(next)));
  const double to_low = std::abs(static_cast<double>(value) - low),
               to_high = std::abs(high - static_cast<double>(value));
  const bool up = to_high < to_low || (to_high == to_low && (bits >> 16 & 1) != 0);
  return up ? std::bit_cast<float>(static_cast<uint32_t>(next)) : low;
}

TEST(Bf16Test, RoundsToNearest) {
  std::mt19937 random(3);
  std::vector<float> values = {0.0f,
                               -0.0f,
                               1.0f,
                               1.00390625f,
                               1.01171875f,
                               std::numeric_limits<float>::max(),
                               3.3895314e38f,
                               1e-45f,
                               std::numeric_limits<float>::infinity(),
                               -std::numeric_limits<float>::infinity()};
  while (values.size() < 60000) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (std::isfinite(value)) values.push_back(value);
  }
  std::vector<std::byte> encoded = Buffer();
  const int64_t bytes = EncodeChunk(CopyEncoding::kBf16, values, encoded.data());
  EXPECT_EQ(bytes, static_cast<int64_t>(2 * values.size()));
  std::vector<float> back(values.size());
  ASSERT_TRUE(DecodeChunk(CopyEncoding::kBf16, encoded.data(), bytes, back));
  for (size_t i = 0; i < values.size(); ++i) {
    const float expected = std::isfinite(values[i]) ? Nearest(values[i]) : values[i];
    EXPECT_EQ(std::bit_cast<uint32_t>(back[i]), std::bit_cast<uint32_t>(expected)) << values[i];
  }
  EXPECT_FALSE(DecodeChunk(CopyEncoding::kBf16, encoded.data(), bytes - 2, back));
}

TEST(Bf16Test, NansStayNans) {
  const std::vector<float> values = {std::numeric_limits<float>::quiet_NaN(), std::bit_cast<float>(0x7f800001u),
                                     std::bit_cast<float>(0xffffffffu)};
  std::vector<std::byte> encoded = Buffer();
  const int64_t bytes = EncodeChunk(CopyEncoding::kBf16, values, encoded.data());
  std::vector<float> back(values.size());
  ASSERT_TRUE(DecodeChunk(CopyEncoding::kBf16, encoded.data(), bytes, back));
  for (const float value : back) EXPECT_TRUE(std::isnan(value));
}

}  // namespace
}  // namespace gantry
