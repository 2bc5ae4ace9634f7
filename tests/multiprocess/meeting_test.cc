// Ranks that meet by rendezvous, and strangers that try to come between.
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>
#include <thread>

#include "absl/time/clock.h"
#include "comm/channels.h"
#include "comm/handshake.h"
#include "comm/handshake_group.h"
#include "comm/links.h"
#include "comm/liveness.h"
#include "comm/run_folder.h"
#include "comm/socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/run_ranks.h"
#include "tests/support/silent_seconds.h"

namespace gantry {
namespace {

using testing::HasSubstr;
constexpr absl::Duration kTime = absl::Seconds(20);

// A folder of the test's process, known to its ranks.
class MeetingTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const char* folder = std::getenv("GANTRY_MEETING_TEST_FOLDER"); folder != nullptr) {
      folder_ = folder;
      return;
    }
    folder_ = testing::TempDir() + "/gantry_meeting_XXXXXX";
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
    WriteKey("key", 'a');
    options_.environment = {"GANTRY_MEETING_TEST_FOLDER=" + folder_, "GANTRY_RUN_DIR=" + folder_ + "/run"};
    owner_ = getpid();
  }
  void TearDown() override {
    if (getpid() != owner_) return;
    EXPECT_FALSE(std::filesystem::exists(folder_ + "/run")) << "something is left behind";
    std::filesystem::remove_all(folder_);
  }
  void WriteKey(const std::string& name, char digit) {
    std::ofstream(folder_ + "/" + name) << std::string(64, digit);
    chmod((folder_ + "/" + name).c_str(), 0600);
  }
  // The job of this rank as if it had been started as a plain process: nothing inherited.
  Job PlainJob(const Job& launched, const std::string& rendezvous) const {
    Job job;
    job.rank = launched.rank;
    job.size = launched.size;
    job.rendezvous = rendezvous;
    auto key = JobKey::FromFile(folder_ + "/key");
    EXPECT_TRUE(key.ok()) << key.status();
    job.key = *std::move(key);
    return job;
  }
  // A port of the loopback interface that nobody else gets while the test runs. Its ranks find it in GANTRY_TEST_PORT.
  void KeepPort() {
    if (std::getenv("GANTRY_TEST_PORT") != nullptr) return;
    port_.Reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;  // rank 0 sets it, too: then it may listen where nobody else does
    sockaddr_in place{.sin_family = AF_INET, .sin_port = 0, .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}, .sin_zero = {}};
    ASSERT_EQ(setsockopt(port_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)), 0);
    ASSERT_EQ(bind(port_.get(), reinterpret_cast<const sockaddr*>(&place), sizeof(place)), 0);
    options_.environment.push_back("GANTRY_TEST_PORT=" + std::to_string(*LocalPort(port_.get())));
  }
  std::string UnixAddress() const { return "unix:" + folder_ + "/socket"; }
  Job RankZero(int size) const {
    Job job;
    job.size = size;
    return PlainJob(job, UnixAddress());
  }

  std::string folder_;
  RunRanksOptions options_;
  Descriptor port_;
  pid_t owner_ = 0;
};

void ExpectAllMet(const absl::StatusOr<std::unique_ptr<Links>>& links, bool one_node) {
  ASSERT_TRUE(links.ok()) << links.status();
  std::vector<int> ranks((*links)->size());
  std::iota(ranks.begin(), ranks.end(), 0);
  const int own = (*links)->rank();
  const auto messages = (*links)->Gather(ranks, kFirstFreeChannel, std::as_bytes(std::span(&own, 1)), kTime);
  ASSERT_TRUE(messages.ok()) << messages.status();
  for (int rank : ranks) {
    int got = -1;
    ASSERT_EQ((*messages)[rank].bytes.size(), sizeof(got));
    std::memcpy(&got, (*messages)[rank].bytes.data(), sizeof(got));
    EXPECT_EQ(got, rank);
    EXPECT_EQ((*links)->SameNode(rank), one_node || rank == own) << rank;
    if (rank != own) {
      EXPECT_EQ(IsUnixSocket((*links)->descriptor(rank)), one_node) << rank;
    }
  }
}

TEST_F(MeetingTest, ThroughAUnixSocket) {
  RunRanksUnconnected(
      5,
      [&](Job job) {
        if (job.rank == 0) absl::SleepFor(absl::Milliseconds(100));  // the others come first
        ExpectAllMet(Links::Connect(PlainJob(job, UnixAddress()), kTime), true);
      },
      options_);
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) EXPECT_THAT(entry.path().string(), testing::EndsWith("/key"));
}

TEST_F(MeetingTest, OverTcpOnOneMachineThenThroughUnixSockets) {
  KeepPort();
  RunRanksUnconnected(
      4,
      [&](Job job) { ExpectAllMet(Links::Connect(PlainJob(job, std::string("tcp:127.0.0.1:") + std::getenv("GANTRY_TEST_PORT")), kTime), true); },
      options_);
}

TEST_F(MeetingTest, OverTcpBetweenNodes) {
  KeepPort();
  RunRanksUnconnected(
      4,
      [&](Job job) {
        setenv("GANTRY_NODE", std::to_string(job.rank).c_str(), 1);
        auto links = Links::Connect(PlainJob(job, std::string("tcp:localhost:") + std::getenv("GANTRY_TEST_PORT")), kTime);
        ExpectAllMet(links, false);
        const int descriptor = 0;
        EXPECT_EQ((*links)->Send((job.rank + 1) % 4, kFirstFreeChannel, {}, std::span(&descriptor, 1)).code(), absl::StatusCode::kFailedPrecondition);
        // The same losses, without processes to watch: hang-up, or heartbeats.
        auto liveness = Liveness::Watch(**links, options_.liveness);
        ASSERT_TRUE(liveness.ok()) << liveness.status();
        const std::vector<int> all = {0, 1, 2, 3};
        ASSERT_TRUE((*links)->Gather(all, kFirstFreeChannel, {}, kTime).ok());
        if (job.rank == 3) Die();
        const absl::Time until = absl::Now() + kTime;
        while (!(*liveness)->lost(3) && absl::Now() < until) sched_yield();
        EXPECT_THAT(std::string(Message((*liveness)->status())), HasSubstr("rank 3"));
        const std::vector<int> left = {0, 1, 2};
        EXPECT_TRUE((*links)->Gather(left, kFirstFreeChannel, {}, kTime).ok());
        (*liveness)->Leave();
      },
      options_);
}

TEST_F(MeetingTest, AStoppedNodeIsNoticedByItsHeartbeats) {
  KeepPort();
  options_.may_die = {1};
  RunRanksUnconnected(
      2,
      [&](Job job) {
        setenv("GANTRY_NODE", std::to_string(job.rank).c_str(), 1);
        auto links = Links::Connect(PlainJob(job, std::string("tcp:127.0.0.1:") + std::getenv("GANTRY_TEST_PORT")), kTime);
        ASSERT_TRUE(links.ok()) << links.status();
        auto liveness = Liveness::Watch(**links, {.heartbeat_timeout = absl::Seconds(2)});
        ASSERT_TRUE(liveness.ok()) << liveness.status();
        const std::vector<int> all = {0, 1};
        ASSERT_TRUE((*links)->Gather(all, kFirstFreeChannel, {}, kTime).ok());
        const int64_t other = (*links)->peer(1).pid;
        if (job.rank == 1) {
          kill(getpid(), SIGSTOP);
        } else {
          const absl::Time start = absl::Now();
          while (!(*liveness)->lost(1) && absl::Now() - start < kTime) absl::SleepFor(absl::Milliseconds(1));
          EXPECT_LE(SilentSeconds(Message((*liveness)->status())), 2.2) << (*liveness)->status();
          kill(static_cast<pid_t>(other), SIGKILL);
        }
        (*liveness)->Leave();
      },
      options_);
}

TEST_F(MeetingTest, InARunFolderWithAKeyOfItsOwn) {
  RunRanksUnconnected(
      3,
      [&](Job job) {
        Job plain;
        plain.rank = job.rank;
        plain.size = job.size;
        plain.run_folder = BaseRunFolder() + "/some-job";
        plain.rendezvous = "unix:" + plain.run_folder + "/rank-0";
        if (job.rank == 0) {
          // What a killed job of the same name left: the others find its key first.
          ASSERT_TRUE(MakeRunFolder(plain.run_folder).ok());
          absl::SleepFor(absl::Milliseconds(150));
        }
        ExpectAllMet(Links::Connect(std::move(plain), kTime), true);
      },
      options_);
}

TEST_F(MeetingTest, AMissingRankIsNamed) {
  RunRanksUnconnected(
      3,
      [&](Job job) {
        if (job.rank == 2) return;
        const auto links = Links::Connect(PlainJob(job, UnixAddress()), absl::Seconds(5));
        EXPECT_EQ(links.status().code(), job.rank == 0 ? absl::StatusCode::kDeadlineExceeded : links.status().code()) << links.status();
        EXPECT_FALSE(links.ok());
        if (job.rank == 0) {
          EXPECT_THAT(std::string(Message(links.status())), HasSubstr("rank 2 did not come in time"));
        }
      },
      options_);
}

TEST_F(MeetingTest, WithoutRankZeroTheAddressIsNamed) {
  RunRanksUnconnected(
      2,
      [&](Job job) {
        if (job.rank == 0) return;
        const auto links = Links::Connect(PlainJob(job, UnixAddress()), absl::Milliseconds(300));
        EXPECT_EQ(links.status().code(), absl::StatusCode::kDeadlineExceeded);
        EXPECT_THAT(std::string(Message(links.status())), HasSubstr(UnixAddress()));
      },
      options_);
}

TEST_F(MeetingTest, ARankWithAnotherKeyIsRefusedOnBothSides) {
  RunRanksUnconnected(
      2,
      [&](Job job) {
        Job plain = PlainJob(job, UnixAddress());
        if (job.rank == 1) plain.key = *JobKey::Generate();
        const auto links = Links::Connect(std::move(plain), absl::Seconds(10));
        EXPECT_EQ(links.status().code(), job.rank == 0 ? absl::StatusCode::kDeadlineExceeded : absl::StatusCode::kUnauthenticated) << links.status();
        EXPECT_THAT(std::string(Message(links.status())), HasSubstr("another key"));
      },
      options_);
}

// Connects to rank 0 of a job of two, does something strange, and then rank 1 still gets in.
class StrangerTest : public MeetingTest {
 protected:
  void Try(const std::function<void(const std::string& path)>& stranger) {
    Job zero = RankZero(2), one = RankZero(2);
    one.rank = 1;
    absl::Status status_zero, status_one;
    std::thread rank_zero([&] { status_zero = Links::Connect(std::move(zero), kTime).status(); });
    const std::string path = folder_ + "/socket";
    while (!StartConnect({.is_unix = true, .place = path}).ok()) absl::SleepFor(absl::Milliseconds(1));
    const absl::Time start = absl::Now();
    stranger(path);
    std::thread rank_one([&] { status_one = Links::Connect(std::move(one), kTime).status(); });
    rank_one.join();
    rank_zero.join();
    EXPECT_TRUE(status_zero.ok()) << status_zero;
    EXPECT_TRUE(status_one.ok()) << status_one;
    EXPECT_LT(absl::Now() - start, HandshakeGroup::kStrangerTime) << "the stranger held it up";
  }
  static Descriptor Knock(const std::string& path) {
    auto socket = StartConnect({.is_unix = true, .place = path});
    EXPECT_TRUE(socket.ok()) << socket.status();
    return *std::move(socket);
  }
};

TEST_F(StrangerTest, GarbageIsNoRank) {
  Try([](const std::string& path) {
    for (const size_t size : {1, 63, 64, 65, 5000}) {
      const Descriptor socket = Knock(path);
      const std::string garbage(size, 'x');
      EXPECT_EQ(write(socket.get(), garbage.data(), garbage.size()), static_cast<ssize_t>(size));
      if (size < 64) continue;
      char answer;
      ASSERT_TRUE(WaitFor(socket.get(), POLLIN, absl::Now() + kTime).ok());
      EXPECT_LE(read(socket.get(), &answer, 1), 0) << "nobody answers garbage";
    }
  });
}

TEST_F(StrangerTest, SlowOnesHoldUpNobody) {
  std::vector<Descriptor> kept;
  Try([&](const std::string& path) {
    for (int i = 0; i < 100; ++i) {
      kept.push_back(Knock(path));
      if (i % 2 == 0) {
        EXPECT_EQ(write(kept.back().get(), "G", 1), 1);
      }
    }
  });
}

TEST_F(StrangerTest, AReplayedExchangeIsRefused) {
  Try([&](const std::string& path) {
    // What a rank 1 says and proves to another acceptor with the same key.
    const auto key = JobKey::FromFile(folder_ + "/key");
    Handshake initiator(Handshake::Role::kInitiator, *key, 1, 2, 0), acceptor(Handshake::Role::kAcceptor, *key, 0, 2, -1);
    std::vector<std::byte> recorded(initiator.output().begin(), initiator.output().end());
    initiator.Sent(recorded.size());
    ASSERT_TRUE(acceptor.Received(recorded).ok());
    ASSERT_TRUE(initiator.Received(acceptor.output()).ok());
    recorded.insert(recorded.end(), initiator.output().begin(), initiator.output().end());
    const Descriptor socket = Knock(path);
    ASSERT_EQ(write(socket.get(), recorded.data(), recorded.size()), static_cast<ssize_t>(recorded.size()));
    size_t answered = 0;
    for (;;) {
      std::byte buffer[256];
      ASSERT_TRUE(WaitFor(socket.get(), POLLIN, absl::Now() + kTime).ok());
      const ssize_t count = read(socket.get(), buffer, sizeof(buffer));
      if (count <= 0) break;
      answered += static_cast<size_t>(count);
    }
    EXPECT_EQ(answered, Handshake::kHelloBytes) << "its hello, and no proof";
  });
}

TEST_F(StrangerTest, AnotherVersionIsToldOurs) {
  Try([&](const std::string& path) {
    const auto key = JobKey::FromFile(folder_ + "/key");
    Handshake initiator(Handshake::Role::kInitiator, *key, 1, 2, 0);
    std::vector<std::byte> hello(initiator.output().begin(), initiator.output().end());
    hello[8] = std::byte{99};
    const Descriptor socket = Knock(path);
    ASSERT_EQ(write(socket.get(), hello.data(), hello.size()), static_cast<ssize_t>(hello.size()));
    ASSERT_TRUE(WaitFor(socket.get(), POLLIN, absl::Now() + kTime).ok());
    std::byte answer[Handshake::kHelloBytes];
    ASSERT_EQ(read(socket.get(), answer, sizeof(answer)), static_cast<ssize_t>(sizeof(answer)));
    EXPECT_EQ(answer[8], std::byte{kLinkVersion});
    ASSERT_TRUE(WaitFor(socket.get(), POLLIN, absl::Now() + kTime).ok());
    EXPECT_EQ(read(socket.get(), answer, sizeof(answer)), 0);
  });
}

TEST_F(StrangerTest, AnotherUserIsClosedBeforeAByteIsRead) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root, to be another user for a moment";
  Try([&](const std::string& path) {
    // The folder keeps others out in the first place; open it, so that the second wall is seen.
    chmod(folder_.c_str(), 0711);
    chmod(path.c_str(), 0666);
    const pid_t child = fork();
    if (child == 0) {
      if (setgid(65534) != 0 || setuid(65534) != 0) _exit(10);
      auto socket = StartConnect({.is_unix = true, .place = path});
      if (!socket.ok()) _exit(11);
      // Closed by the other side though nothing was sent.
      if (!WaitFor(socket->get(), POLLIN, absl::Now() + kTime).ok()) _exit(12);
      char byte;
      _exit(read(socket->get(), &byte, 1) == 0 ? 0 : 13);
    }
    int how = -1;
    ASSERT_EQ(waitpid(child, &how, 0), child);
    EXPECT_EQ(WEXITSTATUS(how), 0);
  });
}

TEST_F(MeetingTest, FoldersThatOthersMayEnterAreRefused) {
  chmod(folder_.c_str(), 0755);
  EXPECT_EQ(Links::Connect(RankZero(2), kTime).status().code(), absl::StatusCode::kPermissionDenied);
  chmod(folder_.c_str(), 0700);
  EXPECT_EQ(Listen({.is_unix = false, .place = "0.0.0.0"}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Listen({.is_unix = false, .place = "::"}).status().code(), absl::StatusCode::kInvalidArgument);
}

// Listening TCP sockets of this process: hexadecimal address and port, as the system's table has them.
std::vector<std::string> ListeningAddresses() {
  std::vector<std::string> inodes, found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
    if (target.rfind("socket:[", 0) == 0) inodes.push_back(target.substr(8, target.size() - 9));
  }
  for (const char* table : {"/proc/self/net/tcp", "/proc/self/net/tcp6"}) {
    std::ifstream file(table);
    for (std::string line; std::getline(file, line);) {
      std::istringstream words(line);
      std::vector<std::string> column(10);
      for (std::string& word : column) words >> word;
      if (column[3] == "0A" && std::find(inodes.begin(), inodes.end(), column[9]) != inodes.end()) found.push_back(column[1]);
    }
  }
  return found;
}

TEST_F(MeetingTest, NothingListensBeyondLoopback) {
  KeepPort();
  Job zero = RankZero(2);
  zero.rendezvous = "tcp:localhost:" + std::to_string(*LocalPort(port_.get()));
  absl::Status status;
  std::atomic<bool> has_ended = false;
  std::thread rank_zero([&] {
    status = Links::Connect(std::move(zero), absl::Seconds(5)).status();
    has_ended = true;
  });
  std::vector<std::string> addresses;
  while (addresses.empty() && !has_ended) addresses = ListeningAddresses();
  EXPECT_FALSE(addresses.empty());
  for (const std::string& address : addresses) {
    EXPECT_TRUE(address.rfind("0100007F:", 0) == 0 || address.rfind("00000000000000000000000001000000:", 0) == 0) << address;
  }
  rank_zero.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(ListeningAddresses().empty());
}

}  // namespace
}  // namespace gantry
