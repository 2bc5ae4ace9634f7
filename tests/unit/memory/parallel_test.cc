#include "memory/cpu/parallel.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace gantry {
namespace {

TEST(ParallelForTest, CallsEachIndexOnce) {
  for (int threads : {1, 2, 3, 7}) {
    for (int64_t count : {0, 1, 2, 5, 100}) {
      std::vector<int> calls(count, 0);
      ParallelFor(threads, count, [&](int64_t index) { ++calls[index]; });
      EXPECT_EQ(calls, std::vector<int>(count, 1)) << threads << " threads, " << count << " tasks";
    }
  }
}

TEST(ParallelForTest, WritesOfTasksAreSeenByTheCaller) {
  std::vector<double> values(1000);
  for (int round = 0; round < 20; ++round) {
    ParallelFor(2, 1000, [&](int64_t index) { values[index] = static_cast<double>(index + round); });
    EXPECT_EQ(std::accumulate(values.begin(), values.end(), 0.0), 999.0 * 500.0 + 1000.0 * round);
  }
}

}  // namespace
}  // namespace gantry
