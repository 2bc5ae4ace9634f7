#include "tests/support/run_ranks.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "gtest/gtest.h"

namespace gantry {
namespace {

constexpr std::string_view kDeathLine = "run_ranks: this rank dies as the test wants it";

// Which call of RunRanks in the running test this is.
int CountCall() {
  static std::string test;
  static int count = 0;
  const testing::TestInfo* info = testing::UnitTest::GetInstance()->current_test_info();
  const std::string name = std::string(info->test_suite_name()) + "." + info->name();
  if (name != test) {
    test = name;
    count = 0;
  }
  return count++;
}

[[noreturn]] void RunAsRank(const std::function<void(Job)>& body) {
  {
    absl::StatusOr<Job> job = DiscoverJob();
    EXPECT_TRUE(job.ok()) << job.status();
    if (job.ok()) body(*std::move(job));
  }
  std::fflush(nullptr);
  // Not by returning: what follows in the test is for the test's own process.
  _exit(testing::Test::HasFailure() ? 1 : testing::Test::IsSkipped() ? 2 : 0);
}

void RunInRanks(int size, const std::function<void(Job)>& body, const RunRanksOptions& options) {
  const std::string call = std::to_string(CountCall());
  if (const char* wanted = std::getenv("GANTRY_TEST_CALL"); wanted != nullptr) {
    if (call == wanted) RunAsRank(body);
    return;  // an earlier call of the same test, which was another set of ranks
  }
  const testing::TestInfo* info = testing::UnitTest::GetInstance()->current_test_info();
  LaunchOptions launch;
  launch.program = {"/proc/self/exe", std::string("--gtest_filter=") + info->test_suite_name() + "." + info->name(), "--gtest_brief=1",
                    "--gtest_color=no", "--gtest_also_run_disabled_tests"};
  launch.ranks = size;
  launch.environment = options.environment;
  // For bodies that make monitors of their own.
  launch.environment.push_back(absl::StrCat("GANTRY_HEARTBEAT_TIMEOUT=", absl::ToDoubleSeconds(options.liveness.heartbeat_timeout)));
  launch.node_of = options.node_of;
  launch.environment.push_back("GANTRY_TEST_CALL=" + call);
  launch.environment.push_back("GTEST_OUTPUT=");
  launch.timeout = options.timeout;
  launch.grace = kTestPatience * absl::Seconds(60);
  launch.bind = false;
  std::string output;
  std::vector<bool> died(size, false);
  launch.on_line = [&](int rank, bool, std::string_view line) {
    if (line == kDeathLine) {
      died[rank] = true;
      return;
    }
    absl::StrAppend(&output, "[", rank, "] ", ToAbsl(line), "\n");
  };
  absl::StatusOr<std::unique_ptr<Launcher>> launcher = Launcher::Start(launch);
  ASSERT_TRUE(launcher.ok()) << launcher.status();
  std::thread meanwhile;
  if (options.meanwhile != nullptr) meanwhile = std::thread([&] { options.meanwhile(**launcher); });
  const LaunchResult result = (*launcher)->Wait();
  if (meanwhile.joinable()) meanwhile.join();

  std::string failures;
  for (int rank = 0; rank < size; ++rank) {
    const RankEnd& end = result.ranks[rank];
    const bool may_die = died[rank] || std::find(options.may_die.begin(), options.may_die.end(), rank) != options.may_die.end();
    if (end.wait_status == 0) continue;
    if (may_die && WIFSIGNALED(end.wait_status) && !end.by_launcher) continue;
    failures += "rank " + std::to_string(rank) + (WIFSIGNALED(end.wait_status) ? ": signal " + std::to_string(WTERMSIG(end.wait_status))
                                                                              : ": exit code " + std::to_string(WEXITSTATUS(end.wait_status)));
    failures += end.by_launcher ? " (ended by the launcher)\n" : "\n";
  }
  if (result.timed_out) failures += "the time (" + absl::FormatDuration(options.timeout) + ") was over\n";
  if (!failures.empty()) ADD_FAILURE() << failures << output;
}

}  // namespace

void RunRanksUnconnected(int size, const std::function<void(Job)>& body, const RunRanksOptions& options) { RunInRanks(size, body, options); }

void RunRanks(int size, const std::function<void(Links&, Liveness&)>& body, const RunRanksOptions& options) {
  RunInRanks(
      size,
      [&](Job job) {
        absl::StatusOr<std::unique_ptr<Links>> links = Links::Connect(std::move(job), options.connect_timeout);
        ASSERT_TRUE(links.ok()) << links.status();
        absl::StatusOr<std::unique_ptr<Liveness>> liveness = Liveness::Watch(**links, options.liveness);
        ASSERT_TRUE(liveness.ok()) << liveness.status();
        body(**links, **liveness);
        (*liveness)->Leave();
      },
      options);
}

void Die() {
  std::fprintf(stderr, "%s\n", std::string(kDeathLine).c_str());
  std::fflush(nullptr);
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

}  // namespace gantry
