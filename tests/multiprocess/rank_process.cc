// A small rank for tests of launchers: joins its job, meets the others at a barrier, does what its first argument says.
//   rank_process [meet | die RANK | exit RANK CODE | stop RANK | sleep SECONDS | print LINES | loop | time RANK | wait RANK | orphan | nothing]
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "comm/channels.h"
#include "comm/links.h"
#include "comm/liveness.h"
#include "comm/recorder.h"

namespace gantry {
namespace {

int Fail(const absl::Status& status, int code) {
  std::fprintf(stderr, "rank_process: %s\n", std::string(Message(status)).c_str());
  return code;
}

// Until the recorders of the other ranks, all on this machine, say that they are in operation `number`: who dies now is waited for.
// For a minute at most.
void AwaitOthers(int size, uint64_t number) {
  const absl::Time end = absl::Now() + absl::Minutes(1);
  const auto waits = [&](const RecorderImage& image) {
    return !image.entries.empty() && image.entries.back().number == number && image.entries.back().end_ns == 0;
  };
  while (absl::Now() < end) {
    const auto images = FindRecorders(getpid());
    if (images.ok() && std::count_if(images->begin(), images->end(), waits) == size - 1) return;
    absl::SleepFor(absl::Milliseconds(1));
  }
}

int Run(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "meet";
  const int chosen = argc > 2 ? std::atoi(argv[2]) : -1;
  if (what == "nothing") return 0;
  absl::StatusOr<Job> job = DiscoverJob();
  if (!job.ok()) return Fail(job.status(), 78);
  const std::string description = job->Describe();
  auto links = Links::Connect(*std::move(job), absl::Seconds(60));
  if (!links.ok()) return Fail(links.status(), absl::IsUnauthenticated(links.status()) ? 77 : 69);
  auto options = LivenessOptions::FromEnvironment();
  if (!options.ok()) return Fail(options.status(), 78);
  auto liveness = Liveness::Watch(**links, *options);
  if (!liveness.ok()) return Fail(liveness.status(), 69);
  auto recorder = Recorder::Create((*links)->rank(), (*links)->size());
  if (!recorder.ok()) return Fail(recorder.status(), 69);
  const int rank = (*links)->rank(), size = (*links)->size();
  std::vector<int> ranks(size);
  std::iota(ranks.begin(), ranks.end(), 0);
  uint64_t number = 0;
  const auto meet = [&](std::string_view value) {
    const uint64_t ticket = (*recorder)->Begin({.kind = RecordedKind::kAllGather, .value = value, .group = "world", .number = ++number});
    const auto messages = (*links)->Gather(ranks, kFirstFreeChannel, std::as_bytes(std::span(&number, 1)), absl::Seconds(120));
    if (messages.ok()) (*recorder)->End(ticket, true);
    return messages.status();
  };
  // The monitor knows who was lost first, which need not be the one that a wait was for.
  const auto fail_lost = [&](const absl::Status& status, std::string_view pending) {
    const absl::Status lost = (*liveness)->status(pending);
    return Fail(lost.ok() ? status : lost, 69);
  };
  if (absl::Status status = (*recorder)->Share(**links); !status.ok()) return fail_lost(status, "sharing the recorder");
  if (absl::Status status = meet("the start"); !status.ok()) return fail_lost(status, "all_gather of 'the start'");
  if (what == "meet") {
    std::printf("%s: met %d, pid %d\n", description.c_str(), size, getpid());
  } else if (what == "print") {
    for (int i = 0; i < chosen; ++i) {
      std::printf("line %d of rank %d %s\n", i, rank, std::string(static_cast<size_t>(i * 7 % 300), 'x').c_str());
      if (i % 10 == 0) std::fprintf(stderr, "error line %d of rank %d\n", i, rank);
    }
    std::printf("no end of line");
  } else if (what == "sleep") {
    absl::SleepFor(absl::Seconds(chosen));
  } else if (what == "orphan") {
    if (fork() == 0) {
      setsid();  // out of the rank's group
      for (;;) pause();
    }
  } else if (what == "time") {  // when a rank is killed, and when each other one knows it by name
    const auto now_ns = [] {
      timespec now{};
      clock_gettime(CLOCK_MONOTONIC, &now);
      return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
    };
    absl::SleepFor(absl::Milliseconds(20));
    if (rank == chosen) {
      std::printf("killed %ld\n", static_cast<long>(now_ns()));
      std::fflush(stdout);
      kill(getpid(), SIGKILL);
    }
    // As a collective waits: it looks, and leaves the core to others.
    while (!(*liveness)->lost(chosen)) absl::SleepFor(absl::Microseconds(50));
    std::printf("known %ld %s\n", static_cast<long>(now_ns()), std::string(Message((*liveness)->status())).c_str());
  } else if (what == "loop") {
    for (;;) {
      if (absl::Status status = meet("a round"); !status.ok()) return fail_lost(status, "all_gather of 'a round'");
    }
  } else {
    if (rank == chosen) {
      if (what == "die") {
        AwaitOthers(size, number + 1);
        kill(getpid(), SIGKILL);
      }
      if (what == "exit") _exit(argc > 3 ? std::atoi(argv[3]) : 1);
      if (what == "stop") kill(getpid(), SIGSTOP);
      while (what == "wait") pause();  // until the test ends it
    }
    if (absl::Status status = meet("the end"); !status.ok()) return fail_lost(status, "all_gather of 'the end'");
  }
  (*liveness)->Leave();
  return 0;
}

}  // namespace
}  // namespace gantry

int main(int argc, char** argv) { return gantry::Run(argc, argv); }
