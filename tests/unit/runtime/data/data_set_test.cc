#include "runtime/data/data_set.h"

#include <cmath>

#include "runtime/data/npy.h"
#include "runtime/data/npz.h"
#include "runtime/data/png.h"
#include "runtime/data/resize.h"
#include "runtime/data/safetensors.h"
#include "tests/unit/runtime/data/data_test_support.h"

namespace gantry {
namespace {

using Shape = std::vector<int64_t>;

std::unique_ptr<DataSet> Open(const std::string& path, const DataSetOptions& options = {}) {
  absl::StatusOr<std::unique_ptr<DataSet>> data_set = OpenDataSet(path, options);
  EXPECT_TRUE(data_set.ok()) << data_set.status();
  return std::move(data_set).value();
}

std::vector<float> Sample(const DataSet& data_set, int64_t index) {
  std::vector<float> values(data_set.sample_elements());
  const absl::Status status = data_set.Read(index, values);
  EXPECT_TRUE(status.ok()) << status;
  return values;
}

std::vector<float> Scaled(const std::vector<int>& pixels) {
  std::vector<float> values;
  for (int pixel : pixels) values.push_back(static_cast<float>(pixel) / 127.5f - 1.0f);
  return values;
}

HostArray GreyImage(int64_t height, int64_t width, uint8_t value) {
  return MakeArray<uint8_t>({height, width, 1}, std::vector<uint8_t>(height * width, value));
}

TEST(DataSetTest, IdxImagesAreScaledAndGetAChannel) {
  for (const char* name : {"u1.idx3-ubyte", "u1.idx3-ubyte.gz"}) {
    const auto data_set = Open(FixturePath(name));
    EXPECT_EQ(data_set->size(), 5);
    EXPECT_EQ(data_set->sample_shape(), (Shape{1, 4, 3}));
    EXPECT_EQ(Sample(*data_set, 1), Scaled({12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}));
    EXPECT_THAT(data_set->Describe(), testing::HasSubstr("5 samples [1,4,3] of IDX file"));
  }
  const auto floats = Open(FixturePath("f4.idx2"));  // big-endian floats stay as they are
  EXPECT_EQ(floats->sample_shape(), (Shape{3}));
  EXPECT_EQ(Sample(*floats, 1), (std::vector<float>{-1.5f, -1.0f, -0.5f}));
}

TEST(DataSetTest, ImagesArePaddedInTheMiddle) {
  const auto data_set = Open(FixturePath("u1.idx3-ubyte"), {.height = 5, .width = 5});
  EXPECT_EQ(data_set->sample_shape(), (Shape{1, 5, 5}));
  std::vector<float> expected(25, -1.0f);
  for (int y = 0; y < 4; ++y) {
    for (int x = 0; x < 3; ++x) expected[y * 5 + x + 1] = static_cast<float>(y * 3 + x) / 127.5f - 1.0f;
  }
  EXPECT_EQ(Sample(*data_set, 0), expected);
  EXPECT_THAT(OpenDataSet(FixturePath("u1.idx3-ubyte"), {.height = 3}), FailsWith(kInvalid, "not scaled down"));
  EXPECT_THAT(OpenDataSet(FixturePath("u1.idx3-ubyte"), {.height = -3}), FailsWith(kInvalid, "-3"));
  EXPECT_THAT(OpenDataSet(FixturePath("f4.idx2"), {.height = 8}), FailsWith(kInvalid, "no images to pad"));
  EXPECT_THAT(OpenDataSet(FixturePath("u1.idx3-ubyte"), {.height = INT64_MAX, .width = INT64_MAX}),
              FailsWith(kInvalid, "64-bit"));
}

TEST(DataSetTest, ArraysOfEveryFileFormatReadAlike) {
  const TemporaryFolder folder;
  const HostArray images = MakeArray<float>({3, 2, 2, 3}, FixtureFloats<float>(36));
  const std::vector<NamedArray> one = {{"images", images}};
  ASSERT_TRUE(WriteNpy(folder / "a.npy", images).ok());
  ASSERT_TRUE(WriteNpz(folder / "a.npz", one).ok());
  ASSERT_TRUE(WriteSafetensors(folder / "a.safetensors", one).ok());
  for (const char* name : {"a.npy", "a.npz", "a.safetensors"}) {
    const auto data_set = Open(folder / name);
    EXPECT_EQ(data_set->sample_shape(), (Shape{2, 2, 3})) << name;
    for (int64_t index : {2, 0, 1}) {
      const auto expected = images.values<float>().subspan(index * 12, 12);
      EXPECT_EQ(Sample(*data_set, index), std::vector<float>(expected.begin(), expected.end())) << name;
    }
  }
  // The channel last: [H, W, C] = [2, 2, 3] becomes [3, 2, 2], padded to 2 x 3.
  const auto turned = Open(folder / "a.npy", {.width = 3, .channels_last = true});
  EXPECT_EQ(turned->sample_shape(), (Shape{3, 2, 3}));
  EXPECT_EQ(Sample(*turned, 0), (std::vector<float>{-3, -1.5f, -1, 0, 1.5f, -1,  //
                                                    -2.5f, -1, -1, 0.5f, 2, -1,  //
                                                    -2, -0.5f, -1, 1, 2.5f, -1}));
}

TEST(DataSetTest, SamplesLargerThanOnePartAreReadWhole) {
  const TemporaryFolder folder;
  std::vector<double> values(2 * 20000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i);
  ASSERT_TRUE(WriteNpy(folder / "a.npy", MakeArray<double>({2, 100, 200}, values)).ok());
  const std::vector<float> plain = Sample(*Open(folder / "a.npy"), 1);
  const std::vector<float> padded = Sample(*Open(folder / "a.npy", {.height = 100, .width = 201}), 1);
  for (int64_t i = 0; i < 20000; ++i) {
    ASSERT_EQ(plain[i], static_cast<float>(20000 + i));
    ASSERT_EQ(padded[i / 200 * 201 + i % 200], static_cast<float>(20000 + i));
  }
  // Planes last, the parts' borders within a pixel: [H, W, C] = [100, 67, 3].
  ASSERT_TRUE(WriteNpy(folder / "b.npy",
                       MakeArray<double>({1, 100, 67, 3}, std::vector<double>(values.begin(), values.begin() + 20100)))
                  .ok());
  const std::vector<float> turned =
      Sample(*Open(folder / "b.npy", {.height = 102, .width = 70, .channels_last = true}), 0);
  for (int64_t i = 0; i < 20100; ++i) {
    const int64_t row = i / 201 + 1, column = i / 3 % 67 + 1, channel = i % 3;
    ASSERT_EQ(turned[(channel * 102 + row) * 70 + column], static_cast<float>(i));
  }
  EXPECT_EQ(turned[0], -1.0f);
}

TEST(DataSetTest, ErrorsSayWhatToDo) {
  const TemporaryFolder folder;
  EXPECT_THAT(OpenDataSet(folder / "none"), FailsWith(absl::StatusCode::kNotFound, "none"));
  WriteText(folder / "note.txt", "nothing");
  EXPECT_THAT(OpenDataSet(folder.path()), FailsWith(absl::StatusCode::kNotFound, "*.png"));
  EXPECT_THAT(OpenDataSet(folder.path()), FailsWith(absl::StatusCode::kNotFound, "train-images-idx3-ubyte"));
  EXPECT_THAT(OpenDataSet(folder.path()), FailsWith(absl::StatusCode::kNotFound, "among 1 files"));
  EXPECT_THAT(OpenDataSet(folder / "note.txt"), FailsWith(kInvalid, "no data set that is known"));
  EXPECT_THAT(OpenDataSet(folder.path(), {.split = "validation"}), FailsWith(kInvalid, "neither train nor test"));
  EXPECT_THAT(OpenDataSet(FixturePath("f4_fortran.npy")), FailsWith(kInvalid, "ascontiguousarray"));
  EXPECT_THAT(OpenDataSet(FixturePath("i8_scalar.npy")), FailsWith(kInvalid, "no samples"));
  EXPECT_THAT(OpenDataSet(FixturePath("empty.npy")), FailsWith(kInvalid, "no samples"));
  EXPECT_THAT(OpenDataSet(FixturePath("stored.npz")), FailsWith(kInvalid, "images, labels"));
  EXPECT_THAT(OpenDataSet(FixturePath("stored.npz"), {.tensor = "image"}),
              FailsWith(absl::StatusCode::kNotFound, "images, labels"));
  EXPECT_THAT(OpenDataSet(FixturePath("deflated.npz"), {.tensor = "zeros", .max_memory_bytes = 1000}),
              FailsWith(absl::StatusCode::kResourceExhausted, "16512 bytes"));
  EXPECT_THAT(OpenDataSet(FixturePath("numpy.safetensors")), FailsWith(kInvalid, "weight"));
  EXPECT_THAT(OpenDataSet(FixturePath("numpy.safetensors"), {.tensor = "x"}),
              FailsWith(absl::StatusCode::kNotFound, "weight"));
  EXPECT_THAT(OpenDataSet(FixturePath("u1.idx3-ubyte.gz"), {.max_memory_bytes = 50}),
              FailsWith(absl::StatusCode::kResourceExhausted, "gunzip"));
  const auto data_set = Open(FixturePath("u1.npy"));
  std::vector<float> room(16);
  EXPECT_THAT(data_set->Read(2, room), FailsWith(kInvalid, "2 samples"));
  EXPECT_THAT(data_set->Read(-1, room), FailsWith(kInvalid, "2 samples"));
  EXPECT_THAT(data_set->Read(0, std::span(room).subspan(1)), FailsWith(kInvalid, "15 values"));
}

TEST(DataSetTest, PngFoldersAreReadInTheOrderOfTheirPaths) {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder / "b/c");
  ASSERT_TRUE(WritePng(folder / "z.png", GreyImage(2, 3, 200)).ok());
  ASSERT_TRUE(WritePng(folder / "b/c/y.PNG", GreyImage(2, 3, 100)).ok());
  ASSERT_TRUE(WritePng(folder / "a.png", GreyImage(2, 3, 0)).ok());
  WriteText(folder / "b/readme.txt", "no image");
  std::filesystem::create_directory_symlink(folder.path(), folder / "b/loop");
  const auto data_set = Open(folder.path());
  ASSERT_EQ(data_set->size(), 3);
  EXPECT_EQ(data_set->sample_shape(), (Shape{1, 2, 3}));
  EXPECT_EQ(Sample(*data_set, 0)[5], -1.0f);
  EXPECT_EQ(Sample(*data_set, 1)[5], 100 / 127.5f - 1.0f);
  EXPECT_EQ(Sample(*data_set, 2)[5], 200 / 127.5f - 1.0f);
}

TEST(DataSetTest, PngImagesThatDifferAreAnErrorUnlessTheOptionsSayWhatToDo) {
  const TemporaryFolder folder;
  ASSERT_TRUE(WritePng(folder / "a.png", GreyImage(4, 4, 50)).ok());
  ASSERT_TRUE(WritePng(folder / "b.png", GreyImage(8, 6, 50)).ok());
  ASSERT_TRUE(WritePng(folder / "c.png", MakeArray<uint8_t>({4, 4, 3}, std::vector<uint8_t>(48, 50))).ok());
  std::filesystem::copy_file(FixturePath("grey_alpha.png"), folder / "d.png");
  std::filesystem::copy_file(FixturePath("rgba.png"), folder / "e.png");
  WriteText(folder / "f.png", "broken");
  const auto strict = Open(folder.path());
  std::vector<float> room(16);
  EXPECT_TRUE(strict->Read(0, room).ok());
  EXPECT_THAT(strict->Read(1, room), FailsWith(kInvalid, "b.png: has 6 x 8 pixels"));
  EXPECT_THAT(strict->Read(2, room), FailsWith(kInvalid, "c.png: has colours"));
  EXPECT_THAT(strict->Read(5, room), FailsWith(kInvalid, "f.png: is no PNG"));
  const auto grey = Open(folder.path(), {.height = 4, .width = 4, .channels = 1});
  const auto colour = Open(folder.path(), {.height = 4, .width = 4, .channels = 3});
  EXPECT_EQ(colour->sample_shape(), (Shape{3, 4, 4}));
  for (int64_t index : {0, 1, 2}) {
    for (float value : Sample(*grey, index)) EXPECT_NEAR(value, 50 / 127.5f - 1.0f, 1e-6);
    for (float value : Sample(*colour, index)) EXPECT_NEAR(value, 50 / 127.5f - 1.0f, 1e-6);
  }
  Sample(*colour, 3);
  Sample(*grey, 4);
  EXPECT_THAT(OpenDataSet(folder.path(), {.channels = 2}), FailsWith(kInvalid, "2 channels"));
  // rgba.png as it is: pixel (y, x) is 40 y + 10 x + channel; the middle 4 of its 5 columns, half a pixel off.
  const TemporaryFolder single;
  std::filesystem::copy_file(FixturePath("rgba.png"), single / "e.png");
  const auto cropped = Open(single.path(), {.height = 4, .width = 4});
  EXPECT_NEAR(Sample(*cropped, 0)[16 + 4 + 1], (40 + 15 + 1) / 127.5f - 1.0f, 1e-6);
}

TEST(ResizeTest, AgreesWithPillow) {
  const HostArray source = ReadPng(FixturePath("scale_source.png")).value();
  for (const auto& [height, width] : {std::pair{8, 8}, {34, 40}, {5, 20}}) {
    const HostArray expected = ReadNpy(FixturePath(absl::StrFormat("scaled_%dx%d.npy", height, width))).value();
    std::vector<float> scaled(3 * height * width);
    ASSERT_TRUE(ResizeAndCrop(source.values<uint8_t>().data(), 17, 24, 3, height, width, scaled.data()).ok());
    double error = 0;
    for (int c = 0; c < 3; ++c) {
      for (int pixel = 0; pixel < height * width; ++pixel) {
        const double off = std::abs(scaled[c * height * width + pixel] - expected.values<uint8_t>()[pixel * 3 + c]);
        EXPECT_LE(off, 1.01) << height << "x" << width << " pixel " << pixel;  // Pillow rounds twice
        error += off / (3.0 * height * width);
      }
    }
    EXPECT_LT(error, 0.4);
  }
}

TEST(DataSetTest, FashionMnistFolderIsRecognised) {
  const std::string folder = "/usr/share/datasets/fashion-mnist";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "Debian's package dataset-fashion-mnist is not installed";
  const auto train = Open(folder, {.height = 32, .width = 32});
  EXPECT_EQ(train->size(), 60000);
  EXPECT_EQ(train->sample_shape(), (Shape{1, 32, 32}));
  const std::vector<float> image = Sample(*train, 59999);
  EXPECT_EQ(image[0], -1.0f);
  EXPECT_GT(*std::ranges::max_element(image), 0.5f);
  EXPECT_EQ(Open(folder, {.split = "test"})->size(), 10000);
}

}  // namespace
}  // namespace gantry
