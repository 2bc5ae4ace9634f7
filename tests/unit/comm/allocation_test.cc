// Repeated collectives, and copies to other ranks' memory, allocate nothing.

#include <gtest/gtest.h>

#include <optional>

#include "comm/pool_slab.h"
#include "tests/support/allocation_counter.h"
#include "tests/support/thread_job.h"

namespace gantry {
namespace {

// The node of each of two ranks.
class CommunicatorAllocationTest : public ::testing::TestWithParam<std::vector<int>> {};

TEST_P(CommunicatorAllocationTest, RepeatedCollectivesAllocateNothing) {
  RunThreadRanks(GetParam(), 1 << 20, {}, [](Rank& rank, ThreadJob&) {
    Communicator& world = rank.fabric->world();
    auto* data = reinterpret_cast<float*>(rank.arena);
    std::vector<float> outside(100000);
    const std::vector<int64_t> parts = {4000, 4000}, counts = {1000, 1000};
    PoolSlab slab("peer", 1 - rank.rank, 1 << 16);
    ASSERT_TRUE(slab.Connect(*rank.fabric, *rank.liveness, {1 - rank.rank, 0, 1 << 19}).ok());
    std::vector<std::byte> stashed(1 << 15);
    const auto all = [&] {
      bool ok = true;
      for (const bool in_background : {false, true}) {
        const CollectiveOptions options{.name = "a name that is longer than what a string holds by itself",
                                        .in_background = in_background};
        Pending one = world.AllReduce(data, 100000, ElementType::kF32, ReduceOp::kSum, options);
        Pending two = world.AllReduce(outside.data(), 100000, ElementType::kBf16, ReduceOp::kMax, options);
        ok &= one.Wait().ok() && two.Wait().ok();
        ok &= world.AllGather(data + rank.rank * 1000, data, parts, options).Wait().ok();
        ok &= world.ReduceScatter(data, data + 4000, counts, ElementType::kF32, ReduceOp::kSum, options).Wait().ok();
        ok &= world.AllToAll(data, parts, data + 4000, parts, options).Wait().ok();
        ok &= world.Broadcast(data, 4000, 0, options).Wait().ok();
        ok &= world.Reduce(data, 4000, ElementType::kF32, ReduceOp::kSum, 0, options).Wait().ok();
        ok &= world.SendReceive(data, 4000, 0, 1, options).Wait().ok();
        const HaloExchange halo{.before = 1 - world.rank(),
                                .behind = 1 - world.rank(),
                                .to_before = {rank.arena, 64},
                                .to_behind = {rank.arena + 64, 64},
                                .from_before = {rank.arena + 128, 64},
                                .from_behind = {rank.arena + 192, 64}};
        ok &= world.ExchangeHalo(std::span(&halo, 1), options).Wait().ok();
        ok &= rank.fabric->transport(1 - rank.rank).Put({1 - rank.rank, 0, 4096}, {rank.arena, 64}).Wait().ok();
        ok &= slab.Write(64, stashed).ok() && slab.Read(64, stashed).ok();
        ok &= world.Barrier().ok();
      }
      return ok;
    };
    // The first ones make the lane, and room for what goes between nodes.
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(all());
    // Both ranks are threads of this process: what either allocates is counted. A rank that lacked its core may need more room than ever
    // before; which comes to an end, as what is allocated for each operation does not.
    int64_t count = -1;
    for (int round = 0; round < 5 && count != 0; ++round) {
      ASSERT_TRUE(world.Barrier().ok());
      std::optional<testing::AllocationCounter> counter;
      if (rank.rank == 0) counter.emplace();
      bool ok = true;
      for (int i = 0; i < 50; ++i) ok &= all();
      EXPECT_TRUE(ok);
      if (rank.rank == 0) count = counter->Count();
      ASSERT_TRUE(world.Broadcast(&count, sizeof(count), 0).Wait().ok());
    }
    EXPECT_EQ(count, 0);
    ASSERT_TRUE(world.Barrier().ok());
  });
}

INSTANTIATE_TEST_SUITE_P(Nodes, CommunicatorAllocationTest,
                         ::testing::Values(std::vector<int>{0, 0}, std::vector<int>{0, 1}),
                         [](const auto& info) { return info.param[1] == 0 ? "OnOne" : "OnTwo"; });

}  // namespace
}  // namespace gantry
