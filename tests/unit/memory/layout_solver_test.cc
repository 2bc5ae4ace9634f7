#include "memory/layout/layout_solver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "memory/layout/layout_check.h"
#include "memory/layout/layout_csv.h"
#include "memory/layout/layout_items.h"
#include "memory/layout/layout_placed.h"
#include "memory/layout/layout_skyline.h"
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

TEST(LayoutProblemTest, EmptyBuffersWithFixedOffsetsReachNowhere) {
  LayoutProblem problem;
  problem.buffers = {{1, 4, 0, 2, 4}, {0, 9, 8}};
  problem.buffers[0].alias_group = 0;
  EXPECT_EQ(*LowerBound(problem), 8);
  const absl::StatusOr<Layout> layout = SolveLayout(problem);
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_TRUE(CheckLayout(problem, *layout).ok()) << CheckLayout(problem, *layout);
}

TEST(LayoutProblemTest, LowerBoundCountsPaddingOfAllButTheTopmost) {
  LayoutProblem problem;
  problem.buffers = {{0, 4, 10, 16}, {0, 4, 17, 32}, {1, 2, 16, 16}};
  EXPECT_EQ(*LowerBound(problem), 16 + 32 + 16 - 15);
  EXPECT_EQ(SolveLayout(problem)->height, 49);
  EXPECT_TRUE(SolveLayout(problem)->optimal);
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

TEST(LayoutSolverTest, AnyCapacityWillDo) {
  std::mt19937_64 random(5);
  const LayoutProblem problem = RandomLayoutProblem(random, {.max_buffers = 30});
  for (const int64_t capacity : {std::numeric_limits<int64_t>::max() - 4095, std::numeric_limits<int64_t>::max(), int64_t{0}, int64_t{-5}}) {
    const absl::StatusOr<Layout> layout = SolveLayout(problem, {.capacity = capacity, .work_limit = 1'000'000});
    ASSERT_TRUE(layout.ok()) << layout.status();
    EXPECT_EQ(CheckLayout(problem, *layout), absl::OkStatus());
  }
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

// Every optimum is proved, and is what trying everything gives.
TEST(LayoutSolverTest, EqualsBruteForceOnTinyProblems) {
#if defined(__SANITIZE_THREAD__)
  constexpr int kRounds = 300;  // one thread at work, ten times slower
#else
  constexpr int kRounds = 3000;
#endif
  std::mt19937_64 random(2);
  for (int round = 0; round < kRounds; ++round) {
    const RandomLayoutShape shape{.max_buffers = 7, .max_time = 4 + round % 8, .max_size = round % 2 ? 6 : 40,
                                  .alignments = round % 3 == 0, .aliases = false, .fixed = false};
    const LayoutProblem problem = RandomLayoutProblem(random, shape);
    const absl::StatusOr<Layout> layout = SolveLayout(problem);
    ASSERT_TRUE(layout.ok()) << layout.status();
    ASSERT_EQ(CheckLayout(problem, *layout), absl::OkStatus()) << "round " << round;
    const int64_t least = ExhaustiveLayout(problem).Solve();
    ASSERT_EQ(layout->height, least) << "round " << round << "\n" << FormatLayoutCsv(problem, layout->offsets);
    ASSERT_TRUE(layout->optimal) << "round " << round;
    if (least > 0) {
      const absl::StatusOr<Layout> refused = SolveLayout(problem, {.capacity = least - 1});
      ASSERT_EQ(refused->lower_bound, least) << "round " << round << "\n" << FormatLayoutCsv(problem);
    }
  }
}

// More than the flat form of PlacedPieces holds, so that the tree over time is used; lifetimes from 1 to a tenth of the time.
TEST(LayoutSolverTest, ManyBuffersComeNearTheBound) {
  std::mt19937_64 random(4);
  LayoutProblem problem;
  for (int i = 0; i < 80'000; ++i) {
    const int64_t lower = static_cast<int64_t>(random() % 80'000);
    const int64_t duration = int64_t{1} << (random() % 8);
    problem.buffers.push_back({lower, lower + duration, static_cast<int64_t>(1 + random() % 100'000)});
  }
  const absl::StatusOr<Layout> layout = SolveLayout(problem, {.work_limit = 200'000'000});
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(CheckLayout(problem, *layout), absl::OkStatus());
  EXPECT_LT(layout->gap(), 0.03) << layout->height << " over " << layout->lower_bound;
}

TEST(PlacedPiecesTest, TreeAndBlocksFindTheSame) {
  std::mt19937_64 random(9);
  constexpr int32_t kSections = 300;
  PlacedPieces flat(10, kSections), tree(PlacedPieces::kFlatPieces + 1, kSections);
  std::vector<std::pair<LayoutPiece, int64_t>> placed;
  int64_t work = 0;
  for (int32_t i = 0; i < 3000; ++i) {
    const auto first = static_cast<int32_t>(random() % kSections);
    const auto last = static_cast<int32_t>(first + 1 + random() % (kSections - first));
    const LayoutPiece piece{first, last, static_cast<int64_t>(1 + random() % 50)};
    const GreedyFit fit = random() % 2 ? GreedyFit::kFirst : GreedyFit::kBest;
    const int64_t alignment = random() % 3 ? 1 : 16;
    const int64_t offset = flat.FindHole({&piece, 1}, alignment, fit, work);
    ASSERT_EQ(offset, tree.FindHole({&piece, 1}, alignment, fit, work));
    for (const auto& [other, other_offset] : placed) {
      const bool live = other.first < piece.last && piece.first < other.last;
      ASSERT_FALSE(live && other_offset < offset + piece.size && offset < other_offset + other.size);
    }
    flat.Insert(offset, piece, i);
    tree.Insert(offset, piece, i);
    placed.emplace_back(piece, offset);
    if (random() % 3 != 0) continue;
    const size_t gone = random() % placed.size();
    if (placed[gone].first.size == 0) continue;
    flat.Remove(placed[gone].second, placed[gone].first, static_cast<int32_t>(gone));
    tree.Remove(placed[gone].second, placed[gone].first, static_cast<int32_t>(gone));
    placed[gone].first = {0, 0, 0};
  }
}

struct PublicLayoutCase {
  const char* file;
  int64_t capacity;
  int64_t work_limit;
};

class PublicLayoutTest : public testing::TestWithParam<PublicLayoutCase> {};

// The eleven public inputs fit their published capacity, which no greedy order comes near to; C fits its lower bound, D and J
// fit 1.04 times theirs.
TEST_P(PublicLayoutTest, FitsTheCapacity) {
  const auto& [file, capacity, work_limit] = GetParam();
  const absl::StatusOr<LayoutProblem> problem = ReadLayoutCsvFile(LayoutTestData(file));
  ASSERT_TRUE(problem.ok()) << problem.status();
  const absl::StatusOr<Layout> layout = SolveLayout(*problem, {.capacity = capacity, .work_limit = work_limit});
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(CheckLayout(*problem, *layout, capacity), absl::OkStatus());
}

constexpr int64_t kPublishedCapacity = 1'048'576, kOneSecond = 1'000'000'000;
INSTANTIATE_TEST_SUITE_P(
    MiniMalloc, PublicLayoutTest,
    testing::Values(PublicLayoutCase{"A.1048576.csv", kPublishedCapacity, kOneSecond},
                    PublicLayoutCase{"B.1048576.csv", kPublishedCapacity, kOneSecond},
                    PublicLayoutCase{"C.1048576.csv", 1'039'360, kOneSecond},
                    PublicLayoutCase{"D.1048576.csv", kPublishedCapacity, kOneSecond},
                    PublicLayoutCase{"E.1048576.csv", kPublishedCapacity, kOneSecond},
                    PublicLayoutCase{"F.1048576.csv", kPublishedCapacity, kOneSecond},
                    PublicLayoutCase{"G.1048576.csv", kPublishedCapacity, kOneSecond},
                    PublicLayoutCase{"H.1048576.csv", kPublishedCapacity, kOneSecond},
                    PublicLayoutCase{"I.1048576.csv", kPublishedCapacity, kOneSecond},
                    PublicLayoutCase{"J.1048576.csv", kPublishedCapacity, kOneSecond},
                    PublicLayoutCase{"K.1048576.csv", kPublishedCapacity, kOneSecond},
                    PublicLayoutCase{"D.1048576.csv", 1'025'556, 10 * kOneSecond},
                    PublicLayoutCase{"J.1048576.csv", 1'028'751, 10 * kOneSecond}),
    [](const auto& info) { return std::string(1, info.param.file[0]) + "_" + std::to_string(info.param.capacity); });

// Arenas of steps far larger than the device: a few buffers of a third of the arena among hundreds of small pieces. The best
// greedy order ends 6 to 26 % above the bound. In the last one copies of the step before go on: their buffers are one at both ends.
TEST(LayoutSolverTest, ArenasOfTightBudgetsComeNearTheBound) {
  const std::pair<const char*, double> cases[] = {
      {"dcgan256-quarter.csv", 0.03}, {"dcgan256-eighth.csv", 0.01}, {"dcgan256-tenth.csv", 0.05}, {"dcgan128-across.csv", 0.01}};
  for (const auto& [file, gap] : cases) {
    const absl::StatusOr<LayoutProblem> problem = ReadLayoutCsvFile(LayoutTestData(file));
    ASSERT_TRUE(problem.ok()) << problem.status();
    const absl::StatusOr<Layout> layout = SolveLayout(*problem, {.work_limit = 300'000'000});
    ASSERT_TRUE(layout.ok()) << layout.status();
    EXPECT_EQ(CheckLayout(*problem, *layout), absl::OkStatus());
    EXPECT_LT(layout->gap(), gap) << file;
  }
}

// A gap is worth some work and no more; where a capacity is missed, all of it.
TEST(LayoutSolverTest, LeavesWhatIsNotWorthTheWork) {
  const absl::StatusOr<LayoutProblem> problem = ReadLayoutCsvFile(LayoutTestData("dcgan256-eighth.csv"));
  ASSERT_TRUE(problem.ok()) << problem.status();
  LayoutOptions options{.work_limit = 100'000'000};
  const absl::StatusOr<Layout> all = SolveLayout(*problem, options);
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_FALSE(all->optimal);
  options.work_per_byte = 1;
  const absl::StatusOr<Layout> some = SolveLayout(*problem, options);
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_EQ(CheckLayout(*problem, *some), absl::OkStatus());
  EXPECT_GE(some->work, some->height - some->lower_bound);
  EXPECT_LT(some->work, all->work / 2);
  options.capacity = all->lower_bound;
  const absl::StatusOr<Layout> missed = SolveLayout(*problem, options);
  ASSERT_TRUE(missed.ok()) << missed.status();
  EXPECT_GE(missed->work, options.work_limit);
}

// Random rectangles, and a chain whose values are live from the way forward to the way back, 20,000 of them at once.
TEST(LayoutSkylineTest, IsRightAndFillsNestedLifetimes) {
  std::mt19937_64 random(3);
  const auto place = [](const LayoutProblem& problem) {
    const LayoutItems items = MakeLayoutItems(problem);
    int64_t work = 0;
    const GreedyResult result = PlaceOnSkyline(items, work);
    std::vector<int64_t> offsets;
    for (const int32_t item : items.item_of_buffer) offsets.push_back(item < 0 ? 0 : result.offsets[item]);
    EXPECT_EQ(CheckLayoutOffsets(problem, offsets, result.height), absl::OkStatus());
    return result.height;
  };
  for (int round = 0; round < 2000; ++round) {
    place(RandomLayoutProblem(random, {.max_buffers = 60, .alignments = round % 2 == 0, .aliases = false, .fixed = false}));
  }
  LayoutProblem chain;
  constexpr int64_t kLength = 20'000;
  for (int64_t k = 0; k < kLength; ++k) {
    chain.buffers.push_back({2 * k, 4 * kLength - 2 * k, static_cast<int64_t>(1 + random() % 1000)});
    chain.buffers.push_back({2 * k, 2 * k + 1, static_cast<int64_t>(1 + random() % 1000)});
  }
  EXPECT_EQ(place(chain), *LowerBound(chain));
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
