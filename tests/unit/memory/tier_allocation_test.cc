// Moving bytes to a tier and back allocates nothing once slabs and lanes are made.
#include <gtest/gtest.h>

#include <filesystem>
#include <vector>

#include "memory/tier/copy_lanes.h"
#include "tests/support/allocation_counter.h"

namespace gantry {
namespace {

constexpr int64_t kBytes = (3 << 20) - 64;

std::vector<std::unique_ptr<TierSlab>> ReserveAll() {
  const std::string directory = std::filesystem::temp_directory_path().string();
  std::vector<std::unique_ptr<TierSlab>> slabs;
  for (const TierOptions& options :
       {TierOptions{.name = "host"}, TierOptions{.name = "ring", .kind = TierKind::kFile, .directory = directory},
        TierOptions{.name = "calls", .kind = TierKind::kFile, .directory = directory, .io_uring = false}}) {
    auto slab = ReserveTier(options, 4 << 20);
    EXPECT_TRUE(slab.ok()) << slab.status();
    if (slab.ok()) slabs.push_back(*std::move(slab));
  }
  return slabs;
}

TEST(TierAllocationTest, WritesAndReadsAllocateNothing) {
  const auto slabs = ReserveAll();
  std::vector<std::byte> bytes(kBytes);
  for (const auto& slab : slabs) {
    testing::AllocationCounter allocations;
    bool ok = true;
    for (int i = 0; i < 3 && ok; ++i) ok = slab->Write(4096, bytes).ok() && slab->Read(4096, bytes).ok();
    EXPECT_EQ(allocations.Count(), 0) << slab->name();
    EXPECT_TRUE(ok) << slab->name();
  }
}

TEST(TierAllocationTest, LanesAllocateNothing) {
  const auto slabs = ReserveAll();
  ASSERT_EQ(slabs.size(), 3u);
  // The first one's queue is always full and its copies are held back; the others' sums are checked.
  const Throttle slow{.bytes_per_second = 1e9, .latency_seconds = 1e-4, .jitter_seconds = 1e-4};
  auto lanes = CopyLanes::Create({slabs[0].get(), slabs[1].get(), slabs[2].get()}, {slow, {}, {}}, {slow, {}, {}},
                                 {.max_pending = 2, .checksum_slots = 3});
  ASSERT_TRUE(lanes.ok()) << lanes.status();
  std::vector<std::byte> bytes(kBytes);
  testing::AllocationCounter allocations;
  bool ok = true;
  for (int i = 0; i < 8; ++i) {
    for (int tier = 0; tier < 3; ++tier) {
      LaneCopy copy{.tier = tier, .device = bytes.data(), .tier_offset = 0, .bytes = kBytes, .checksum_slot = tier};
      for (const bool out : {true, false}) {
        copy.out = out;
        ok &= (*lanes)->Wait((*lanes)->lane(tier, out), (*lanes)->Start(copy)).ok();
      }
    }
  }
  for (int i = 0; i < 8; ++i) (*lanes)->Start({.device = bytes.data(), .bytes = 4096});
  ok &= (*lanes)->Drain().ok();
  EXPECT_EQ(allocations.Count(), 0);
  EXPECT_TRUE(ok);
}

}  // namespace
}  // namespace gantry
