// gantry run: the ranks of a job on this machine. gantry recorder: what they did last. gantry topo: the machine.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "comm/keeping.h"
#include "comm/launcher.h"
#include "comm/recorder.h"
#include "comm/topology.h"
#include "tools/cli/commands.h"
#include "tools/cli/support.h"

namespace gantry::cli {
namespace {

ExitCode CodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument: return kExitUsage;
    case absl::StatusCode::kDataLoss: return kExitBadData;
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied: return kExitMissingInput;
    case absl::StatusCode::kAlreadyExists: return kExitCannotCreate;
    case absl::StatusCode::kInternal: return kExitInternal;
    default: return kExitUnavailable;
  }
}

Failure FailureOf(const absl::Status& status) { return Failure(CodeOf(status), std::string(Message(status))); }

// The signals that ask a job to stop come as data, to the one thread that watches everything.
Descriptor TakeSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2}) sigaddset(&signals, number);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  return Descriptor(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
}

// Says once who keeps the others waiting, when an operation takes longer than any should.
class HangWatch {
 public:
  explicit HangWatch(double seconds) : limit_ns_(static_cast<int64_t>(seconds * 1e9)) {}
  void Look(const Launcher& launcher) {
    if (said_ || limit_ns_ == 0) return;
    const std::vector<RecorderImage> images = launcher.ReadRecorders();
    const bool stuck = std::any_of(images.begin(), images.end(), [&](const RecorderImage& image) {
      return std::any_of(image.entries.begin(), image.entries.end(),
                         [&](const RecordedEntry& entry) { return entry.end_ns == 0 && image.read_ns - entry.begin_ns > limit_ns_; });
    });
    if (!stuck) return;
    said_ = true;
    std::fprintf(stderr, "gantry run: an operation has been going on for more than %.0f s\n%s", static_cast<double>(limit_ns_) * 1e-9,
                 FormatRecorders(images).c_str());
  }

 private:
  const int64_t limit_ns_;
  bool said_ = false;
};

}  // namespace

namespace {

// What follows from a job's end: whether it is started again, whether that start may go on from what this one left, and why, in words.
struct Next {
  bool again = false, resume = false;
  std::string text;
};

// All ranks ended by themselves with one exit code, as they do where they agree that something cannot be done: what they printed says it.
bool EndedAlike(const LaunchResult& result) {
  const int status = result.ranks.empty() ? 0 : result.ranks[0].wait_status;
  return WIFEXITED(status) && !result.stop_asked && result.recorders.empty() &&
         std::all_of(result.ranks.begin(), result.ranks.end(),
                     [&](const RankEnd& end) { return end.wait_status == status && !end.by_launcher; });
}

Next AfterEnd(const LaunchCommand& command, const LaunchResult& result, int restarts, const std::vector<Descriptor>& keeping) {
  if (result.lost < 0 || result.stop_asked || command.restarts == 0) return {.text = result.reason};
  if (restarts == command.restarts) {
    return {.text = Format("%s; the job was started again %d times, as --restarts allows, and is not once more", result.lost_reason.c_str(), restarts)};
  }
  const KeptProgress first = Keeping::ReadProgress(keeping[0].get());
  long long done = first.first_step;
  for (const Descriptor& piece : keeping) done = std::max<long long>(done, Keeping::ReadProgress(piece.get()).step);
  Next next{.again = true, .resume = first.begun, .text = Format("%s; restart %d of %d", result.lost_reason.c_str(), restarts + 1, command.restarts)};
  if (!first.begun) {
    next.text += ", from its beginning";
  } else if (first.checkpoint_step < 0) {
    next.text += Format("; step %lld was done, there is no checkpoint in files", done);
  } else {
    next.text += Format("; step %lld was done, the newest checkpoint in files is of step %lld", done, static_cast<long long>(first.checkpoint_step));
  }
  return next;
}

}  // namespace

int RunLaunch(const LaunchCommand& command) {
  if (command.nodes > command.ranks)
    throw Failure(kExitUsage, Format("--nodes %d: there are no more than %d ranks", command.nodes, command.ranks));
  std::setvbuf(stdout, nullptr, _IOLBF, 1 << 16);  // whole lines, as they come
  const Descriptor signals = TakeSignals();
  std::vector<Descriptor> keeping;
  std::vector<std::string> environment;
  if (command.restarts > 0) {
    absl::StatusOr<std::vector<Descriptor>> made = Keeping::Make(command.ranks);
    if (!made.ok()) throw FailureOf(made.status());
    keeping = *std::move(made);
    std::string numbers;
    for (const Descriptor& piece : keeping) numbers.append(numbers.empty() ? "" : ",").append(std::to_string(piece.get()));
    environment.push_back("GANTRY_KEEPING_FDS=" + numbers);
  }
  const absl::Time end = command.timeout_seconds > 0 ? absl::Now() + absl::Seconds(command.timeout_seconds) : absl::InfiniteFuture();
  const int width = static_cast<int>(std::to_string(command.ranks - 1).size());
  for (int restarts = 0;; ++restarts) {
    LaunchOptions options;
    options.program = command.program;
    options.ranks = command.ranks;
    options.environment = environment;
    for (int rank = 0; command.nodes > 1 && rank < command.ranks; ++rank)
      options.node_of.push_back(rank * command.nodes / command.ranks);
    for (const Descriptor& piece : keeping) options.inherited.push_back(piece.get());
    options.bind = command.bind;
    options.grace = absl::Seconds(command.grace_seconds);
    options.timeout = restarts > 0 || end == absl::InfiniteFuture() ? end - absl::Now() : absl::Seconds(command.timeout_seconds);
    options.reap_orphans = true;
    options.signals = signals.get();
    bool explained = false;
    options.on_line = [&](int rank, bool is_error, std::string_view line) {
      explained = explained || is_error;
      std::FILE* stream = is_error ? stderr : stdout;
      std::string text = command.prefix ? Format("[%*d] ", width, rank) : std::string();
      text.append(line).append("\n");
      std::fwrite(text.data(), 1, text.size(), stream);
    };
    absl::StatusOr<std::unique_ptr<Launcher>> launcher = Launcher::Start(std::move(options));
    if (!launcher.ok()) throw FailureOf(launcher.status());
    HangWatch hang(command.hang_seconds);
    const LaunchResult result = (*launcher)->Wait([&] { hang.Look(**launcher); }, absl::Seconds(5));
    std::fflush(stdout);
    if (result.reason.empty()) return kExitOk;
    if (explained && EndedAlike(result)) return result.exit_code;
    const Next next = AfterEnd(command, result, restarts, keeping);
    std::fprintf(stderr, "gantry run: %s\n", next.text.c_str());
    if (!result.recorders.empty()) {
      std::fputs(FormatRecorders(result.recorders).c_str(), stderr);
      if (!command.recorder_file.empty()) {
        if (const absl::Status status = WriteRecorders(command.recorder_file, result.recorders); !status.ok()) {
          std::fprintf(stderr, "gantry run: %s\n", std::string(Message(status)).c_str());
        }
      }
    }
    if (!next.again) return result.exit_code;
    environment = {environment[0], "GANTRY_RESTART=" + std::to_string(restarts + 1)};
    if (next.resume) environment.push_back("GANTRY_RESUME=1");
  }
}

int RunTopology(const TopologyCommand& command) {
  if (!command.machine.empty()) {
    const Context context = MakeContext(1);
    const char* text = nullptr;
    Require(gantry_context_machine_text(context.get(), command.machine.c_str(), command.nodes, command.json ? 1 : 0, &text));
    std::fputs(text, stdout);
    return kExitOk;
  }
  const absl::StatusOr<TopologyNode> machine = DiscoverTopology();
  if (!machine.ok()) throw FailureOf(machine.status());
  std::fputs(command.json ? FormatTopologyJson(*machine).c_str() : FormatTopology(*machine).c_str(), stdout);
  return kExitOk;
}

int RunRecorder(const RecorderCommand& command) {
  const bool is_pid = !command.source.empty() && std::all_of(command.source.begin(), command.source.end(), [](char c) { return c >= '0' && c <= '9'; });
  const absl::StatusOr<std::vector<RecorderImage>> images =
      is_pid ? FindRecorders(std::strtoll(command.source.c_str(), nullptr, 10)) : ReadRecorderFile(command.source);
  if (!images.ok()) throw FailureOf(images.status());
  std::fputs(command.json ? FormatRecordersJson(*images).c_str() : FormatRecorders(*images).c_str(), stdout);
  return kExitOk;
}

}  // namespace gantry::cli
