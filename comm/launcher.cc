#include "comm/launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "comm/binding.h"
#include "comm/channels.h"
#include "comm/frame.h"
#include "comm/job.h"
#include "comm/process.h"
#include "comm/socket.h"

extern char** environ;

namespace gantry {
namespace {

constexpr size_t kMaxLineBytes = size_t{64} << 10;

// The file that execvp would run, so that a program that is not there is an error before anything starts.
absl::StatusOr<std::string> FindProgram(const std::string& name) {
  const auto runs = [](const std::string& path) { return access(path.c_str(), X_OK) == 0; };
  if (name.find('/') != std::string::npos) {
    if (runs(name)) return name;
    return SystemError(errno, absl::StrFormat("the program '%s'", name));
  }
  const char* paths = std::getenv("PATH");
  for (std::string_view rest = paths != nullptr ? paths : "/usr/bin:/bin"; !name.empty() && !rest.empty();) {
    const size_t colon = std::min(rest.find(':'), rest.size());
    const std::string path = absl::StrCat(ToAbsl(rest.substr(0, colon)), colon == 0 ? "./" : "/", name);
    if (runs(path)) return path;
    rest.remove_prefix(std::min(colon + 1, rest.size()));
  }
  return absl::NotFoundError(absl::StrFormat("the program '%s' is not in PATH", name));
}

// All pairs of ranks need two descriptors here until the ranks have started.
absl::Status AllowDescriptors(size_t count) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return SystemError(errno, "asking how many descriptors may be open");
  if (limit.rlim_cur >= count) return absl::OkStatus();
  if (limit.rlim_max < count) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%d descriptors are needed to connect the ranks, this user may open %d: raise ulimit -n", count, limit.rlim_max));
  }
  limit.rlim_cur = count;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return SystemError(errno, "asking for more descriptors");
  return absl::OkStatus();
}

// Text of one stream, line by line.
class Lines {
 public:
  template <typename Call>
  void Append(std::string_view text, const Call& call) {
    while (!text.empty()) {
      const size_t end = text.find('\n');
      const std::string_view piece = text.substr(0, end);
      text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
      part_.append(piece);
      if (end != std::string_view::npos || part_.size() >= kMaxLineBytes) {
        call(part_);
        part_.clear();
      }
    }
  }
  template <typename Call>
  void End(const Call& call) {
    if (!part_.empty()) call(part_);
    part_.clear();
  }

 private:
  std::string part_;
};

class LocalLauncher final : public Launcher {
 public:
  explicit LocalLauncher(LaunchOptions options) : options_(std::move(options)), ranks_(options_.ranks) {
    for (auto& rank : ranks_) rank = std::make_unique<Rank>();
  }

  ~LocalLauncher() override {
    Signal(-1, SIGKILL);
    for (const auto& rank : ranks_) {
      if (rank->pid > 0 && !rank->ended) waitpid(rank->pid, nullptr, 0);
    }
    KillOrphans();
  }

  absl::Status Start() {
    if (options_.program.empty()) return absl::InvalidArgumentError("there is no program to start");
    if (options_.ranks < 1 || options_.ranks > kMaxRanks) {
      return absl::InvalidArgumentError(absl::StrFormat("%d ranks; 1 to %d can be started on one machine", options_.ranks, kMaxRanks));
    }
    GANTRY_ASSIGN_OR_RETURN(const std::string path, FindProgram(options_.program[0]));
    const size_t count = static_cast<size_t>(options_.ranks);
    GANTRY_RETURN_IF_ERROR(AllowDescriptors(count * (count - 1) + 8 * count + 64));
    if (options_.reap_orphans) prctl(PR_SET_CHILD_SUBREAPER, 1);
    epoll_.Reset(epoll_create1(EPOLL_CLOEXEC));
    if (!epoll_.valid()) return SystemError(errno, "making an epoll descriptor");
    if (options_.signals >= 0) {
      GANTRY_RETURN_IF_ERROR(Watch(options_.signals, 0, Source::kSignals));
    }
    std::vector<std::vector<Descriptor>> links(count);
    for (auto& row : links) row.resize(count);
    for (size_t low = 0; low < count; ++low) {
      for (size_t high = low + 1; high < count; ++high) {
        GANTRY_ASSIGN_OR_RETURN(auto pair, MakeSocketPair());
        links[low][high] = std::move(pair.first);
        links[high][low] = std::move(pair.second);
      }
    }
    bindings_.resize(count);
    if (options_.bind) {
      GANTRY_ASSIGN_OR_RETURN(bindings_, BindRanks(options_.ranks));
    }
    GANTRY_ASSIGN_OR_RETURN(const JobKey key, JobKey::Generate());
    for (size_t rank = 0; rank < count; ++rank) {
      GANTRY_RETURN_IF_ERROR(Annotate(StartRank(static_cast<int>(rank), path, key, links[rank]), absl::StrFormat("starting rank %d", rank)));
    }
    return absl::OkStatus();
  }

  pid_t pid(int rank) const override { return ranks_[rank]->pid; }

  void Signal(int rank, int number) override {
    std::unique_lock lock(mutex_);
    for (int i = 0; i < options_.ranks; ++i) {
      Rank& it = *ranks_[i];
      if ((rank != -1 && rank != i) || it.pid <= 0) continue;
      // The group's number stays taken while the rank is not reaped, so this reaches nobody else.
      if (!it.ended) kill(-it.pid, number);
    }
  }

  std::vector<RecorderImage> ReadRecorders() const override {
    std::vector<RecorderImage> images;
    for (const auto& rank : ranks_) {
      if (!rank->recorder.valid()) continue;
      absl::StatusOr<RecorderImage> image = ReadRecorder(rank->recorder.get());
      if (image.ok()) images.push_back(*std::move(image));
    }
    return images;
  }

  LaunchResult Wait(const std::function<void()>& idle, absl::Duration pause) override {
    const absl::Time end = absl::Now() + options_.timeout;
    int running = options_.ranks;
    absl::Time terminate = absl::InfiniteFuture(), destroy = absl::InfiniteFuture();
    while (running > 0) {
      std::array<epoll_event, 64> events;
      const int count = epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), PollTimeout(std::min({end, terminate, destroy, absl::Now() + pause})));
      if (idle != nullptr) idle();
      for (int i = 0; i < count; ++i) {
        Rank& rank = *ranks_[events[i].data.u64 >> 3];
        const auto what = static_cast<Source>(events[i].data.u64 & 7);
        if (what == Source::kProcess) {
          if (!rank.ended && TakeEnd(static_cast<int>(events[i].data.u64 >> 3))) --running;
        } else if (what == Source::kLauncherSocket) {
          ReadRank(rank);
        } else if (what == Source::kSignals) {
          ReadSignals();
        } else {
          ReadOutput(rank, what == Source::kError);
        }
      }
      const absl::Time now = absl::Now();
      if (result_.first_failed >= 0 && result_.recorders.empty()) result_.recorders = ReadRecorders();
      if (result_.first_failed >= 0 && !stop_asked_ && terminate == absl::InfiniteFuture() && destroy == absl::InfiniteFuture()) {
        terminate = now + options_.grace;
      }
      if (now >= end && !result_.timed_out) {
        result_.timed_out = true;
        result_.recorders = ReadRecorders();
        terminate = now;
      }
      if (now >= terminate) {
        terminate = absl::InfiniteFuture();
        destroy = now + options_.grace;
        Stop(SIGTERM);
      }
      if (now >= destroy) {
        destroy = absl::InfiniteFuture();
        Stop(SIGKILL);
      }
    }
    KillOrphans();
    for (const auto& rank : ranks_) {
      ReadOutput(*rank, false);
      ReadOutput(*rank, true);
      EndOutput(*rank);
    }
    Summarize();
    FindLost();
    return result_;
  }

 private:
  static constexpr int kMaxRanks = 512;
  static constexpr int kExitPeerLost = 69;
  enum class Source : uint64_t { kProcess, kOutput, kError, kLauncherSocket, kSignals };

  struct Rank {
    int number = 0;
    pid_t pid = 0;
    bool ended = false;       // mutex_: reaped, its number may be another process's
    bool by_launcher = false;
    Descriptor process, output, error, socket;
    Lines output_lines, error_lines;
    FrameReader frames;
    Descriptor recorder;      // what it did last, readable after its end
  };

  absl::Status StartRank(int number, const std::string& path, const JobKey& key, std::vector<Descriptor>& links) {
    Rank& rank = *ranks_[number];
    rank.number = number;
    int output[2], error[2], secret[2];
    if (pipe2(output, O_CLOEXEC) != 0) return SystemError(errno, "making a pipe");
    rank.output.Reset(output[0]);
    const Descriptor output_end(output[1]);
    if (pipe2(error, O_CLOEXEC) != 0) return SystemError(errno, "making a pipe");
    rank.error.Reset(error[0]);
    const Descriptor error_end(error[1]);
    if (pipe2(secret, O_CLOEXEC) != 0) return SystemError(errno, "making a pipe");
    const Descriptor key_reader(secret[0]);
    {
      const Descriptor key_writer(secret[1]);
      if (write(key_writer.get(), key.bytes().data(), JobKey::kBytes) != JobKey::kBytes) return SystemError(errno, "passing the job's key");
    }
    GANTRY_ASSIGN_OR_RETURN(auto launcher_pair, MakeSocketPair());
    rank.socket = std::move(launcher_pair.first);
    const Descriptor rank_end = std::move(launcher_pair.second);
    const Descriptor null(open("/dev/null", O_RDONLY | O_CLOEXEC));

    // Everything that allocates comes before the fork: between fork and exec only system calls are safe in a process with threads.
    std::vector<int> kept = {key_reader.get(), rank_end.get()};
    kept.insert(kept.end(), options_.inherited.begin(), options_.inherited.end());
    std::vector<int> numbers;
    for (const Descriptor& link : links) {
      numbers.push_back(link.get());
      if (link.valid()) kept.push_back(link.get());
    }
    std::vector<std::string> variables = {
        absl::StrCat("GANTRY_RANK=", number),
        absl::StrCat("GANTRY_SIZE=", options_.ranks),
        absl::StrCat("GANTRY_LOCAL_RANK=", number),
        absl::StrCat("GANTRY_LOCAL_SIZE=", options_.ranks),
        absl::StrCat("GANTRY_LINK_FDS=", absl::StrJoin(numbers, ",")),
        absl::StrCat("GANTRY_KEY_FD=", key_reader.get()),
        absl::StrCat("GANTRY_LAUNCHER_FD=", rank_end.get()),
    };
    if (!options_.node_of.empty()) variables.push_back(absl::StrCat("GANTRY_NODE=", options_.node_of[number]));
    variables.insert(variables.end(), options_.environment.begin(), options_.environment.end());
    const auto name_of = [](std::string_view variable) { return variable.substr(0, variable.find('=')); };
    std::vector<char*> environment;
    for (char** variable = environ; *variable != nullptr; ++variable) {
      const std::string_view name = name_of(*variable);
      // A job's description is whole: nothing of another one is left in it.
      const bool replaced = name == "GANTRY_RENDEZVOUS" || name == "GANTRY_KEY_FILE" || name == "GANTRY_KEEPING_FDS" || name == "GANTRY_RESTART" ||
                            name == "GANTRY_RESUME" ||
                            std::any_of(variables.begin(), variables.end(), [&](const std::string& own) { return name_of(own) == name; });
      if (!replaced) environment.push_back(*variable);
    }
    for (std::string& variable : variables) environment.push_back(variable.data());
    environment.push_back(nullptr);
    std::vector<char*> arguments;
    for (std::string& argument : options_.program) arguments.push_back(argument.data());
    arguments.push_back(nullptr);
    sigset_t none;
    sigemptyset(&none);
    const pid_t parent = getpid();
    const RankBinding& binding = bindings_[number];
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    for (const int cpu : binding.cpus) CPU_SET(cpu, &cpus);
    constexpr int kPreferred = 1, kMaxNodes = 1024;  // MPOL_PREFERRED
    unsigned long nodes[kMaxNodes / (8 * sizeof(unsigned long))] = {};
    if (binding.memory_node >= 0 && binding.memory_node < kMaxNodes) nodes[binding.memory_node / 64] |= 1ul << binding.memory_node % 64;

    const pid_t child = fork();
    if (child < 0) return SystemError(errno, "starting a process");
    if (child == 0) {
      setpgid(0, 0);
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(127);  // it ended before the line above
      for (int signal_number = 1; signal_number < NSIG; ++signal_number) signal(signal_number, SIG_DFL);
      sigprocmask(SIG_SETMASK, &none, nullptr);
      if (!binding.cpus.empty()) sched_setaffinity(0, sizeof(cpus), &cpus);
      if (binding.memory_node >= 0) syscall(SYS_set_mempolicy, kPreferred, nodes, kMaxNodes);
      dup2(null.get(), STDIN_FILENO);
      dup2(output_end.get(), STDOUT_FILENO);
      dup2(error_end.get(), STDERR_FILENO);
      for (int descriptor : kept) fcntl(descriptor, F_SETFD, 0);
      execve(path.c_str(), arguments.data(), environment.data());
      const char* why = std::strerror(errno);
      (void)!write(STDERR_FILENO, why, std::strlen(why));
      _exit(126);
    }
    setpgid(child, child);
    {
      std::unique_lock lock(mutex_);
      rank.pid = child;
    }
    for (Descriptor& link : links) link.Reset();
    for (const Descriptor* descriptor : {&rank.output, &rank.error}) fcntl(descriptor->get(), F_SETFL, O_NONBLOCK);
    rank.process.Reset(static_cast<int>(syscall(SYS_pidfd_open, child, 0)));
    if (!rank.process.valid()) return SystemError(errno, "watching a process");
    GANTRY_RETURN_IF_ERROR(Watch(rank.process.get(), number, Source::kProcess));
    GANTRY_RETURN_IF_ERROR(Watch(rank.output.get(), number, Source::kOutput));
    GANTRY_RETURN_IF_ERROR(Watch(rank.error.get(), number, Source::kError));
    return Watch(rank.socket.get(), number, Source::kLauncherSocket);
  }

  absl::Status Watch(int descriptor, int rank, Source source) {
    epoll_event event{.events = EPOLLIN, .data = {.u64 = static_cast<uint64_t>(rank) << 3 | static_cast<uint64_t>(source)}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, descriptor, &event) == 0) return absl::OkStatus();
    return SystemError(errno, "watching a descriptor");
  }

  // Reaps it, tells the others, remembers the first that failed.
  bool TakeEnd(int number) {
    Rank& rank = *ranks_[number];
    int wait_status = 0;
    // Its other processes go with it; its number is still its own until it is reaped.
    kill(-rank.pid, SIGKILL);
    {
      std::unique_lock lock(mutex_);
      if (waitpid(rank.pid, &wait_status, WNOHANG) != rank.pid) return false;
      rank.ended = true;
    }
    result_.ranks.resize(options_.ranks);
    result_.ranks[number] = {.pid = rank.pid, .wait_status = wait_status, .by_launcher = rank.by_launcher};
    rank.process.Reset();
    // A rank's connections end a moment before its process does: one that reacts to it may be seen to end first, and says so by its code.
    const auto reacts = [](int status) { return WIFEXITED(status) && WEXITSTATUS(status) == kExitPeerLost; };
    const RankEndKind kind = wait_status == 0 ? RankEndKind::kInOrder : reacts(wait_status) ? RankEndKind::kLostAnother : RankEndKind::kFailed;
    if (wait_status != 0 && !rank.by_launcher) {
      const int first = result_.first_failed;
      if (first < 0 || (reacts(result_.ranks[first].wait_status) && !reacts(wait_status))) result_.first_failed = number;
    }
    WireWriter notice;
    notice.U32(static_cast<uint32_t>(number));
    notice.U32(static_cast<uint32_t>(kind));
    notice.Text(DescribeWaitStatus(wait_status));
    const auto header = EncodeFrameHeader({.channel = kRankEndedChannel, .bytes = notice.bytes().size()});
    for (const auto& other : ranks_) {
      // A rank that reads nothing loses the notice, not the launcher its time.
      if (!other->ended && other->socket.valid()) (void)SendSome(other->socket.get(), header, notice.bytes(), {});
    }
    return true;
  }

  void ReadRank(Rank& rank) {
    std::byte buffer[4096];
    std::vector<Descriptor> descriptors;
    const absl::StatusOr<Received> got = ReceiveSome(rank.socket.get(), buffer, descriptors);
    if (got.ok() && got->would_block) return;
    if (!got.ok() || got->closed || !rank.frames.Append(std::span(buffer).first(got->bytes), std::move(descriptors)).ok()) {
      rank.socket.Reset();
      return;
    }
    while (std::optional<Frame> frame = rank.frames.Next()) {
      if (frame->channel == kRecorderChannel && frame->descriptors.size() == 1) rank.recorder = std::move(frame->descriptors[0]);
    }
  }

  void ReadSignals() {
    signalfd_siginfo info;
    while (read(options_.signals, &info, sizeof(info)) == sizeof(info)) {
      const auto number = static_cast<int>(info.ssi_signo);
      const bool stops = number != SIGUSR1 && number != SIGUSR2;
      Signal(-1, stops && stop_asked_ ? SIGKILL : number);
      stop_asked_ |= stops;
    }
  }

  void ReadOutput(Rank& rank, bool is_error) {
    Descriptor& stream = is_error ? rank.error : rank.output;
    char buffer[size_t{16} << 10];
    while (stream.valid()) {
      const ssize_t count = read(stream.get(), buffer, sizeof(buffer));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && errno == EAGAIN) return;
      if (count <= 0) {
        stream.Reset();
        return;
      }
      (is_error ? rank.error_lines : rank.output_lines).Append({buffer, static_cast<size_t>(count)}, [&](std::string_view line) {
        if (options_.on_line) options_.on_line(rank.number, is_error, line);
      });
    }
  }

  void EndOutput(Rank& rank) {
    for (const bool is_error : {false, true}) {
      (is_error ? rank.error_lines : rank.output_lines).End([&](std::string_view line) {
        if (options_.on_line) options_.on_line(rank.number, is_error, line);
      });
    }
  }

  void Stop(int number) {
    for (const auto& rank : ranks_) {
      if (!rank->ended) rank->by_launcher = true;
    }
    Signal(-1, number);
    Signal(-1, SIGCONT);  // a stopped one would not take a SIGTERM
  }

  // Processes that ranks started and that left their groups are children of this one now.
  void KillOrphans() {
    if (!options_.reap_orphans) return;
    for (;;) {
      int count = 0;
      const std::string path = absl::StrFormat("/proc/self/task/%d/children", getpid());
      if (std::FILE* file = std::fopen(path.c_str(), "r"); file != nullptr) {
        int child = 0;
        while (std::fscanf(file, "%d", &child) == 1) {
          kill(child, SIGKILL);
          ++count;
        }
        std::fclose(file);
      }
      if (count == 0) return;
      while (waitpid(-1, nullptr, 0) > 0) {
      }
    }
  }

  std::string DescribeEnd(int rank) const {
    const RankEnd& end = result_.ranks[rank];
    return absl::StrFormat("rank %d (pid %d) %s%s", rank, end.pid, WIFSIGNALED(end.wait_status) ? "was " : "", DescribeWaitStatus(end.wait_status));
  }

  void FindLost() {
    result_.stop_asked = stop_asked_;
    if (result_.timed_out) return;
    const auto asks = [](int number) { return number == SIGINT || number == SIGTERM || number == SIGHUP || number == SIGQUIT; };
    for (int rank = 0; rank < options_.ranks && result_.lost < 0; ++rank) {
      const RankEnd& end = result_.ranks[rank];
      if (end.by_launcher || !WIFSIGNALED(end.wait_status) || asks(WTERMSIG(end.wait_status))) continue;
      result_.lost = rank;
      result_.lost_reason = DescribeEnd(rank);
    }
    if (result_.lost >= 0 || result_.exit_code != kExitPeerLost) return;
    for (int rank = 0; rank < options_.ranks && result_.lost < 0; ++rank) {
      if (!result_.ranks[rank].by_launcher) continue;
      result_.lost = rank;
      result_.lost_reason = absl::StrFormat("rank %d (pid %d) gave no sign of life", rank, result_.ranks[rank].pid);
    }
  }

  void Summarize() {
    if (result_.first_failed >= 0) {
      const RankEnd& end = result_.ranks[result_.first_failed];
      result_.reason = DescribeEnd(result_.first_failed);
      result_.exit_code = WIFSIGNALED(end.wait_status) ? 128 + WTERMSIG(end.wait_status) : WEXITSTATUS(end.wait_status);
    } else if (result_.timed_out) {
      result_.reason = absl::StrFormat("the job was still running after %s and was ended", absl::FormatDuration(options_.timeout));
      result_.exit_code = 124;
    }
  }

  LaunchOptions options_;
  std::vector<RankBinding> bindings_;
  bool stop_asked_ = false;
  std::vector<std::unique_ptr<Rank>> ranks_;
  Descriptor epoll_;
  LaunchResult result_;
  std::mutex mutex_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Launcher>> Launcher::Start(LaunchOptions options) {
  auto launcher = std::make_unique<LocalLauncher>(std::move(options));
  GANTRY_RETURN_IF_ERROR(launcher->Start());
  return launcher;
}

}  // namespace gantry
