// Starts the ranks of a job on this machine, relays what they print, and leaves nothing behind.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "comm/recorder.h"
#include "memory/status.h"

namespace gantry {

struct LaunchOptions {
  std::vector<std::string> program;      // argv; found through PATH
  int ranks = 1;
  std::vector<std::string> environment;  // NAME=VALUE, beyond the caller's own
  // By rank, the machine that it takes itself to be on (GANTRY_NODE); empty: all are on this one. Ranks of different ones share no memory
  // and talk over the loopback interface, to try a job of several nodes.
  std::vector<int> node_of;
  std::vector<int> inherited;            // descriptors that every rank gets, under the same numbers
  // Each whole line that a rank prints, without its end; a line above 64 KiB comes in pieces. On the thread that is in Wait.
  std::function<void(int rank, bool is_error, std::string_view line)> on_line;
  // Cores and memory of each rank's part of the machine. False: every rank may run everywhere.
  bool bind = true;
  // How long the other ranks may go on after one has failed, before SIGTERM; then as long again before SIGKILL.
  absl::Duration grace = absl::Seconds(5);
  absl::Duration timeout = absl::InfiniteDuration();  // for the whole job; then it is killed
  // A signalfd (-1: none) for signals that go to all ranks. The second one ends them. After one, a rank's failure is no reason to hurry
  // the others: they may be saving their work.
  int signals = -1;
  // Take in processes that ranks leave behind, and kill them at the end. Changes the calling process (PR_SET_CHILD_SUBREAPER).
  bool reap_orphans = false;
};

struct RankEnd {
  pid_t pid = 0;
  int wait_status = 0;
  bool by_launcher = false;  // killed because another one failed, or time was over
};

struct LaunchResult {
  std::vector<RankEnd> ranks;
  int first_failed = -1;  // by time, ranks that end with 69 (a peer is lost) after all others; -1: all ended with 0
  bool timed_out = false;
  std::vector<RecorderImage> recorders;  // of ranks that have one; empty where all is well
  // "rank 2 (pid 71) was killed by signal 9 (Killed)"; empty where all is well.
  std::string reason;
  // 0, the exit code of the rank that failed first, or 128 plus the signal that killed it.
  int exit_code = 0;
  // A rank that was lost by no will of its own or of the user: -1, or its number. It was killed by a signal that does not ask to stop, or it
  // did not end by itself while others did with 69, a peer is lost.
  int lost = -1;
  std::string lost_reason;  // "rank 2 (pid 71) was killed by signal 9 (Killed)", "rank 1 (pid 70) gave no sign of life"
  bool stop_asked = false;  // by a signal to the launcher
};

// The ranks are connected before they start (GANTRY_LINK_FDS), get a key of their own (GANTRY_KEY_FD) and a socket to the launcher
// (GANTRY_LAUNCHER_FD); nothing of it has a name in the file system. They die with the thread that called Start: it must stay.
class Launcher {
 public:
  // Errors: kNotFound where there is no such program, kResourceExhausted where descriptors or processes are short. No rank is left then.
  static absl::StatusOr<std::unique_ptr<Launcher>> Start(LaunchOptions options);
  virtual ~Launcher() = default;  // kills what still runs

  virtual pid_t pid(int rank) const = 0;
  // To one rank and the processes of its group; -1: to all. Thread-safe; no effect on those that ended.
  virtual void Signal(int rank, int number) = 0;
  // What the ranks are in now; of those that have a recorder. On the thread that is in Wait, or before it.
  virtual std::vector<RecorderImage> ReadRecorders() const = 0;
  // Until all have ended. Once. `idle` is called now and then on this thread, at least every `pause`.
  virtual LaunchResult Wait(const std::function<void()>& idle = nullptr, absl::Duration pause = absl::InfiniteDuration()) = 0;
};

}  // namespace gantry
