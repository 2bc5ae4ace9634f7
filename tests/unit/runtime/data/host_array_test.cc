#include "runtime/data/host_array.h"

#include <cmath>
#include <limits>

#include "tests/unit/runtime/data/data_test_support.h"

namespace gantry {
namespace {

TEST(HostArrayTest, KnowsItsValuesAndRefusesOtherTypes) {
  HostArray array = MakeArray<int32_t>({2, 2}, {1, -2, 3, -4});
  EXPECT_EQ(array.ToString(), "i32[2,2]");
  EXPECT_EQ(array.size_bytes(), 16u);
  EXPECT_EQ(array.values<int32_t>()[3], -4);
  EXPECT_TRUE(array.values<float>().empty());
  EXPECT_EQ(MakeArray<float>({}, {5.0f}).element_count(), 1);
}

TEST(HostArrayTest, RefusesImpossibleShapes) {
  EXPECT_THAT(HostArray::Create(HostType::kF32, {2, -1}), FailsWith(kInvalid, "negative"));
  EXPECT_THAT(HostArray::Create(HostType::kF32, {int64_t{1} << 40, int64_t{1} << 40}), FailsWith(kInvalid, "64-bit"));
  EXPECT_THAT(HostArray::Create(HostType::kF64, {INT64_MAX / 4}), FailsWith(kInvalid, "64-bit"));
  EXPECT_THAT(HostArray::Create(HostType::kU8, {0, INT64_MAX, INT64_MAX}), FailsWith(kInvalid, "64-bit"));
  EXPECT_THAT(HostArray::Create(HostType::kU8, std::vector<int64_t>(40, 1)), FailsWith(kInvalid, "40 dimensions"));
  EXPECT_THAT(HostArray::FromBytes(HostType::kF32, {3}, std::vector<std::byte>(8)), FailsWith(kInvalid, "12 bytes"));
  EXPECT_THAT(HostArray::FromValues<float>({3}, std::vector<float>(2)), FailsWith(kInvalid, "2 values"));
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // these stop the program on such a size instead
TEST(HostArrayTest, ReportsMissingMemory) {
  EXPECT_THAT(HostArray::Create(HostType::kU8, {INT64_MAX / 2}),
              FailsWith(absl::StatusCode::kResourceExhausted, "no memory"));
}
#endif

TEST(HostArrayTest, ConvertsEveryTypeToFloats) {
  const auto convert = [](HostType type, std::vector<uint8_t> bytes) {
    std::vector<std::byte> raw;
    for (uint8_t byte : bytes) raw.push_back(std::byte{byte});
    const auto count = static_cast<int64_t>(raw.size() / SizeBytes(type));
    const HostArray array = HostArray::FromBytes(type, {count}, raw).value();
    const HostArray narrow = array.ToF32().value(), wide = array.ToF64().value();
    std::vector<double> values;
    for (int64_t i = 0; i < count; ++i) {
      values.push_back(wide.values<double>()[i]);
      EXPECT_EQ(narrow.values<float>()[i], static_cast<float>(values.back()));
    }
    return values;
  };
  using Values = std::vector<double>;
  EXPECT_EQ(convert(HostType::kBool, {0, 1, 7}), (Values{0, 1, 1}));
  EXPECT_EQ(convert(HostType::kU8, {0, 255}), (Values{0, 255}));
  EXPECT_EQ(convert(HostType::kI8, {0x80, 0x7f}), (Values{-128, 127}));
  EXPECT_EQ(convert(HostType::kU16, {0xff, 0xff}), (Values{65535}));
  EXPECT_EQ(convert(HostType::kI16, {0xff, 0xff}), (Values{-1}));
  EXPECT_EQ(convert(HostType::kU32, {0, 0, 0, 0x80}), (Values{2147483648.0}));
  EXPECT_EQ(convert(HostType::kI32, {0, 0, 0, 0x80}), (Values{-2147483648.0}));
  EXPECT_EQ(convert(HostType::kU64, {0, 0, 0, 0, 0, 0, 0, 0x80}), (Values{0x1p63}));
  EXPECT_EQ(convert(HostType::kI64, {0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}), (Values{-2}));
  EXPECT_EQ(convert(HostType::kF16, {0x00, 0x3c, 0x00, 0xc0, 0x01, 0x00}), (Values{1, -2, 0x1p-24}));
  EXPECT_EQ(convert(HostType::kBF16, {0x80, 0x3f, 0x00, 0xc0}), (Values{1, -2}));
  EXPECT_EQ(convert(HostType::kF8E4M3, {0x38, 0x7e, 0x01, 0xb8}), (Values{1, 448, 0x1p-9, -1}));
  EXPECT_EQ(convert(HostType::kF8E5M2, {0x3c, 0x7b, 0x01, 0xfc}),
            (Values{1, 57344, 0x1p-16, -std::numeric_limits<double>::infinity()}));
  EXPECT_EQ(convert(HostType::kF64, {0, 0, 0, 0, 0, 0, 0xf0, 0x3f}), (Values{1}));
}

TEST(HostArrayTest, HalfPrecisionRoundsTripAndToNearestEven) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = F16ToF32(half), wide = BF16ToF32(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(F16ToF32(F32ToF16(value))));
    } else {
      EXPECT_EQ(F32ToF16(value), half);
    }
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(wide))));
    } else {
      EXPECT_EQ(F32ToBF16(wide), half);
    }
  }
  EXPECT_EQ(F32ToF16(1.0f + 0x1p-11f), 0x3c00);      // halfway: to the even one below
  EXPECT_EQ(F32ToF16(1.0f + 3 * 0x1p-11f), 0x3c02);  // halfway: to the even one above
  EXPECT_EQ(F32ToF16(65519.0f), 0x7bff);
  EXPECT_EQ(F32ToF16(65520.0f), 0x7c00);
  EXPECT_EQ(F32ToF16(0x1p-25f), 0);
  EXPECT_EQ(F32ToF16(0x1.8p-25f), 1);
  EXPECT_EQ(F32ToBF16(1.0f + 0x1p-8f), 0x3f80);
  EXPECT_EQ(F32ToBF16(1.0f + 3 * 0x1p-8f), 0x3f82);
  EXPECT_EQ(F32ToBF16(std::numeric_limits<float>::max()), 0x7f80);
}

}  // namespace
}  // namespace gantry
