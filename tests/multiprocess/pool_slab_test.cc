// Slabs in the memory of another rank, on the same node and on another one.
#include "comm/pool_slab.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "memory/device.h"
#include "tests/support/run_ranks.h"

namespace gantry {
namespace {

using testing::HasSubstr;

constexpr int64_t kArenaBytes = 1 << 20, kSlabBytes = (256 << 10) + 96, kSlabOffset = 4160;

std::vector<std::byte> Pattern(size_t bytes, uint32_t seed) {
  std::vector<std::byte> pattern(bytes);
  for (std::byte& value : pattern) value = static_cast<std::byte>((seed = seed * 1664525 + 1013904223) >> 24);
  return pattern;
}

// A rank with an arena that others may write to, and host memory that they may only read.
struct Member {
  std::unique_ptr<Device> device = MakeCpuDevice({});
  std::unique_ptr<Slab> arena, read_only;
  std::unique_ptr<Fabric> fabric;

  Member(Links& links, Liveness& liveness) {
    arena = *device->Reserve(kArenaBytes);
    read_only = *device->Reserve(4096);
    const PoolRegion regions[] = {
        {.name = "arena", .data = arena->data(), .bytes = kArenaBytes, .descriptor = arena->descriptor()},
        {.name = "notes", .data = read_only->data(), .bytes = 4096, .descriptor = read_only->descriptor(), .others = Access::kRead}};
    absl::StatusOr<std::unique_ptr<Fabric>> opened = Fabric::Open(links, liveness, regions, {});
    EXPECT_TRUE(opened.ok()) << opened.status();
    if (!opened.ok()) std::exit(1);
    fabric = *std::move(opened);
  }
  void Meet() const { ASSERT_TRUE(fabric->world().Barrier().ok()); }
};

// The node of each rank.
class PoolSlabTest : public testing::TestWithParam<std::vector<int>> {
 protected:
  static void Run(const std::function<void(Links&, Liveness&)>& body, RunRanksOptions options = {}) {
    options.node_of = GetParam();
    RunRanks(static_cast<int>(GetParam().size()), body, options);
  }
};

TEST_P(PoolSlabTest, HoldsWhatWasWritten) {
  Run([](Links& links, Liveness& liveness) {
    const Member member(links, liveness);
    const int lender = (links.rank() + 1) % links.size();
    PoolSlab slab("peer-x", lender, kSlabBytes);
    EXPECT_EQ(slab.size_bytes(), kSlabBytes);
    EXPECT_EQ(slab.data(), nullptr);
    std::vector<std::byte> read(kSlabBytes);
    EXPECT_TRUE(absl::IsFailedPrecondition(slab.Read(0, read)));
    ASSERT_TRUE(slab.Connect(*member.fabric, liveness, {lender, 0, kSlabOffset}).ok());
    EXPECT_THAT(slab.DescribePath(), HasSubstr(absl::StrFormat("memory of rank %d", lender)));
    ASSERT_TRUE(slab.Read(0, read).ok());
    EXPECT_EQ(read, std::vector<std::byte>(kSlabBytes)) << "zeros at first";
    // Small and large, aligned or not; what is read is the last that was written.
    const std::vector<std::byte> whole = Pattern(kSlabBytes, links.rank());
    ASSERT_TRUE(slab.Write(0, whole).ok());
    const std::vector<std::byte> piece = Pattern(1001, 100 + links.rank());
    ASSERT_TRUE(slab.Write(70'001, piece).ok());
    ASSERT_TRUE(slab.Write(kSlabBytes, {}).ok());
    ASSERT_TRUE(slab.Read(0, read).ok());
    std::vector<std::byte> expected = whole;
    std::copy(piece.begin(), piece.end(), expected.begin() + 70'001);
    EXPECT_EQ(read, expected);
    // Two threads at once, on disjoint ranges.
    std::thread writer([&] {
      for (int i = 0; i < 50; ++i) EXPECT_TRUE(slab.Write(0, std::span(whole).first(100'000)).ok());
    });
    std::vector<std::byte> tail(100'000);
    for (int i = 0; i < 50; ++i) {
      ASSERT_TRUE(slab.Read(150'000, tail).ok());
      EXPECT_TRUE(std::equal(tail.begin(), tail.end(), whole.begin() + 150'000));
    }
    writer.join();
    member.Meet();
    // It is there, in the arena of the rank that lends it, and nothing beside it.
    const int borrower = (links.rank() + links.size() - 1) % links.size();
    const std::vector<std::byte> theirs = Pattern(kSlabBytes, borrower);
    EXPECT_TRUE(std::equal(theirs.begin(), theirs.begin() + 70'000, member.arena->data() + kSlabOffset));
    EXPECT_EQ(member.arena->data()[kSlabOffset - 1], std::byte{0});
    EXPECT_EQ(member.arena->data()[kSlabOffset + kSlabBytes], std::byte{0});
    member.Meet();
  });
}

TEST_P(PoolSlabTest, WrongPlacesAreRefused) {
  Run([](Links& links, Liveness& liveness) {
    const Member member(links, liveness);
    const int lender = (links.rank() + 1) % links.size();
    PoolSlab slab("peer-x", lender, kSlabBytes);
    const auto Refused = [&](const absl::Status& status, std::string_view words) {
      EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
      EXPECT_THAT(std::string(Message(status)), HasSubstr(words));
    };
    Refused(slab.Connect(*member.fabric, liveness, {lender, 0, kArenaBytes - kSlabBytes + 1}), "tier peer-x");
    Refused(slab.Connect(*member.fabric, liveness, {lender, 7, 0}), "tier peer-x");
    Refused(slab.Connect(*member.fabric, liveness, {links.rank(), 0, 0}), "not of rank");
    PoolSlab notes("notes", lender, 64);
    Refused(notes.Connect(*member.fabric, liveness, {lender, 1, 0}), "lent to be read");
    ASSERT_TRUE(slab.Connect(*member.fabric, liveness, {lender, 0, 0}).ok());
    std::vector<std::byte> bytes(64);
    Refused(slab.Write(kSlabBytes - 63, bytes), "tier peer-x: write of 64 bytes at offset 262177");
    Refused(slab.Read(-1, bytes), "tier peer-x: read of 64 bytes at offset -1");
    member.Meet();
  });
}

TEST_P(PoolSlabTest, ALostLenderIsNamed) {
  RunRanksOptions options;
  options.may_die = {1};
  Run(
      [](Links& links, Liveness& liveness) {
        const Member member(links, liveness);
        PoolSlab slab("peer-1", 1, kSlabBytes);
        if (links.rank() == 1) {
          member.Meet();
          Die();
        }
        ASSERT_TRUE(slab.Connect(*member.fabric, liveness, {1, 0, 0}).ok());
        std::vector<std::byte> bytes(kSlabBytes);
        ASSERT_TRUE(slab.Write(0, bytes).ok());
        member.fabric->world().Barrier().IgnoreError();  // it may die before it has said that it came
        absl::Status status;
        const absl::Time end = absl::Now() + kTestPatience * absl::Seconds(60);
        while ((status = slab.Write(0, bytes)).ok() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(1));
        EXPECT_TRUE(absl::IsUnavailable(status)) << status;
        EXPECT_THAT(std::string(Message(status)), HasSubstr("rank 1"));
        EXPECT_THAT(std::string(Message(status)), HasSubstr("tier peer-1"));
        status = slab.Read(0, bytes);
        EXPECT_TRUE(absl::IsUnavailable(status)) << status;
        EXPECT_THAT(std::string(Message(status)), HasSubstr("rank 1"));
      },
      options);
}

INSTANTIATE_TEST_SUITE_P(Nodes, PoolSlabTest,
                         testing::Values(std::vector<int>{0, 0}, std::vector<int>{0, 1}, std::vector<int>{0, 0, 1}),
                         [](const auto& nodes) {
                           std::string text = "Nodes";
                           for (const int node : nodes.param) text += std::to_string(node);
                           return text;
                         });

}  // namespace
}  // namespace gantry
