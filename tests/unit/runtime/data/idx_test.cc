#include "runtime/data/idx.h"

#include <zlib.h>

#include "tests/unit/runtime/data/data_test_support.h"

namespace gantry {
namespace {

std::string Idx(uint8_t code, std::vector<uint32_t> dims, size_t data_bytes) {
  std::string text{'\0', '\0', static_cast<char>(code), static_cast<char>(dims.size())};
  for (uint32_t dim : dims) {
    for (int shift = 24; shift >= 0; shift -= 8) text += static_cast<char>(dim >> shift);
  }
  return text + std::string(data_bytes, '\1');
}

std::string Gzip(const std::string& plain) {
  std::string packed(plain.size() + 1000, '\0');
  z_stream stream = {};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, MAX_WBITS + 16, 9, Z_DEFAULT_STRATEGY), Z_OK);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(plain.data()));
  stream.avail_in = static_cast<uInt>(plain.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

absl::Status Decode(std::string_view bytes) { return DecodeIdx(AsBytes(bytes)).status(); }

TEST(IdxTest, ReadsPlainAndPackedFiles) {
  const HostArray pixels = MakeArray<uint8_t>({5, 4, 3}, FixtureIntegers<uint8_t>(60));
  EXPECT_EQ(ReadIdx(FixturePath("u1.idx3-ubyte")).value(), pixels);
  EXPECT_EQ(ReadIdx(FixturePath("u1.idx3-ubyte.gz")).value(), pixels);
  EXPECT_EQ(ReadIdx(FixturePath("f4.idx2")).value(), MakeArray<float>({2, 3}, FixtureFloats<float>(6)));
  EXPECT_EQ(ReadIdx(FixturePath("i4.idx1")).value(), MakeArray<int32_t>({4}, {0, 1, 2, 3}));
}

TEST(IdxTest, EveryTruncationIsRefused) {
  for (const char* name : {"u1.idx3-ubyte", "u1.idx3-ubyte.gz", "f4.idx2", "i4.idx1"}) {
    ExpectEveryTruncationFails(ReadText(FixturePath(name)), [](auto bytes) { return DecodeIdx(bytes).status(); });
  }
}

TEST(IdxTest, HostileHeadersAreRefused) {
  ASSERT_TRUE(Decode(Idx(0x08, {2, 3}, 6)).ok());
  EXPECT_THAT(Decode(Idx(0x08, {2, 3}, 7)), FailsWith(kInvalid, "too long"));
  EXPECT_THAT(Decode(Idx(0x08, {0xffffffff, 0xffffffff}, 6)), FailsWith(kInvalid, "64-bit"));
  EXPECT_THAT(Decode(Idx(0x08, {0xffffffff}, 6)), FailsWith(kInvalid, "4294967295 bytes"));
  EXPECT_THAT(Decode(Idx(0x0e, {0x7fffffff, 0x7fffffff}, 6)), FailsWith(kInvalid, "64-bit"));
  EXPECT_THAT(Decode(Idx(0x07, {2}, 2)), FailsWith(kInvalid, "known type"));
  EXPECT_THAT(Decode(Idx(0x08, {}, 0)), FailsWith(kInvalid, "0 dimensions"));
  EXPECT_THAT(Decode(Idx(0x08, std::vector<uint32_t>(17, 1), 1)), FailsWith(kInvalid, "17 dimensions"));
  EXPECT_THAT(Decode("PK\x03\x04"), FailsWith(kInvalid, "no IDX file"));
}

TEST(IdxTest, PackedFilesAreBoundedAndChecked) {
  const std::string plain = Idx(0x08, {1 << 20}, 1 << 20), packed = Gzip(plain);
  ASSERT_LT(packed.size(), 10000u);
  EXPECT_EQ(DecodeIdx(AsBytes(packed)).value().element_count(), 1 << 20);
  EXPECT_THAT(DecodeIdx(AsBytes(packed), "bomb", 1 << 19), FailsWith(absl::StatusCode::kResourceExhausted, "gunzip"));
  for (size_t at = packed.size() - 8; at < packed.size(); ++at) {  // the checksum and the size
    std::string bad = packed;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    EXPECT_THAT(Decode(bad), FailsWith(absl::StatusCode::kDataLoss, "damaged"));
  }
  // Two members one behind the other are one file.
  EXPECT_TRUE(Decode(Gzip(plain.substr(0, 10)) + Gzip(plain.substr(10))).ok());
  EXPECT_THAT(Decode(packed + "x"), FailsWith(absl::StatusCode::kDataLoss, "cut short"));
  // Around the size of the unpacker's own parts, where output can be held back.
  for (size_t size : {65535 - 8, 65536 - 8, 65537 - 8, 2 * 65536 - 8}) {
    const auto count = static_cast<uint32_t>(size);
    EXPECT_TRUE(Decode(Gzip(Idx(0x08, {count}, count))).ok()) << size;
  }
}

}  // namespace
}  // namespace gantry
