// A process that writes checkpoints without a pause is killed at random moments: a good one must always be there.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstring>
#include <filesystem>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/checkpoint/checkpoint_folder.h"

namespace gantry {
namespace {

constexpr int kKills = 50;
constexpr int64_t kElements = 1 << 18;  // 1 MiB: a write takes long enough to be hit within
constexpr int64_t kKeep = 2;

// What the tensor holds at `step`: a mixture of two steps would be noticed.
void FillFor(int64_t step, std::vector<float>& values) {
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(step) + static_cast<float>(i % 1024) / 1024.0f;
}

// The child's life: goes on from the newest checkpoint and writes the next ones until it is killed.
[[noreturn]] void WriteForever(const std::string& path) {
  const auto folder = CheckpointFolder::Open(path);
  if (!folder.ok()) _exit(1);
  const auto latest = FindLatestCheckpoint(path);
  int64_t step = latest.ok() ? latest->checkpoint.step : 0;
  std::vector<float> values(kElements);
  for (;;) {
    FillFor(++step, values);
    const CheckpointTensor tensors[] = {{"w", HostType::kF32, {kElements}, std::as_bytes(std::span(values))}};
    if (!(*folder)->Save(step, tensors, {{"steps", std::to_string(step)}}, kKeep).ok()) _exit(2);
  }
}

TEST(CheckpointKillTest, AGoodCheckpointSurvivesEveryKill) {
  std::string path = testing::TempDir() + "/gantry_kill_XXXXXX";
  ASSERT_NE(mkdtemp(path.data()), nullptr);
  std::mt19937 random(20240607);
  std::vector<float> expected(kElements), got(kElements);
  int save_us = INT_MAX;  // what a checkpoint takes here
  {
    const std::string probe = path + "/probe";
    const auto folder = CheckpointFolder::Open(probe);
    ASSERT_TRUE(folder.ok()) << folder.status();
    for (int64_t step = 1; step <= 3; ++step) {
      const auto begin = std::chrono::steady_clock::now();
      const CheckpointTensor tensors[] = {{"w", HostType::kF32, {kElements}, std::as_bytes(std::span(got))}};
      ASSERT_TRUE((*folder)->Save(step, tensors, {{"steps", std::to_string(step)}}, kKeep).ok());
      save_us = std::min<int>(save_us, (std::chrono::steady_clock::now() - begin) / std::chrono::microseconds(1));
    }
  }
  std::filesystem::remove_all(path + "/probe");
  std::printf("a checkpoint takes %d us\n", save_us);
  std::uniform_int_distribution<int> microseconds(0, std::max(40000, 4 * save_us));
  int64_t newest = 0;
  int leftovers = 0;
  for (int kill_count = 0; kill_count < kKills; ++kill_count) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) WriteForever(path);
    // The first child must get to its first checkpoint; from then on any moment will do.
    while (newest == 0 && !FindLatestCheckpoint(path).ok()) {
      ASSERT_EQ(waitpid(child, nullptr, WNOHANG), 0) << "the writer ended by itself";
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(microseconds(random)));
    ASSERT_EQ(kill(child, SIGKILL), 0);
    int how = 0;
    ASSERT_EQ(waitpid(child, &how, 0), child);
    ASSERT_TRUE(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL) << "kill " << kill_count << ", wait status " << how;

    for (const auto& entry : std::filesystem::directory_iterator(path))
      leftovers += entry.path().string().find(".tmp-") != std::string::npos;
    const auto latest = FindLatestCheckpoint(path);
    ASSERT_TRUE(latest.ok()) << "after kill " << kill_count << ": " << latest.status();
    EXPECT_TRUE(latest->damaged.empty()) << "after kill " << kill_count << ": " << latest->damaged[0].second;
    EXPECT_GE(latest->checkpoint.step, newest);
    newest = latest->checkpoint.step;
    const auto checkpoint = Checkpoint::Open(latest->checkpoint.path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ(*checkpoint->Integer("steps"), newest);
    const CheckpointTarget targets[] = {{"w", HostType::kF32, {kElements}, std::as_writable_bytes(std::span(got))}};
    ASSERT_TRUE(checkpoint->Read(targets).ok());
    FillFor(newest, expected);
    EXPECT_EQ(std::memcmp(got.data(), expected.data(), kElements * sizeof(float)), 0) << "after kill " << kill_count;
  }
  EXPECT_GT(leftovers, 0) << "no kill hit a write; the test shows nothing";
  EXPECT_GT(newest, 1);
  // The next run cleans up: its first checkpoint leaves nothing but the newest ones.
  const auto folder = CheckpointFolder::Open(path);
  ASSERT_TRUE(folder.ok()) << folder.status();
  const CheckpointTensor tensors[] = {{"w", HostType::kF32, {kElements}, std::as_bytes(std::span(got))}};
  ASSERT_TRUE((*folder)->Save(newest + 1, tensors, {}, kKeep).ok());
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(path)) files.push_back(entry.path().filename().string());
  EXPECT_THAT(files, testing::UnorderedElementsAre(CheckpointFileName(newest), CheckpointFileName(newest + 1)));
  std::filesystem::remove_all(path);
}

}  // namespace
}  // namespace gantry
