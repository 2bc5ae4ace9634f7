// Budgets change where things are and when, never a bit of what comes out.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <map>

#include "absl/strings/str_cat.h"
#include "runtime/gan/session_checkpoint.h"
#include "runtime/plan/plan_file.h"
#include "tests/support/gan_case.h"

namespace gantry {
namespace {

using test::CaseOf;
using test::Host;
using test::MakeSession;
using test::Outcome;
using test::Train;
using Case = test::GanCase;

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
    // Updates as early as may be can be enough for a little.
    if (fraction < 0.8) {
      EXPECT_GT(offload.residency.fetches, 0);
    }
  }
}

TEST_P(BudgetTest, RecomputeAloneGivesTheSameBits) {
  Case setup = CaseOf(GetParam());
  setup.batch = 16;  // activations are most of it
  setup.plan.encode = false;  // which would do in part
  const Outcome unlimited = Train(setup, 2);
  // A step in parts, as every plan with a budget has it, needs more than one in buckets; of r3gan by nearly as much as runs of single ops save.
  setup.plan.device_memory.fraction = GetParam() == "r3gan" ? 0.98 : 0.85;
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

// What the largest op has at once does not fit: it runs in parts of the batch.
TEST(BatchPartsTest, ABudgetBelowTheLargestOpGivesTheSameBits) {
  for (const std::string family : {"dcgan", "wgan-gp"}) {
    Case setup = CaseOf(family);
    setup.plan.advise = false;
    setup.batch = 64;
    setup.width = 8;
    setup.plan.chunk_bytes = 1 << 14;
    const Outcome unlimited = Train(setup, 2);
    setup.plan.tiers = {Host()};
    setup.plan.device_memory.bytes = 2'000'000;
    const Outcome split = Train(setup, 2);
    EXPECT_GT(split.residency.batch_parts, 1) << family;
    EXPECT_TRUE(split == unlimited) << family;
  }
}

// Images that do not fit at once: convolutions on them, in plain layout, run in parts of their rows.
TEST(SpacePartsTest, ABudgetBelowTheLargestImagesGivesTheSameBits) {
  struct Images {
    const char* family;
    int64_t size, batch, chunk_bytes;
    double fraction;
  };
  for (const Images& images : {Images{"r3gan", 128, 1, 1 << 16, 0.08}, Images{"sngan", 32, 3, 1 << 12, 0.15}}) {
    Case setup = CaseOf(images.family);
    setup.size = images.size;
    setup.batch = images.batch;
    setup.width = 8;
    setup.plan.chunk_bytes = images.chunk_bytes;
    setup.plan.advise = false;
    const Outcome unlimited = Train(setup, 2);
    setup.plan.tiers = {Host()};
    setup.plan.device_memory.fraction = images.fraction;
    const Outcome split = Train(setup, 2);
    EXPECT_GT(split.residency.batch_parts, 1) << images.family;
    EXPECT_TRUE(split == unlimited) << images.family;
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

// At batch 1 convolutions take their weights by rows: a step of large weights fits a sixteenth of its footprint.
TEST(BudgetCaseTest, ASixteenthIsEnoughForLargeWeights) {
  for (const char* family : {"dcgan", "video"}) {
    Case setup = CaseOf(family);
    setup.batch = 1;
    setup.width = 32;
    setup.latent = 64;
    setup.plan.chunk_bytes = 1 << 14;
    if (setup.family == "video") setup.size = 16;
    const Outcome unlimited = Train(setup, 3);
    ASSERT_FALSE(unlimited.residency.used);
    for (const double fraction : {0.5, 1.0 / 8, 1.0 / 16}) {
      setup.plan.device_memory.fraction = fraction;
      setup.plan.tiers = {Host()};
      EXPECT_TRUE(Train(setup, 3) == unlimited) << family << " " << fraction;
    }
    const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = 1});
    const auto session = MakeSession(setup, *device);
    ASSERT_TRUE(session.ok()) << session.status();
    std::map<std::string, int> pieces;
    for (const State& state : (*session)->plan().program.states()) {
      if (!state.whole.empty()) ++pieces[state.whole];
    }
    for (const char* name : {"generator.3.weight", "generator.3.weight.moment1", "ema.generator.3.weight"}) {
      EXPECT_GT(pieces[name], 1) << name;
      EXPECT_EQ(pieces[name], pieces["generator.3.weight"]) << name;
    }
  }
}

TEST(BudgetCaseTest, PlainLoopsTakeWeightsByRowsToo) {
  Case setup = CaseOf("dcgan");
  setup.step.dtype = DataType::kF64;
  setup.plan.kernels = KernelChoice::kReference;
  setup.plan.chunk_bytes = 1 << 13;
  setup.size = 16;
  setup.batch = 2;
  setup.latent = 64;
  const Outcome unlimited = Train(setup, 2);
  setup.plan.device_memory.fraction = 0.2;
  setup.plan.tiers = {Host()};
  EXPECT_TRUE(Train(setup, 2) == unlimited);
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
      EXPECT_NE(Message(late).find("is read before"), std::string::npos) << late;
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

// Over a slow link the last updates' copies go on into the next step.
TEST(BudgetCaseTest, CopiesOfStatesGoOnIntoTheNextStep) {
  Case setup = CaseOf("dcgan");
  const Outcome unlimited = Train(setup, 4);
  setup.plan.device_memory.fraction = 0.5;
  setup.plan.tiers = {Host()};
  setup.plan.tiers[0].out = setup.plan.tiers[0].in = {.bytes_per_second = 3e8, .latency_seconds = 1e-5};
  EXPECT_TRUE(Train(setup, 4) == unlimited);

  const absl::StatusOr<Program> program = test::StepProgramOf(setup);
  ASSERT_TRUE(program.ok()) << program.status();
  absl::StatusOr<Plan> plan = MakePlan(*program, setup.plan);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const int end = static_cast<int>(plan->schedule.size());
  int going_on = 0;
  for (int time = 0; time < end; ++time) {
    PlannedOp& step = plan->schedule[time];
    if (step.done_by <= end) continue;
    ++going_on;
    const int done_by = step.done_by;
    const ValueId to = plan->program.ops()[step.op].outputs[0];
    const auto state = std::ranges::find(plan->program.states(), to, &State::last);
    ASSERT_NE(state, plan->program.states().end());
    // What fetches the state again in the next step must find it there.
    for (int fetch = 0; fetch < end; ++fetch) {
      const Op& op = plan->program.ops()[plan->schedule[fetch].op];
      if (op.definition->name != "fetch" || op.inputs[0] != state->first) continue;
      EXPECT_LE(done_by - end, fetch);
      step.done_by = end + fetch + 1;
      EXPECT_FALSE(VerifyPlan(*plan).ok());
    }
    step.done_by = end + time;
    EXPECT_FALSE(VerifyPlan(*plan).ok());
    step.done_by = done_by;
  }
  EXPECT_GT(going_on, 0);
  EXPECT_TRUE(VerifyPlan(*plan).ok());
}

// A checkpoint must not take for good what has changed in a tier since the step.
TEST(BudgetCaseTest, StatesThatChangedInATierAreNotSaved) {
  Case setup = CaseOf("dcgan");
  setup.plan.device_memory.fraction = 0.5;
  setup.plan.tiers = {Host()};
  setup.plan.checksums = true;
  const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = 2});
  const auto session = MakeSession(setup, *device);
  ASSERT_TRUE(session.ok()) << session.status();
  GanSession& gan = **session;
  const Program& program = gan.plan().program;
  const auto in_tier = std::find_if(program.states().begin(), program.states().end(), [&](const State& state) {
    return state.whole.empty() && program.values()[state.last].tier != kDeviceTier;
  });
  ASSERT_NE(in_tier, program.states().end()) << "no state is in a tier";
  const std::span<std::byte> there = gan.executor().Data(in_tier->last);  // before the step that writes it
  const std::vector<float> real(gan.real_elements() * gan.draws_per_step(), 0.5F);
  ASSERT_TRUE(gan.Step({.real = real}).ok());
  const std::string path = absl::StrCat(::testing::TempDir(), "/gantry_changed_", getpid(), ".safetensors");
  EXPECT_TRUE(SaveSession(gan, path).ok());
  std::filesystem::remove(path);
  EXPECT_TRUE(gan.executor().Borrow(*in_tier).empty());

  there[5] ^= std::byte{1};
  std::vector<std::byte> copy(there.size());
  for (const absl::Status& status : {gan.CopyStateOut(in_tier->name, copy), SaveSession(gan, path), gan.Step({.real = real})}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("came back changed"));
  }
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
  // No plan is smaller than the largest op: the message names it and its bytes.
  EXPECT_NE(Message(status).find("The largest op alone needs "), std::string::npos) << status;
  EXPECT_TRUE(Message(status).find("adam_update (phase ") != std::string::npos ||
              Message(status).find("conv_weight_grad (phase ") != std::string::npos ||
              Message(status).find("pack_weights (phase ") != std::string::npos) << status;
  EXPECT_EQ(device->reserved_bytes(), 0);
}

}  // namespace
}  // namespace gantry
