#include "runtime/data/npz.h"

#include "runtime/data/npy.h"
#include "tests/unit/runtime/data/data_test_support.h"

namespace gantry {
namespace {

// Opens and reads everything, as ReadNpz does from a file.
absl::Status ReadEverything(std::span<const std::byte> bytes) {
  GANTRY_ASSIGN_OR_RETURN(const NpzFile file, NpzFile::Open(MemorySource(bytes)));
  for (const std::string& name : file.names()) GANTRY_RETURN_IF_ERROR(file.Read(name).status());
  return absl::OkStatus();
}
absl::Status ReadEverything(std::string_view text) { return ReadEverything(AsBytes(text)); }

void Put(std::string& text, size_t at, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) text[at + i] = static_cast<char>(value >> (8 * i));
}

TEST(NpzTest, AgreesWithNumPy) {
  const NpzFile stored = NpzFile::Open(FixturePath("stored.npz")).value();
  EXPECT_EQ(stored.names(), (std::vector<std::string>{"images", "labels"}));
  EXPECT_EQ(stored.Read("images").value(), MakeArray<float>({2, 1, 3, 3}, FixtureFloats<float>(18)));
  EXPECT_EQ(stored.Read("labels").value(), MakeArray<int64_t>({2}, {0, 1}));
  EXPECT_THAT(stored.Read("image"), FailsWith(absl::StatusCode::kNotFound, "images, labels"));
  const NpzFile deflated = NpzFile::Open(FixturePath("deflated.npz")).value();
  EXPECT_EQ(deflated.Read("images").value(), MakeArray<float>({2, 1, 3, 3}, FixtureFloats<float>(18)));
  EXPECT_EQ(deflated.Read("zeros").value(), HostArray::Create(HostType::kF32, {64, 64}).value());
}

TEST(NpzTest, RoundTrips) {
  const TemporaryFolder folder;
  const std::vector<NamedArray> arrays = {{"a", MakeArray<float>({2, 2}, {1, 2, 3, 4})},
                                          {"layer.0/weight", MakeArray<uint8_t>({3}, {7, 8, 9})},
                                          {"none", MakeArray<int64_t>({0}, {})}};
  ASSERT_TRUE(WriteNpz(folder / "a.npz", arrays).ok());
  const auto read = ReadNpz(folder / "a.npz").value();
  ASSERT_EQ(read.size(), arrays.size());
  for (size_t i = 0; i < arrays.size(); ++i) {
    EXPECT_EQ(read[i].name, arrays[i].name);
    EXPECT_EQ(read[i].array, arrays[i].array);
  }
  const std::vector<NamedArray> twice = {{"a", HostArray()}, {"a", HostArray()}};
  EXPECT_THAT(WriteNpz(folder / "b.npz", twice), FailsWith(kInvalid, "comes twice"));
  EXPECT_EQ(folder.file_count(), 1u);
}

TEST(NpzTest, EveryTruncationIsRefused) {
  for (const char* name : {"stored.npz", "deflated.npz"}) {
    ExpectEveryTruncationFails(ReadText(FixturePath(name)), [](auto bytes) { return ReadEverything(bytes); });
  }
}

TEST(NpzTest, EveryDamagedByteOfDataIsNoticed) {
  for (const char* name : {"stored.npz", "deflated.npz"}) {
    const std::string good = ReadText(FixturePath(name));
    const size_t data = good.find("images.npy") + 10 + 20;  // past NumPy's zip64 field, in the first entry's data
    for (size_t at = data; at < data + 60; ++at) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 0x20);
      EXPECT_FALSE(ReadEverything(bad).ok()) << name << " byte " << at;
    }
  }
}

TEST(NpzTest, HostileDirectoriesAreRefused) {
  const std::string good = ReadText(FixturePath("stored.npz"));
  const size_t end = good.size() - 22;
  const size_t first = good.find("PK\x01\x02"), second = good.find("PK\x01\x02", first + 4);
  ASSERT_NE(second, std::string::npos);
  const auto changed = [&](std::initializer_list<std::tuple<size_t, uint64_t, size_t>> changes) {
    std::string bad = good;
    for (const auto& [at, value, bytes] : changes) Put(bad, at, value, bytes);
    return ReadEverything(bad);
  };
  ASSERT_TRUE(changed({}).ok());
  EXPECT_THAT(changed({{end + 16, 0xfffffff0, 4}}), FailsWith(kInvalid, "outside the file"));
  EXPECT_THAT(changed({{end + 12, 0xfffffff0, 4}}), FailsWith(kInvalid, "outside the file"));
  EXPECT_THAT(changed({{end + 10, 60000, 2}}), FailsWith(kInvalid, "60000 entries"));
  EXPECT_THAT(changed({{end + 10, 3, 2}}), FailsWith(kInvalid, "3 entries"));
  EXPECT_THAT(changed({{second, 0, 4}}), FailsWith(kInvalid, "broken ZIP directory"));
  EXPECT_THAT(changed({{end + 4, 1, 2}}), FailsWith(kInvalid, "several files"));
  EXPECT_THAT(changed({{first + 8, 1, 2}}), FailsWith(kInvalid, "encrypted"));
  EXPECT_THAT(changed({{first + 10, 12, 2}}), FailsWith(kInvalid, "method 12"));
  EXPECT_THAT(changed({{first + 20, 0x7fffffff, 4}}), FailsWith(kInvalid, "outside the file"));
  EXPECT_THAT(changed({{first + 24, 0x7fffffff, 4}}), FailsWith(kInvalid, "cannot be"));
  EXPECT_THAT(changed({{first + 10, 8, 2}, {first + 24, 0x7fffffff, 4}}), FailsWith(kInvalid, "cannot be"));
  EXPECT_THAT(changed({{first + 42, 0xfffffff0, 4}}), FailsWith(kInvalid, "outside the file"));
  EXPECT_THAT(changed({{second + 42, 0, 4}}), FailsWith(kInvalid, "overlap"));
  EXPECT_THAT(changed({{first + 28, 0xffff, 2}}), FailsWith(kInvalid, "broken ZIP directory"));
  EXPECT_THAT(changed({{first + 16, 0x12345678, 4}}), FailsWith(absl::StatusCode::kDataLoss, "checksum"));
  EXPECT_THAT(changed({{0, 0, 4}}), FailsWith(kInvalid, "no ZIP header"));
  EXPECT_THAT(ReadEverything(std::string(100, 'x')), FailsWith(kInvalid, "no ZIP end record"));
}

TEST(NpzTest, TwoEntriesOfOneNameAreRefused) {
  std::string bad = ReadText(FixturePath("stored.npz"));
  const size_t second = bad.find("labels.npy", bad.find("PK\x01\x02"));
  bad.replace(second, 6, "images");
  EXPECT_THAT(ReadEverything(bad), FailsWith(kInvalid, "two entries named 'images'"));
}

TEST(NpzTest, ReadsZip64AndComments) {
  // One stored entry whose sizes and offset are in the zip64 field, a zip64 end record and a comment.
  const std::string npy = ReadText(FixturePath("i8_scalar.npy"));
  const TemporaryFolder folder;
  const std::vector<NamedArray> plain = {{"a", DecodeNpy(AsBytes(npy)).value()}};
  ASSERT_TRUE(WriteNpz(folder / "a.npz", plain).ok());
  const std::string small = ReadText(folder / "a.npz");
  const size_t directory = small.find("PK\x01\x02");
  std::string entry = small.substr(directory, 46 + 5), extra(28, '\0'), record(56, '\0'), locator(20, '\0');
  Put(extra, 0, 1, 2);
  Put(extra, 2, 24, 2);
  Put(extra, 4, npy.size(), 8);
  Put(extra, 12, npy.size(), 8);
  Put(extra, 20, 0, 8);
  Put(entry, 20, 0xffffffff, 4);
  Put(entry, 24, 0xffffffff, 4);
  Put(entry, 30, extra.size(), 2);
  Put(entry, 42, 0xffffffff, 4);
  const std::string central = entry + extra;
  Put(record, 0, 0x06064b50, 4);
  Put(record, 4, 44, 8);
  Put(record, 24, 1, 8);
  Put(record, 32, 1, 8);
  Put(record, 40, central.size(), 8);
  Put(record, 48, directory, 8);
  Put(locator, 0, 0x07064b50, 4);
  Put(locator, 8, directory + central.size(), 8);
  Put(locator, 16, 1, 4);
  std::string end("PK\x05\x06\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x07\0comment", 29);
  const std::string file = small.substr(0, directory) + central + record + locator + end;
  const NpzFile read = NpzFile::Open(MemorySource(AsBytes(file))).value();
  EXPECT_EQ(read.Read("a").value(), plain[0].array);
  ExpectEveryTruncationFails(file, [](auto bytes) { return ReadEverything(bytes); });
  std::string bad = file;
  Put(bad, directory + central.size() + record.size() + 8, UINT64_MAX - 20, 8);
  EXPECT_THAT(ReadEverything(bad), FailsWith(kInvalid, "outside the file"));
  bad = file;
  Put(bad, directory + 46 + 5 + 12, UINT64_MAX - 5, 8);  // the stored size
  EXPECT_THAT(ReadEverything(bad), FailsWith(kInvalid, "outside the file"));
}

}  // namespace
}  // namespace gantry
