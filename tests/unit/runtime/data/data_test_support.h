// What the tests of runtime/data share: a folder that goes away, bytes as text, the committed files of other programs.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory/status.h"
#include "runtime/data/file.h"
#include "runtime/data/host_array.h"

namespace gantry {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "gantry_data_XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::string operator/(std::string_view name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }
  size_t file_count() const {
    return std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator());
  }

 private:
  std::filesystem::path path_;
};

inline std::string FixturePath(std::string_view name) {
  return std::string(GANTRY_TEST_DATA "/data/arrays/") + std::string(name);
}

inline std::span<const std::byte> AsBytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

inline std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void WriteText(const std::string& path, std::string_view text) { std::ofstream(path, std::ios::binary) << text; }

// The closed formulas of tests/data/make_arrays.py.
template <typename T>
std::vector<T> FixtureFloats(int64_t count) {
  std::vector<T> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<T>(i) * T(0.5) - T(3));
  return values;
}
template <typename T>
std::vector<T> FixtureIntegers(int64_t count) {
  std::vector<T> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<T>(i));
  return values;
}

template <typename T>
HostArray MakeArray(std::vector<int64_t> shape, const std::vector<T>& values) {
  absl::StatusOr<HostArray> array = HostArray::FromValues<T>(std::move(shape), values);
  EXPECT_TRUE(array.ok()) << array.status();
  return std::move(array).value();
}

// Every strict prefix of `bytes` must be refused by `decode`, with an error that says something.
inline void ExpectEveryTruncationFails(std::string_view bytes,
                                       const std::function<absl::Status(std::span<const std::byte>)>& decode) {
  ASSERT_TRUE(decode(AsBytes(bytes)).ok()) << decode(AsBytes(bytes));
  for (size_t size = 0; size < bytes.size(); ++size) {
    const std::vector<char> exact(bytes.begin(), bytes.begin() + size);  // so that a sanitizer sees reads past the end
    const absl::Status status = decode(std::as_bytes(std::span(exact)));
    EXPECT_FALSE(status.ok()) << "cut to " << size << " of " << bytes.size() << " bytes";
    EXPECT_FALSE(status.message().empty());
  }
}

// Matches a failed Status or StatusOr of `code` whose message contains `text`.
MATCHER_P2(FailsWith, code, text, "") {
  absl::Status status;
  if constexpr (std::is_same_v<std::decay_t<decltype(arg)>, absl::Status>) {
    status = arg;
  } else {
    status = arg.status();
  }
  *result_listener << status.ToString();
  return status.code() == code && Message(status).find(text) != std::string_view::npos;
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

}  // namespace gantry
