// Jobs whose ranks are killed at random moments, from their first instruction on: the others name the lost one, all ends, and nothing is
// left. GANTRY_TEST_KILLS says how many (CI: 30; the promise is for 200).
#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "comm/launcher.h"
#include "gtest/gtest.h"

namespace gantry {
namespace {

std::set<std::string> Files(const std::string& folder) {
  std::set<std::string> names;
  if (DIR* listing = opendir(folder.c_str()); listing != nullptr) {
    while (const dirent* file = readdir(listing)) names.insert(file->d_name);
    closedir(listing);
  }
  return names;
}

// Files of /dev/shm that are not there in `before`: but for those of UCX, which these ranks do not use and tests beside this one may.
std::vector<std::string> NewSharedFiles(const std::set<std::string>& before) {
  std::vector<std::string> names;
  for (const std::string& name : Files("/dev/shm")) {
    if (!before.contains(name) && !name.starts_with("ucx_shm_")) names.push_back(name);
  }
  return names;
}

// How many segments of System V there are that one of `processes` made.
int SegmentsMadeBy(const std::set<pid_t>& processes) {
  int count = 0;
  std::ifstream file("/proc/sysvipc/shm");
  std::string line;
  std::getline(file, line);  // what the columns mean
  while (std::getline(file, line)) {
    std::istringstream columns(line);
    int64_t key, number, mode, bytes;
    pid_t creator = 0;
    if (columns >> key >> number >> mode >> bytes >> creator) count += processes.contains(creator);
  }
  return count;
}

TEST(KillLoopTest, TheLostRankIsNamedAndNothingIsLeft) {
  const char* wanted = std::getenv("GANTRY_TEST_KILLS");
  const int kills = wanted != nullptr ? std::atoi(wanted) : 30;
  std::string folder = testing::TempDir() + "/gantry_kills_XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  const std::set<std::string> shared_before = Files("/dev/shm");
  const size_t open_before = Files("/proc/self/fd").size();
  std::set<pid_t> processes;
  std::mt19937 random(20250611);
  int in_start = 0, with_recorder = 0;
  for (int i = 0; i < kills; ++i) {
    const int ranks = 2 + static_cast<int>(random() % 4), victim = static_cast<int>(random() % static_cast<unsigned>(ranks));
    // A third within the first milliseconds, when ranks load, connect and prove their key.
    const auto pause = std::chrono::microseconds(random() % (i % 3 == 0 ? 8'000 : 60'000));
    std::string output;
    LaunchOptions options;
    options.program = {GANTRY_RANK_PROCESS, "loop"};
    options.ranks = ranks;
    options.environment = {"GANTRY_RUN_DIR=" + folder, "GANTRY_HEARTBEAT_TIMEOUT=20"};
    options.timeout = absl::Seconds(150);
    options.grace = absl::Seconds(20);
    options.on_line = [&](int rank, bool, std::string_view line) { absl::StrAppend(&output, "[", rank, "] ", ToAbsl(line), "\n"); };
    {
      auto launcher = Launcher::Start(options);
      ASSERT_TRUE(launcher.ok()) << launcher.status();
      std::thread killer([&] {
        std::this_thread::sleep_for(pause);
        (*launcher)->Signal(victim, SIGKILL);
      });
      const LaunchResult result = (*launcher)->Wait();
      killer.join();
      ASSERT_FALSE(result.timed_out) << "kill " << i << " of rank " << victim << " of " << ranks << "\n" << output;
      EXPECT_EQ(result.first_failed, victim) << "kill " << i << "\n" << output;
      EXPECT_EQ(result.exit_code, 137);
      for (const RankEnd& end : result.ranks) processes.insert(end.pid);
      const std::string name = absl::StrCat("rank ", victim, " ");
      for (int rank = 0; rank < ranks; ++rank) {
        if (rank == victim) continue;
        const RankEnd& end = result.ranks[static_cast<size_t>(rank)];
        EXPECT_TRUE(WIFEXITED(end.wait_status) && WEXITSTATUS(end.wait_status) == 69) << "kill " << i << ", rank " << rank << " of " << ranks << "\n" << output;
        // The first line of this rank.
        const size_t start = output.find(absl::StrCat("[", rank, "] "));
        ASSERT_NE(start, std::string::npos) << output;
        const std::string line = output.substr(start, output.find('\n', start) - start);
        EXPECT_NE(line.find(name), std::string::npos) << "kill " << i << " of rank " << victim << ": " << line << "\n" << output;
        in_start += line.find("the job's start") != std::string::npos;
      }
      with_recorder += static_cast<int>(result.recorders.size()) == ranks;
    }
    EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1) << "a process is left";
  }
  EXPECT_EQ(Files("/proc/self/fd").size(), open_before);
  EXPECT_EQ(NewSharedFiles(shared_before), std::vector<std::string>());
  EXPECT_EQ(SegmentsMadeBy(processes), 0);
  EXPECT_EQ(Files(folder).size(), 2u) << "a file is left";
  rmdir(folder.c_str());
  std::printf("%d kills; %d survivors learnt it while the job started; %d jobs had all recorders\n", kills, in_start, with_recorder);
}

}  // namespace
}  // namespace gantry
