#include "runtime/plan/what_if.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <set>

#include "nlohmann/json.hpp"
#include "runtime/gan/families.h"
#include "runtime/plan/plan_totals.h"

namespace gantry {
namespace {

using ::testing::HasSubstr;

struct StepSetup {
  std::string family = "dcgan";
  int64_t size = 32, width = 16, batch = 8;
  GanStepConfig step{.r1 = 0.0, .ema = 0.99};
};

absl::StatusOr<Program> Build(const StepSetup& setup, const StepVariation& variation) {
  GanStepConfig config = setup.step;
  const int64_t batch = variation.batch > 0 ? variation.batch : setup.batch;
  if (variation.accumulate > 0) config.accumulate = variation.accumulate;
  if (variation.penalty_every > 0) config.penalty_every = variation.penalty_every;
  if (batch % config.accumulate != 0) return absl::InvalidArgumentError("uneven");
  GANTRY_ASSIGN_OR_RETURN(Family family, BuildFamily(setup.family, {.image_size = setup.size, .channels = 3, .width = setup.width, .latent_size = 16,
                                                                    .batch = batch / config.accumulate}));
  std::vector<GanRole> generators, discriminators;
  generators.push_back({"generator", std::move(family.generator), {}});
  discriminators.push_back({"discriminator", std::move(family.discriminator), {}});
  return BuildGanStep(config, generators, discriminators);
}

absl::StatusOr<WhatIf> Ask(const StepSetup& setup, const PlanOptions& options) {
  return AskWhatIf([&](const StepVariation& variation) { return Build(setup, variation); },
                   {.batch = setup.batch, .accumulate = setup.step.accumulate, .penalty_every = setup.step.penalty_every,
                    .penalty = setup.step.r1 > 0 || setup.step.r2 > 0},
                   options);
}

const WhatIfAnswer* Find(const WhatIf& what_if, std::string_view topic) {
  for (const WhatIfAnswer& answer : what_if.answers) {
    if (answer.topic == topic) return &answer;
  }
  return nullptr;
}

TEST(WhatIfTest, EveryQuestionHasAnAnswer) {
  StepSetup setup;
  setup.step.r1 = 10;
  const auto what_if = Ask(setup, {});
  ASSERT_TRUE(what_if.ok()) << what_if.status();
  std::set<std::string> topics;
  for (const WhatIfAnswer& answer : what_if->answers) {
    topics.insert(answer.topic);
    EXPECT_GT(answer.peak_bytes, 0) << answer.what;
    EXPECT_GT(answer.seconds, 0) << answer.what;
    EXPECT_EQ(answer.fits, answer.fits && answer.peak_bytes <= what_if->budget_bytes) << answer.what;
  }
  EXPECT_EQ(topics, (std::set<std::string>{"now", "budget", "offload", "recompute", "states", "idle", "penalty", "accumulate", "batch"}));
  EXPECT_TRUE(what_if->assumed_budget);
  const auto json = nlohmann::json::parse(ToJson(*what_if));
  EXPECT_EQ(json["answers"].size(), what_if->answers.size());
  EXPECT_EQ(json["answers"][0]["peak_bytes"], what_if->answers[0].peak_bytes);
  EXPECT_THAT(Describe(*what_if), HasSubstr("--set train.accumulate=2"));
}

TEST(WhatIfTest, NowIsWhatThePlanTakes) {
  const StepSetup setup;
  const auto what_if = Ask(setup, {});
  ASSERT_TRUE(what_if.ok()) << what_if.status();
  const auto program = Build(setup, {});
  ASSERT_TRUE(program.ok());
  const auto plan = MakePlan(*program, {});
  ASSERT_TRUE(plan.ok());
  EXPECT_NEAR(static_cast<double>(what_if->answers[0].peak_bytes), static_cast<double>(plan->arena_bytes), 0.005 * static_cast<double>(plan->arena_bytes));
  EXPECT_DOUBLE_EQ(what_if->answers[0].seconds, plan->residency.seconds);
  // Accumulation likewise, on the step built for it.
  const WhatIfAnswer* parts = Find(*what_if, "accumulate");
  ASSERT_NE(parts, nullptr);
  const auto halves = Build(setup, {.accumulate = 2});
  ASSERT_TRUE(halves.ok());
  const auto halves_plan = MakePlan(*halves, {});
  ASSERT_TRUE(halves_plan.ok());
  EXPECT_NEAR(static_cast<double>(parts->peak_bytes), static_cast<double>(halves_plan->arena_bytes), 0.01 * static_cast<double>(halves_plan->arena_bytes));
  EXPECT_DOUBLE_EQ(parts->seconds, halves_plan->residency.seconds);
}

TEST(WhatIfTest, TheLargestBatchFitsAndTheNextDoesNot) {
  const StepSetup setup;
  PlanOptions options;
  options.device_memory.bytes = 40 << 20;
  const auto what_if = Ask(setup, options);
  ASSERT_TRUE(what_if.ok()) << what_if.status();
  EXPECT_FALSE(what_if->assumed_budget);
  const WhatIfAnswer* largest = Find(*what_if, "batch");
  ASSERT_NE(largest, nullptr);
  EXPECT_GT(largest->batch, setup.batch);
  const auto Bytes = [&](int64_t batch) -> int64_t {
    const auto program = Build(setup, {.batch = batch});
    if (!program.ok()) return -1;
    const auto plan = MakePlan(*program, {});
    return plan.ok() ? plan->arena_bytes : -1;
  };
  EXPECT_LE(Bytes(largest->batch), options.device_memory.bytes);
  // A few builds find it to within two percent.
  EXPECT_GT(Bytes(largest->batch + std::max<int64_t>(1, largest->batch / 50)), options.device_memory.bytes);
}

TEST(WhatIfTest, LazyPenaltiesTakeLessTimeAndStatesLessMemory) {
  StepSetup setup;
  setup.step.r1 = 10;
  const auto what_if = Ask(setup, {});
  ASSERT_TRUE(what_if.ok());
  const WhatIfAnswer& now = what_if->answers[0];
  double last = now.seconds;
  for (const WhatIfAnswer& answer : what_if->answers) {
    if (answer.topic == "penalty") {
      EXPECT_LT(answer.seconds, last) << answer.what;
      last = answer.seconds;
    }
    if (answer.topic == "states" || answer.topic == "idle") {
      EXPECT_LT(answer.peak_bytes, now.peak_bytes) << answer.what;
      EXPECT_GT(answer.tier_bytes, 0) << answer.what;
    }
  }
}

TEST(WhatIfTest, AThousandOpsTakeSeconds) {
  StepSetup setup{.family = "r3gan", .width = 8, .batch = 4};
  setup.step.r1 = setup.step.r2 = 1;
  const auto begin = std::chrono::steady_clock::now();
  const auto what_if = Ask(setup, {});
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  ASSERT_TRUE(what_if.ok()) << what_if.status();
  EXPECT_GT(what_if->op_count, 900);
  EXPECT_LT(seconds, 60) << "2 s on a machine that does nothing else, many times that with sanitizers beside other work";
}

TEST(PlanTotalsTest, SumsAreThoseOfThePlan) {
  const auto program = Build({}, {});
  ASSERT_TRUE(program.ok());
  PlanOptions options;
  options.device_memory.fraction = 0.5;
  options.tiers = {TierOptions{.name = "host"}};
  const auto plan = MakePlan(*program, options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->costs.size(), plan->schedule.size());
  const std::pair<std::string, int64_t> tiers[] = {{"host", plan->tiers[0].bytes}};
  const PlanTotals totals = TotalsOf(plan->costs, plan->buffers, tiers);
  double seconds = 0;
  int64_t peak = 0, out = 0, in = 0;
  for (const PlanTotals::Row& row : totals.phases) {
    seconds += row.seconds;
    peak = std::max(peak, row.peak_bytes);
    out += row.out_bytes;
    in += row.in_bytes;
  }
  const PlannedResidency& residency = plan->residency;
  EXPECT_NEAR(seconds, residency.seconds - residency.wait_seconds, 1e-9);
  EXPECT_NEAR(static_cast<double>(peak), static_cast<double>(plan->lower_bound_bytes), 64.0 * static_cast<double>(plan->buffers.size()));
  ASSERT_EQ(totals.tiers.size(), 1u);
  EXPECT_GT(totals.tiers[0].in_bytes, 0);
  EXPECT_EQ(totals.tiers[0].out_bytes, out);
  EXPECT_EQ(totals.tiers[0].in_bytes, in);
  EXPECT_EQ(DescribeDifference(totals, totals), "");
  EXPECT_THAT(Describe(totals), HasSubstr("by network"));
  EXPECT_THAT(DescribeDifference(totals, PlanTotals{}), HasSubstr("tier host: "));
}

}  // namespace
}  // namespace gantry
