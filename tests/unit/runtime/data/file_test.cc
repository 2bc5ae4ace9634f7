#include "runtime/data/file.h"

#include "tests/unit/runtime/data/data_test_support.h"

namespace gantry {
namespace {

TEST(FileTest, ReadsWithinBoundsOnly) {
  const TemporaryFolder folder;
  WriteText(folder / "a", "0123456789");
  const auto source = OpenFile(folder / "a").value();
  std::byte part[4];
  ASSERT_TRUE(source->ReadAt(6, part).ok());
  EXPECT_EQ(part[3], std::byte{'9'});
  EXPECT_THAT(source->ReadAt(7, part), FailsWith(absl::StatusCode::kOutOfRange, "10"));
  EXPECT_THAT(source->ReadAt(UINT64_MAX - 1, part), FailsWith(absl::StatusCode::kOutOfRange, "beyond"));
  EXPECT_THAT(ReadFile(folder / "a", 9), FailsWith(absl::StatusCode::kResourceExhausted, "at most 9"));
}

TEST(FileTest, AFileThatShrinksIsAnErrorNotASignal) {
  const TemporaryFolder folder;
  WriteText(folder / "a", std::string(10000, 'x'));
  const auto source = OpenFile(folder / "a").value();
  std::filesystem::resize_file(folder / "a", 100);
  std::byte part[10];
  EXPECT_THAT(source->ReadAt(5000, part), FailsWith(absl::StatusCode::kOutOfRange, "had 10000 bytes"));
}

TEST(FileTest, OpeningSaysWhatIsWrong) {
  const TemporaryFolder folder;
  EXPECT_THAT(OpenFile(folder / "none"), FailsWith(absl::StatusCode::kNotFound, "none"));
  EXPECT_THAT(OpenFile(folder.path()), FailsWith(kInvalid, "regular file"));
}

TEST(AtomicFileTest, ReplacesOnlyOnCommit) {
  const TemporaryFolder folder;
  WriteText(folder / "a", "old");
  {
    const auto file = AtomicFile::Create(folder / "a").value();
    ASSERT_TRUE(file->Write("half").ok());
    EXPECT_EQ(ReadText(folder / "a"), "old");
  }
  EXPECT_EQ(ReadText(folder / "a"), "old");
  EXPECT_EQ(folder.file_count(), 1u);  // the temporary file is gone
  const auto file = AtomicFile::Create(folder / "a").value();
  ASSERT_TRUE(file->Write("new ").ok());
  ASSERT_TRUE(file->Write("content").ok());
  ASSERT_TRUE(file->Commit().ok());
  EXPECT_EQ(ReadText(folder / "a"), "new content");
  EXPECT_EQ(folder.file_count(), 1u);
  EXPECT_THAT(file->Write("more"), FailsWith(absl::StatusCode::kFailedPrecondition, "after Commit"));
  EXPECT_THAT(AtomicFile::Create(folder / "none/a"), FailsWith(absl::StatusCode::kNotFound, "cannot create"));
}

}  // namespace
}  // namespace gantry
