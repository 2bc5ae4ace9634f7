// From the second step on, a step allocates nothing and faults no page in. Counted by replacing malloc in this program.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <cstdlib>

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
  testing::AllocationCounter allocations(smallest);
  absl::Status status;
  for (int step = 0; step < 5 && status.ok(); ++step) status = (*session)->Step({.real = real});
  EXPECT_EQ(allocations.Count(), 0);
  EXPECT_TRUE(status.ok()) << status;
  // Stacks of threads may still touch a page for the first time; the arena has hundreds.
  EXPECT_LE(PageFaults() - faults, 8);
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

}  // namespace
}  // namespace gantry
