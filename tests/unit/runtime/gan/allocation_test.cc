// From the second step on, a step allocates nothing and faults no page in. Counted by replacing malloc in this program.
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "runtime/gan/gan_session.h"
#include "tests/support/allocation_counter.h"
#include "tests/support/small_gan.h"

namespace gantry {
namespace {

int64_t PageFaults() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt + usage.ru_majflt;
}

// Stacks of threads may still touch a page for the first time, and where memory is short the kernel takes pages away; the arena has hundreds
// that a step goes through. The least number of three rounds.
template <typename FiveSteps>
void ExpectNoPageFaults(std::string_view name, FiveSteps&& five_steps) {
  int64_t least = INT64_MAX;
  for (int round = 0; round < 3 && least > 8; ++round) {
    const int64_t before = PageFaults();
    five_steps();
    least = std::min(least, PageFaults() - before);
  }
  EXPECT_LE(least, 8) << name;
}

void ExpectNoAllocation(KernelChoice kernels, int64_t batch, size_t smallest = 0) {
  GanStepConfig config;
  config.r1 = 1.0;
  config.ema = 0.99;
  const testing::SmallGan gan = testing::MakeSmallGan(batch, DataType::kF32, 3, 16);
  const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = 2});
  auto session = GanSession::Create({.step = config, .plan = {.kernels = kernels, .thread_count = 2}}, gan.generators,
                                    gan.discriminators, *device);
  ASSERT_TRUE(session.ok()) << session.status();
  std::vector<float> real((*session)->real_elements());
  for (size_t i = 0; i < real.size(); ++i) real[i] = std::sin(0.1f * static_cast<float>(i));
  ASSERT_TRUE((*session)->Step({.real = real}).ok());
  ExpectNoPageFaults("", [&] {
    testing::AllocationCounter allocations(smallest);
    absl::Status status;
    for (int step = 0; step < 5 && status.ok(); ++step) status = (*session)->Step({.real = real});
    EXPECT_EQ(allocations.Count(), 0);
    EXPECT_TRUE(status.ok()) << status;
  });
}

TEST(AllocationTest, TheCounterCounts) {
  testing::AllocationCounter allocations;
  void* volatile data = std::malloc(100);  // volatile: else it may be left out
  EXPECT_GE(allocations.Count(), 1);
  std::free(data);
}

TEST(AllocationTest, FastKernelsAllocateNothingFromTheSecondStepOn) { ExpectNoAllocation(KernelChoice::kFast, 16); }

// Below the batch from which convolutions run on panels: oneDNN, where it is built. For each call it makes small objects
// of its own (argument maps, below 192 bytes in version 2.6), which nobody can keep from outside.
TEST(AllocationTest, SmallBatchesAllocateNothingFromTheSecondStepOn) {
  ExpectNoAllocation(KernelChoice::kFast, 2, 512);
}

TEST(AllocationTest, ReferenceKernelsAllocateNothingFromTheSecondStepOn) {
  ExpectNoAllocation(KernelChoice::kReference, 4);
}

// A step that does not fit, in every way in which it can be made to: tiers, files, throttles, encodings, sums.
struct TightCase {
  const char* name;
  PlanOptions plan;
};

std::vector<TightCase> TightCases() {
  const TierOptions host{.name = "host"};
  TierOptions slow = host;
  slow.out = slow.in = {.bytes_per_second = 1e9, .latency_seconds = 1e-5, .jitter_seconds = 1e-4, .seed = 1};
  const TierOptions file{.name = "file", .kind = TierKind::kFile, .directory = ::testing::TempDir()};
  TierOptions calls = file;
  calls.io_uring = false;
  std::vector<TightCase> cases = {{"host", {.tiers = {host}}},
                                  {"throttled, zeros left out", {.tiers = {slow}, .recompute = false}},
                                  {"file, zeros left out, sums", {.tiers = {file}, .recompute = false, .checksums = true}},
                                  {"file by calls", {.tiers = {calls}}},
                                  {"host and file, rounded", {.tiers = {slow, file}, .recompute = false, .stash_dtype = StashDtype::kBf16}}};
  for (TightCase& one : cases) {
    one.plan.thread_count = 2;
    one.plan.device_memory.fraction = 0.65;
  }
  return cases;
}

struct TightRun {
  std::unique_ptr<Device> device;
  std::unique_ptr<GanSession> session;
  std::vector<float> real;

  static TightRun Make(const PlanOptions& plan) {
    TightRun run;
    GanStepConfig config;
    config.ema = 0.99;
    const testing::SmallGan gan = testing::MakeSmallGan(16, DataType::kF32, 3, 16);
    run.device = MakeCpuDevice({.thread_count = 2});
    auto session = GanSession::Create({.step = config, .plan = plan}, gan.generators, gan.discriminators, *run.device);
    EXPECT_TRUE(session.ok()) << session.status();
    if (!session.ok()) return run;
    run.session = *std::move(session);
    run.real.resize(run.session->real_elements());
    for (size_t i = 0; i < run.real.size(); ++i) run.real[i] = std::sin(0.1f * static_cast<float>(i));
    EXPECT_TRUE(run.session->plan().residency.used);
    EXPECT_GT(run.session->plan().residency.stashes, 0);
    return run;
  }
  absl::Status Step(int count) {
    absl::Status status;
    for (int step = 0; step < count && status.ok(); ++step) status = session->Step({.real = real});
    return status;
  }
};

TEST(AllocationTest, BudgetsAllocateNothingFromTheSecondStepOn) {
  int zeros = 0, rounded = 0;
  for (const TightCase& one : TightCases()) {
    TightRun run = TightRun::Make(one.plan);
    ASSERT_NE(run.session, nullptr);
    zeros += run.session->plan().residency.zero_stashes;
    rounded += run.session->plan().residency.bf16_stashes;
    ASSERT_TRUE(run.Step(1).ok());
    ExpectNoPageFaults(one.name, [&] {
      testing::AllocationCounter allocations;
      const absl::Status status = run.Step(5);
      EXPECT_EQ(allocations.Count(), 0) << one.name;
      EXPECT_TRUE(status.ok()) << status;
    });
  }
  EXPECT_GT(rounded, 0);
  EXPECT_GT(zeros, 0);
}

// From here on no thread of this process may map, register, open, lock a file, or wait for a futex that other processes see: whoever
// tries is killed.
bool ForbidAllButStepping() {
#define GANTRY_FORBID(CALL) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CALL, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
  sock_filter instructions[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      GANTRY_FORBID(SYS_mmap), GANTRY_FORBID(SYS_munmap), GANTRY_FORBID(SYS_mremap), GANTRY_FORBID(SYS_brk), GANTRY_FORBID(SYS_madvise),
      GANTRY_FORBID(SYS_mprotect), GANTRY_FORBID(SYS_mlock), GANTRY_FORBID(SYS_mlock2), GANTRY_FORBID(SYS_memfd_create),
      GANTRY_FORBID(SYS_openat), GANTRY_FORBID(SYS_close), GANTRY_FORBID(SYS_fallocate), GANTRY_FORBID(SYS_ftruncate),
      GANTRY_FORBID(SYS_flock), GANTRY_FORBID(SYS_fcntl), GANTRY_FORBID(SYS_clone), GANTRY_FORBID(SYS_clone3),
      GANTRY_FORBID(SYS_io_uring_setup), GANTRY_FORBID(SYS_io_uring_register), GANTRY_FORBID(SYS_semop), GANTRY_FORBID(SYS_connect),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_futex, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[1])),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, FUTEX_PRIVATE_FLAG, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
#undef GANTRY_FORBID
  const sock_fprog program{.len = static_cast<unsigned short>(std::size(instructions)), .filter = instructions};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0;
}

constexpr int kNoFilters = 77;

[[noreturn]] void StepInAFilter(const PlanOptions& plan, bool offend) {
  TightRun run = TightRun::Make(plan);
  if (run.session == nullptr || !run.Step(2).ok()) _exit(2);
  if (!ForbidAllButStepping()) _exit(kNoFilters);
  if (offend) syscall(SYS_flock, 0, 0);
  _exit(run.Step(5).ok() ? 0 : 1);
}

TEST(StepPathDeathTest, MapsRegistersOpensAndLocksNothing) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // the program starts anew: threads do not survive a fork
  for (const TightCase& one : TightCases()) {
    const auto Passes = [](int status) { return WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == kNoFilters); };
    EXPECT_EXIT(StepInAFilter(one.plan, false), Passes, "") << one.name;
  }
  // The filter is there.
  const auto Killed = [](int status) { return WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) == kNoFilters); };
  EXPECT_EXIT(StepInAFilter(TightCases()[0].plan, true), Killed, "");
}

}  // namespace
}  // namespace gantry
