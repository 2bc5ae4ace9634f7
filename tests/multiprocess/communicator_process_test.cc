// Communicators between processes: the contract's checks, random operations on several groups at once, and ranks that
// are killed.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "comm/channels.h"
#include "comm/shm/group_block.h"
#include "tests/support/collective_check.h"
#include "tests/support/run_ranks.h"
#include "tests/support/thread_job.h"

namespace gantry {
namespace {

using testing::HasSubstr;

constexpr int64_t kArenaBytes = int64_t{8} << 20;
const absl::Duration kTime = kTestPatience * absl::Seconds(60);  // for what takes next to nothing

// GANTRY_TEST_SECONDS makes the random tests as long as one likes; 10 minutes is the mode that
// docs/measurements/comm.md speaks of.
double Seconds(double usual) {
  const char* text = std::getenv("GANTRY_TEST_SECONDS");
  return text != nullptr ? std::atof(text) : usual;
}

int64_t NowNanoseconds() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * int64_t{1'000'000'000} + time.tv_nsec;
}

Rank Open(Links& links, Liveness& liveness, const FabricOptions& options = {}) {
  static const std::unique_ptr<Device> device = MakeCpuDevice({});
  absl::StatusOr<Rank> rank = OpenRank(links, liveness, *device, kArenaBytes, options);
  EXPECT_TRUE(rank.ok()) << Message(rank.status());
  if (!rank.ok()) std::exit(1);
  return *std::move(rank);
}

// To `last`, which returns from it once all others have called it: they are through with what came before, and need it no more.
void Report(Links& links, int last) {
  constexpr uint32_t kChannel = kFirstFreeChannel + 100;
  if (links.rank() != last) {
    ASSERT_TRUE(links.Send(last, kChannel, {}).ok());
    return;
  }
  for (int rank = 0; rank < links.size(); ++rank) {
    if (rank == last) continue;
    const absl::StatusOr<LinkMessage> word = links.Receive(rank, kChannel, kTime);
    ASSERT_TRUE(word.ok()) << Message(word.status());
  }
}

// The node of each rank.
class CommunicatorProcessTest : public testing::TestWithParam<std::vector<int>> {
 protected:
  static int size() { return static_cast<int>(GetParam().size()); }
  static void Run(const std::function<void(Links&, Liveness&)>& body, RunRanksOptions options = {}) {
    options.node_of = GetParam();
    RunRanks(size(), body, options);
  }
};

TEST_P(CommunicatorProcessTest, RandomOperations) {
  Run([](Links& links, Liveness& liveness) {
    Rank rank = Open(links, liveness, {.cross_memory = links.size() != 3});
    CollectiveCheck check(rank.rank, {rank.arena, static_cast<size_t>(rank.arena_bytes)});
    std::mt19937_64 shared(links.size());
    for (int operation = 0; operation < 400; ++operation) {
      const absl::Status status = check.Random(rank.fabric->world(), shared, operation % 50 == 0 ? 3 << 20 : 60000);
      ASSERT_TRUE(status.ok()) << "operation " << operation << ": " << Message(status);
    }
  });
}

TEST_P(CommunicatorProcessTest, ThreeCommunicatorsUnderRandomDelays) {
  RunRanksOptions options;
  options.timeout += absl::Seconds(2 * Seconds(2));
  Run(
      [](Links& links, Liveness& liveness) {
        Rank rank = Open(links, liveness, {.cross_memory = links.size() % 2 == 0});
        Communicator& world = rank.fabric->world();
        const int64_t end = NowNanoseconds() + static_cast<int64_t>(Seconds(2) * 1e9);
        std::mt19937_64 shared(17 * links.size());
        int64_t operations = 0;
        // New groups again and again, drawn alike on all ranks; whether to go on is rank 0's word.
        for (int64_t go_on = 1;;) {
          if (rank.rank == 0) go_on = NowNanoseconds() < end ? 1 : 0;
          absl::Status status = world.Broadcast(&go_on, sizeof(go_on), 0).Wait();
          ASSERT_TRUE(status.ok()) << Message(status);
          if (go_on == 0) break;
          std::vector<std::unique_ptr<Communicator>> groups;
          for (int i = 0; i < 3; ++i) {
            std::vector<int> colors(links.size());
            for (int& color : colors) color = static_cast<int>(shared() % 3) - (shared() % 8 == 0 ? 1 : 0);
            absl::StatusOr<std::unique_ptr<Communicator>> group =
                world.Split(std::max(-1, colors[rank.rank]), static_cast<int>(shared() % 5) * rank.rank % 3,
                            absl::StrCat("random ", i));
            ASSERT_TRUE(group.ok()) << Message(group.status());
            groups.push_back(*std::move(group));
          }
          const uint64_t seed = shared();
          std::vector<std::thread> threads;
          for (int i = 0; i < 3; ++i) {
            if (groups[i] == nullptr) continue;
            threads.emplace_back([&, i] {
              const size_t bytes = static_cast<size_t>(rank.arena_bytes) / 3 / 64 * 64;
              CollectiveCheck check(rank.rank, {rank.arena + i * bytes, bytes});
              std::mt19937_64 group_random(seed + 1000 * i + groups[i]->ranks()[0]), own(seed + 77 * rank.rank + i);
              for (int operation = 0; operation < 60; ++operation) {
                if (own() % 10 == 0) std::this_thread::sleep_for(std::chrono::microseconds(own() % 2000));
                const absl::Status done = check.Random(*groups[i], group_random, operation % 20 == 0 ? 1 << 20 : 30000);
                ASSERT_TRUE(done.ok()) << groups[i]->name() << ", operation " << operation << ": " << Message(done);
              }
            });
          }
          for (std::thread& thread : threads) thread.join();
          operations += 180;
        }
        if (rank.rank == 0) std::printf("%d ranks: about %d operations\n", links.size(), static_cast<int>(operations));
      },
      options);
}

// One rank ends at a random moment of random operations. The others learn who it was, regroup, and go on.
TEST_P(CommunicatorProcessTest, KilledAtARandomMoment) {
  const int rounds = std::max(3, static_cast<int>(Seconds(3)));
  for (int round = 0; round < rounds; ++round) {
    std::mt19937_64 plan(round * 100 + size());
    const int victim = static_cast<int>(plan() % static_cast<uint64_t>(size()));
    const int64_t after_microseconds = static_cast<int64_t>(plan() % 30000);
    const bool asleep = round % 3 == 1;  // the others wait for it, long enough to sleep
    Run([&](Links& links, Liveness& liveness) {
      Rank rank = Open(links, liveness);
      Communicator& world = rank.fabric->world();
      // The victim says beforehand when it will end.
      int64_t died = NowNanoseconds() + 1000 * (20000 + after_microseconds + (asleep ? 150000 : 0));
      ASSERT_TRUE(world.Broadcast(&died, sizeof(died), victim).Wait().ok());
      absl::Status status = world.Barrier();  // all others have been told
      if (links.rank() == victim) {
        std::thread([died] {
          std::this_thread::sleep_for(std::chrono::nanoseconds(died - NowNanoseconds()));
          Die();
        }).detach();
        if (asleep) std::this_thread::sleep_for(std::chrono::seconds(30));
      }
      std::mt19937_64 shared(round);
      CollectiveCheck check(rank.rank, {rank.arena, static_cast<size_t>(rank.arena_bytes)});
      while (status.ok()) status = check.Random(world, shared, 200000);
      const int64_t noticed = NowNanoseconds();
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << Message(status);
      EXPECT_THAT(std::string(Message(status)), HasSubstr(absl::StrFormat("rank %d", victim)));
      EXPECT_THAT(std::string(Message(status)), HasSubstr("group \"world\", operation"));
      absl::StatusOr<std::unique_ptr<Communicator>> rest = world.Shrink(kTime);
      const int64_t regrouped = NowNanoseconds();
      ASSERT_TRUE(rest.ok()) << Message(rest.status());
      EXPECT_EQ((*rest)->size(), links.size() - 1);
      std::mt19937_64 again(round + 1);
      for (int operation = 0; operation < 50; ++operation) {
        const absl::Status done = check.Random(**rest, again, 100000);
        ASSERT_TRUE(done.ok()) << "after the loss, operation " << operation << ": " << Message(done);
      }
      // Loose, but below the heartbeat's time: the machine may be busy. What is measured is printed.
      EXPECT_LT(noticed - died, 15'000'000'000);
      EXPECT_LT(regrouped - noticed, 15'000'000'000);
      std::printf("noticed after %.2f ms, regrouped after %.2f ms more\n", 1e-6 * static_cast<double>(noticed - died),
                  1e-6 * static_cast<double>(regrouped - noticed));
      EXPECT_TRUE((*rest)->Barrier().ok());
    });
  }
}

// A message that its sender was done with is there, though the sender has left since.
TEST(CommunicatorMessageTest, WhatWasSentBeforeLeavingArrives) {
  RunRanks(2, [](Links& links, Liveness& liveness) {
    Rank rank = Open(links, liveness);
    Communicator& world = rank.fabric->world();
    ASSERT_TRUE(world.Barrier().ok());
    std::vector<int64_t> data(1000, 7);
    if (rank.rank == 0) {
      EXPECT_TRUE(world.SendReceive(data.data(), 8000, 0, 1).Wait().ok());
      return;
    }
    while (!liveness.lost(0)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_TRUE(liveness.has_left(0));
    data.assign(1000, 0);
    const absl::Status status = world.SendReceive(data.data(), 8000, 0, 1).Wait();
    EXPECT_TRUE(status.ok()) << Message(status);
    EXPECT_EQ(data, std::vector<int64_t>(1000, 7));
    EXPECT_THAT(std::string(Message(world.SendReceive(data.data(), 8, 0, 1).Wait())), HasSubstr("rank 0"));
  });
}

// A sender that ends right after it was done: its receiver has the message, or learns who is lost.
TEST(CommunicatorMessageTest, ASenderIsKilledOnceItIsDone) {
  for (int round = 0; round < 6; ++round) {
    RunRanks(3, [round](Links& links, Liveness& liveness) {
      Rank rank = Open(links, liveness);
      Communicator& world = rank.fabric->world();
      ASSERT_TRUE(world.Barrier().ok());
      Report(links, 0);
      std::vector<int64_t> data(1000, 7);
      if (rank.rank == 0) {
        for (int message = 0; message <= round % 3; ++message) {
          EXPECT_TRUE(world.SendReceive(data.data(), 8000, 0, 1).Wait().ok());
        }
        Die();
      }
      data.assign(1000, 0);
      absl::Status status;
      for (int message = 0; status.ok() && message <= round % 3; ++message) {
        if (round % 2 == 1) std::this_thread::sleep_for(std::chrono::milliseconds(5));
        status = world.SendReceive(data.data(), 8000, 0, 1).Wait();
        if (rank.rank == 1 && status.ok()) {
          EXPECT_EQ(data, std::vector<int64_t>(1000, 7));
        }
      }
      if (status.ok()) status = world.Barrier();
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << Message(status);
      EXPECT_THAT(std::string(Message(status)), HasSubstr("rank 0"));
      absl::StatusOr<std::unique_ptr<Communicator>> rest = world.Shrink(kTime);
      ASSERT_TRUE(rest.ok()) << Message(rest.status());
      CollectiveCheck check(rank.rank, {rank.arena, static_cast<size_t>(rank.arena_bytes)});
      std::mt19937_64 again(round);
      for (int operation = 0; operation < 50; ++operation) {
        const absl::Status done = check.Random(**rest, again, 100000);
        ASSERT_TRUE(done.ok()) << "after the loss, operation " << operation << ": " << Message(done);
      }
    });
  }
}

// A receiver that is killed, or stopped, while its sender waits for a place that it has not taken from.
TEST(CommunicatorMessageTest, TheReceiverOfAWaitingSenderIsLost) {
  for (const int signal : {SIGKILL, SIGSTOP}) {
    RunRanksOptions options;
    options.may_die = {1};
    options.liveness.heartbeat_timeout = kTestPatience * absl::Seconds(1);  // on one node only one that is stopped is lost so soon
    RunRanks(
        3,
        [signal](Links& links, Liveness& liveness) {
          Rank rank = Open(links, liveness);
          Communicator& world = rank.fabric->world();
          ASSERT_TRUE(world.Barrier().ok());
          if (rank.rank == 1) {
            Report(links, 1);
            std::this_thread::sleep_for(std::chrono::milliseconds(kTestPatience * 200));  // the sender waits by then
            kill(getpid(), signal);
            for (;;) pause();
          }
          // One that is stopped ends with this rank's part, however that ends.
          const absl::Cleanup end_stopped = [&] {
            if (signal == SIGSTOP && rank.rank == 0) kill(static_cast<pid_t>(links.peer(1).pid), SIGKILL);
          };
          absl::Status status;
          for (int message = 0; status.ok() && message < shm::kTurns; ++message) status = world.SendReceive(rank.arena, 8, 0, 1).Wait();
          ASSERT_TRUE(status.ok()) << Message(status);
          if (rank.rank == 0) Report(links, 1);
          status = world.SendReceive(rank.arena, 8, 0, 1).Wait();
          if (rank.rank == 2) Report(links, 1);
          EXPECT_EQ(status.ok(), rank.rank == 2) << Message(status);
          if (status.ok()) status = world.Barrier();
          EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << Message(status);
          EXPECT_THAT(std::string(Message(status)), HasSubstr("rank 1"));
          absl::StatusOr<std::unique_ptr<Communicator>> rest = world.Shrink(kTime);
          ASSERT_TRUE(rest.ok()) << Message(rest.status());
          EXPECT_TRUE((*rest)->Barrier().ok());
        },
        options);
  }
}

// A rank that waits costs next to nothing: it sleeps.
TEST(CommunicatorWaitTest, WaitingRanksSleep) {
  RunRanks(4, [](Links& links, Liveness& liveness) {
    Rank rank = Open(links, liveness);
    Communicator& world = rank.fabric->world();
    const auto processor_seconds = [] {
      rusage usage;
      getrusage(RUSAGE_SELF, &usage);
      return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
             1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    };
    // The least share of the time, of three rounds at most: the beginning of a wait is busy, and the machine may make it long.
    double least = 1;
    for (int round = 0; round < 3; ++round) {
      ASSERT_TRUE(world.Barrier().ok());
      const double before = processor_seconds();
      const int64_t begin = NowNanoseconds();
      if (rank.rank == 3) std::this_thread::sleep_for(std::chrono::seconds(2));
      ASSERT_TRUE(world.Barrier().ok());
      least = std::min(least, (processor_seconds() - before) / (1e-9 * static_cast<double>(NowNanoseconds() - begin)));
      int32_t another = least >= 0.02 ? 1 : 0;
      ASSERT_TRUE(world.AllReduce(&another, 1, ElementType::kI32, ReduceOp::kMax).Wait().ok());
      if (another == 0) break;
    }
    EXPECT_LT(least, 0.02);
  });
}

TEST(TransportProcessTest, ReadOnlyMemoryCannotBeWritten) {
  RunRanks(2, [](Links& links, Liveness& liveness) {
    const std::unique_ptr<Device> device = MakeCpuDevice({});
    absl::StatusOr<std::unique_ptr<Slab>> slab = device->Reserve(8192);
    ASSERT_TRUE(slab.ok());
    const PoolRegion region{.name = "lent",
                            .data = (*slab)->data(),
                            .bytes = 8192,
                            .descriptor = (*slab)->descriptor(),
                            .others = Access::kRead};
    absl::StatusOr<std::unique_ptr<Fabric>> fabric = Fabric::Open(links, liveness, std::span(&region, 1), {});
    ASSERT_TRUE(fabric.ok()) << Message(fabric.status());
    const int peer = 1 - links.rank();
    Transport& transport = (*fabric)->transport(peer);
    (*slab)->data()[100] = static_cast<std::byte>(links.rank() + 1);
    ASSERT_TRUE((*fabric)->world().Barrier().ok());
    std::byte got[8] = {};
    EXPECT_TRUE(transport.Get(got, {peer, 0, 100}).Wait().ok());
    EXPECT_EQ(got[0], static_cast<std::byte>(peer + 1));
    EXPECT_EQ(transport.Put({peer, 0, 100}, got).Wait().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(transport.FetchAdd({peer, 0, 104}, 1).status().code(), absl::StatusCode::kInvalidArgument);
    // The kernel holds the same opinion.
    const std::byte* theirs = (*fabric)->pool().data(peer, 0);
    EXPECT_DEATH(const_cast<std::byte*>(theirs)[0] = std::byte{1}, "");  // by SIGSEGV, or by a sanitizer's report of it
    EXPECT_TRUE((*fabric)->world().Barrier().ok());
  });
}

class TransportNodesTest : public testing::TestWithParam<std::vector<int>> {};

TEST_P(TransportNodesTest, PutsGetsSignalsAndAtomics) {
  const auto body = [](Links& links, Liveness& liveness) {
    Rank rank = Open(links, liveness);
    const int next = (rank.rank + 1) % 3, before = (rank.rank + 2) % 3;
    const auto to = [&](int peer) -> Transport& { return rank.fabric->transport(peer); };
    std::memset(rank.arena, 0, 4096);
    ASSERT_TRUE(rank.fabric->world().Barrier().ok());
    std::vector<uint64_t> block(1000);
    for (uint64_t round = 1; round <= 500; ++round) {
      std::fill(block.begin(), block.end(), round * 10 + rank.rank);
      EXPECT_TRUE(to(next).Put({next, 0, 4096}, std::as_bytes(std::span(block))).Wait().ok());
      EXPECT_TRUE(to(next).Signal({next, 0, 64}, 1).Wait().ok());
      const absl::Status came = to(before).WaitSignal(before, 0, 64, round, kTime);
      ASSERT_TRUE(came.ok()) << Message(came);
      const auto* got = reinterpret_cast<const uint64_t*>(rank.arena + 4096);
      EXPECT_TRUE(std::all_of(got, got + 1000, [&](uint64_t value) { return value == round * 10 + before; }));
      EXPECT_TRUE(to(before).Signal({before, 0, 128}, 1).Wait().ok());  // it may put again
      ASSERT_TRUE(to(next).WaitSignal(next, 0, 128, round, kTime).ok());
      EXPECT_TRUE(to(0).FetchAdd({0, 0, 192}, 3).ok());
    }
    ASSERT_TRUE(rank.fabric->world().Barrier().ok());
    EXPECT_EQ(*to(0).FetchAdd({0, 0, 192}, 0), 3u * 3 * 500);
    const absl::StatusOr<uint64_t> before_swap = to(rank.rank).CompareSwap({rank.rank, 0, 256}, 0, 7);
    EXPECT_EQ(*before_swap, 0u);
    EXPECT_EQ(*to(rank.rank).CompareSwap({rank.rank, 0, 256}, 0, 8), 7u);
    EXPECT_EQ(to(next).Put({next, 0, kArenaBytes - 8}, std::as_bytes(std::span(block))).Wait().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(to(next).Put({next, 1, 0}, std::as_bytes(std::span(block))).Wait().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(to(next).FetchAdd({next, 0, 3}, 1).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(to(before).WaitSignal(before, 0, 320, 1, absl::Milliseconds(5)).code(),
              absl::StatusCode::kDeadlineExceeded);
    // Larger than a piece, both ways at once, and words of another rank.
    std::vector<uint64_t> large(50000), got(50000);
    std::fill(large.begin(), large.end(), 7 + rank.rank);
    Pending put = to(next).Put({next, 0, 1 << 20}, std::as_bytes(std::span(large)));
    EXPECT_TRUE(put.Wait().ok());
    EXPECT_TRUE(to(next).Signal({next, 0, 384}, 1).Wait().ok());
    ASSERT_TRUE(to(before).WaitSignal(before, 0, 384, 1, kTime).ok());
    ASSERT_TRUE(rank.fabric->world().Barrier().ok());
    const absl::Status read = to(next).Get(std::as_writable_bytes(std::span(got)), {next, 0, 1 << 20}).Wait();
    ASSERT_TRUE(read.ok()) << Message(read);
    EXPECT_EQ(got, large);
    EXPECT_EQ(*to(next).CompareSwap({next, 0, 256}, 7, 9), 7u);
    ASSERT_TRUE(rank.fabric->world().Barrier().ok());
    EXPECT_EQ(*to(next).FetchAdd({next, 0, 256}, 0), 9u);
    ASSERT_TRUE(rank.fabric->world().Barrier().ok());
  };
  RunRanksOptions options;
  options.node_of = GetParam();
  RunRanks(3, body, options);
}

// The connection that the access goes over may end before the monitor has seen the loss.
TEST(TransportProcessTest, AnAccessToALostRankNamesTheLoss) {
  RunRanksOptions options;
  options.node_of = {0, 1};
  for (int round = 0; round < 5; ++round) {
    RunRanks(
        2,
        [](Links& links, Liveness& liveness) {
          Rank rank = Open(links, liveness);
          ASSERT_TRUE(rank.fabric->world().Barrier().ok());
          Report(links, 1);
          if (rank.rank == 1) Die();
          std::vector<std::byte> got(4096);
          absl::Status status;
          while (status.ok()) status = rank.fabric->transport(1).Get(got, {1, 0, 0}).Wait();
          EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
          EXPECT_THAT(std::string(Message(status)), testing::AllOf(HasSubstr("rank 1 (host "), HasSubstr("is lost"), HasSubstr("an access to 4096 bytes")));
        },
        options);
  }
}

using Nodes = std::vector<int>;
INSTANTIATE_TEST_SUITE_P(Ranks, CommunicatorProcessTest, testing::Values(Nodes(2), Nodes(3), Nodes(4), Nodes(8)),
                         [](const auto& info) { return absl::StrCat(info.param.size()); });
INSTANTIATE_TEST_SUITE_P(Nodes, CommunicatorProcessTest,
                         testing::Values(Nodes{0, 1}, Nodes{0, 0, 1}, Nodes{0, 0, 1, 1}, Nodes{0, 1, 2, 0}),
                         [](const auto& info) { return absl::StrCat("On", absl::StrJoin(info.param, "")); });

INSTANTIATE_TEST_SUITE_P(Nodes, TransportNodesTest, testing::Values(Nodes{0, 0, 0}, Nodes{0, 0, 1}, Nodes{0, 1, 2}),
                         [](const auto& info) { return absl::StrCat("On", absl::StrJoin(info.param, "")); });

}  // namespace
}  // namespace gantry
