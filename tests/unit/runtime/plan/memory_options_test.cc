#include "runtime/plan/memory_options.h"

#include <gtest/gtest.h>

namespace gantry {
namespace {

TEST(MemoryOptionsTest, SizesAreRead) {
  EXPECT_EQ(*ParseBytes("4096"), 4096);
  EXPECT_EQ(*ParseBytes("64MiB"), 64 << 20);
  EXPECT_EQ(*ParseBytes(" 1.5 GB "), 1'500'000'000);
  EXPECT_EQ(*ParseBytes("2kB"), 2000);
  for (const char* wrong : {"", "MiB", "-1", "1 PB", "1e30", "nan", "inf", "0x10", "12 34"}) EXPECT_FALSE(ParseBytes(wrong).ok()) << wrong;
}

TEST(MemoryOptionsTest, BudgetsAreSizesOrShares) {
  PlanOptions options;
  ASSERT_TRUE(SetMemory({.device = "1/4"}, options).ok());
  EXPECT_EQ(options.device_memory.bytes, 0);
  EXPECT_EQ(options.device_memory.fraction, 0.25);
  ASSERT_TRUE(SetMemory({.device = "0.5"}, options).ok());
  EXPECT_EQ(options.device_memory.fraction, 0.5);
  ASSERT_TRUE(SetMemory({.device = "3MB"}, options).ok());
  EXPECT_EQ(options.device_memory.bytes, 3'000'000);
  EXPECT_EQ(options.device_memory.fraction, 0.0);
  ASSERT_TRUE(SetMemory({}, options).ok());
  EXPECT_EQ(options.device_memory.bytes, 0);
}

TEST(MemoryOptionsTest, BudgetsOfSeveralRanks) {
  PlanOptions options;
  ASSERT_TRUE(SetMemory({.device = "64MiB, 1/4,none"}, options).ok());
  EXPECT_EQ(options.device_memory.bytes, 0);
  ASSERT_EQ(options.rank_memory.size(), 3u);
  EXPECT_TRUE(HasBudget(options));
  const int64_t bytes[] = {64 << 20, 0, 0};
  const double fractions[] = {0, 0.25, 0};
  for (int rank = 0; rank < 3; ++rank) {
    PlanOptions mine = options;
    ASSERT_TRUE(TakeRankMemory(rank, 3, mine).ok());
    EXPECT_EQ(mine.device_memory.bytes, bytes[rank]);
    EXPECT_EQ(mine.device_memory.fraction, fractions[rank]);
    EXPECT_TRUE(mine.rank_memory.empty());
    EXPECT_TRUE(TakeRankMemory(rank, 3, mine).ok()) << "once is enough";
  }
  const absl::Status status = TakeRankMemory(0, 2, options);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_NE(Message(status).find("budgets of 3 ranks, the job has 2"), std::string::npos);
  for (const char* wrong : {"64MiB,", ",64MiB", "64MiB,,64MiB", "64MiB,lots", "64MiB,0", "64MiB;64MiB", "none"}) {
    EXPECT_NE(Message(SetMemory({.device = wrong}, options)).find("memory.device"), std::string::npos) << wrong;
  }
  ASSERT_TRUE(SetMemory({}, options).ok());
  EXPECT_FALSE(HasBudget(options));
}

TEST(MemoryOptionsTest, MemoryOfOtherRanks) {
  PlanOptions options;
  ASSERT_TRUE(SetMemory({.offload = "remote+host+peer", .host = "1GiB", .link = "out=2GB/s"}, options).ok());
  ASSERT_EQ(options.tiers.size(), 3u);
  const TierKind nearest_first[] = {TierKind::kPeer, TierKind::kHost, TierKind::kRemoteHost};
  for (size_t tier = 0; tier < 3; ++tier) {
    EXPECT_EQ(options.tiers[tier].kind, nearest_first[tier]);
    EXPECT_EQ(options.tiers[tier].name, Name(nearest_first[tier]));
    EXPECT_EQ(options.tiers[tier].lender, -1);
    EXPECT_EQ(options.tiers[tier].budget_bytes, tier == 0 ? INT64_MAX : 1 << 30);
    EXPECT_EQ(options.tiers[tier].out.bytes_per_second, 2e9);
  }
  for (const char* wrong : {"", "peer+", "peer+peer", "none+peer", "peer,host", "Peer"}) {
    EXPECT_NE(Message(SetMemory({.offload = wrong}, options)).find("memory.offload"), std::string::npos) << wrong;
  }
}

TEST(MemoryOptionsTest, TiersAndLinks) {
  PlanOptions options;
  ASSERT_TRUE(SetMemory({.offload = "host+file", .host = "1GiB", .directory = "/tmp", .link = "out=2GB/s, in=1.5GB/s,latency=10us,jitter=1ms"},
                        options).ok());
  ASSERT_EQ(options.tiers.size(), 2u);
  EXPECT_EQ(options.tiers[0].kind, TierKind::kHost);
  EXPECT_EQ(options.tiers[0].budget_bytes, 1 << 30);
  EXPECT_EQ(options.tiers[1].kind, TierKind::kFile);
  EXPECT_EQ(options.tiers[1].directory, "/tmp");
  EXPECT_EQ(options.tiers[0].out.bytes_per_second, 2e9);
  EXPECT_EQ(options.tiers[1].in.bytes_per_second, 1.5e9);
  EXPECT_DOUBLE_EQ(options.tiers[1].in.latency_seconds, 1e-5);
  EXPECT_DOUBLE_EQ(options.tiers[0].out.jitter_seconds, 1e-3);
  ASSERT_TRUE(SetMemory({.offload = "none"}, options).ok());
  EXPECT_TRUE(options.tiers.empty());
  for (const char* wrong : {"out", "out=", "out=2GB", "out=0GB/s", "speed=1GB/s", "latency=5", "latency=-1s", "latency=61s"}) {
    const absl::Status status = SetMemory({.link = wrong}, options);
    EXPECT_NE(Message(status).find("memory.link"), std::string::npos) << wrong;
  }
  EXPECT_NE(Message(SetMemory({.offload = "moon"}, options)).find("memory.offload"), std::string::npos);
  EXPECT_NE(Message(SetMemory({.offload = "file"}, options)).find("memory.directory"), std::string::npos);
}

}  // namespace
}  // namespace gantry
