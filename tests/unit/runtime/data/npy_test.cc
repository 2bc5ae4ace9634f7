#include "runtime/data/npy.h"

#include "tests/unit/runtime/data/data_test_support.h"

namespace gantry {
namespace {

// A .npy file of version 1.0 with the given header text and data.
std::string Npy(std::string_view header, size_t data_bytes) {
  std::string text("\x93NUMPY\x01\x00", 8);
  text += static_cast<char>(header.size() & 0xff);
  text += static_cast<char>(header.size() >> 8);
  return text + std::string(header) + std::string(data_bytes, '\0');
}

absl::Status Decode(std::string_view bytes) { return DecodeNpy(AsBytes(bytes)).status(); }

TEST(NpyTest, AgreesWithNumPy) {
  const HostArray expected = MakeArray<float>({2, 3, 4}, FixtureFloats<float>(24));
  EXPECT_EQ(ReadNpy(FixturePath("f4_c.npy")).value(), expected);
  EXPECT_EQ(ReadNpy(FixturePath("f4_fortran.npy")).value(), expected);
  EXPECT_EQ(ReadNpy(FixturePath("f8_big.npy")).value(), MakeArray<double>({5}, FixtureFloats<double>(5)));
  EXPECT_EQ(ReadNpy(FixturePath("f2.npy")).value().ToF32().value(), MakeArray<float>({3, 3}, FixtureFloats<float>(9)));
  EXPECT_EQ(ReadNpy(FixturePath("i8_scalar.npy")).value(), MakeArray<int64_t>({}, {7}));
  EXPECT_EQ(ReadNpy(FixturePath("i4_fortran_big.npy")).value(),
            MakeArray<int32_t>({3, 5}, FixtureIntegers<int32_t>(15)));
  EXPECT_EQ(ReadNpy(FixturePath("u1.npy")).value(), MakeArray<uint8_t>({2, 4, 4}, FixtureIntegers<uint8_t>(32)));
  EXPECT_EQ(ReadNpy(FixturePath("bool.npy")).value().ToF32().value(), MakeArray<float>({6}, {1, 0, 1, 0, 1, 0}));
  EXPECT_EQ(ReadNpy(FixturePath("empty.npy")).value(), MakeArray<float>({0, 3}, {}));
  for (const char* name : {"f4_version_2.npy", "f4_version_3.npy"}) {
    EXPECT_EQ(ReadNpy(FixturePath(name)).value(), MakeArray<float>({2, 2}, FixtureFloats<float>(4)));
  }
}

TEST(NpyTest, WritesWhatNumPyWrites) {
  const TemporaryFolder folder;
  for (const char* name : {"f4_c.npy", "i8_scalar.npy", "u1.npy", "bool.npy", "empty.npy", "f2.npy"}) {
    ASSERT_TRUE(WriteNpy(folder / name, ReadNpy(FixturePath(name)).value()).ok());
    EXPECT_EQ(ReadText(folder / name), ReadText(FixturePath(name))) << name;
  }
  EXPECT_THAT(WriteNpy(folder / "a", HostArray::Create(HostType::kBF16, {2}).value()), FailsWith(kInvalid, "bf16"));
}

TEST(NpyTest, EveryTruncationIsRefused) {
  for (const char* name : {"f4_c.npy", "f4_version_2.npy", "i4_fortran_big.npy", "i8_scalar.npy"}) {
    ExpectEveryTruncationFails(ReadText(FixturePath(name)), [](auto bytes) { return DecodeNpy(bytes).status(); });
  }
}

TEST(NpyTest, HostileHeadersAreRefused) {
  ASSERT_TRUE(Decode(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", 8)).ok());
  ASSERT_TRUE(Decode(Npy("{\"shape\": (2L, 1), 'fortran_order': True,'descr':'=f4'}", 8)).ok());
  const std::pair<std::string_view, std::string_view> cases[] = {
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", "negative"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }", "64-bit"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", "no 64-bit integer"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }", "cut short"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", "several arrays"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2.5,), }", "no ')'"},
      {"{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }", "element type"},
      {"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "element type"},
      {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", "records"},
      {"{'descr': '<f4', 'fortran_order': Maybe, 'shape': (2,), }", "neither True nor False"},
      {"{'descr': '<f4', 'shape': (2,), }", "lacks"},
      {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", "twice"},
      {"{'descr': '<f4', 'extra': 1, 'fortran_order': False, 'shape': (2,), }", "unknown key"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), } x", "closing brace"},
      {"{'descr': '<f4", "closing quote"},
      {"", "no '{'"},
  };
  for (const auto& [header, message] : cases)
    EXPECT_THAT(Decode(Npy(header, 8)), FailsWith(kInvalid, message)) << header;
  std::string many = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (int i = 0; i < 40; ++i) many += "1,";
  EXPECT_THAT(Decode(Npy(many + ")}", 4)), FailsWith(kInvalid, "32 dimensions"));
  std::string version = Npy("{}", 0);
  version[6] = 4;
  EXPECT_THAT(Decode(version), FailsWith(kInvalid, "version 4.0"));
  std::string long_header("\x93NUMPY\x02\x00\xff\xff\xff\x7f", 12);
  EXPECT_THAT(Decode(long_header), FailsWith(kInvalid, "header of 2147483647 bytes"));
}

}  // namespace
}  // namespace gantry
