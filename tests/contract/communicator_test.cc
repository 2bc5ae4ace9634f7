// What every communicator must do, here with ranks that are threads; tests/multiprocess has the same with processes.

#include "comm/communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <thread>

#include "absl/strings/str_join.h"
#include "comm/shm/group_block.h"
#include "tests/support/collective_check.h"
#include "tests/support/thread_job.h"

namespace gantry {
namespace {

using testing::HasSubstr;

constexpr int64_t kArenaBytes = int64_t{8} << 20;
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kRandomOperations = 60;
#else
constexpr int kRandomOperations = 300;
#endif

#define EXPECT_STATUS_OK(expression)               \
  do {                                             \
    const absl::Status status_ = (expression);     \
    EXPECT_TRUE(status_.ok()) << Message(status_); \
  } while (false)

// The node of each rank: all on one, node by node, and mixed.
class CommunicatorTest : public testing::TestWithParam<std::vector<int>> {
 protected:
  static bool IsOneNode() { return std::ranges::count(GetParam(), GetParam()[0]) == std::ssize(GetParam()); }
  static void Run(const std::function<void(Rank&, Communicator&, CollectiveCheck&)>& body,
                  const FabricOptions& options = {}) {
    RunThreadRanks(GetParam(), kArenaBytes, options, [&](Rank& rank, ThreadJob&) {
      CollectiveCheck check(rank.rank, {rank.arena, static_cast<size_t>(rank.arena_bytes)});
      body(rank, rank.fabric->world(), check);
    });
  }
};

TEST_P(CommunicatorTest, EveryTypeOpSizeAndPlace) {
  Run([](Rank&, Communicator& world, CollectiveCheck& check) {
    uint64_t seed = 1;
    for (int type = 0; type < kElementTypes; ++type) {
      for (int op = 0; op < kReduceOps; ++op) {
        for (const int64_t count : {0, 1, 3, 16, 17, 100, 1000, 4099}) {
          for (const Where where : {Where::kPool, Where::kPrivate, Where::kMixed}) {
            const auto t = static_cast<ElementType>(type);
            const auto o = static_cast<ReduceOp>(op);
            EXPECT_STATUS_OK(check.AllReduce(world, t, o, count, ++seed, {.where = where}));
            EXPECT_STATUS_OK(
                check.Reduce(world, t, o, count, static_cast<int>(seed % world.size()), seed, {.where = where}));
            std::vector<int64_t> counts(world.size());
            for (int rank = 0; rank < world.size(); ++rank) counts[rank] = (count + rank * 7) % (count + 1);
            EXPECT_STATUS_OK(
                check.ReduceScatter(world, t, o, counts, seed, {.where = where, .in_place = seed % 2 == 0}));
          }
        }
      }
    }
  });
}

TEST_P(CommunicatorTest, MovesBytesOfEverySize) {
  Run([](Rank&, Communicator& world, CollectiveCheck& check) {
    uint64_t seed = 1;
    const int n = world.size();
    for (const int64_t bytes : {0, 1, 63, 64, 65, 1000, 4096, 70001, 200000}) {
      for (const Where where : {Where::kPool, Where::kPrivate, Where::kMixed}) {
        ++seed;
        EXPECT_STATUS_OK(check.Broadcast(world, bytes, static_cast<int>(seed % n), seed, {.where = where}));
        std::vector<int64_t> parts(n);
        for (int rank = 0; rank < n; ++rank) parts[rank] = bytes * (rank + 1) / n;
        EXPECT_STATUS_OK(check.AllGather(world, parts, seed, {.where = where, .in_place = seed % 2 == 0}));
        std::vector<int64_t> table(n * n);
        for (int i = 0; i < n * n; ++i) table[i] = bytes * (i % 5) / 5 / n;
        EXPECT_STATUS_OK(check.AllToAll(world, table, seed, {.where = where}));
        for (const bool periodic : {false, true}) {
          const std::vector<int> shape = {n};
          EXPECT_STATUS_OK(
              check.ExchangeHalo(world, shape, periodic, std::vector<int64_t>{bytes}, seed, {.where = where}));
          const std::vector<int> mesh = {2, 1, n / 2};
          if (n > 1) {
            EXPECT_STATUS_OK(check.ExchangeHalo(world, mesh, periodic, std::vector<int64_t>{bytes, 10, bytes / 2}, seed,
                                                {.where = where}));
          }
        }
        if (n > 1) {
          EXPECT_STATUS_OK(check.SendReceive(world, bytes, static_cast<int>(seed % n), static_cast<int>((seed + 1) % n),
                                             seed, {.where = where}));
        }
      }
      EXPECT_STATUS_OK(world.Barrier());
    }
  });
}

// Larger than a slot: chunks through the slots without cross-memory calls, and with them.
TEST_P(CommunicatorTest, LargeMemoryOutsideThePool) {
  for (const bool cross_memory : {false, true}) {
    Run(
        [](Rank&, Communicator& world, CollectiveCheck& check) {
          const int n = world.size();
          const int64_t count = (int64_t{5} << 18) + 33;  // 5 MiB and a bit
          for (const Where where : {Where::kPrivate, Where::kMixed, Where::kPool}) {
            uint64_t seed = 7;
            // Half of the arena holds less than that; pool memory is tested with less.
            const int64_t fits = where == Where::kPrivate ? count : count / 2;
            EXPECT_STATUS_OK(check.AllReduce(world, ElementType::kF32, ReduceOp::kSum, fits, ++seed, {.where = where}));
            EXPECT_STATUS_OK(
                check.Reduce(world, ElementType::kF32, ReduceOp::kSum, fits, n - 1, ++seed, {.where = where}));
            std::vector<int64_t> counts(n, fits / n);
            counts[0] = 1;
            EXPECT_STATUS_OK(check.ReduceScatter(world, ElementType::kF32, ReduceOp::kSum, counts, ++seed,
                                                 {.where = where, .in_place = false}));
            std::vector<int64_t> parts(n, 2 * fits / n);
            parts[n - 1] = 11;
            EXPECT_STATUS_OK(check.AllGather(world, parts, ++seed, {.where = where, .in_place = false}));
            EXPECT_STATUS_OK(check.Broadcast(world, 2 * fits + 1, n / 2, ++seed, {.where = where}));
            std::vector<int64_t> table(n * n, 2 * fits / n);
            table[n - 1] = 5;
            EXPECT_STATUS_OK(check.AllToAll(world, table, ++seed, {.where = where}));
            EXPECT_STATUS_OK(check.ExchangeHalo(world, std::vector<int>{n}, true, std::vector<int64_t>{fits}, ++seed,
                                                {.where = where}));
            if (n > 1) EXPECT_STATUS_OK(check.SendReceive(world, 2 * fits, 0, n - 1, ++seed, {.where = where}));
          }
        },
        {.cross_memory = cross_memory});
  }
}

// Around the sizes at which the way that memory takes changes.
TEST_P(CommunicatorTest, SizesAtWhichTheWayChanges) {
  Run([](Rank&, Communicator& world, CollectiveCheck& check) {
    const int n = world.size();
    uint64_t seed = 3;
    for (const int64_t limit : {shm::kInlineBytes, shm::kCopiedBytes, shm::kSlotBytes}) {
      for (const int64_t bytes : {limit - 8, limit, limit + 8, 2 * limit + 24}) {
        for (const Where where : {Where::kPool, Where::kPrivate, Where::kMixed}) {
          const CheckOptions options{.where = where};
          EXPECT_STATUS_OK(check.AllReduce(world, ElementType::kF32, ReduceOp::kSum, bytes / 4, ++seed, options));
          EXPECT_STATUS_OK(check.Reduce(world, ElementType::kBf16, ReduceOp::kSum, bytes / 2, n - 1, ++seed, options));
          if (limit == shm::kSlotBytes) continue;
          const std::vector<int64_t> counts(n, bytes / 4 / n), parts(n, bytes), table(n * n, bytes / n);
          EXPECT_STATUS_OK(check.ReduceScatter(world, ElementType::kI32, ReduceOp::kSum, counts, ++seed, options));
          EXPECT_STATUS_OK(check.AllGather(world, parts, ++seed, options));
          EXPECT_STATUS_OK(check.AllToAll(world, table, ++seed, options));
        }
      }
    }
    for (const int64_t bytes : {shm::kMostPosted, shm::kMostPosted + 1, shm::kPostBytes / shm::kTurns + 1}) {
      EXPECT_STATUS_OK(check.Broadcast(world, bytes, n - 1, ++seed, {}));
      EXPECT_STATUS_OK(check.Broadcast(world, bytes, 0, ++seed, {}));
    }
  });
}

TEST_P(CommunicatorTest, ManyInFlight) {
  Run([](Rank& rank, Communicator& world, CollectiveCheck&) {
    auto* data = reinterpret_cast<int64_t*>(rank.arena);
    constexpr int kEach = 33;
    for (const bool in_background : {false, true}) {
      for (int round = 0; round < 20; ++round) {
        std::vector<Pending> pending;
        for (int i = 0; i < Communicator::kMaxInFlight; ++i) {
          std::fill_n(data + i * kEach, kEach, (i + 1) * (rank.rank + 1) + round);
          pending.push_back(world.AllReduce(data + i * kEach, kEach, ElementType::kI64, ReduceOp::kSum,
                                            {.in_background = in_background}));
        }
        EXPECT_EQ(world.AllReduce(data, 0, ElementType::kI64, ReduceOp::kSum).Wait().code(),
                  absl::StatusCode::kResourceExhausted);
        if (round % 2 == 0) std::reverse(pending.begin(), pending.end());
        for (Pending& one : pending) EXPECT_STATUS_OK(one.Wait());
        const int n = world.size();
        for (int i = 0; i < Communicator::kMaxInFlight * kEach; ++i) {
          ASSERT_EQ(data[i], (i / kEach + 1) * (n * (n + 1) / 2) + n * round) << i;
        }
        EXPECT_STATUS_OK(world.Barrier());
      }
    }
  });
}

// Threads of each rank use three groups at once, in no common order.
TEST_P(CommunicatorTest, GroupsDoNotWaitForEachOther) {
  Run([](Rank& rank, Communicator& world, CollectiveCheck&) {
    constexpr int kGroups = 3;
    std::vector<std::unique_ptr<Communicator>> groups;
    for (int i = 0; i < kGroups; ++i) {
      // All; odd and even; all but the last.
      const int color = i == 1 ? rank.rank % 2 : i == 2 && rank.rank == world.size() - 1 ? -1 : 0;
      absl::StatusOr<std::unique_ptr<Communicator>> group =
          world.Split(color, i == 0 ? -rank.rank : 0, absl::StrCat("group ", i));
      ASSERT_TRUE(group.ok()) << Message(group.status());
      EXPECT_EQ(*group == nullptr, color < 0);
      groups.push_back(*std::move(group));
    }
    EXPECT_EQ(groups[0]->rank(), world.size() - 1 - rank.rank);  // by key
    std::vector<std::thread> threads;
    for (int i = 0; i < kGroups; ++i) {
      if (groups[i] == nullptr) continue;
      threads.emplace_back([&, i] {
        const size_t bytes = static_cast<size_t>(rank.arena_bytes) / kGroups / 64 * 64;
        CollectiveCheck check(rank.rank, {rank.arena + i * bytes, bytes});
        std::mt19937_64 shared(groups[i]->ranks()[0] * 10 + i), own(rank.rank * 100 + i);
        for (int operation = 0; operation < kRandomOperations; ++operation) {
          if (own() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(own() % 300));
          const absl::Status status = check.Random(*groups[i], shared, 40000);
          ASSERT_TRUE(status.ok()) << groups[i]->name() << ", operation " << operation << ": " << Message(status);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_STATUS_OK(world.Barrier());
  });
}

// One thread, two groups, started in different orders on different ranks, waited for in others.
TEST_P(CommunicatorTest, StartsOfDifferentGroupsInAnyOrder) {
  Run([](Rank& rank, Communicator& world, CollectiveCheck&) {
    absl::StatusOr<std::unique_ptr<Communicator>> other = world.Split(0, 0, "other");
    ASSERT_TRUE(other.ok());
    auto* data = reinterpret_cast<float*>(rank.arena);
    for (int round = 0; round < 50; ++round) {
      std::fill_n(data, 2000, 1.0f);
      Communicator* groups[2] = {&world, other->get()};
      const int first = (rank.rank + round) % 2;
      Pending one = groups[first]->AllReduce(data + 1000 * first, 1000, ElementType::kF32, ReduceOp::kSum);
      Pending two = groups[1 - first]->AllReduce(data + 1000 * (1 - first), 1000, ElementType::kF32, ReduceOp::kSum);
      if (rank.rank % 3 == 0) std::swap(one, two);
      EXPECT_STATUS_OK(two.Wait());
      EXPECT_STATUS_OK(one.Wait());
      for (int i = 0; i < 2000; ++i) ASSERT_EQ(data[i], static_cast<float>(world.size()));
      EXPECT_STATUS_OK(world.Barrier());
    }
  });
}

TEST_P(CommunicatorTest, AMismatchIsNamedOnAllRanks) {
  if (GetParam().size() < 2) return;
  using Calls = std::function<absl::Status(Communicator&, std::byte*, bool)>;  // the last rank is the odd one
  const Calls calls[] = {
      [](Communicator& world, std::byte* data, bool odd) {
        return world
            .AllReduce(data, odd ? 20 : 10, ElementType::kF32, ReduceOp::kSum, {.name = odd ? "bias" : "weight"})
            .Wait();
      },
      [](Communicator& world, std::byte* data, bool odd) {
        return odd ? world.Broadcast(data, 40, 0).Wait()
                   : world.AllReduce(data, 10, ElementType::kF32, ReduceOp::kSum).Wait();
      },
      [](Communicator& world, std::byte* data, bool odd) {
        return odd ? world.SendReceive(data, 40, world.size() - 1, 0).Wait()
                   : world.AllReduce(data, 10, ElementType::kF32, ReduceOp::kSum).Wait();
      },
      [](Communicator& world, std::byte* data, bool odd) {
        const HaloExchange halo{.before = (world.rank() + world.size() - 1) % world.size(),
                                .behind = (world.rank() + 1) % world.size(),
                                .to_before = {data, odd ? 16u : 8u},
                                .to_behind = {data, 8},
                                .from_before = {data + 64, 8},
                                .from_behind = {data + 128, 8}};
        return world.ExchangeHalo(std::span(&halo, 1)).Wait();
      },
      [](Communicator& world, std::byte* data, bool odd) {
        std::vector<int64_t> parts(world.size(), 8);
        if (odd) std::swap(parts[0] = 16, parts[1] = 0);
        return world.AllGather(data, data + 4096, parts).Wait();
      },
  };
  for (size_t i = 0; i < std::size(calls); ++i) {
    RunThreadRanks(GetParam(), kArenaBytes, {}, [&](Rank& rank, ThreadJob&) {
      Communicator& world = rank.fabric->world();
      SCOPED_TRACE(absl::StrFormat("rank %d calls[%d]", rank.rank, i));
      EXPECT_STATUS_OK(world.Barrier());
      const bool odd = rank.rank == world.size() - 1;
      absl::Status status = calls[i](world, rank.arena, odd);
      if (status.ok()) status = world.Barrier();  // ranks that were not concerned learn it with the next
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << i << ": " << Message(status);
      EXPECT_THAT(std::string(Message(status)), HasSubstr(absl::StrFormat("rank %d calls", world.size() - 1))) << i;
      if (i == 0) {
        EXPECT_THAT(std::string(Message(status)), HasSubstr("all_reduce sum of 20 f32 \"bias\""));
        EXPECT_THAT(std::string(Message(status)), HasSubstr("all_reduce sum of 10 f32 \"weight\""));
      }
      EXPECT_EQ(world.Barrier(), status);  // for good
    });
  }
}

// A rank that comes late to what the others have done, and finds the group broken by what they did next.
TEST_P(CommunicatorTest, WhatCameBeforeAMismatchIsStillTaken) {
  if (GetParam().size() < 3 || !IsOneNode()) return;
  std::latch failed(2);
  Run([&](Rank& rank, Communicator& world, CollectiveCheck&) {
    constexpr int kLate = 2;
    EXPECT_STATUS_OK(world.Barrier());
    if (rank.rank == kLate) failed.wait();
    auto* data = reinterpret_cast<int64_t*>(rank.arena);
    data[0] = data[1] = rank.rank;
    absl::Status status = world.Broadcast(&data[0], sizeof(*data), 0).Wait();
    if (status.ok()) status = world.SendReceive(&data[1], sizeof(*data), 1, kLate).Wait();
    if (rank.rank <= kLate) {
      EXPECT_STATUS_OK(status);
      EXPECT_EQ(data[0], 0);
    }
    if (rank.rank == kLate) {
      EXPECT_EQ(data[1], 1);
    }
    if (status.ok() && rank.rank == 1) status = world.SendReceive(&data[1], sizeof(*data), 1, 0).Wait();
    if (status.ok()) status = world.Barrier();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << Message(status);
    EXPECT_THAT(std::string(Message(status)), HasSubstr("rank 1 calls send_receive of 8 bytes from rank 1 to rank 0"));
    if (rank.rank < kLate) failed.count_down();
  });
}

// Ranks on several nodes that are still at an operation before the one that others differ about.
TEST_P(CommunicatorTest, AMismatchLeavesTheOperationBeforeItAlone) {
  const int last = static_cast<int>(GetParam().size()) - 1;
  if (last < 3 || GetParam().front() == GetParam().back()) return;
  std::latch failed(2);
  Run([&](Rank& rank, Communicator& world, CollectiveCheck&) {
    EXPECT_STATUS_OK(world.Barrier());
    const bool differs = rank.rank == 0 || rank.rank == last;
    if (!differs) failed.wait();
    auto* data = reinterpret_cast<int64_t*>(rank.arena);
    data[0] = rank.rank;
    EXPECT_STATUS_OK(world.SendReceive(data, 8, 1, 2).Wait());
    EXPECT_EQ(data[0], rank.rank == 2 ? 1 : rank.rank);
    absl::Status status = world.SendReceive(data, rank.rank == last ? 16 : 8, 0, last).Wait();
    if (!differs && status.ok()) status = world.Barrier();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << Message(status);
    EXPECT_THAT(
        std::string(Message(status)),
        HasSubstr(absl::StrFormat("rank %d calls send_receive of 16 bytes from rank 0 to rank %d", last, last)));
    if (differs) failed.count_down();
  });
}

// Faces that are copied by their sender, faces that are not, both in one operation, and other operations between them,
// while ranks are late by several operations.
TEST_P(CommunicatorTest, HalosOfRanksThatAreAheadAndBehind) {
  Run([](Rank& rank, Communicator& world, CollectiveCheck& check) {
    const int n = world.size();
    constexpr int64_t kMost = shm::kMostPosted;
    const int64_t sizes[] = {8,     24,        1000,         4096, 65536, 65536 + 1, kMost / 2, kMost / 2 + 1,
                             kMost, kMost + 1, 2 * kMost + 3};
    std::mt19937_64 shared(n), own(rank.rank);
    for (int operation = 0; operation < kRandomOperations; ++operation) {
      if (own() % 6 == 0) std::this_thread::sleep_for(std::chrono::microseconds(own() % 500));
      const uint64_t seed = shared();
      const CheckOptions options{.where = static_cast<Where>(shared() % 3)};
      const auto size = [&] { return sizes[shared() % (shared() % 4 == 0 ? std::size(sizes) : 5)]; };
      absl::Status status;
      if (operation % 7 == 6) {
        status = check.AllReduce(world, ElementType::kF32, ReduceOp::kSum, size() / 4, seed, options);
      } else if (operation % 5 == 4) {
        status = check.Broadcast(world, size(), static_cast<int>(seed % n), seed, options);
      } else if (operation % 3 == 2 && n > 1) {
        const int from = static_cast<int>(seed % n);
        status = check.SendReceive(world, size(), from, static_cast<int>((from + 1 + seed / n % (n - 1)) % n), seed,
                                   options);
      } else {
        const std::vector<int> mesh = {n > 1 ? 2 : 1, 1, std::max(1, n / 2)};
        const bool is_ring = operation % 2 == 0 || n == 1;
        status = is_ring ? check.ExchangeHalo(world, std::vector<int>{n}, seed % 2 == 0, std::vector<int64_t>{size()},
                                              seed, options)
                         : check.ExchangeHalo(world, mesh, seed % 2 == 0, std::vector<int64_t>{size(), 10, size()},
                                              seed, options);
      }
      ASSERT_TRUE(status.ok()) << "operation " << operation << ": " << Message(status);
    }
  });
}

TEST_P(CommunicatorTest, ASenderIsDoneBeforeItsReceiverComes) {
  if (GetParam().size() < 2 || !IsOneNode()) return;
  std::atomic<bool> sent = false;
  Run([&](Rank& rank, Communicator& world, CollectiveCheck&) {
    constexpr int kMessages = shm::kTurns + 3;
    EXPECT_STATUS_OK(world.Barrier());
    auto* data = reinterpret_cast<int64_t*>(rank.arena);
    if (rank.rank == 0) {
      for (int message = 0; message < shm::kTurns; ++message) {
        std::fill_n(data, 100, message);
        EXPECT_TRUE(world.SendReceive(data, 800, 0, 1).done()) << message;
      }
      // The next has to wait until its place is free.
      std::fill_n(data, 100, shm::kTurns);
      Pending next = world.SendReceive(data, 800, 0, 1);
      EXPECT_EQ(next.Wait(absl::Milliseconds(5)).code(), absl::StatusCode::kDeadlineExceeded);
      sent = true;
      EXPECT_STATUS_OK(next.Wait());
      for (int message = shm::kTurns + 1; message < kMessages; ++message) {
        std::fill_n(data, 100, message);
        EXPECT_STATUS_OK(world.SendReceive(data, 800, 0, 1).Wait());
        std::fill_n(data, 100, -1);
      }
    } else {
      while (rank.rank == 1 && !sent) std::this_thread::yield();
      for (int message = 0; message < kMessages; ++message) {
        EXPECT_STATUS_OK(world.SendReceive(data, 800, 0, 1).Wait());
        if (rank.rank == 1) {
          EXPECT_EQ(std::count(data, data + 100, message), 100);
        }
      }
    }
    EXPECT_STATUS_OK(world.Barrier());
  });
}

// A sender that was done before it could see that nobody takes its message.
TEST_P(CommunicatorTest, AMismatchIsNamedThoughTheSenderHasGoneOn) {
  if (GetParam().size() < 3 || !IsOneNode()) return;
  Run([](Rank& rank, Communicator& world, CollectiveCheck&) {
    EXPECT_STATUS_OK(world.Barrier());
    absl::Status status;
    for (int operation = 0; operation <= shm::kTurns && status.ok(); ++operation) {
      const int from = rank.rank == 0 ? 0 : 1;
      status = world.SendReceive(rank.arena, 8, from, from + 1).Wait();
    }
    if (status.ok()) status = world.Barrier();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << Message(status);
    EXPECT_THAT(std::string(Message(status)), HasSubstr("rank 0 calls send_receive of 8 bytes from rank 0 to rank 1"));
    EXPECT_THAT(std::string(Message(status)), HasSubstr("rank 1 calls"));
    EXPECT_EQ(world.Barrier(), status);
  });
}

TEST_P(CommunicatorTest, AnOperationThatRunsOutOfTimeNamesTheLateRank) {
  if (GetParam().size() < 2) return;
  const int late = static_cast<int>(GetParam().size()) - 1;
  // Where the machine keeps another rank from coming for as long as that, it is late, too: longer then.
  for (const absl::Duration timeout : {absl::Milliseconds(300), absl::Seconds(3), absl::Seconds(30)}) {
    std::atomic<int> failed = 0, named = 0;
    std::latch there(late);  // so that one rank alone is late
    Run([&](Rank& rank, Communicator& world, CollectiveCheck&) {
      const auto start = [&](absl::Duration of) {
        return world.AllReduce(rank.arena, 1, ElementType::kU8, ReduceOp::kMax, {.timeout = of});
      };
      if (rank.rank == late) {
        while (failed.load() < late) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        EXPECT_EQ(start(absl::InfiniteDuration()).Wait().code(), absl::StatusCode::kDeadlineExceeded);
        return;
      }
      Pending pending = start(timeout);
      there.arrive_and_wait();
      const absl::Status status = pending.Wait();
      EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << Message(status);
      EXPECT_THAT(std::string(Message(status)), HasSubstr("not there: rank "));
      if (Message(status).find(absl::StrFormat("not there: rank %d of the group", late)) != std::string_view::npos) ++named;
      ++failed;
    });
    if (named == late || HasFailure()) return;
  }
  FAIL() << "others than rank " << late << " are named";
}

TEST_P(CommunicatorTest, ASenderThatRunsOutOfTimeNamesTheRankThatDoesNotTake) {
  if (GetParam().size() < 2 || !IsOneNode()) return;
  std::atomic<bool> failed = false;
  std::latch through(static_cast<std::ptrdiff_t>(GetParam().size()));
  Run([&](Rank& rank, Communicator& world, CollectiveCheck&) {
    EXPECT_STATUS_OK(world.Barrier());
    through.arrive_and_wait();
    absl::Status status;
    if (rank.rank == 0) {
      while (status.ok()) status = world.SendReceive(rank.arena, 8, 0, 1, {.timeout = absl::Milliseconds(30)}).Wait();
      failed = true;
    } else {
      while (!failed) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      status = world.Barrier();
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << Message(status);
    EXPECT_THAT(std::string(Message(status)), HasSubstr("not there: rank 1 of the group"));
  });
}

TEST_P(CommunicatorTest, AWaitThatEndsEarlyLeavesTheOperationRunning) {
  if (GetParam().size() < 2) return;
  std::atomic<bool> waited = false;
  Run([&](Rank& rank, Communicator& world, CollectiveCheck&) {
    auto* data = reinterpret_cast<float*>(rank.arena);
    data[0] = 1;
    if (rank.rank == 0) {
      Pending pending = world.AllReduce(data, 1, ElementType::kF32, ReduceOp::kSum);
      EXPECT_EQ(pending.Wait(absl::Milliseconds(5)).code(), absl::StatusCode::kDeadlineExceeded);
      EXPECT_FALSE(pending.done());
      waited = true;
      EXPECT_STATUS_OK(pending.Wait());
    } else {
      while (!waited) std::this_thread::yield();
      EXPECT_STATUS_OK(world.AllReduce(data, 1, ElementType::kF32, ReduceOp::kSum).Wait());
    }
    EXPECT_EQ(data[0], static_cast<float>(world.size()));
  });
}

TEST_P(CommunicatorTest, SurvivorsLearnOfALossAndGoOn) {
  if (GetParam().size() < 2) return;
  std::latch through(static_cast<std::ptrdiff_t>(GetParam().size()) - 1);  // the others, with what the victim's loss would fail
  RunThreadRanks(GetParam(), kArenaBytes, {}, [&](Rank& rank, ThreadJob& job) {
    Communicator& world = rank.fabric->world();
    EXPECT_STATUS_OK(world.Barrier());
    const int victim = world.size() / 2;
    if (rank.rank == victim) {
      through.wait();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      job.Lose(victim);
      return;
    }
    through.count_down();
    auto* data = reinterpret_cast<float*>(rank.arena);
    Pending pending = world.AllReduce(data, 100, ElementType::kF32, ReduceOp::kSum, {.name = "generator gradient"});
    const absl::Status status = pending.Wait();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(Message(status)), HasSubstr(absl::StrFormat("rank %d", victim)));
    EXPECT_THAT(std::string(Message(status)), HasSubstr("all_reduce sum of 100 f32 \"generator gradient\""));
    absl::StatusOr<std::unique_ptr<Communicator>> rest = world.Shrink(absl::Seconds(30));
    ASSERT_TRUE(rest.ok()) << Message(rest.status());
    EXPECT_EQ((*rest)->size(), world.size() - 1);
    CollectiveCheck check(rank.rank, {rank.arena, static_cast<size_t>(rank.arena_bytes)});
    std::mt19937_64 shared(5);
    for (int operation = 0; operation < 40; ++operation) EXPECT_STATUS_OK(check.Random(**rest, shared, 30000));
    EXPECT_STATUS_OK((*rest)->Barrier());
  });
}

TEST_P(CommunicatorTest, WrongArgumentsAreTheCallersErrors) {
  Run([](Rank& rank, Communicator& world, CollectiveCheck&) {
    std::byte* data = rank.arena;
    const auto code = [](Pending pending) { return pending.Wait().code(); };
    constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
    EXPECT_EQ(code(world.AllReduce(nullptr, 1, ElementType::kF32, ReduceOp::kSum)), kInvalid);
    EXPECT_EQ(code(world.AllReduce(data, -1, ElementType::kF32, ReduceOp::kSum)), kInvalid);
    EXPECT_EQ(code(world.Broadcast(data, 1, world.size())), kInvalid);
    EXPECT_EQ(code(world.Reduce(data, 1, ElementType::kF32, ReduceOp::kSum, -1)), kInvalid);
    EXPECT_EQ(code(world.AllGather(data, data, std::vector<int64_t>(world.size() + 1, 1))), kInvalid);
    EXPECT_EQ(code(world.SendReceive(data, 1, 0, 0)), kInvalid);
    const HaloExchange halos[4] = {};
    EXPECT_EQ(code(world.ExchangeHalo(halos)), kInvalid);
    EXPECT_STATUS_OK(world.Barrier());  // none of them took part in the order
  });
}

using Nodes = std::vector<int>;
INSTANTIATE_TEST_SUITE_P(Ranks, CommunicatorTest,
                         testing::Values(Nodes(1), Nodes(2), Nodes(3), Nodes(4), Nodes(5), Nodes(8)),
                         [](const auto& info) { return absl::StrCat(info.param.size()); });
INSTANTIATE_TEST_SUITE_P(Nodes, CommunicatorTest,
                         testing::Values(Nodes{0, 1}, Nodes{0, 1, 2}, Nodes{0, 0, 1, 1}, Nodes{0, 0, 0, 1},
                                         Nodes{0, 1, 0, 1}, Nodes{0, 0, 1, 1, 2, 0, 0, 1}),
                         [](const auto& info) { return absl::StrCat("On", absl::StrJoin(info.param, "")); });

}  // namespace
}  // namespace gantry
