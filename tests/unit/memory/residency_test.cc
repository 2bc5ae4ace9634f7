#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "absl/strings/str_cat.h"
#include "memory/residency/residency_gaps.h"
#include "memory/residency/residency_solver.h"

namespace gantry {
namespace {

// A chain of `layers` ops forward and as many back: op k makes item k from item k - 1, its gradient reads item k - 1 again.
ResidencyProblem Chain(int layers, std::mt19937& random, bool varied) {
  ResidencyProblem problem;
  const auto Between = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  const int count = 2 * layers;
  problem.ops.resize(count);
  for (ResidencyOp& op : problem.ops) {
    op.seconds = varied ? 1e-3 * Between(1, 9) : 1e-3;
    op.scratch_bytes = varied ? 8 * Between(0, 4) : 0;
    op.repeatable = true;
  }
  for (int i = 0; i <= layers; ++i) {
    ResidencyItem item;
    item.name = absl::StrCat("x", i);
    item.bytes = varied ? 64 * Between(1, 16) : 64;
    item.made_by = i - 1;
    problem.items.push_back(item);
  }
  for (int i = 0; i < layers; ++i) {
    problem.items[i].uses = {i, count - 1 - i};
    problem.ops[i].reads = {i};
    problem.ops[i].makes = {i + 1};
  }
  // Gradients: op count-1-i reads x_i and the gradient before it.
  int gradient = layers;
  problem.items[layers].uses = {layers};
  for (int i = layers - 1; i >= 0; --i) {
    const int op = count - 1 - i;
    problem.ops[op].repeatable = false;
    problem.ops[op].reads = {i, gradient};
    ResidencyItem made;
    made.name = absl::StrCat("g", i);
    made.bytes = problem.items[i].bytes;
    made.made_by = op;
    if (i > 0) made.uses = {op + 1};
    made.kept = i == 0;
    problem.items.push_back(made);
    gradient = static_cast<int>(problem.items.size()) - 1;
    problem.ops[op].makes = {gradient};
  }
  return problem;
}

int64_t KeptPeak(const ResidencyProblem& problem) {
  ResidencyScheduler scheduler(problem);
  return scheduler.Run(KeepAll(problem)).peak_bytes;
}

// Replays a schedule on its own books: every access finds its item, whose content is as it would be with nothing moved, and the
// bytes on the device never exceed what the schedule says.
void CheckSchedule(const ResidencyProblem& problem, const ResidencyChoice& choice, const ResidencySchedule& schedule) {
  struct Place {
    bool there = false;
    uint64_t content = 0;
    int busy_until = -1;  // a copy is making it
  };
  std::vector<Place> device(problem.items.size());
  std::vector<std::map<int, Place>> tiers(problem.items.size());
  std::vector<uint64_t> truth(problem.items.size());
  const auto Mix = [](uint64_t a, uint64_t b) { return (a ^ (b + 0x9e3779b97f4a7c15u + (a << 6))) * 0xff51afd7ed558ccdu; };
  for (size_t i = 0; i < problem.items.size(); ++i) {
    if (problem.items[i].made_by >= 0) continue;
    truth[i] = i + 1;
    const Residence home = choice[i].front();
    (IsTier(home) ? tiers[i][TierOf(home)] : device[i]) = {true, truth[i], -1};
  }
  int expected_op = 0;
  const auto& actions = schedule.actions;
  // Copies of states that the step before has left to this one.
  for (const ResidencyAction& action : actions) {
    const int count = static_cast<int>(actions.size());
    if (action.kind != ResidencyAction::Kind::kStash || action.done_by <= count) continue;
    ASSERT_TRUE(problem.items[action.item].wraps);
    ASSERT_TRUE(tiers[action.item][action.tier].there);
    tiers[action.item][action.tier].busy_until = action.done_by - count;
  }
  const auto Compute = [&](int op, int at, const std::vector<int>* only) {
    uint64_t result = static_cast<uint64_t>(op) + 77;
    for (int item : problem.ops[op].reads) {
      ASSERT_TRUE(device[item].there) << "op " << op << " reads item " << item << ", which is not there, action " << at;
      ASSERT_LE(device[item].busy_until, at);
      result = Mix(result, device[item].content);
    }
    for (int item : problem.ops[op].reads) {
      const auto& changes = problem.items[item].changes;
      if (only == nullptr && std::find(changes.begin(), changes.end(), op) != changes.end()) {
        device[item].content = Mix(result, 5 + item);
      }
    }
    for (int item : problem.ops[op].makes) {
      if (only != nullptr && std::find(only->begin(), only->end(), item) == only->end()) continue;
      const uint64_t content = Mix(result, item);
      if (only != nullptr) {
        ASSERT_EQ(content, truth[item]) << "made again with another content: item " << item;
      }
      device[item] = {true, content, -1};
      if (only == nullptr) truth[item] = content;
    }
  };
  for (int a = 0; a < static_cast<int>(actions.size()); ++a) {
    const ResidencyAction& action = actions[a];
    switch (action.kind) {
      case ResidencyAction::Kind::kRun:
        ASSERT_EQ(action.op, expected_op++);
        Compute(action.op, a, nullptr);
        break;
      case ResidencyAction::Kind::kAgain:
        Compute(action.op, a, &action.items);
        break;
      case ResidencyAction::Kind::kFetch: {
        Place& from = tiers[action.item][action.tier];
        ASSERT_TRUE(from.there) << "fetch of item " << action.item << ", which the tier does not have";
        ASSERT_LE(from.busy_until, a) << "fetch before the stash is done";
        ASSERT_GT(action.done_by, a);
        device[action.item] = {true, from.content, action.done_by};
        break;
      }
      case ResidencyAction::Kind::kStash:
        ASSERT_TRUE(device[action.item].there);
        ASSERT_GT(action.done_by, a);
        tiers[action.item][action.tier] = {true, device[action.item].content, action.done_by};
        break;
    }
    if (testing::Test::HasFatalFailure()) return;
  }
  ASSERT_EQ(expected_op, static_cast<int>(problem.ops.size()));
  for (size_t i = 0; i < problem.items.size(); ++i) {
    const ResidencyItem& item = problem.items[i];
    if (!item.kept) continue;
    const Residence home = choice[i].back();
    if (IsTier(home)) {
      ASSERT_TRUE(tiers[i][TierOf(home)].there) << "item " << i << " is not in its tier when the step ends";
      if (device[i].there) {
        ASSERT_EQ(tiers[i][TierOf(home)].content, device[i].content) << "item " << i;
      }
    } else {
      ASSERT_TRUE(device[i].there) << "item " << i << " is gone when the step ends";
    }
  }
}

TEST(ResidencyTest, KeepingAllTakesTheSumOfWhatIsLive) {
  std::mt19937 random(1);
  const ResidencyProblem problem = Chain(4, random, false);
  // At the turn x0..x4 and the first gradient live together with what is kept.
  EXPECT_EQ(KeptPeak(problem), 64 * 6);
  const auto solution = SolveResidency(problem);
  ASSERT_TRUE(solution.ok()) << solution.status();
  EXPECT_TRUE(solution->fits);
  EXPECT_TRUE(solution->optimal);
  EXPECT_DOUBLE_EQ(solution->schedule.seconds, 8e-3);
  EXPECT_EQ(solution->schedule.wait_seconds, 0.0);
}

// Every choice for every gap, apart from the solver's own search.
double BruteForce(const ResidencyProblem& problem, int tiers) {
  ResidencyScheduler scheduler(problem);
  ResidencyChoice choice = KeepAll(problem);
  double best = -1;
  std::vector<std::pair<int, int>> slots;
  for (int i = 0; i < static_cast<int>(problem.items.size()); ++i) {
    for (int gap = 0; gap < static_cast<int>(choice[i].size()); ++gap) slots.push_back({i, gap});
  }
  const int options = 2 + tiers;
  std::vector<int> digits(slots.size(), 0);
  // Gaps without an op inside change nothing but time: they stay.
  std::vector<bool> open(slots.size());
  for (size_t s = 0; s < slots.size(); ++s) {
    const ResidencyItem& item = problem.items[slots[s].first];
    const int gap = slots[s].second, uses = static_cast<int>(item.uses.size());
    const int from = gap == 0 ? item.made_by : item.uses[gap - 1];
    const int to = gap == uses ? static_cast<int>(problem.ops.size()) : item.uses[gap];
    open[s] = to - from > 1 && (gap < uses || item.kept);
  }
  for (;;) {
    for (size_t s = 0; s < slots.size(); ++s) choice[slots[s].first][slots[s].second] = static_cast<Residence>(digits[s]);
    const ResidencySchedule schedule = scheduler.Run(choice);
    bool fits = schedule.valid && schedule.peak_bytes <= problem.budget_bytes;
    for (size_t t = 0; fits && t < problem.tiers.size(); ++t) fits = schedule.tier_peak_bytes[t] <= problem.tiers[t].budget_bytes;
    if (fits && (best < 0 || schedule.seconds < best)) best = schedule.seconds;
    size_t s = 0;
    for (; s < slots.size(); ++s) {
      if (!open[s]) continue;
      if (++digits[s] < options) break;
      digits[s] = 0;
    }
    if (s == slots.size()) return best;
  }
}

TEST(ResidencyTest, ShortChainsEqualBruteForce) {
  std::mt19937 random(7);
  int fitted = 0, moved = 0;
  for (int round = 0; round < 60; ++round) {
    ResidencyProblem problem = Chain(2 + round % 5, random, true);  // up to 12 ops
    problem.tiers = {{.out_bytes_per_second = 64.0 * (1 + round % 7) * 300, .in_bytes_per_second = 64.0 * (1 + round % 5) * 300,
                      .latency_seconds = round % 3 == 0 ? 1e-3 : 0.0}};
    const int64_t peak = KeptPeak(problem);
    problem.budget_bytes = peak * (4 + round % 7) / 10;
    const auto solution = SolveResidency(problem);
    ASSERT_TRUE(solution.ok()) << solution.status();
    const double best = BruteForce(problem, 1);
    ASSERT_EQ(solution->fits, best >= 0) << "round " << round;
    if (best < 0) continue;
    ++fitted;
    moved += solution->schedule.actions.size() > problem.ops.size();
    EXPECT_NEAR(solution->schedule.seconds, best, 1e-12) << "round " << round;
    CheckSchedule(problem, solution->choice, solution->schedule);
    if (HasFatalFailure()) FAIL() << "round " << round;
  }
  EXPECT_GT(fitted, 20);
  EXPECT_GT(moved, 15);
}

TEST(ResidencyTest, TheBoundIsBelowTheBest) {
  std::mt19937 random(19);
  int above_compute = 0, judged = 0;
  for (int round = 0; round < 90; ++round) {
    ResidencyProblem problem = Chain(2 + round % 5, random, true);
    problem.tiers = {{.out_bytes_per_second = 64.0 * (1 + round % 7) * 300, .in_bytes_per_second = 64.0 * (1 + round % 5) * 300}};
    if (round % 2 == 1) {
      problem.tiers[0].out_compute_seconds_per_byte = 0.3 / problem.tiers[0].out_bytes_per_second;
      problem.tiers[0].in_compute_seconds_per_byte = 0.3 / problem.tiers[0].in_bytes_per_second;
    }
    problem.budget_bytes = KeptPeak(problem) * (4 + round % 6) / 10;
    const ResidencyGaps gaps(problem, true, true);
    ResidencyScheduler scheduler(problem);
    static_cast<void>(scheduler.Judge(KeepAll(problem)));
    const double bound = ResidencyBound(problem, gaps, true, scheduler.op_bytes());
    const double best = BruteForce(problem, 1);
    if (best < 0) continue;
    ++judged;
    EXPECT_LE(bound, best * (1 + 1e-12)) << "round " << round;
    double compute = 0;
    for (const ResidencyOp& op : problem.ops) compute += op.seconds;
    above_compute += bound > compute * (1 + 1e-9);
    const auto solution = SolveResidency(problem);
    ASSERT_TRUE(solution.ok());
    EXPECT_NEAR(solution->schedule.seconds, best, 1e-12) << "round " << round;
  }
  EXPECT_GT(judged, 30);
  EXPECT_GT(above_compute, 15);  // it says more than that ops take their time
}

TEST(ResidencyTest, CopiesBesideComputeCostItTime) {
  std::mt19937 random(23);
  ResidencyProblem problem = Chain(30, random, true);
  problem.tiers = {{.out_bytes_per_second = 1e6, .in_bytes_per_second = 2e6}};
  problem.budget_bytes = KeptPeak(problem) / 2;
  const auto without = SolveResidency(problem, {.recompute = false});
  ASSERT_TRUE(without.ok() && without->fits);
  EXPECT_EQ(without->schedule.beside_seconds, 0.0);
  problem.tiers[0].out_compute_seconds_per_byte = 1e-7;
  problem.tiers[0].in_compute_seconds_per_byte = 2e-7;
  ResidencyScheduler scheduler(problem);
  const ResidencySchedule schedule = scheduler.Run(without->choice);
  ASSERT_TRUE(schedule.valid);
  EXPECT_NEAR(schedule.beside_seconds,
              1e-7 * static_cast<double>(schedule.out_bytes[0]) + 2e-7 * static_cast<double>(schedule.in_bytes[0]), 1e-12);
  EXPECT_NEAR(schedule.seconds, schedule.compute_seconds + schedule.beside_seconds + schedule.wait_seconds, 1e-9);
}

// Weights far larger than the rest, each needed in turn, forwards and backwards.
TEST(ResidencyTest, LargeStatesInTurnAreNearTheBound) {
  ResidencyProblem problem;
  constexpr int kStates = 12, kPasses = 3;
  for (int i = 0; i < kStates; ++i) problem.items.push_back({.name = absl::StrCat("w", i), .bytes = 1000 + 100 * i, .kept = true, .wraps = true});
  for (int pass = 0; pass < kPasses; ++pass) {
    for (int i = 0; i < kStates; ++i) {
      const int state = pass % 2 == 0 ? i : kStates - 1 - i;
      problem.items[state].uses.push_back(static_cast<int>(problem.ops.size()));
      problem.ops.push_back({.seconds = 1e-3, .scratch_bytes = 200, .reads = {state}});
    }
  }
  problem.tiers = {{.out_bytes_per_second = 2e6, .in_bytes_per_second = 2e6}};
  problem.budget_bytes = KeptPeak(problem) / 3;
  const auto solution = SolveResidency(problem);
  ASSERT_TRUE(solution.ok());
  ASSERT_TRUE(solution->fits);
  EXPECT_LT(solution->gap(), 0.05);
  CheckSchedule(problem, solution->choice, solution->schedule);
  const auto again = SolveResidency(problem);
  EXPECT_EQ(again->choice, solution->choice);
}

TEST(ResidencyTest, LongChainsFitAndReplay) {
  std::mt19937 random(3);
  for (const int layers : {40, 200}) {
    for (const double share : {0.75, 0.5, 0.25}) {
      ResidencyProblem problem = Chain(layers, random, true);
      problem.tiers = {{.out_bytes_per_second = 2e5, .in_bytes_per_second = 2e5}};
      problem.budget_bytes = static_cast<int64_t>(share * static_cast<double>(KeptPeak(problem)));
      const auto solution = SolveResidency(problem);
      ASSERT_TRUE(solution.ok()) << solution.status();
      EXPECT_TRUE(solution->fits) << layers << " layers, " << share;
      EXPECT_LE(solution->schedule.peak_bytes, problem.budget_bytes);
      EXPECT_GE(solution->schedule.seconds, solution->bound_seconds * (1 - 1e-12));
      CheckSchedule(problem, solution->choice, solution->schedule);
      if (HasFatalFailure()) FAIL() << layers << " " << share;
    }
  }
}

TEST(ResidencyTest, StatesLeaveBetweenStepsAndComeBackChanged) {
  // Two states, each read at two places, one changed at the end; a wide op between that needs the room.
  ResidencyProblem problem;
  problem.ops.resize(6);
  for (ResidencyOp& op : problem.ops) op.seconds = 1.0;
  problem.ops[2].scratch_bytes = 300;
  for (int i = 0; i < 2; ++i) {
    ResidencyItem state;
    state.name = i == 0 ? "weight" : "moment";
    state.bytes = 100;
    state.uses = i == 0 ? std::vector<int>{0, 4, 5} : std::vector<int>{5};
    state.changes = {5};
    state.kept = state.wraps = true;
    problem.items.push_back(state);
    for (int use : state.uses) problem.ops[use].reads.push_back(i);
  }
  problem.tiers = {{.out_bytes_per_second = 1000, .in_bytes_per_second = 1000}};
  problem.budget_bytes = 300;
  const auto solution = SolveResidency(problem);
  ASSERT_TRUE(solution.ok());
  ASSERT_TRUE(solution->fits);
  CheckSchedule(problem, solution->choice, solution->schedule);
  EXPECT_TRUE(IsTier(solution->choice[0].front()));
  EXPECT_TRUE(IsTier(solution->choice[1].front()));
  EXPECT_EQ(solution->schedule.out_bytes[0], 200);  // both are written back once
}

TEST(ResidencyTest, WhatCannotFitNamesTheOp) {
  std::mt19937 random(5);
  ResidencyProblem problem = Chain(6, random, false);
  problem.ops[3].scratch_bytes = 5000;
  problem.tiers = {{}};
  problem.budget_bytes = 1000;
  const auto solution = SolveResidency(problem);
  ASSERT_TRUE(solution.ok());
  EXPECT_FALSE(solution->fits);
  EXPECT_EQ(solution->largest_op, 3);
  EXPECT_EQ(solution->largest_op_bytes, 5000 + 128);
}

TEST(ResidencyTest, MalformedProblemsAreRefused) {
  ResidencyProblem problem;
  problem.items.push_back({.name = "x", .bytes = -1});
  EXPECT_EQ(SolveResidency(problem).status().code(), absl::StatusCode::kInvalidArgument);
  problem.items[0] = {.name = "x", .bytes = 1, .uses = {3}};
  EXPECT_NE(SolveResidency(problem).status().message().find("'x'"), std::string::npos);
}

}  // namespace
}  // namespace gantry
