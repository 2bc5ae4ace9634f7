// gantry run: the ranks of a job on this machine. gantry recorder: what they did last. gantry topo: the machine.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

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

int RunLaunch(const LaunchCommand& command) {
  std::setvbuf(stdout, nullptr, _IOLBF, 1 << 16);  // whole lines, as they come
  const Descriptor signals = TakeSignals();
  LaunchOptions options;
  options.program = command.program;
  options.ranks = command.ranks;
  options.bind = command.bind;
  options.grace = absl::Seconds(command.grace_seconds);
  if (command.timeout_seconds > 0) options.timeout = absl::Seconds(command.timeout_seconds);
  options.reap_orphans = true;
  options.signals = signals.get();
  const int width = static_cast<int>(std::to_string(command.ranks - 1).size());
  options.on_line = [&](int rank, bool is_error, std::string_view line) {
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
  std::fprintf(stderr, "gantry run: %s\n", result.reason.c_str());
  if (!result.recorders.empty()) {
    std::fputs(FormatRecorders(result.recorders).c_str(), stderr);
    if (!command.recorder_file.empty()) {
      if (const absl::Status status = WriteRecorders(command.recorder_file, result.recorders); !status.ok()) {
        std::fprintf(stderr, "gantry run: %s\n", std::string(Message(status)).c_str());
      }
    }
  }
  return result.exit_code;
}

int RunTopology(bool json) {
  const absl::StatusOr<TopologyNode> machine = DiscoverTopology();
  if (!machine.ok()) throw FailureOf(machine.status());
  std::fputs(json ? FormatTopologyJson(*machine).c_str() : FormatTopology(*machine).c_str(), stdout);
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
