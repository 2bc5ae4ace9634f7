#include "runtime/data/safetensors.h"

#include "tests/unit/runtime/data/data_test_support.h"

namespace gantry {
namespace {

std::string File(std::string_view header, size_t data_bytes) {
  const uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), 8) + std::string(header) + std::string(data_bytes, 'x');
}

absl::StatusOr<SafetensorsFile> OpenText(std::string_view bytes) {
  return SafetensorsFile::Open(MemorySource(AsBytes(bytes)));
}

TEST(SafetensorsTest, AgreesWithTheReferenceImplementation) {
  const SafetensorsFile file = SafetensorsFile::Open(FixturePath("numpy.safetensors")).value();
  EXPECT_EQ(file.tensors().size(), 5u);
  EXPECT_EQ(file.metadata().find("step")->second, "12");
  EXPECT_EQ(file.Read("weight").value(), MakeArray<float>({2, 3}, FixtureFloats<float>(6)));
  EXPECT_EQ(file.Read("half").value().ToF32().value(), MakeArray<float>({4}, FixtureFloats<float>(4)));
  EXPECT_EQ(file.Read("steps").value(), MakeArray<int64_t>({3}, {0, 1, 2}));
  EXPECT_EQ(file.Read("scalar").value(), MakeArray<double>({}, {1.5}));
  EXPECT_EQ(file.Read("none").value(), MakeArray<float>({0}, {}));
  EXPECT_EQ(file.Find("bias"), nullptr);
  EXPECT_THAT(file.Read("bias"), FailsWith(absl::StatusCode::kNotFound, "weight"));
}

TEST(SafetensorsTest, RoundTripsWithMetadata) {
  const TemporaryFolder folder;
  std::vector<NamedArray> tensors;
  tensors.push_back({"z \"quoted\" \xc3\xa9", MakeArray<float>({2}, {1, 2})});
  tensors.push_back({"a", MakeArray<uint8_t>({3}, {1, 2, 3})});
  for (HostType type : {HostType::kBool, HostType::kF8E4M3, HostType::kF8E5M2, HostType::kBF16, HostType::kU64}) {
    tensors.push_back({std::string(Name(type)), HostArray::Create(type, {2, 5}).value()});
  }
  const SafetensorsMetadata metadata = {{"step", "7"}, {"note", "line\nbreak \\ \"x\""}};
  ASSERT_TRUE(WriteSafetensors(folder / "a", tensors, metadata).ok());
  const SafetensorsFile file = SafetensorsFile::Open(folder / "a").value();
  EXPECT_EQ(file.metadata(), metadata);
  EXPECT_EQ(file.tensors()[0].offset % 64, 0u);
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (const auto& [name, array] : tensors) EXPECT_EQ(file.Read(name).value(), array) << name;

  std::byte middle[1];
  ASSERT_TRUE(file.ReadRange(*file.Find("a"), 1, middle).ok());
  EXPECT_EQ(middle[0], std::byte{2});
  EXPECT_THAT(file.ReadRange(*file.Find("a"), 3, middle), FailsWith(absl::StatusCode::kOutOfRange, "'a'"));
}

TEST(SafetensorsTest, TheWriterCountsItsBytes) {
  const TemporaryFolder folder;
  const std::vector<SafetensorsWriter::Declaration> tensors = {{"a", HostType::kU8, {3}}, {"b", HostType::kU8, {2}}};
  const auto writer = SafetensorsWriter::Create(folder / "a", tensors).value();
  ASSERT_TRUE(writer->Append(AsBytes("abcd")).ok());
  EXPECT_THAT(writer->Commit(), FailsWith(absl::StatusCode::kFailedPrecondition, "lack 1 bytes"));
  EXPECT_THAT(writer->Append(AsBytes("ef")), FailsWith(kInvalid, "lack only 1"));
  ASSERT_TRUE(writer->Append(AsBytes("e")).ok());
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_EQ(SafetensorsFile::Open(folder / "a").value().Read("b").value(), MakeArray<uint8_t>({2}, {'d', 'e'}));

  using Declarations = std::vector<SafetensorsWriter::Declaration>;
  const auto refused = [&](const Declarations& wrong, std::string_view message) {
    EXPECT_THAT(SafetensorsWriter::Create(folder / "b", wrong), FailsWith(kInvalid, message));
  };
  refused({{"a", HostType::kU8, {1}}, {"a", HostType::kU8, {1}}}, "comes twice");
  refused({{"__metadata__", HostType::kU8, {1}}}, "reserved");
  refused({{"", HostType::kU8, {1}}}, "empty");
  refused({{"\xff", HostType::kU8, {1}}}, "UTF-8");
  refused({{"a", HostType::kU8, {-1}}}, "negative");
  refused({{"a", HostType::kU8, {INT64_MAX}}, {"b", HostType::kU8, {INT64_MAX}}}, "63 bits");
  EXPECT_EQ(folder.file_count(), 1u);
}

TEST(SafetensorsTest, EveryTruncationIsRefused) {
  ExpectEveryTruncationFails(ReadText(FixturePath("numpy.safetensors")),
                             [](auto bytes) { return SafetensorsFile::Open(MemorySource(bytes)).status(); });
}

TEST(SafetensorsTest, HostileHeadersAreRefused) {
  ASSERT_TRUE(OpenText(File(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}  )", 2)).ok());
  ASSERT_TRUE(OpenText(File("{}", 0)).ok());
  const std::tuple<std::string_view, size_t, std::string_view> cases[] = {
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 3, "3 bytes of data"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})", 3, "hole"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "overlap"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
       2, "overlap"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
       4, "twice"},
      {R"({"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}})", 2, "cut short"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}})", 2, "begin and end"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0]}})", 2, "begin and end"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,2]}})", 2, "8 bytes"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0, "64-bit"},
      {R"({"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,0]}})", 0, "63 bits"},
      {R"({"a":{"dtype":"U8","shape":[99999999999999999999999],"data_offsets":[0,0]}})", 0, "no integer"},
      {R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}})", 0, "negative"},
      {R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", 1, "no integer"},
      {R"({"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}})", 8, "C64"},
      {R"({"a":{"dtype":"U8","shape":[1]}})", 1, "lacks"},
      {R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "text as 'dtype'"},
      {R"({"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", 1, "list as 'shape'"},
      {R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1, "list"},
      {R"({"a":{"dtype":"U8","shape":{"x":1},"data_offsets":[0,1]}})", 1, "nested"},
      {R"({"a":{"dtype":"U8","shape":[{}],"data_offsets":[0,1]}})", 1, "nested"},
      {R"({"a":{"dtype":"U8","shape":null,"data_offsets":[0,1]}})", 1, "null"},
      {R"({"a":{"dtype":true,"shape":[1],"data_offsets":[0,1]}})", 1, "truth value"},
      {R"({"a":5})", 0, "number as 'a'"},
      {R"({"a":"U8"})", 0, "text as 'a'"},
      {R"({"__metadata__":{"a":5}})", 0, "number as 'a'"},
      {R"({"__metadata__":{"a":"1","a":"2"}})", 0, "twice"},
      {R"({"__metadata__":[]})", 0, "list"},
      {R"({"a)", 0, "no valid JSON"},
      {R"({} {})", 0, "no valid JSON"},
      {"[]", 0, "begin with '{'"},
      {"", 0, "begin with '{'"},
  };
  for (const auto& [header, data_bytes, message] : cases) {
    EXPECT_THAT(OpenText(File(header, data_bytes)), FailsWith(kInvalid, message)) << header;
  }
  EXPECT_THAT(OpenText(std::string(8, '\xff')), FailsWith(kInvalid, "18446744073709551615"));
  const std::string deep = R"({"a":)" + std::string(100000, '[');
  EXPECT_THAT(OpenText(File(deep, 0)), FailsWith(kInvalid, "list"));
}

}  // namespace
}  // namespace gantry
