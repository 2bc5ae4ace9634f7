#include "memory/layout/layout_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "memory/layout/layout_solver.h"
#include "memory/status.h"
#include "tests/unit/memory/layout_test_util.h"

namespace gantry {
namespace {

using ::testing::HasSubstr;

std::string MessageOf(const absl::Status& status) { return std::string(Message(status)); }

LayoutProblem TwoBuffers() {
  LayoutProblem problem;
  problem.buffers = {{.lower = 0, .upper = 4, .size = 100}, {.lower = 3, .upper = 9, .size = 50}};
  problem.names = {"weights", "gradient"};
  return problem;
}

TEST(LayoutCheckTest, AcceptsNeighboursInTimeAndSpace) {
  LayoutProblem problem = TwoBuffers();
  EXPECT_TRUE(CheckLayoutOffsets(problem, std::vector<int64_t>{0, 100}, 150).ok());
  problem.buffers[1].lower = 4;
  EXPECT_TRUE(CheckLayoutOffsets(problem, std::vector<int64_t>{0, 0}, 100).ok());
}

TEST(LayoutCheckTest, NamesBothBuffersTheIntervalAndTheBytes) {
  const absl::Status status = CheckLayoutOffsets(TwoBuffers(), std::vector<int64_t>{0, 60});
  EXPECT_EQ(MessageOf(status),
            "layout: `weights` live [0, 4) at bytes [0, 100) overlaps `gradient` live [3, 9) at bytes [60, 110): they share "
            "40 bytes [60, 100) during [3, 4)");
}

TEST(LayoutCheckTest, FindsOtherFaults) {
  LayoutProblem problem = TwoBuffers();
  EXPECT_THAT(MessageOf(CheckLayoutOffsets(problem, std::vector<int64_t>{0})), HasSubstr("1 offsets for 2 buffers"));
  EXPECT_THAT(MessageOf(CheckLayoutOffsets(problem, std::vector<int64_t>{-1, 100})), HasSubstr("out of range"));
  EXPECT_THAT(MessageOf(CheckLayoutOffsets(problem, std::vector<int64_t>{0, 100}, 149)),
              HasSubstr("ends 1 bytes above the capacity of 149 bytes"));
  problem.buffers[1].alignment = 64;
  EXPECT_THAT(MessageOf(CheckLayoutOffsets(problem, std::vector<int64_t>{0, 100})), HasSubstr("not a multiple"));
  problem.buffers[1].fixed_offset = 192;
  EXPECT_THAT(MessageOf(CheckLayoutOffsets(problem, std::vector<int64_t>{0, 128})), HasSubstr("fixed at 192"));
  problem = TwoBuffers();
  problem.buffers[0].alias_group = problem.buffers[1].alias_group = 3;
  EXPECT_TRUE(CheckLayoutOffsets(problem, std::vector<int64_t>{8, 8}).ok());
  EXPECT_THAT(MessageOf(CheckLayoutOffsets(problem, std::vector<int64_t>{0, 100})), HasSubstr("alias group 3"));
}

TEST(LayoutCheckTest, AnAliasGroupIsAsHighAsItsLargestLiveMember) {
  LayoutProblem problem;
  problem.buffers = {{.lower = 0, .upper = 2, .size = 100, .alias_group = 0},
                     {.lower = 0, .upper = 9, .size = 10, .alias_group = 0},
                     {.lower = 2, .upper = 9, .size = 5}};
  EXPECT_TRUE(CheckLayoutOffsets(problem, std::vector<int64_t>{0, 0, 10}).ok());
  problem.buffers[2].lower = 1;
  EXPECT_THAT(MessageOf(CheckLayoutOffsets(problem, std::vector<int64_t>{0, 0, 10})), HasSubstr("share 5 bytes"));
}

TEST(LayoutCheckTest, StatedNumbersMustAgree) {
  Layout layout{.offsets = {0, 100}, .height = 150, .lower_bound = 150, .optimal = true};
  EXPECT_TRUE(CheckLayout(TwoBuffers(), layout).ok());
  layout.height = 151;
  EXPECT_THAT(MessageOf(CheckLayout(TwoBuffers(), layout)), HasSubstr("reach 150"));
  layout.height = 150;
  layout.lower_bound = 149;
  EXPECT_THAT(MessageOf(CheckLayout(TwoBuffers(), layout)), HasSubstr("contradict"));
}

// Right layouts, then one buffer is moved onto another that is live with it: the checker has to say so every time.
TEST(LayoutCheckTest, CatchesPlantedFaults) {
  std::mt19937_64 random(7);
  int planted = 0;
  for (int round = 0; round < 500; ++round) {
    const LayoutProblem problem = RandomLayoutProblem(random, {.alignments = false, .aliases = false, .fixed = false});
    const absl::StatusOr<Layout> layout = SolveLayout(problem, {.exact_search = false});
    ASSERT_TRUE(layout.ok()) << layout.status();
    ASSERT_TRUE(CheckLayout(problem, *layout).ok());
    const size_t moved = random() % problem.buffers.size();
    for (size_t other = 0; other < problem.buffers.size(); ++other) {
      const LayoutBuffer& a = problem.buffers[moved];
      const LayoutBuffer& b = problem.buffers[other];
      if (other == moved || a.size == 0 || b.size == 0 || a.lower >= b.upper || b.lower >= a.upper) continue;
      std::vector<int64_t> offsets = layout->offsets;
      offsets[moved] = std::max<int64_t>(0, offsets[other] - static_cast<int64_t>(random() % a.size));
      EXPECT_THAT(MessageOf(CheckLayoutOffsets(problem, offsets)), HasSubstr("overlaps"));
      ++planted;
    }
  }
  EXPECT_GT(planted, 500);
}

}  // namespace
}  // namespace gantry
