// What could not be had as it was wanted: counted, and an error where that is asked for.

#include "memory/fallback.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "memory/tier/tier.h"

namespace gantry {
namespace {

using testing::HasSubstr;

class FallbackTest : public testing::Test {
 protected:
  ~FallbackTest() override { unsetenv("GANTRY_STRICT"); }
};

constexpr char kText[] = "tier nvme: wanted io_uring, got pread and pwrite: the kernel says no";

Fallback Example() {
  return {.what = "tier nvme", .wanted = "io_uring", .got = "pread and pwrite", .why = "the kernel says no", .remedy = "ask it"};
}

TEST_F(FallbackTest, IsCounted) {
  for (const char* value : {"", "0"}) {
    setenv("GANTRY_STRICT", value, 1);
    const size_t before = NotedFallbacks().size();
    EXPECT_TRUE(NoteFallback(Example()).ok());
    ASSERT_EQ(NotedFallbacks().size(), before + 1);
    EXPECT_EQ(NotedFallbacks().back(), kText);
  }
}

TEST_F(FallbackTest, IsAnErrorThatSaysWhatToDoWhereThatIsAskedFor) {
  setenv("GANTRY_STRICT", "1", 1);
  const absl::Status status = NoteFallback(Example());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(Message(status)), HasSubstr(kText));
  EXPECT_THAT(std::string(Message(status)), HasSubstr("GANTRY_STRICT is set, which makes this an error: ask it"));
}

// tmpfs has no direct I/O.
TEST_F(FallbackTest, OfAFileTierThatCannotDoWhatItWasAskedFor) {
  const TierOptions options{.name = "scratch", .kind = TierKind::kFile, .directory = "/dev/shm"};
  const size_t before = NotedFallbacks().size();
  ASSERT_TRUE(ReserveTier(options, 8192).ok());
  ASSERT_GT(NotedFallbacks().size(), before);
  EXPECT_EQ(NotedFallbacks().back(), "tier scratch: wanted direct I/O, got buffered I/O: tmpfs has no direct I/O");

  setenv("GANTRY_STRICT", "1", 1);
  const absl::Status status = ReserveTier(options, 8192).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(Message(status)), HasSubstr("put the tier on a disk's own file system instead of '/dev/shm'"));
  EXPECT_TRUE(ReserveTier({.name = "scratch", .kind = TierKind::kFile, .directory = "/dev/shm", .direct_io = false, .io_uring = false}, 8192).ok());
}

}  // namespace
}  // namespace gantry
