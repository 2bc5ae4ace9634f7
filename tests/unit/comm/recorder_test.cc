// The flight recorder: what it keeps, what it says about it, what an event costs.
#include "comm/recorder.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <ctime>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gantry {
namespace {

using testing::HasSubstr;

TEST(RecorderTest, KeepsTheLastOperations) {
  auto recorder = Recorder::Create(1, 4);
  ASSERT_TRUE(recorder.ok()) << recorder.status();
  for (uint64_t i = 0; i < 3000; ++i) {
    const uint64_t ticket = (*recorder)->Begin({.kind = RecordedKind::kAllReduce, .value = std::string(80, 'v'), .group = "a group with a long name", .number = i, .bytes = 64});
    if (i != 2999) (*recorder)->End(ticket, i % 2 == 0);
    if (i == 2999) (*recorder)->Waiting(ticket, 3);
    if (i == 2999) (*recorder)->End(ticket - Recorder::kEntries, true);  // of an operation that was written over: no effect
  }
  const auto image = ReadRecorder((*recorder)->descriptor());
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->rank, 1);
  EXPECT_EQ(image->pid, getpid());
  ASSERT_EQ(image->entries.size(), static_cast<size_t>(Recorder::kEntries));
  const RecordedEntry& last = image->entries.back();
  EXPECT_EQ(last.number, 2999u);
  EXPECT_EQ(last.end_ns, 0);
  EXPECT_EQ(last.peer, 3);
  EXPECT_EQ(last.value, std::string(55, 'v'));
  EXPECT_EQ(last.group, "a group with a ");
  const RecordedEntry& before = image->entries[image->entries.size() - 2];
  EXPECT_TRUE(before.ok);
  EXPECT_FALSE(image->entries[image->entries.size() - 3].ok) << "2997 failed";
  EXPECT_GE(before.end_ns, before.begin_ns);
}

TEST(RecorderTest, OutlivesItsProcess) {
  auto recorder = Recorder::Create(0, 1);
  ASSERT_TRUE(recorder.ok());
  const pid_t child = fork();
  if (child == 0) {
    (*recorder)->End((*recorder)->Begin({.kind = RecordedKind::kBarrier, .number = 1}), true);
    (*recorder)->Begin({.kind = RecordedKind::kHalo, .value = "rows", .number = 2});
    kill(getpid(), SIGKILL);
  }
  int how = 0;
  ASSERT_EQ(waitpid(child, &how, 0), child);
  const auto image = ReadRecorder((*recorder)->descriptor());
  ASSERT_TRUE(image.ok());
  ASSERT_EQ(image->entries.size(), 2u);
  EXPECT_EQ(image->entries[1].value, "rows");
  EXPECT_EQ(image->entries[1].end_ns, 0);
}

TEST(RecorderTest, SaysWhoIsWaitedFor) {
  RecordedEntry in{.ticket = 2, .kind = RecordedKind::kAllReduce, .value = "w", .group = "world", .number = 17, .peer = -1, .begin_ns = 5'000'000'000};
  RecordedEntry before{.ticket = 1, .kind = RecordedKind::kBarrier, .group = "world", .number = 16, .begin_ns = 1, .end_ns = 4'000'000'000};
  std::vector<RecorderImage> images(3);
  for (int rank = 0; rank < 3; ++rank) images[rank] = {.rank = rank, .size = 3, .pid = 70 + rank, .read_ns = 8'000'000'000, .entries = {before}};
  EXPECT_TRUE(ExplainWaits(images).empty()) << "nobody waits";
  images[0].entries.push_back(in);
  images[2].entries.push_back(in);
  EXPECT_THAT(ExplainWaits(images), testing::ElementsAre("rank 1 has not come to all_reduce 17 of 'w' in group world, which ranks 0, 2 wait in; "
                                                         "it was last in barrier 16 in group world, which it left 4.00 s ago"));
  // All in it, and two say for whom they wait.
  images[1].entries.push_back(in);
  images[0].entries.back().peer = images[2].entries.back().peer = 1;
  EXPECT_THAT(ExplainWaits(images), testing::ElementsAre("rank 1 is waited for in all_reduce 17 of 'w' in group world since 3.00 s"));
  EXPECT_THAT(FormatRecorders(images), HasSubstr("rank 1"));
}

TEST(RecorderTest, ManyThreadsLoseNothing) {
  auto recorder = Recorder::Create(0, 1);
  ASSERT_TRUE(recorder.ok());
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 200; ++i) (*recorder)->End((*recorder)->Begin({.kind = RecordedKind::kPut, .number = t * 1000 + i}), true);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto image = ReadRecorder((*recorder)->descriptor());
  ASSERT_TRUE(image.ok());
  std::vector<uint64_t> numbers;
  for (const RecordedEntry& entry : image->entries) numbers.push_back(entry.number);
  std::sort(numbers.begin(), numbers.end());
  ASSERT_EQ(numbers.size(), 800u);
  EXPECT_EQ(std::unique(numbers.begin(), numbers.end()), numbers.end());
}

TEST(RecorderTest, AnEventIsCheap) {
  auto recorder = Recorder::Create(0, 2);
  ASSERT_TRUE(recorder.ok());
  const RecordedOperation operation{.kind = RecordedKind::kAllReduce, .value = "discriminator.3.weight gradient", .group = "world", .number = 1, .bytes = 4096};
  double best_ns = 1e9, best_clock_ns = 1e9;
  for (int round = 0; round < 50; ++round) {
    const auto best = [](double& ns, int events, auto&& each) {
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < 1000; ++i) each();
      ns = std::min(ns, std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count() / (1000 * events));
    };
    best(best_ns, 2, [&] { (*recorder)->End((*recorder)->Begin(operation), true); });
    best(best_clock_ns, 1, [] {
      timespec time;
      clock_gettime(CLOCK_MONOTONIC, &time);
    });
  }
  std::printf("an event takes %.0f ns, reading the clock %.0f ns\n", best_ns, best_clock_ns);
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(best_ns, std::max(100.0, 4 * best_clock_ns));  // an event reads the clock; on a slow machine that takes longer
#endif
}

}  // namespace
}  // namespace gantry
