#include "comm/keeping.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstring>
#include <string>

namespace gantry {
namespace {

// The environment of a rank, as a launcher sets it.
class KeepingTest : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::vector<Descriptor>> made = Keeping::Make(2);
    ASSERT_TRUE(made.ok()) << made.status();
    pieces_ = *std::move(made);
    setenv("GANTRY_KEEPING_FDS", (std::to_string(pieces_[0].get()) + "," + std::to_string(pieces_[1].get())).c_str(),
           1);
  }
  void TearDown() override {
    for (const char* name : {"GANTRY_KEEPING_FDS", "GANTRY_RANK", "GANTRY_RESTART", "GANTRY_RESUME"}) unsetenv(name);
  }
  static std::unique_ptr<Keeping> Open(int rank) {
    setenv("GANTRY_RANK", std::to_string(rank).c_str(), 1);
    absl::StatusOr<std::unique_ptr<Keeping>> keeping = Keeping::FromEnvironment();
    EXPECT_TRUE(keeping.ok()) << keeping.status();
    return keeping.ok() ? *std::move(keeping) : nullptr;
  }
  static void Write(Keeping& keeping, int64_t step, int fill) {
    const std::span<std::byte> to = keeping.BeginWrite();
    std::memset(to.data(), fill, to.size());
    keeping.Commit(step);
  }

  std::vector<Descriptor> pieces_;
};

TEST_F(KeepingTest, ProgressOutlivesTheRank) {
  EXPECT_FALSE(Keeping::ReadProgress(pieces_[1].get()).begun);
  EXPECT_EQ(Keeping::ReadProgress(pieces_[1].get()).checkpoint_step, -1);
  Open(1)->SetProgress(
      {.begun = true, .first_step = 3, .step = 12, .checkpoint_step = 10, .resumed_step = 5, .from_memory = true});
  const KeptProgress read = Keeping::ReadProgress(pieces_[1].get());
  EXPECT_TRUE(read.begun);
  EXPECT_EQ(read.first_step, 3);
  EXPECT_EQ(read.step, 12);
  EXPECT_EQ(read.checkpoint_step, 10);
  EXPECT_EQ(read.resumed_step, 5);
  EXPECT_TRUE(read.from_memory);
  EXPECT_FALSE(Keeping::ReadProgress(pieces_[0].get()).begun);
  EXPECT_EQ(Open(1)->progress().step, 12);
}

TEST_F(KeepingTest, TheTwoNewestAreKept) {
  {
    const auto keeping = Open(0);
    ASSERT_TRUE(keeping->Reserve(5000).ok());
    for (int step = 1; step <= 5; ++step) Write(*keeping, step, step);
    (void)keeping->BeginWrite();  // and is killed: step 4 is written over
  }
  const auto other = Open(1);
  absl::StatusOr<std::vector<Keeping::Kept>> kept = other->Read(0);
  ASSERT_TRUE(kept.ok()) << kept.status();
  ASSERT_EQ(kept->size(), 1u);
  EXPECT_EQ((*kept)[0].step, 5);
  ASSERT_EQ((*kept)[0].bytes.size(), 5000u);
  EXPECT_EQ((*kept)[0].bytes[4999], std::byte{5});
  ASSERT_TRUE(other->Read(1).ok());
  EXPECT_TRUE(other->Read(1)->empty());
  {
    const auto again = Open(0);
    ASSERT_TRUE(again->Reserve(5000).ok());  // as it was: nothing is lost
    Write(*again, 6, 6);
    const absl::StatusOr<std::vector<Keeping::Kept>> both = again->Read(0);
    ASSERT_EQ(both->size(), 2u);
    EXPECT_EQ((*both)[0].step, 6);
    EXPECT_EQ((*both)[1].step, 5);
    again->ForgetAfter(5);
    EXPECT_EQ(again->Read(0)->size(), 1u);
    ASSERT_TRUE(again->Reserve(6000).ok());  // another size
    EXPECT_TRUE(Open(1)->Read(0)->empty());
  }
}

TEST_F(KeepingTest, WhatIsNoKeepingIsRefused) {
  setenv("GANTRY_RANK", "0", 1);
  for (const char* wrong : {"", "x", "1,", "99999", "-1", "4294967296"}) {
    setenv("GANTRY_KEEPING_FDS", wrong, 1);
    EXPECT_FALSE(Keeping::FromEnvironment().ok()) << wrong;
  }
  setenv("GANTRY_KEEPING_FDS", std::to_string(pieces_[0].get()).c_str(), 1);
  setenv("GANTRY_RANK", "1", 1);
  EXPECT_FALSE(Keeping::FromEnvironment().ok());
  unsetenv("GANTRY_KEEPING_FDS");
  const absl::StatusOr<std::unique_ptr<Keeping>> none = Keeping::FromEnvironment();
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(*none, nullptr);
}

// A rank that wrote nonsense does not bring down those that read it.
TEST_F(KeepingTest, NothingThatAnotherRankSaysIsTrusted) {
  {
    const auto keeping = Open(0);
    ASSERT_TRUE(keeping->Reserve(100).ok());
    Write(*keeping, 1, 1);
  }
  const int64_t large = int64_t{1} << 62;
  for (off_t at = 8; at < 96; at += 8) ASSERT_EQ(pwrite(pieces_[0].get(), &large, sizeof(large), at), 8);
  const auto other = Open(1);
  ASSERT_TRUE(other->Read(0).ok());
  EXPECT_TRUE(other->Read(0)->empty());
}

}  // namespace
}  // namespace gantry
