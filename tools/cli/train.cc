// gantry train: the loop around gantry_run_step, the progress line, and the end on a signal.
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "tools/cli/commands.h"
#include "tools/cli/run.h"

namespace gantry::cli {
namespace {

volatile std::sig_atomic_t stop_signal = 0;

// Before there is a step to finish, which reading, planning and resuming may take long for: nothing is lost.
void OnEarlySignal(int) {
  constexpr std::string_view kText = "gantry: stopped before the first step\n";
  if (!IsQuiet()) (void)!write(STDERR_FILENO, kText.data(), kText.size());
  _exit(kExitResumable);
}

// The first signal asks for an end after the step at work, the second ends at once.
void OnSignal(int signal) {
  if (stop_signal != 0) _exit(128 + signal);
  stop_signal = signal;
}

void CatchSignals(void (*handler)(int)) {
  struct sigaction action{};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

std::string Duration(double seconds) {
  if (!std::isfinite(seconds) || seconds > 1e8) return "?";
  const long long whole = static_cast<long long>(seconds + 0.5);
  if (whole >= 3600) return Format("%lldh%02lldm", whole / 3600, whole / 60 % 60);
  return Format("%lldm%02llds", whole / 60, whole % 60);
}

// One line that is written over on a terminal, and a line now and then elsewhere. It goes to stderr: stdout is for results.
class Progress {
 public:
  Progress() : terminal_(isatty(STDERR_FILENO) != 0) {}

  void Show(const gantry_step_report& report) {
    const auto now = std::chrono::steady_clock::now();
    const double since = std::chrono::duration<double>(now - shown_).count();
    if (!first_ && report.step != report.total_steps && since < (terminal_ ? 0.1 : 5.0)) return;
    first_ = false;
    shown_ = now;
    std::string line = Format("step %" PRId64, report.step);
    if (report.total_steps > 0) line += Format("/%" PRId64, report.total_steps);
    line += Format("  %.1f images/s  ETA %s  loss D %.4f  G %.4f%s", report.images_per_second, Duration(report.seconds_left).c_str(),
                   report.discriminator_loss, report.generator_loss, report.collapsed != 0 ? "  samples look alike" : "");
    if (report.exposed_text[0] != '\0') line += Format("  waits %.1f ms (%s)", 1e3 * report.exposed_seconds, report.exposed_text);
    if (terminal_) {
      winsize size{};
      if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1) line.resize(std::min<size_t>(line.size(), size.ws_col - 1));
      std::fprintf(stderr, "\r\033[K%s", line.c_str());
      open_ = true;
    } else {
      std::fprintf(stderr, "%s\n", line.c_str());
    }
  }
  // Before anything else is written.
  void End() {
    if (open_) std::fputc('\n', stderr);
    open_ = false;
  }

 private:
  const bool terminal_;
  bool first_ = true, open_ = false;
  std::chrono::steady_clock::time_point shown_ = {};
};

}  // namespace

namespace {

// A step failed, in its data or in a file that it had to write. What was learned before is saved, if it can be; after a NaN
// there is nothing to save.
[[noreturn]] void FailStep(gantry_run* run, gantry_status status, bool trained) {
  std::string message = gantry_last_error();
  const char* path = nullptr;
  if (trained && status != GANTRY_NOT_FINITE && gantry_run_save(run, &path) == GANTRY_OK) {
    message += Format("; the %" PRId64 " steps before are in %s: go on with --resume latest", gantry_run_step_count(run), path);
  }
  throw Failure(ExitCodeOf(status), message);
}

}  // namespace

std::vector<std::string> WithMemory(std::vector<std::string> settings, const MemoryFlags& memory) {
  const auto Add = [&](const char* key, const std::string& value) {
    if (!value.empty()) settings.push_back(std::string("memory.") + key + "=" + value);
  };
  Add("device", memory.device);
  Add("offload", memory.offload);
  Add("host", memory.host);
  Add("file", memory.file);
  Add("directory", memory.directory);
  Add("link", memory.link);
  Add("plan", memory.plan);
  Add("machine", memory.machine);
  Add("stash", memory.stash);
  if (!memory.recompute) Add("recompute", "false");
  if (!memory.encode) Add("encode", "false");
  if (memory.checksums) Add("checksums", "true");
  return settings;
}

std::vector<std::string> WithRanks(std::vector<std::string> settings, const RankFlags& ranks) {
  if (!ranks.parallel.empty()) settings.push_back("parallel.split=" + ranks.parallel);
  if (!ranks.overlap.empty()) settings.push_back("parallel.overlap=" + ranks.overlap);
  if (!ranks.link.empty()) settings.push_back("parallel.link=" + ranks.link);
  return settings;
}

void SetMemory(gantry_gan* gan, const MemoryFlags& memory) {
  if (!memory.any()) return;
  gantry_memory given = GANTRY_MEMORY_INIT;
  given.device = memory.device.c_str();
  given.offload = memory.offload.c_str();
  given.host = memory.host.c_str();
  given.file = memory.file.c_str();
  given.directory = memory.directory.c_str();
  given.link = memory.link.c_str();
  given.machine = memory.machine.c_str();
  given.stash = memory.stash.c_str();
  given.disable_recompute = memory.recompute ? 0 : 1;
  given.disable_encode = memory.encode ? 0 : 1;
  given.checksums = memory.checksums ? 1 : 0;
  if (gantry_gan_set_memory(gan, &given) != GANTRY_OK) throw Failure(kExitUsage, gantry_last_error());
  if (!memory.plan.empty()) Require(gantry_gan_use_plan(gan, memory.plan.c_str()));
}

namespace {

// A handle that `open` makes of a run file and overrides.
template <typename Handle, typename Open>
Handle* OpenWith(Open open, gantry_context* context, const std::string& path, const std::vector<std::string>& settings) {
  std::vector<const char*> overrides;
  for (const std::string& setting : settings) {
    if (setting.find('=') == std::string::npos) throw Failure(kExitUsage, "--set " + setting + ": write KEY=VALUE, such as train.batch=32");
    overrides.push_back(setting.c_str());
  }
  Handle* handle = nullptr;
  const gantry_status status = open(context, path.c_str(), overrides.size(), overrides.data(), &handle);
  if (status == GANTRY_BAD_DATA && std::string_view(gantry_last_error()).starts_with("--set ")) throw Failure(kExitUsage, gantry_last_error());
  Require(status);
  return handle;
}

}  // namespace

Run OpenRun(gantry_context* context, const std::string& path, const std::vector<std::string>& settings) {
  return Run(OpenWith<gantry_run>(gantry_run_open, context, path, settings));
}

Planning OpenPlanning(gantry_context* context, const std::string& path, const std::vector<std::string>& settings) {
  return Planning(OpenWith<gantry_planning>(gantry_planning_open, context, path, settings));
}

int RunTrain(const TrainOptions& options) {
  StartRanks(options.ranks.ranks, options.ranks.restarts);
  // A job that was started again has steps that are in memory alone, and writes them out first.
  CatchSignals(std::getenv("GANTRY_RESUME") != nullptr ? OnSignal : OnEarlySignal);
  const Context context = JoinRanks(0);
  const bool first_rank = gantry_context_rank(context.get()) == 0;
  std::vector<std::string> given = WithRanks(WithMemory(options.settings, options.memory), options.ranks);
  if (options.checkpoint_memory >= 0) given.push_back("output.checkpoint_memory=" + std::to_string(options.checkpoint_memory));
  const Run run = Together(context.get(), [&] { return OpenRun(context.get(), options.run_file, given); });
  const char* going_on = "";
  Together(context.get(), [&] { Require(gantry_run_restart(run.get(), options.resume.c_str(), &going_on)); });
  if (first_rank && going_on[0] != '\0') std::fprintf(stderr, "gantry: %s\n", going_on);
  gantry_plan_info plan = GANTRY_PLAN_INFO_INIT;
  Require(gantry_run_plan_info(run.get(), &plan));
  const char* text = nullptr;
  Require(gantry_run_data_text(run.get(), &text));
  std::printf("data            %s\n", text);
  std::printf("predicted peak  %s, lower bound %s\n", BytesText(plan.arena_bytes).c_str(), BytesText(plan.lower_bound_bytes).c_str());
  if (const int32_t ranks = gantry_context_rank_count(context.get()); ranks > 1) {
    const char* const split = gantry_run_parallel(run.get());
    std::printf("ranks           %d, %s; the bytes are those of rank 0\n", ranks, *split == '\0' ? "batch" : split);
  }
  if (plan.lent_device_bytes + plan.lent_host_bytes > 0) {
    std::printf("lends           %s of its device, %s of its host memory to other ranks\n", BytesText(plan.lent_device_bytes).c_str(),
                BytesText(plan.lent_host_bytes).c_str());
  }
  if (plan.tier_count > 0 || plan.repeated_op_count > 0) {
    std::printf("budget          %s, %.1f %% of the %s that nothing offloaded takes; %" PRIu64 " ops run again\n",
                BytesText(plan.budget_bytes).c_str(), 100.0 * static_cast<double>(plan.budget_bytes) / static_cast<double>(plan.footprint_bytes),
                BytesText(plan.footprint_bytes).c_str(), plan.repeated_op_count);
  }
  if (plan.mask_count + plan.zero_stash_count > 0) {
    std::printf("encoded         %" PRIu64 " values kept as sign bits, %" PRIu64 " copies without zeros: lossless\n", plan.mask_count,
                plan.zero_stash_count);
  }
  if (plan.lossy_stash_count > 0) {
    std::printf("LOSSY           %" PRIu64 " copies rounded to bf16, as asked for: results differ from those of another budget\n",
                plan.lossy_stash_count);
  }
  for (size_t tier = 0; tier < plan.tier_count; ++tier) {
    gantry_tier_info info = GANTRY_TIER_INFO_INIT;
    Require(gantry_run_tier(run.get(), tier, &info));
    std::printf("tier %-10s %s, a step copies %s out and %s in\n", info.name, BytesText(info.bytes).c_str(), BytesText(info.out_bytes).c_str(),
                BytesText(info.in_bytes).c_str());
  }
  FlushOutput();
  const int64_t first_step = gantry_run_first_step(run.get());
  const int64_t last_step = options.steps > 0 && options.steps < INT64_MAX - first_step ? first_step + options.steps : INT64_MAX;
  CatchSignals(OnSignal);
  Progress progress;
  bool measured = false;
  // Ranks get a signal at different times, and stop after the same step all the same.
  bool asked_to_stop = false;
  const auto MayGoOn = [&] {
    int32_t any = 0;
    Require(gantry_run_agree(run.get(), stop_signal != 0 ? 1 : 0, &any));
    asked_to_stop = any != 0;
    return !asked_to_stop && gantry_run_finished(run.get()) == 0 && gantry_run_step_count(run.get()) < last_step;
  };
  while (MayGoOn()) {
    gantry_step_report report = GANTRY_STEP_REPORT_INIT;
    const gantry_status status = gantry_run_step(run.get(), &report);
    if (status != GANTRY_OK) {
      progress.End();
      Together(context.get(), [&] { FailStep(run.get(), status, gantry_run_step_count(run.get()) > first_step); });
    }
    if (first_rank) progress.Show(report);
    if (!measured) {
      progress.End();
      std::printf("measured peak   %s after the first step\n", BytesText(gantry_run_high_water_bytes(run.get())).c_str());
      FlushOutput();
      measured = true;
    }
  }
  progress.End();
  const bool stopped = asked_to_stop && gantry_run_finished(run.get()) == 0;
  if (gantry_run_step_count(run.get()) == 0) {  // stopped before the first step: there is nothing to keep
    if (first_rank) std::fprintf(stderr, "gantry: stopped before the first step\n");
    return stopped ? kExitResumable : kExitOk;
  }
  Require(gantry_run_finish(run.get(), &text));
  std::printf("%s", text);
  if (!stopped) return kExitOk;
  std::string settings;
  for (const std::string& setting : options.settings) settings += " --set '" + setting + "'";
  if (!first_rank) return kExitResumable;
  std::fprintf(stderr, "gantry: stopped after step %" PRId64 " with a checkpoint; go on with: gantry train %s%s --resume latest\n",
               gantry_run_step_count(run.get()), options.run_file.c_str(), settings.c_str());
  return kExitResumable;
}

}  // namespace gantry::cli
