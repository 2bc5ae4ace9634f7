#include "runtime/data/png.h"

#include <zlib.h>

#include "runtime/data/image_grid.h"
#include "tests/unit/runtime/data/data_test_support.h"

namespace gantry {
namespace {

// The images of tests/data/make_arrays.py: 4 rows, 5 columns, value 40 * y + 10 * x + c.
HostArray Expected(int64_t channels, int factor = 1) {
  std::vector<uint8_t> values;
  for (int y = 0; y < 4; ++y) {
    for (int x = 0; x < 5; ++x) {
      for (int c = 0; c < channels; ++c) values.push_back(static_cast<uint8_t>(factor * (40 * y + 10 * x + c)));
    }
  }
  return MakeArray<uint8_t>({4, 5, channels}, values);
}

void PutBigEndian(std::string& text, size_t at, uint32_t value) {
  for (int i = 0; i < 4; ++i) text[at + i] = static_cast<char>(value >> (24 - 8 * i));
}

// `png` with another size in its header, and the header's checksum made right.
std::string Resized(std::string png, uint32_t width, uint32_t height) {
  PutBigEndian(png, 16, width);
  PutBigEndian(png, 20, height);
  PutBigEndian(png, 29, static_cast<uint32_t>(crc32(0, reinterpret_cast<const Bytef*>(png.data()) + 12, 17)));
  return png;
}

TEST(PngTest, ReadsTheColourTypesOfOtherPrograms) {
  EXPECT_EQ(ReadPng(FixturePath("grey.png")).value(), Expected(1));
  EXPECT_EQ(ReadPng(FixturePath("grey_alpha.png")).value(), Expected(2));
  EXPECT_EQ(ReadPng(FixturePath("rgb.png")).value(), Expected(3));
  EXPECT_EQ(ReadPng(FixturePath("rgba.png")).value(), Expected(4));
  EXPECT_EQ(ReadPng(FixturePath("palette.png")).value(), Expected(3));
  EXPECT_EQ(ReadPng(FixturePath("interlaced.png")).value(), Expected(1));
  EXPECT_EQ(ReadPng(FixturePath("sixteen_bit.png")).value(), Expected(1));
  const HostArray bits = ReadPng(FixturePath("one_bit.png")).value();
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(bits.values<uint8_t>()[i], Expected(1).values<uint8_t>()[i] > 100 ? 255 : 0);
  }
}

TEST(PngTest, RoundTrips) {
  const TemporaryFolder folder;
  for (int64_t channels : {1, 3}) {
    ASSERT_TRUE(WritePng(folder / "a.png", Expected(channels)).ok());
    EXPECT_EQ(ReadPng(folder / "a.png").value(), Expected(channels));
  }
  EXPECT_THAT(WritePng(folder / "b.png", Expected(4)), FailsWith(kInvalid, "no image"));
  EXPECT_THAT(WritePng(folder / "b.png", MakeArray<uint8_t>({0, 1, 1}, {})), FailsWith(kInvalid, "no image"));
  EXPECT_THAT(WritePng(folder / "b.png", MakeArray<float>({1, 1, 1}, {0})), FailsWith(kInvalid, "no image"));
  EXPECT_EQ(folder.file_count(), 1u);
}

TEST(PngTest, EveryTruncationIsRefused) {
  for (const char* name : {"grey.png", "palette.png", "interlaced.png"}) {
    ExpectEveryTruncationFails(ReadText(FixturePath(name)), [](auto bytes) { return DecodePng(bytes).status(); });
  }
}

TEST(PngTest, EveryDamagedByteIsNoticedOrHarmless) {
  const std::string good = ReadText(FixturePath("rgb.png"));
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x11);
    const absl::StatusOr<HostArray> read = DecodePng(AsBytes(bad));
    if (read.ok()) {
      EXPECT_EQ(*read, Expected(3)) << "byte " << at;
    }
  }
}

TEST(PngTest, HugeSizesAreRefusedBeforeAnythingIsAllocated) {
  const std::string good = ReadText(FixturePath("grey.png"));
  ASSERT_TRUE(DecodePng(AsBytes(Resized(good, 5, 4))).ok());
  EXPECT_THAT(DecodePng(AsBytes(Resized(good, 100000, 100000))),
              FailsWith(absl::StatusCode::kResourceExhausted, "100000 x 100000"));
  EXPECT_THAT(DecodePng(AsBytes(Resized(good, 8000, 8000))), FailsWith(kInvalid, "cannot be"));
  EXPECT_THAT(DecodePng(AsBytes(Resized(good, 0x7fffffff, 1))), FailsWith(kInvalid, "libpng"));
  EXPECT_THAT(DecodePng(AsBytes(Resized(good, 0, 4))), FailsWith(kInvalid, "libpng"));
  EXPECT_THAT(DecodePng(AsBytes(Resized(good, 5, 5))), FailsWith(kInvalid, "libpng"));
  EXPECT_THAT(DecodePng(AsBytes(good), "x", {.max_pixels = 19}),
              FailsWith(absl::StatusCode::kResourceExhausted, "at most 19"));
  EXPECT_THAT(DecodePng(AsBytes("GIF89a...")), FailsWith(kInvalid, "no PNG"));
  EXPECT_EQ(DecodePngInfo(AsBytes(good)).value().width, 5);
}

TEST(ImageGridTest, PlacesEveryImage) {
  // Three images of 1 x 2 pixels and 3 channels, two a row.
  const std::vector<float> images = {-1, 1, -1, -1, 1, 1, 0, 0.5f, 2, -7, 0, 0, 1, 1, 1, 1, 1, NAN};
  const std::vector<int64_t> shape = {3, 3, 1, 2};
  const TemporaryFolder folder;
  ASSERT_TRUE(WriteImageGrid(folder / "a.png", images, shape, 2).ok());
  const HostArray grid = ReadPng(folder / "a.png").value();
  ASSERT_EQ(grid.shape(), (std::vector<int64_t>{2 * 3 + 2, 2 * 4 + 2, 3}));
  const auto pixel = [&](int64_t y, int64_t x) {
    const uint8_t* at = grid.values<uint8_t>().data() + (y * grid.shape()[1] + x) * 3;
    return std::vector<int>{at[0], at[1], at[2]};
  };
  using Pixel = std::vector<int>;
  EXPECT_EQ(pixel(2, 2), (Pixel{0, 0, 255}));
  EXPECT_EQ(pixel(2, 3), (Pixel{255, 0, 255}));
  EXPECT_EQ(pixel(2, 6), (Pixel{128, 255, 128}));
  EXPECT_EQ(pixel(2, 7), (Pixel{191, 0, 128}));
  EXPECT_EQ(pixel(5, 2), (Pixel{255, 255, 255}));
  EXPECT_EQ(pixel(5, 3), (Pixel{255, 255, 0}));  // the last is NaN
  EXPECT_EQ(pixel(5, 6), (Pixel{0, 0, 0}));      // no image here
  EXPECT_EQ(pixel(0, 0), (Pixel{0, 0, 0}));
}

TEST(ImageGridTest, RefusesOtherShapes) {
  const std::vector<float> values(12);
  const auto make = [&](std::vector<int64_t> shape, int64_t columns) {
    return MakeImageGrid(values, shape, columns).status();
  };
  EXPECT_TRUE(make({1, 3, 2, 2}, 100).ok());
  EXPECT_THAT(make({3, 2, 2}, 1), FailsWith(kInvalid, "[3,2,2]"));
  EXPECT_THAT(make({1, 2, 3, 2}, 1), FailsWith(kInvalid, "[1,2,3,2]"));
  EXPECT_THAT(make({2, 3, 2, 2}, 1), FailsWith(kInvalid, "12 values"));
  EXPECT_THAT(make({0, 3, 2, 2}, 1), FailsWith(kInvalid, "N > 0"));
  EXPECT_THAT(make({1, 3, 2, 2}, 0), FailsWith(kInvalid, "0 columns"));
}

}  // namespace
}  // namespace gantry
