// From the second step on, a step allocates nothing and faults no page in. Counted by replacing malloc in this program.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdlib>

#include "runtime/gan/gan_session.h"
#include "tests/support/small_gan.h"

extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* data, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);
}

namespace {
std::atomic<bool> counting{false};
std::atomic<size_t> smallest_counted{0};  // bytes
std::atomic<int64_t> allocations{0};
void Count(size_t bytes) {
  if (bytes < smallest_counted.load(std::memory_order_relaxed)) return;
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
}
}  // namespace

extern "C" {
void* malloc(size_t bytes) {
  Count(bytes);
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  Count(count * bytes);
  return __libc_calloc(count, bytes);
}
void* realloc(void* data, size_t bytes) {
  Count(bytes);
  return __libc_realloc(data, bytes);
}
void* memalign(size_t alignment, size_t bytes) {
  Count(bytes);
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  Count(bytes);
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** data, size_t alignment, size_t bytes) {
  Count(bytes);
  *data = __libc_memalign(alignment, bytes);
  return *data == nullptr ? ENOMEM : 0;
}
}

namespace gantry {
namespace {

int64_t PageFaults() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt + usage.ru_majflt;
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
  const int64_t faults = PageFaults();
  smallest_counted = smallest;
  counting = true;
  absl::Status status;
  for (int step = 0; step < 5 && status.ok(); ++step) status = (*session)->Step({.real = real});
  counting = false;
  smallest_counted = 0;
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(allocations.exchange(0), 0);
  // Stacks of threads may still touch a page for the first time; the arena has hundreds.
  EXPECT_LE(PageFaults() - faults, 8);
}

TEST(AllocationTest, TheCounterCounts) {
  counting = true;
  void* const data = std::malloc(100);
  counting = false;
  std::free(data);
  EXPECT_GE(allocations.exchange(0), 1);
}

TEST(AllocationTest, FastKernelsAllocateNothingFromTheSecondStepOn) { ExpectNoAllocation(KernelChoice::kFast, 16); }

// Below the batch from which convolutions run on panels: oneDNN, where it is built. It makes small objects of its own for each
// call (argument maps); none of them is as large as the smallest tensor here that is not a scalar or a row of channels.
TEST(AllocationTest, SmallBatchesAllocateNothingFromTheSecondStepOn) { ExpectNoAllocation(KernelChoice::kFast, 2, 2048); }

TEST(AllocationTest, ReferenceKernelsAllocateNothingFromTheSecondStepOn) { ExpectNoAllocation(KernelChoice::kReference, 4); }

}  // namespace
}  // namespace gantry
