#include "runtime/simulate/plan_ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <tuple>

#include "runtime/gan/families.h"
#include "runtime/gan/gan_step.h"
#include "runtime/plan/link_model.h"

namespace gantry {
namespace {

using ::testing::HasSubstr;

Program Build(int64_t batch, const std::string& name = "dcgan") {
  absl::StatusOr<Family> family =
      BuildFamily(name, {.image_size = 16, .channels = 3, .width = 8, .latent_size = 8, .batch = batch});
  EXPECT_TRUE(family.ok()) << family.status();
  std::vector<GanRole> generators, discriminators;
  generators.push_back({"generator", std::move(family->generator), {}});
  discriminators.push_back({"discriminator", std::move(family->discriminator), {}});
  absl::StatusOr<Program> program = BuildGanStep({}, generators, discriminators);
  EXPECT_TRUE(program.ok()) << program.status();
  return *std::move(program);
}

Parallel Split(std::string_view text) {
  Parallel parallel = *Parallel::Parse(text);
  parallel.generators = {"generator"};
  return parallel;
}

std::shared_ptr<Machine> Described(int ranks, int per_node) {
  auto machine = std::make_shared<Machine>();
  machine->flops_per_second = 1e11;
  machine->bytes_per_second = 1e11;
  machine->op_seconds = 1e-6;
  machine->rank_count = ranks;
  machine->ranks_per_node = per_node;
  machine->links = {{.between = "node", .bytes_per_second = 1e11, .latency_seconds = 1e-6},
                    {.between = "network", .bytes_per_second = 1e10, .latency_seconds = 5e-6}};
  return machine;
}

// A plan that is shared is the plan that each of its ranks would make.
TEST(PlanRanksTest, RanksOfAClassHaveTheirOwnPlansBytesAndSeconds) {
  const Program program = Build(12);
  for (const char* split : {"batch", "batch+shard", "space", "space+shard", "batch+space", "roles", "batch+roles"}) {
    for (const int ranks : {2, 4, 6}) {
      const absl::StatusOr<JobPlan> job = PlanRanks(program, Split(split), ranks, {});
      ASSERT_TRUE(job.ok()) << split << " " << ranks << ": " << job.status();
      size_t counted = 0;
      for (const RankClass& alike : job->classes) {
        counted += alike.ranks.size();
        const int rank = alike.ranks.back();
        ExchangeKernels exchanges;
        PlanOptions options;
        options.exchanges = &exchanges;
        const absl::StatusOr<Plan> own = MakePlan(PartitionFor(program, Split(split), rank, ranks)->program, options);
        ASSERT_TRUE(own.ok()) << own.status();
        EXPECT_EQ(own->arena_bytes, alike.plan.arena_bytes) << split << ", rank " << rank << " of " << ranks;
        EXPECT_EQ(own->schedule.size(), alike.plan.schedule.size());
        EXPECT_NEAR(own->residency.seconds, alike.plan.residency.seconds, 1e-12);
      }
      EXPECT_EQ(counted, static_cast<size_t>(ranks));
    }
  }
}

TEST(PlanRanksTest, ManyRanksArePlannedByTheirPlace) {
  const auto begin = std::chrono::steady_clock::now();
  PlanOptions options;
  options.machine = Described(1024, 8);
  const absl::StatusOr<JobPlan> job = PlanRanks(Build(1024), Split("batch"), 1024, options);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->classes.size(), 1u);
  EXPECT_EQ(job->node_count, 128);
  EXPECT_GT(job->simulation.seconds, 0);
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(),
            60);  // 10 s where nothing else runs
}

class UnequalRanksTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto machine = Described(3, 3);
    machine->rank_speeds = {1.0, 0.5, 0.25};
    options_.machine = machine;
  }
  absl::StatusOr<JobPlan> Plan(const std::string& split, bool balanced) {
    Parallel parallel = Split(split);
    SetSpeeds(options_, 3, parallel);
    return balanced ? PlanBalanced(program_, parallel, 3, options_, ShareBy::kSpeedAndMemory) : PlanRanks(program_, parallel, 3, options_);
  }

  Program program_ = Build(28);
  PlanOptions options_;
};

TEST_F(UnequalRanksTest, WorkMovesUntilTheyTakeAsLong) {
  for (const char* split : {"batch", "batch+shard", "space"}) {
    const absl::StatusOr<JobPlan> equal = Plan(split, false), by_speed = Plan(absl::StrCat(split, "=4:2:1"), false), balanced = Plan(split, true);
    ASSERT_TRUE(equal.ok() && by_speed.ok() && balanced.ok()) << split;
    EXPECT_LT(balanced->simulation.seconds, equal->simulation.seconds) << split;
    EXPECT_LE(balanced->simulation.seconds, by_speed->simulation.seconds) << split;
    ASSERT_EQ(balanced->parallel.shares.size(), 3u) << split;
    EXPECT_GT(balanced->parallel.shares[0], balanced->parallel.shares[2]) << split;
    // What is printed is what was planned.
    const absl::StatusOr<JobPlan> again = Plan(balanced->parallel.Text(), true);
    ASSERT_TRUE(again.ok()) << balanced->parallel.Text() << again.status();
    EXPECT_EQ(again->parallel.shares, balanced->parallel.shares);
    EXPECT_EQ(again->simulation.seconds, balanced->simulation.seconds);
  }
  // What costs the same on any batch is not shared out.
  EXPECT_LT(Plan("batch", true)->simulation.seconds, 0.8 * Plan("batch", false)->simulation.seconds);
}

// Between two exchanges all do the same, so none waits for another, with budgets, too, that only some of them feel.
TEST_F(UnequalRanksTest, RanksMeetAtTheSamePlaces) {
  program_ = Build(56, "r3gan");
  for (const char* split : {"batch+shard=0.5:0.25:0.25", "batch+shard=0.57:0.29:0.14"}) {
    options_.tiers = {{.name = "host"}};
    options_.rank_memory.clear();
    for (const bool within : {false, true}) {
      const absl::StatusOr<JobPlan> job = Plan(split, false);
      ASSERT_TRUE(job.ok()) << job.status();
      options_.rank_memory = {{.bytes = job->ClassOf(0).plan.arena_bytes * 9 / 10}, {.bytes = int64_t{1} << 40}, {.bytes = int64_t{1} << 40}};
      double longest = 0.0;
      for (const SimulatedTimes& times : job->simulation.ranks) longest = std::max(longest, times.compute + times.copy_wait);
      EXPECT_LT(job->simulation.seconds, 1.15 * longest) << split << " within " << within;
    }
  }
}

TEST_F(UnequalRanksTest, APartThatDoesNotFitBecomesSmaller) {
  const absl::StatusOr<JobPlan> free = Plan("batch", true);
  ASSERT_TRUE(free.ok()) << free.status();
  const auto BytesOf = [](const JobPlan& job, int rank) { return job.ClassOf(rank).plan.arena_bytes; };
  // Memory is the other way round: the fastest has too little for its share, and nothing may leave the device.
  options_.recompute = options_.encode = false;
  options_.rank_memory = {{.bytes = BytesOf(*free, 0) * 3 / 4}, {.bytes = 2 * BytesOf(*free, 0)}, {.bytes = 4 * BytesOf(*free, 0)}};
  EXPECT_FALSE(Plan(free->parallel.Text(), true).ok());
  const absl::StatusOr<JobPlan> balanced = Plan("batch", true);
  ASSERT_TRUE(balanced.ok()) << balanced.status();
  EXPECT_LT(balanced->parallel.shares[0], free->parallel.shares[0]);
  EXPECT_LE(BytesOf(*balanced, 0), options_.rank_memory[0].bytes);
  // By speed alone shares, and with them results, are those that ranks without budgets have.
  const absl::StatusOr<JobPlan> short_of = PlanBalanced(program_, Split("batch"), 3, options_, ShareBy::kSpeed);
  EXPECT_TRUE(absl::IsResourceExhausted(short_of.status())) << short_of.status();
  options_.rank_memory[0].bytes *= 2;
  const absl::StatusOr<JobPlan> by_speed = PlanBalanced(program_, Split("batch"), 3, options_, ShareBy::kSpeed);
  ASSERT_TRUE(by_speed.ok()) << by_speed.status();
  EXPECT_EQ(by_speed->parallel.shares, free->parallel.shares);
  // Where no share fits, the rank is named.
  options_.rank_memory[1].bytes = 1000;
  const absl::StatusOr<JobPlan> none = Plan("batch", true);
  EXPECT_TRUE(absl::IsResourceExhausted(none.status())) << none.status();
  EXPECT_EQ(RankOf(none.status()), 1);
}

TEST_F(UnequalRanksTest, SharesAreForOneAxis) {
  EXPECT_THAT(std::string(Plan("batch=4:2", true).status().message()), HasSubstr("2 shares for 3 ranks"));
  EXPECT_THAT(std::string(PlanRanks(program_, Split("batch:2+space=1:2:3:4"), 4, {}).status().message()), HasSubstr("share out one thing"));
  EXPECT_THAT(std::string(PlanRanks(program_, Split("roles=1:2"), 2, {}).status().message()), HasSubstr("share out one thing"));
  for (const char* wrong : {"batch=", "batch=1:", "batch=1:x", "batch=0:1", "batch=-1:2", "batch=nan:1", "batch=inf:1", "batch=1:2+shard"}) {
    EXPECT_EQ(Parallel::Parse(wrong).status().code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
  EXPECT_EQ(Parallel::Parse("batch+shard=0.5:0.25:0.125")->Text(), "batch+shard=0.5:0.25:0.125");
}

TEST(PlanRanksTest, SeveralNodesNeedANetwork) {
  PlanOptions options;
  auto machine = Described(4, 2);
  machine->links.pop_back();
  options.machine = machine;
  const absl::StatusOr<JobPlan> job = PlanRanks(Build(8), Split("batch"), 4, options);
  EXPECT_THAT(std::string(job.status().message()), HasSubstr("network"));
}

TEST(SearchSplitsTest, TakesTheFastestThatFitsAndSaysWhyNotTheOthers) {
  const Program program = Build(8);
  const absl::StatusOr<SplitSearch> search = SearchSplits(program, Split("auto"), 4, {});
  ASSERT_TRUE(search.ok()) << search.status();
  ASSERT_GE(search->taken, 0);
  const SplitCandidate& taken = search->candidates[static_cast<size_t>(search->taken)];
  int64_t least_bytes = INT64_MAX;
  for (const SplitCandidate& candidate : search->candidates) {
    EXPECT_EQ(candidate.why.empty(), &candidate == &taken);
    if (!candidate.fits) continue;
    EXPECT_LE(taken.seconds, 1.005 * candidate.seconds);
    least_bytes = std::min(least_bytes, candidate.peak_bytes);
    const absl::StatusOr<Parallel> again =
        Parallel::Parse(candidate.parallel.Text());  // what rank 0 sends is what others read
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(MeshOf(*again, 4).batch, MeshOf(candidate.parallel, 4).batch) << candidate.parallel.Text();
  }
  ASSERT_LT(least_bytes, taken.peak_bytes);
  // A budget that the fastest does not fit without offload: another one may be taken, and it fits.
  PlanOptions options;
  options.device_memory.bytes = least_bytes;
  const absl::StatusOr<SplitSearch> tight = SearchSplits(program, Split("auto"), 4, options);
  ASSERT_TRUE(tight.ok() && tight->taken >= 0) << Describe(*tight);
  EXPECT_LE(tight->candidates[static_cast<size_t>(tight->taken)].peak_bytes, least_bytes);
}

TEST(PlanRanksTest, WhatLinksTakeIsInTheStep) {
  const Program program = Build(8);
  const auto SecondsOn = [&](double start, double held) {
    const auto machine = Described(2, 2);
    machine->links[0].start_seconds = start;
    PlanOptions options;
    options.machine = machine;
    options.link.latency_seconds = held;
    const absl::StatusOr<JobPlan> job = PlanRanks(program, Split("batch"), 2, options);
    EXPECT_TRUE(job.ok()) << job.status();
    int beside = 0, in_place = 0;
    for (const PlannedOp& step : job->classes[0].plan.schedule) {
      if (!job->classes[0].plan.program.ops()[step.op].definition->communicates) continue;
      ++(step.done_by >= 0 ? beside : in_place);
    }
    EXPECT_GT(beside, 0);
    EXPECT_GT(in_place, 0);
    return std::make_tuple(job->simulation.seconds, beside, in_place);
  };
  const auto [free, beside, in_place] = SecondsOn(0, 0);
  // Compute stands still where one begins beside it; where one runs in place, for as long as the link is held.
  EXPECT_GE(std::get<0>(SecondsOn(1e-2, 0)), 1e-2 * beside);
  EXPECT_LE(std::get<0>(SecondsOn(1e-2, 0)), 1e-2 * beside + free + 1e-9);
  EXPECT_GE(std::get<0>(SecondsOn(0, 1e-2)), 1e-2 * in_place);
}

TEST(LinkModelTest, ClosedFormsAreThoseOfTheirSources) {
  const auto machine = Described(16, 4);
  const LinkModel links(machine.get());
  const std::vector<int> node = {0, 1, 2, 3}, all = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
                         apart = {0, 4, 8, 12};
  const double bytes = 1e9;
  EXPECT_NEAR(links.AllReduce(bytes, node), 6 * (1e-6 + bytes / 4 / 1e11), 1e-12);
  EXPECT_NEAR(links.AllReduce(8, node), 2 * (1e-6 + 8 / 1e11), 1e-15);  // doubling
  EXPECT_NEAR(links.AllReduce(bytes, apart), 6 * (5e-6 + bytes / 4 / 1e10), 1e-9);
  EXPECT_NEAR(links.AllReduce(bytes, all), 2 * (2e-6 + 0.75 * bytes / 1e11) + 6 * (5e-6 + bytes / 16 / 2.5e9), 1e-9);
  EXPECT_NEAR(links.AllGather(bytes, node), 2e-6 + 0.75 * bytes / 1e11, 1e-12);
}

}  // namespace
}  // namespace gantry
