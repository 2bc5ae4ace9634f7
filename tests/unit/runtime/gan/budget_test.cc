// Budgets change where things are and when, never a bit of what comes out.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "runtime/gan/families.h"
#include "runtime/gan/gan_session.h"
#include "runtime/plan/plan_file.h"

namespace gantry {
namespace {

struct Case {
  std::string family = "dcgan";
  GanStepConfig step;
  PlanOptions plan;
  OptimizerConfig optimizer;
  int64_t size = 32, width = 16, batch = 4;
};

struct Outcome {
  std::map<std::string, double> scalars;
  std::map<std::string, std::vector<double>> states;
  PlannedResidency residency;
  bool operator==(const Outcome& other) const { return scalars == other.scalars && states == other.states; }
};

absl::StatusOr<std::unique_ptr<GanSession>> MakeSession(const Case& setup, Device& device) {
  GANTRY_ASSIGN_OR_RETURN(Family family, BuildFamily(setup.family, {.image_size = setup.size, .channels = 3, .width = setup.width,
                                                                    .latent_size = 16, .batch = setup.batch,
                                                                    .dtype = setup.step.dtype}));
  std::vector<GanRole> generators, discriminators;
  generators.push_back({.name = "generator", .model = std::move(family.generator), .optimizer = setup.optimizer});
  discriminators.push_back({.name = "discriminator", .model = std::move(family.discriminator), .optimizer = setup.optimizer});
  return GanSession::Create({.step = setup.step, .plan = setup.plan, .seed = 11}, std::move(generators), std::move(discriminators),
                            device);
}

Outcome Train(const Case& setup, int steps) {
  Outcome outcome;
  const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = 2});
  const auto session = MakeSession(setup, *device);
  EXPECT_TRUE(session.ok()) << session.status();
  if (!session.ok()) return outcome;
  GanSession& gan = **session;
  for (int step = 0; step < steps; ++step) {
    std::vector<float> real(gan.real_elements() * gan.draws_per_step());
    for (size_t i = 0; i < real.size(); ++i) real[i] = static_cast<float>(std::sin(0.31 * static_cast<double>(i) + step));
    const absl::Status status = gan.Step({.real = real});
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) return outcome;
  }
  for (const std::string& name : gan.ScalarNames()) outcome.scalars[name] = *gan.Scalar(name);
  for (const std::string& name : gan.StateNames()) {
    std::vector<double> values(gan.StateType(name)->element_count());
    EXPECT_TRUE(gan.ReadState(name, values).ok());
    outcome.states[name] = std::move(values);
  }
  const Plan& plan = gan.plan();
  outcome.residency = plan.residency;
  // Predicted is measured, to the byte, on the device and in every tier; and within the budget.
  EXPECT_EQ(gan.executor().high_water_bytes(), plan.arena_bytes);
  EXPECT_EQ(device->reserved_bytes(), plan.arena_bytes);
  if (plan.residency.budget_bytes > 0) {
    EXPECT_LE(plan.arena_bytes, plan.residency.budget_bytes);
  }
  for (size_t tier = 0; tier < plan.tiers.size(); ++tier) {
    EXPECT_EQ(gan.executor().tier_high_water_bytes(static_cast<int>(tier)), plan.tiers[tier].bytes);
    if (setup.step.penalty_every > 1) continue;  // not every copy happens in every step
    const int64_t out = gan.executor().copies()->bytes_out(static_cast<int>(tier)), in = gan.executor().copies()->bytes_in(static_cast<int>(tier));
    if (plan.residency.zero_stashes > 0) {  // how many zeros there are depends on the data
      EXPECT_LT(out, steps * plan.tiers[tier].out_bytes);
      EXPECT_LE(in, steps * plan.tiers[tier].in_bytes);
    } else {
      EXPECT_EQ(out, steps * plan.tiers[tier].out_bytes);
      EXPECT_EQ(in, steps * plan.tiers[tier].in_bytes);
    }
  }
  return outcome;
}

Case CaseOf(const std::string& family) {
  Case setup;
  setup.family = family;
  const FamilyDefaults defaults = *DefaultsOf(family);
  setup.step.loss = defaults.loss;
  setup.step.r1 = defaults.r1;
  setup.step.r2 = defaults.r2;
  setup.step.gradient_penalty = defaults.gradient_penalty;
  setup.step.n_critic = defaults.n_critic;
  setup.step.ema = 0.99;
  setup.plan.thread_count = 1;
  return setup;
}

TierOptions Host() { return {.name = "host"}; }

class BudgetTest : public ::testing::TestWithParam<std::string> {};

TEST_P(BudgetTest, EveryBudgetAndEveryWayGiveTheSameBits) {
  Case setup = CaseOf(GetParam());
  const Outcome unlimited = Train(setup, 4);
  ASSERT_FALSE(unlimited.residency.used);
  for (const double fraction : {0.8, 0.6, 0.45}) {
    Case tight = setup;
    tight.plan.device_memory.fraction = fraction;
    tight.plan.tiers = {Host()};
    tight.plan.recompute = true;
    const Outcome both = Train(tight, 4);
    EXPECT_TRUE(both.residency.used);
    EXPECT_TRUE(both == unlimited) << fraction;
    tight.plan.recompute = false;
    const Outcome offload = Train(tight, 4);
    EXPECT_TRUE(offload == unlimited) << fraction;
    EXPECT_EQ(offload.residency.repeats, 0);
    EXPECT_GT(offload.residency.fetches, 0);
  }
}

TEST_P(BudgetTest, RecomputeAloneGivesTheSameBits) {
  Case setup = CaseOf(GetParam());
  setup.batch = 16;  // activations are most of it
  setup.plan.encode = false;  // which would do in part
  const Outcome unlimited = Train(setup, 2);
  setup.plan.device_memory.fraction = 0.85;
  const Outcome repeated = Train(setup, 2);
  EXPECT_TRUE(repeated == unlimited);
  EXPECT_GT(repeated.residency.repeats, 0);
  EXPECT_EQ(repeated.residency.stashes + repeated.residency.fetches, 0);
}

// Sign bits and copies without zeros, alone and together, on a slow link and in a file.
TEST_P(BudgetTest, LosslessEncodingsGiveTheSameBits) {
  Case setup = CaseOf(GetParam());
  if (GetParam() == "dcgan") setup.batch = 16;  // so that relus' results leave too
  const Outcome unlimited = Train(setup, 2);
  setup.plan.device_memory.fraction = 0.6;
  TierOptions slow = Host();
  slow.out.bytes_per_second = slow.in.bytes_per_second = 1.5e9;
  const TierOptions file{.name = "nvme", .kind = TierKind::kFile, .directory = ::testing::TempDir()};
  for (const TierOptions& tier : {slow, file}) {
    for (const bool recompute : {false, true}) {
      if (recompute && tier.kind == TierKind::kHost) continue;
      Case tight = setup;
      tight.plan.tiers = {tier};
      tight.plan.recompute = recompute;
      tight.plan.checksums = recompute;
      const Outcome encoded = Train(tight, 2);
      EXPECT_TRUE(encoded == unlimited) << tier.name;
      EXPECT_GT(encoded.residency.masks, 0);
      if (!recompute && GetParam() == "dcgan") {
        EXPECT_GT(encoded.residency.zero_stashes, 0);
      }
      EXPECT_EQ(encoded.residency.bf16_stashes, 0);
      tight.plan.encode = false;
      const Outcome plain = Train(tight, 2);
      EXPECT_TRUE(plain == unlimited) << tier.name;
      EXPECT_EQ(plain.residency.masks + plain.residency.zero_stashes, 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, BudgetTest, ::testing::ValuesIn(FamilyNames()), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(BudgetCaseTest, ConditionalPhasesMoveToo) {
  Case setup = CaseOf("r3gan");
  setup.step.penalty_every = 2;
  const Outcome unlimited = Train(setup, 5);
  setup.plan.device_memory.fraction = 0.5;
  setup.plan.tiers = {Host()};
  EXPECT_TRUE(Train(setup, 5) == unlimited);
}

TEST(BudgetCaseTest, ReferenceKernelsInDoubleAreTheSameBits) {
  Case setup = CaseOf("wgan-gp");
  setup.step.dtype = DataType::kF64;
  setup.plan.kernels = KernelChoice::kReference;
  setup.size = 16;
  setup.width = 8;
  const Outcome unlimited = Train(setup, 2);
  setup.plan.device_memory.fraction = 0.5;
  setup.plan.tiers = {Host()};
  EXPECT_TRUE(Train(setup, 2) == unlimited);
}

TEST(BudgetCaseTest, AFileHoldsWhatHostMemoryMayNot) {
  const std::string folder = ::testing::TempDir();
  Case setup = CaseOf("dcgan");
  const Outcome unlimited = Train(setup, 3);
  setup.plan.device_memory.fraction = 0.5;
  setup.plan.tiers = {TierOptions{.name = "nvme", .kind = TierKind::kFile, .directory = folder}};
  EXPECT_TRUE(Train(setup, 3) == unlimited);
}

TEST(BudgetCaseTest, HostAndFileShareTheLoad) {
  Case setup = CaseOf("dcgan");
  const Outcome unlimited = Train(setup, 3);
  setup.plan.device_memory.fraction = 0.5;
  TierOptions host = Host();
  host.budget_bytes = 400'000;
  setup.plan.tiers = {host, TierOptions{.name = "nvme", .kind = TierKind::kFile, .directory = ::testing::TempDir()}};
  EXPECT_TRUE(Train(setup, 3) == unlimited);
}

TEST(BudgetCaseTest, PlanFilesAreCarriedOutToTheBit) {
  Case setup = CaseOf("dcgan");
  setup.plan.device_memory.fraction = 0.5;
  setup.plan.tiers = {Host()};
  const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = 1});
  const auto session = MakeSession(setup, *device);
  ASSERT_TRUE(session.ok()) << session.status();
  const Plan& made = (*session)->plan();
  const auto program = BuildGanStep((*session)->options().step, (*session)->generators(), (*session)->discriminators());
  ASSERT_TRUE(program.ok());
  PlanOptions options = (*session)->options().plan;
  const std::string text = PlanToJson(made);
  const absl::StatusOr<Plan> read = PlanFromJson(text, *program, options);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(PlanToJson(*read), text);
  EXPECT_EQ(read->program.Dump(), made.program.Dump());
  EXPECT_EQ(read->offsets, made.offsets);
  options.tiers.clear();
  EXPECT_NE(Message(PlanFromJson(text, *program, options).status()).find("offload"), std::string::npos);
}

TEST(BudgetCaseTest, MomentsAndAveragesAreInPieces) {
  Case setup = CaseOf("dcgan");
  setup.width = 32;
  const Outcome unlimited = Train(setup, 2);
  setup.plan.device_memory.fraction = 0.4;
  setup.plan.tiers = {Host()};
  const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = 1});
  const auto session = MakeSession(setup, *device);
  ASSERT_TRUE(session.ok()) << session.status();
  std::map<std::string, int> pieces;
  for (const State& state : (*session)->plan().program.states()) {
    if (!state.whole.empty()) ++pieces[state.whole];
  }
  EXPECT_GT(pieces["generator.0.weight.moment1"], 1);
  EXPECT_GT(pieces["ema.generator.0.weight"], 1);
  EXPECT_EQ(pieces.count("generator.0.weight"), 0u);
  EXPECT_TRUE(Train(setup, 2) == unlimited);
  for (const char* optimizer : {"adamw", "sgd"}) {
    Case other = CaseOf("dcgan");
    other.width = 32;
    other.optimizer.kind = optimizer == std::string("sgd") ? OptimizerConfig::Kind::kSgd : OptimizerConfig::Kind::kAdamW;
    other.optimizer.momentum = other.optimizer.kind == OptimizerConfig::Kind::kSgd ? 0.9 : 0.0;
    other.optimizer.weight_decay = 0.01;
    other.optimizer.clip_norm = 1.0;
    const Outcome free = Train(other, 2);
    other.plan.device_memory.fraction = 0.5;
    other.plan.tiers = {Host()};
    EXPECT_TRUE(Train(other, 2) == free) << optimizer;
  }
}

TEST(BudgetCaseTest, TheVerifierFindsCopiesThatAreUsedTooEarly) {
  Case setup = CaseOf("dcgan");
  setup.plan.device_memory.fraction = 0.5;
  setup.plan.tiers = {Host()};
  setup.plan.thread_count = 1;
  GanSessionOptions options{.step = setup.step, .plan = setup.plan};
  Family family = *BuildFamily(setup.family, {.image_size = setup.size, .channels = 3, .width = setup.width, .latent_size = 16,
                                              .batch = setup.batch, .dtype = setup.step.dtype});
  const GanRole generators[] = {{.name = "generator", .model = std::move(family.generator)}};
  const GanRole discriminators[] = {{.name = "discriminator", .model = std::move(family.discriminator)}};
  absl::StatusOr<Program> program = BuildGanStep(setup.step, generators, discriminators);
  ASSERT_TRUE(program.ok());
  absl::StatusOr<Plan> plan = MakePlan(*program, setup.plan);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_TRUE(VerifyPlan(*plan).ok());
  int fetches = 0, overwritten = 0;
  for (PlannedOp& step : plan->schedule) {
    if (step.done_by < 0) continue;
    const int done_by = step.done_by;
    const bool fetch = plan->program.ops()[step.op].definition->name == "fetch";
    step.done_by = static_cast<int>(plan->schedule.size());
    const absl::Status late = VerifyPlan(*plan);
    if (fetch) {
      ++fetches;
      EXPECT_NE(Message(late).find("before its copy is done"), std::string::npos) << late;
    } else {
      overwritten += !late.ok();  // where its memory is used again
    }
    step.done_by = 0;
    EXPECT_FALSE(VerifyPlan(*plan).ok());
    step.done_by = done_by;
  }
  EXPECT_TRUE(VerifyPlan(*plan).ok());
  EXPECT_GT(fetches, 3);
  EXPECT_GT(overwritten, 0);
}

TEST(BudgetCaseTest, SlowLinksChangeTheTimeOnly) {
  Case setup = CaseOf("dcgan");
  const Outcome unlimited = Train(setup, 2);
  setup.plan.device_memory.fraction = 0.5;
  TierOptions host = Host();
  host.out = host.in = {.bytes_per_second = 2e8, .latency_seconds = 1e-4, .jitter_seconds = 1e-3, .seed = 5};
  setup.plan.tiers = {host};
  EXPECT_TRUE(Train(setup, 2) == unlimited);
}

// Rounding is what one asked for: half the bytes, other results, and every report says so.
TEST(BudgetCaseTest, Bf16StashesAreHalfAndNamed) {
  Case setup = CaseOf("dcgan");
  setup.batch = 16;
  const Outcome unlimited = Train(setup, 3);
  setup.plan.device_memory.fraction = 0.5;
  setup.plan.recompute = false;
  setup.plan.encode = false;
  setup.plan.tiers = {Host()};
  const Outcome exact = Train(setup, 3);
  EXPECT_TRUE(exact == unlimited);
  EXPECT_EQ(exact.residency.bf16_stashes, 0);
  setup.plan.stash_dtype = StashDtype::kBf16;
  const Outcome rounded = Train(setup, 3);
  EXPECT_GT(rounded.residency.bf16_stashes, 0);
  EXPECT_FALSE(rounded == unlimited);
  for (const auto& [name, value] : unlimited.scalars) EXPECT_NEAR(rounded.scalars.at(name), value, 0.05 * (1 + std::abs(value))) << name;
  // The same plan gives the same bits, as ever.
  EXPECT_TRUE(Train(setup, 3) == rounded);
  const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = 1});
  const auto session = MakeSession(setup, *device);
  ASSERT_TRUE(session.ok()) << session.status();
  const Plan& plan = (*session)->plan();
  EXPECT_NE(Describe(plan).find("LOSSY"), std::string::npos);
  const std::string text = PlanToJson(plan);
  const absl::StatusOr<PlanSummary> summary = SummarizePlan(text);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_NE(Describe(*summary).find("LOSSY"), std::string::npos);
  // Who reads the file without having asked for it does not get it.
  const auto program = BuildGanStep((*session)->options().step, (*session)->generators(), (*session)->discriminators());
  ASSERT_TRUE(program.ok());
  PlanOptions options = (*session)->options().plan;
  EXPECT_TRUE(PlanFromJson(text, *program, options).ok());
  options.stash_dtype = StashDtype::kF32;
  EXPECT_NE(Message(PlanFromJson(text, *program, options).status()).find("memory.stash"), std::string::npos);
}

// However slow the link: what fits by copies alone fits where ops may run again as well.
TEST(BudgetCaseTest, MoreFreedomFitsNoWorse) {
  Case setup = CaseOf("dcgan");
  setup.batch = 16;
  TierOptions slow = Host();
  slow.out.bytes_per_second = slow.in.bytes_per_second = 1e6;
  setup.plan.tiers = {slow};
  Family family = *BuildFamily(setup.family, {.image_size = setup.size, .channels = 3, .width = setup.width, .latent_size = 16,
                                              .batch = setup.batch, .dtype = setup.step.dtype});
  const GanRole generators[] = {{.name = "generator", .model = std::move(family.generator)}};
  const GanRole discriminators[] = {{.name = "discriminator", .model = std::move(family.discriminator)}};
  const absl::StatusOr<Program> program = BuildGanStep(setup.step, generators, discriminators);
  ASSERT_TRUE(program.ok());
  int fits = 0;
  for (const double fraction : {0.6, 0.5, 0.4, 0.3}) {
    PlanOptions options = setup.plan;
    options.device_memory.fraction = fraction;
    options.recompute = false;
    if (!MakePlan(*program, options).ok()) continue;
    ++fits;
    options.recompute = true;
    const absl::StatusOr<Plan> both = MakePlan(*program, options);
    EXPECT_TRUE(both.ok()) << fraction << ": " << both.status();
  }
  EXPECT_GE(fits, 3);
}

TEST(BudgetCaseTest, WhatDoesNotFitSaysWhyAndWhatWould) {
  Case setup = CaseOf("dcgan");
  setup.plan.device_memory.bytes = 100'000;
  const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = 1});
  const absl::Status status = MakeSession(setup, *device).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(Message(status).find("100000 bytes"), std::string::npos) << status;
  EXPECT_NE(Message(status).find("bytes too many"), std::string::npos) << status;
  EXPECT_NE(Message(status).find("What would fit"), std::string::npos) << status;
  EXPECT_EQ(device->reserved_bytes(), 0);
}

}  // namespace
}  // namespace gantry
