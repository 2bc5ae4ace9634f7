#include "memory/layout/layout_solver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "memory/layout/layout_check.h"
#include "memory/layout/layout_csv.h"
#include "memory/status.h"
#include "tests/unit/memory/layout_test_util.h"

namespace gantry {
namespace {

using ::testing::HasSubstr;

TEST(LayoutProblemTest, LowerBoundIsTheLargestSumOfLiveSizes) {
  LayoutProblem problem;
  problem.buffers = {{0, 4, 10}, {4, 8, 20}, {3, 5, 5}, {9, 10, 24}};
  EXPECT_EQ(*LowerBound(problem), 25);
  problem.buffers[0].alias_group = problem.buffers[2].alias_group = 1;
  EXPECT_EQ(*LowerBound(problem), 25);
  problem.buffers[1].alias_group = 1;
  EXPECT_EQ(*LowerBound(problem), 24);
  problem.buffers[3].fixed_offset = 100;
  EXPECT_EQ(*LowerBound(problem), 124);
  EXPECT_EQ(*LowerBound({}), 0);
}

TEST(LayoutProblemTest, LowerBoundCountsPaddingOfAllButTheTopmost) {
  LayoutProblem problem;
  problem.buffers = {{0, 4, 10, 16}, {0, 4, 17, 32}, {1, 2, 16, 16}};
  EXPECT_EQ(*LowerBound(problem), 16 + 32 + 16 - 15);
}

TEST(LayoutProblemTest, RefusesMalformedProblems) {
  const auto message = [](std::vector<LayoutBuffer> buffers) {
    const absl::StatusOr<Layout> layout = SolveLayout({std::move(buffers), {}});
    return std::string(Message(layout.status()));
  };
  EXPECT_THAT(message({{4, 4, 1}}), HasSubstr("`#0`: it is live in [4, 4)"));
  EXPECT_THAT(message({{0, 1, -1}}), HasSubstr("size of -1 bytes"));
  EXPECT_THAT(message({{0, 1, 1, 0}}), HasSubstr("alignment 0"));
  EXPECT_THAT(message({{0, 1, 1, 8, 12}}), HasSubstr("not a multiple"));
  EXPECT_THAT(message({{0, 1, 1, 1, -3}}), HasSubstr("fixed offset -3"));
  EXPECT_THAT(message({{0, 1, 1, 1, 0, 5}, {0, 1, 1, 1, 4, 5}}), HasSubstr("fixed offsets differ: 0 and 4"));
  EXPECT_THAT(message({{0, 1, 1, 1, 4, 5}, {0, 1, 1, 8, {}, 5}}), HasSubstr("common alignment 8"));
  EXPECT_THAT(message({{0, 1, kLayoutMaxBytes}, {0, 1, kLayoutMaxBytes}}), HasSubstr("more than 2^60"));
  EXPECT_THAT(message({{0, 4, 10, 1, 0}, {3, 6, 10, 1, 5}}), HasSubstr("fixed offsets: layout: `#0`"));
  EXPECT_THAT(message({{0, 4, 10, 1, 0, 2}, {5, 6, 10, 1, {}, 2}, {5, 6, 10, 1, 5}}), HasSubstr("share 5 bytes"));
}

TEST(LayoutSolverTest, EmptyProblemAndEmptyBuffers) {
  const absl::StatusOr<Layout> nothing = SolveLayout({});
  ASSERT_TRUE(nothing.ok());
  EXPECT_EQ(nothing->height, 0);
  EXPECT_TRUE(nothing->optimal);
  const LayoutProblem problem = {{{0, 2, 0, 8, 64}, {0, 2, 0}, {0, 2, 7}}, {}};
  const absl::StatusOr<Layout> layout = SolveLayout(problem);
  ASSERT_TRUE(layout.ok());
  EXPECT_EQ(layout->height, 7);
  EXPECT_EQ(CheckLayout(problem, *layout), absl::OkStatus());
}

TEST(LayoutSolverTest, WorksAroundFixedBuffersAndAliasesOfSeveralSizes) {
  // The group needs 10 bytes during [0, 2), 4 during [2, 6); the fixed buffer leaves a hole of 4 below it.
  const LayoutProblem problem = {
      {{0, 2, 10, 1, {}, 0}, {1, 6, 4, 1, {}, 0}, {2, 6, 8, 1, 4}, {6, 9, 12}}, {"a", "view of a", "pinned", "late"}};
  const absl::StatusOr<Layout> layout = SolveLayout(problem);
  ASSERT_TRUE(layout.ok());
  EXPECT_EQ(CheckLayout(problem, *layout), absl::OkStatus());
  EXPECT_EQ(layout->height, 12);
}

TEST(LayoutSolverTest, IsDeterministic) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 20; ++round) {
    const LayoutProblem problem = RandomLayoutProblem(random, {.max_buffers = 60});
    const LayoutOptions options{.work_limit = 20'000'000};
    const absl::StatusOr<Layout> once = SolveLayout(problem, options);
    const absl::StatusOr<Layout> again = SolveLayout(problem, options);
    ASSERT_TRUE(once.ok());
    EXPECT_EQ(once->offsets, again->offsets);
    EXPECT_EQ(once->work, again->work);
  }
}

TEST(LayoutSolverTest, TenThousandFuzzedProblems) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 10'000; ++round) {
    const RandomLayoutShape shape{.max_buffers = round % 100 == 0 ? 300 : 30, .max_time = 5 + round % 40,
                                  .max_size = round % 3 == 0 ? 8 : 500, .alignments = round % 2 == 0,
                                  .aliases = round % 4 < 2, .fixed = round % 8 < 4};
    const LayoutProblem problem = RandomLayoutProblem(random, shape);
    const absl::StatusOr<Layout> layout = SolveLayout(problem, {.work_limit = 1'000'000});
    ASSERT_TRUE(layout.ok()) << "round " << round << ": " << layout.status();
    ASSERT_EQ(CheckLayout(problem, *layout), absl::OkStatus()) << "round " << round;
    ASSERT_GE(layout->height, *LowerBound(problem)) << "round " << round;
  }
}

}  // namespace
}  // namespace gantry
