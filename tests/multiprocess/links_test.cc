// Ranks as processes: messages between them, and what they learn when one is lost.
#include "comm/links.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <csignal>
#include <cstring>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "comm/channels.h"
#include "comm/liveness.h"
#include "comm/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/run_ranks.h"
#include "tests/support/silent_seconds.h"

namespace gantry {
namespace {

constexpr uint32_t kChannel = kFirstFreeChannel;
constexpr absl::Duration kTime = absl::Seconds(20);

std::vector<int> AllRanks(const Links& links) {
  std::vector<int> ranks(links.size());
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

std::span<const std::byte> Bytes(std::string_view text) { return std::as_bytes(std::span(text.data(), text.size())); }
std::string Text(const LinkMessage& message) { return {reinterpret_cast<const char*>(message.bytes.data()), message.bytes.size()}; }

void Meet(Links& links) {
  ASSERT_TRUE(links.Gather(AllRanks(links), kChannel + 1000, {}, kTime).ok());
}

TEST(LinksTest, EveryRankHearsEveryOther) {
  RunRanks(4, [](Links& links, Liveness&) {
    EXPECT_EQ(links.size(), 4);
    EXPECT_EQ(links.job().found_by, "GANTRY_*");
    EXPECT_EQ(links.job().local_size, 4);
    EXPECT_EQ(links.job().local_rank, links.rank());
    const auto messages = links.Gather(AllRanks(links), kChannel, Bytes(absl::StrCat("from ", links.rank())), kTime);
    ASSERT_TRUE(messages.ok()) << messages.status();
    for (int rank = 0; rank < 4; ++rank) {
      EXPECT_EQ(Text((*messages)[rank]), absl::StrCat("from ", rank));
      EXPECT_TRUE(links.SameNode(rank));
      EXPECT_TRUE(links.peer(rank).visible);
    }
    EXPECT_EQ(links.peer(links.rank()).pid, getpid());
  });
}

TEST(LinksTest, ChannelsKeepTheirOrderAndApart) {
  RunRanks(2, [](Links& links, Liveness&) {
    const int other = 1 - links.rank();
    for (int i = 0; i < 200; ++i) ASSERT_TRUE(links.Send(other, kChannel + i % 3, Bytes(std::to_string(i))).ok());
    for (int channel : {2, 0, 1}) {
      for (int i = channel; i < 200; i += 3) {
        const auto message = links.Receive(other, kChannel + channel, kTime);
        ASSERT_TRUE(message.ok()) << message.status();
        EXPECT_EQ(Text(*message), std::to_string(i));
      }
    }
  });
}

TEST(LinksTest, LargeMessagesBothWaysAtOnce) {
  RunRanks(2, [](Links& links, Liveness&) {
    std::vector<std::byte> content(Links::kMaxMessageBytes);
    for (size_t i = 0; i < content.size(); i += 997) content[i] = static_cast<std::byte>(i * 31 + links.rank());
    const int other = 1 - links.rank();
    ASSERT_TRUE(links.Send(other, kChannel, content).ok());
    const auto message = links.Receive(other, kChannel, kTime);
    ASSERT_TRUE(message.ok()) << message.status();
    ASSERT_EQ(message->bytes.size(), content.size());
    size_t wrong = 0;
    for (size_t i = 0; i < content.size(); i += 997) wrong += message->bytes[i] != static_cast<std::byte>(i * 31 + other);
    EXPECT_EQ(wrong, 0u);
    content.resize(content.size() + 1);
    EXPECT_EQ(links.Send(other, kChannel, content).code(), absl::StatusCode::kInvalidArgument);
    Meet(links);
  });
}

TEST(LinksTest, DescriptorsArriveWithTheirMessages) {
  RunRanks(3, [](Links& links, Liveness&) {
    const Descriptor memory(memfd_create("test", MFD_CLOEXEC));
    const int own = links.rank();
    ASSERT_EQ(pwrite(memory.get(), &own, sizeof(own), 0), static_cast<ssize_t>(sizeof(own)));
    const int numbers[] = {memory.get(), memory.get()};
    const auto messages = links.Gather(AllRanks(links), kChannel, Bytes("memory"), kTime, numbers);
    ASSERT_TRUE(messages.ok()) << messages.status();
    for (int rank = 0; rank < 3; ++rank) {
      ASSERT_EQ((*messages)[rank].descriptors.size(), 2u);
      int got = -1;
      EXPECT_EQ(pread((*messages)[rank].descriptors[1].get(), &got, sizeof(got), 0), static_cast<ssize_t>(sizeof(got)));
      EXPECT_EQ(got, rank);
      EXPECT_NE(fcntl((*messages)[rank].descriptors[0].get(), F_GETFD) & FD_CLOEXEC, 0);
    }
  });
}

TEST(LinksTest, AWaitThatIsTooShortLeavesTheLinkUsable) {
  RunRanks(2, [](Links& links, Liveness&) {
    const int other = 1 - links.rank();
    const auto none = links.Receive(other, kChannel, absl::Milliseconds(30));
    EXPECT_EQ(none.status().code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(std::string(Message(none.status())), testing::HasSubstr(absl::StrCat("rank ", other)));
    Meet(links);
    EXPECT_TRUE(links.Send(other, kChannel, Bytes("late")).ok());
    EXPECT_TRUE(links.Receive(other, kChannel, kTime).ok());
    EXPECT_EQ(links.Receive(links.rank(), kChannel, kTime).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(links.Send(7, kChannel, {}).code(), absl::StatusCode::kInvalidArgument);
  });
}

// Spins as a collective does; the time until a loss shows.
absl::Duration AwaitLoss(const Liveness& liveness, absl::Duration longest) {
  const absl::Time start = absl::Now();
  while (liveness.losses().load() == 0 && absl::Now() - start < longest) sched_yield();
  return absl::Now() - start;
}

// The first symptom of a loss may be told before its cause is known.
bool AwaitText(const Liveness& liveness, std::string_view text) {
  const absl::Time until = absl::Now() + kTime;
  while (Message(liveness.status()).find(text) == std::string_view::npos) {
    if (absl::Now() > until) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

TEST(LivenessTest, AKilledRankIsNamedByEverySurvivor) {
  RunRanks(4, [](Links& links, Liveness& liveness) {
    Meet(links);
    if (links.rank() == 2) Die();
    AwaitLoss(liveness, kTime);
    ASSERT_TRUE(liveness.lost(2));
    EXPECT_FALSE(liveness.lost(0) || liveness.lost(1) || liveness.lost(3));
    const absl::Status status = liveness.status("all_reduce of 'weight'");
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(Message(status)), testing::AllOf(testing::HasSubstr("rank 2 (host "), testing::HasSubstr(std::to_string(links.peer(2).pid)),
                                                             testing::HasSubstr("is lost"), testing::HasSubstr("waited in all_reduce of 'weight'")));
    // Waits for it end, now and later; the others can still talk.
    EXPECT_EQ(links.Receive(2, kChannel, kTime).status().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(links.Send(2, kChannel, {}).code(), absl::StatusCode::kUnavailable);
    const int left[] = {0, 1, 3};
    EXPECT_TRUE(links.Gather(left, kChannel, {}, kTime).ok());
    // The launcher knows how it ended.
    EXPECT_TRUE(AwaitText(liveness, "killed by signal 9")) << liveness.status();
  });
}

TEST(LivenessTest, AWaitingRankIsWoken) {
  RunRanks(2, [](Links& links, Liveness& liveness) {
    int called_for = -1;
    std::mutex mutex;
    std::condition_variable changed;
    const int number = liveness.OnLoss([&](int rank) {
      std::unique_lock lock(mutex);
      called_for = rank;
      changed.notify_one();
    });
    Meet(links);  // no loss before it is to be told of
    if (links.rank() == 1) {
      absl::SleepFor(absl::Milliseconds(50));
      Die();
    }
    EXPECT_EQ(links.Receive(1, kChannel, kTime).status().code(), absl::StatusCode::kUnavailable);
    {
      std::unique_lock lock(mutex);
      EXPECT_TRUE(changed.wait_for(lock, absl::ToChronoSeconds(kTime), [&] { return called_for == 1; }));
    }
    liveness.Forget(number);
  });
}

TEST(LivenessTest, LeavingIsNoLoss) {
  RunRanks(3, [](Links& links, Liveness& liveness) {
    Meet(links);
    if (links.rank() == 1) {
      ASSERT_TRUE(links.Send(0, kChannel, Bytes("last words")).ok());
      return;
    }
    AwaitLoss(liveness, kTime);
    EXPECT_TRUE(liveness.lost(1));
    EXPECT_TRUE(liveness.status().ok()) << liveness.status();
    EXPECT_THAT(std::string(Message(liveness.StatusOf(1))), testing::HasSubstr("has left"));
    if (links.rank() == 0) {
      EXPECT_TRUE(links.Receive(1, kChannel, kTime).ok());
    }
    EXPECT_THAT(std::string(Message(links.Receive(1, kChannel, kTime).status())), testing::HasSubstr("has left"));
    const int left[] = {0, 2};
    EXPECT_TRUE(links.Gather(left, kChannel, {}, kTime).ok());
  });
}

TEST(LivenessTest, AStoppedRankIsNoticedWithinTheTimeOut) {
  RunRanksOptions options;
  options.liveness.heartbeat_timeout = absl::Seconds(2);
  RunRanks(
      3,
      [](Links& links, Liveness& liveness) {
        Meet(links);
        if (links.rank() == 1) {
          // Rank 0 wakes it once the others have given it up, which it then learns.
          kill(getpid(), SIGSTOP);
          EXPECT_TRUE(AwaitText(liveness, "has given it up")) << liveness.status();
          return;
        }
        AwaitLoss(liveness, kTime);
        EXPECT_TRUE(liveness.lost(1));
        EXPECT_LE(SilentSeconds(Message(liveness.status())), 2.2) << liveness.status();
        const int left[] = {0, 2};
        EXPECT_TRUE(links.Gather(left, kChannel, {}, kTime).ok());
        if (links.rank() == 0) kill(static_cast<pid_t>(links.peer(1).pid), SIGCONT);
      },
      options);
}

// Where cores are short, a rank that watches stands still again and again.
TEST(LivenessTest, AStoppedRankIsNoticedByOneThatStandsStillItself) {
  RunRanksOptions options;
  options.liveness.heartbeat_timeout = absl::Seconds(1);
  options.may_die = {1};
  RunRanks(
      2,
      [](Links& links, Liveness& liveness) {
        Meet(links);
        if (links.rank() == 1) {
          kill(getpid(), SIGSTOP);
          return;
        }
        int ends[2];
        ASSERT_EQ(pipe(ends), 0);
        const pid_t halting = fork();
        if (halting == 0) {
          const pid_t rank = getppid();
          close(ends[1]);
          pollfd end = {.fd = ends[0], .events = POLLIN, .revents = 0};
          do {
            kill(rank, SIGSTOP);
            absl::SleepFor(absl::Milliseconds(500));
            kill(rank, SIGCONT);
          } while (poll(&end, 1, 200) == 0);
          _exit(0);
        }
        AwaitLoss(liveness, absl::Seconds(60));
        close(ends[1]);
        waitpid(halting, nullptr, 0);
        EXPECT_TRUE(liveness.lost(1));
        EXPECT_THAT(std::string(Message(liveness.status())), testing::HasSubstr("no sign of life"));
        kill(static_cast<pid_t>(links.peer(1).pid), SIGKILL);
      },
      options);
}

TEST(LivenessTest, WithoutATimeOutAStoppedRankIsNotLost) {
  RunRanksOptions options;
  options.liveness.heartbeat_timeout = absl::ZeroDuration();
  RunRanks(
      2,
      [](Links& links, Liveness& liveness) {
        Meet(links);
        if (links.rank() == 1) {
          kill(getpid(), SIGSTOP);  // until rank 0 wakes it
          EXPECT_TRUE(liveness.status().ok()) << liveness.status();
        } else {
          const int64_t other = links.peer(1).pid;
          const absl::Time until = absl::Now() + kTime;
          while (ProcessState(other) != 'T' && absl::Now() < until) absl::SleepFor(absl::Milliseconds(1));
          EXPECT_EQ(ProcessState(other), 'T');
          absl::SleepFor(absl::Milliseconds(1300));
          EXPECT_TRUE(liveness.status().ok()) << liveness.status();
          kill(static_cast<pid_t>(other), SIGCONT);
        }
        Meet(links);
      },
      options);
}

TEST(LivenessTest, AReportReachesAllRanks) {
  RunRanks(3, [](Links& links, Liveness& liveness) {
    Meet(links);
    if (links.rank() != 0) {
      EXPECT_TRUE(links.Send(0, kChannel, Bytes("met")).ok());
    } else {
      EXPECT_TRUE(links.Receive(1, kChannel, kTime).ok() && links.Receive(2, kChannel, kTime).ok());
    }
    if (links.rank() == 0) liveness.Report(1, "its answers make no sense");
    AwaitLoss(liveness, kTime);
    if (links.rank() == 1) {
      EXPECT_TRUE(liveness.lost(1));
      EXPECT_THAT(std::string(Message(liveness.status())), testing::HasSubstr("has given it up: its answers make no sense"));
    } else {
      EXPECT_TRUE(AwaitText(liveness, "make no sense")) << liveness.status();
      const int left[] = {0, 2};
      EXPECT_TRUE(links.Gather(left, kChannel, {}, kTime).ok());
    }
  });
}

}  // namespace
}  // namespace gantry
