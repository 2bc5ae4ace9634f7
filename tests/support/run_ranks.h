// Tests with several ranks. A rank is this test program started anew for the same test: it runs the test's body up to the same call of
// RunRanks, carries out `body` there, and ends. So what stands before the call runs in every rank, and a body may use it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "comm/job.h"
#include "comm/launcher.h"
#include "comm/links.h"
#include "comm/liveness.h"

namespace gantry {

// How much longer than usual things may take.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr int kTestPatience = 10;
#else
inline constexpr int kTestPatience = 1;
#endif

struct RunRanksOptions {
  absl::Duration timeout = kTestPatience * absl::Seconds(240);  // then every rank is killed and the test has failed
  absl::Duration connect_timeout = kTestPatience * absl::Seconds(20);
  // Kills show at once. A test that is about heartbeats sets its own time; any other is not to take a rank that lacks a core for lost.
  LivenessOptions liveness{.heartbeat_timeout = kTestPatience * absl::Seconds(20)};
  std::vector<std::string> environment;             // NAME=VALUE, for the ranks
  std::vector<int> node_of;                         // as LaunchOptions has it
  // In the test's own process, on a thread of its own, once all ranks are started: to kill and stop them. Ranks it signals may die.
  std::function<void(Launcher& launcher)> meanwhile;
  std::vector<int> may_die;                         // ranks that `meanwhile` kills
};

// The test fails if a rank has a failed expectation, ends otherwise than by returning from `body` (or by Die), or hangs; then
// what all ranks printed is shown. No process is left when it returns. `body` gets connected links and a running monitor, and
// leaves in order when it returns.
void RunRanks(int size, const std::function<void(Links& links, Liveness& liveness)>& body, const RunRanksOptions& options = {});
// The same without links: the body has the job and connects itself.
void RunRanksUnconnected(int size, const std::function<void(Job job)>& body, const RunRanksOptions& options = {});

// In a rank: ends it as kill -9 does, now. No failure of the test.
[[noreturn]] void Die();

}  // namespace gantry
