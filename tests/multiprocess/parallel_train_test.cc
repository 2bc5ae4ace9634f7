// Training over several ranks, in real processes: losses and states are those of one rank, up to the order of sums, and every run gives
// the same bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <span>

#include "memory/hash.h"
#include "runtime/gan/families.h"
#include "runtime/gan/gan_session.h"
#include "runtime/partition/defer_tail.h"
#include "tests/support/run_ranks.h"

namespace gantry {
namespace {

struct Case {
  std::string name;
  std::string family;
  GanStepConfig step;
  OptimizerConfig optimizer;
  int64_t width = 8, batch = 6;
};

std::vector<Case> Cases() {
  return {{"dcgan_r1", "dcgan", {.r1 = 1.0, .penalty_every = 2, .ema = 0.9}, {}},
          {"wgan_gp", "wgan-gp", {.loss = GanLoss::kWasserstein, .gradient_penalty = 10.0, .n_critic = 2}, {.beta1 = 0.0}},
          {"sngan_accumulated", "sngan", {.loss = GanLoss::kHinge, .accumulate = 2}, {.clip_norm = 0.5}},
          {"r3gan_r1_r2", "r3gan", {.loss = GanLoss::kRelativistic, .r1 = 1.0, .r2 = 1.0, .ema = 0.9}, {}}};
}

struct Outcome {
  std::vector<std::map<std::string, double>> scalars;  // per step
  std::map<std::string, std::vector<double>> states;
  int beside = 0;  // exchanges that run beside compute
  int64_t arena_bytes = 0;
  bool has_tail = false;  // for the next step
  int pieces = 0;         // of gradients that come in pieces
};

// GANTRY_TEST_STEPS runs longer: 12 steps show more of what differs.
int Steps() {
  const char* text = std::getenv("GANTRY_TEST_STEPS");
  return text == nullptr ? 3 : std::atoi(text);
}

absl::StatusOr<Outcome> Train(const Case& setup, DataType dtype, KernelChoice kernels, JobRanks* ranks, const Parallel& parallel,
                              PlanOptions plan = {}) {
  GanStepConfig step = setup.step;
  step.dtype = dtype;
  GANTRY_ASSIGN_OR_RETURN(Family family, BuildFamily(setup.family, {.image_size = 16, .channels = 3, .width = setup.width, .latent_size = 8,
                                                                    .batch = setup.batch, .dtype = dtype}));
  std::vector<GanRole> generators, discriminators;
  generators.push_back({.name = "generator", .model = std::move(family.generator), .optimizer = setup.optimizer});
  discriminators.push_back({.name = "discriminator", .model = std::move(family.discriminator), .optimizer = setup.optimizer});
  const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = 1});
  plan.kernels = kernels;
  plan.thread_count = 1;
  GANTRY_ASSIGN_OR_RETURN(const auto session,
                          GanSession::Create({.step = step, .plan = plan, .seed = 5, .ranks = ranks, .parallel = parallel},
                                             std::move(generators), std::move(discriminators), *device));
  Outcome outcome;
  for (int i = 0; i < Steps(); ++i) {
    std::vector<float> real(session->real_elements() * session->draws_per_step());
    for (size_t e = 0; e < real.size(); ++e) real[e] = static_cast<float>(std::sin(0.31 * static_cast<double>(e) + i));
    GANTRY_RETURN_IF_ERROR(session->Step({.real = real}));
    outcome.scalars.emplace_back();
    for (const std::string& name : session->ScalarNames()) {
      if (name.ends_with("gradient_norm") && i + 1 < Steps()) continue;  // asking for it ends the step's tail
      outcome.scalars.back()[name] = *session->Scalar(name);
    }
  }
  outcome.arena_bytes = session->plan().arena_bytes;
  outcome.has_tail = session->plan().program.FindInput(kTailFlag) != kNoValue;
  for (const PlannedOp& step : session->plan().schedule) {
    const Op& op = session->plan().program.ops()[step.op];
    outcome.pieces += op.attributes.Has("rows") && op.definition->name.find("weight_grad") != std::string_view::npos;
    outcome.beside += step.done_by >= 0 && session->plan().program.ops()[step.op].definition->communicates;
  }
  for (const std::string& name : session->StateNames()) {
    std::vector<double> values(session->StateType(name)->element_count());
    GANTRY_RETURN_IF_ERROR(session->ReadState(name, values));
    outcome.states[name] = std::move(values);
  }
  if (session->executor().high_water_bytes() != session->plan().arena_bytes) {
    return absl::InternalError(absl::StrFormat("%d bytes were planned, %d touched", session->plan().arena_bytes, session->executor().high_water_bytes()));
  }
  return outcome;
}

// Of every bit of losses and states.
std::string HashOf(const Outcome& outcome) {
  std::string bits;
  const auto Add = [&](std::string_view name, std::span<const double> values) {
    absl::StrAppend(&bits, ToAbsl(name), " ");
    bits.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  };
  for (const std::map<std::string, double>& of_step : outcome.scalars) {
    for (const auto& [name, value] : of_step) Add(name, std::span(&value, 1));
  }
  for (const auto& [name, values] : outcome.states) Add(name, values);
  return absl::StrFormat("%016x", HashText(bits));
}

void ExpectNear(const Outcome& expected, const Outcome& actual, double tolerance) {
  ASSERT_EQ(expected.scalars.size(), actual.scalars.size());
  for (size_t step = 0; step < expected.scalars.size(); ++step) {
    for (const auto& [name, value] : expected.scalars[step]) {
      ASSERT_TRUE(actual.scalars[step].contains(name)) << name;
      EXPECT_NEAR(actual.scalars[step].at(name), value, tolerance * std::max(1.0, std::fabs(value))) << name << " in step " << step + 1;
    }
  }
  ASSERT_EQ(expected.states.size(), actual.states.size());
  for (const auto& [name, values] : expected.states) {
    const auto found = actual.states.find(name);
    ASSERT_TRUE(found != actual.states.end() && found->second.size() == values.size()) << name;
    double largest = 1.0, error = 0.0;
    for (size_t e = 0; e < values.size(); ++e) {
      largest = std::max(largest, std::fabs(values[e]));
      error = std::max(error, std::fabs(values[e] - found->second[e]));
    }
    EXPECT_LE(error, tolerance * largest) << name;
  }
}

class ParallelTrainTest : public testing::TestWithParam<std::tuple<int, const char*, int>> {};

TEST_P(ParallelTrainTest, IsTheSameAsOneRank) {
  const auto [number, split, size] = GetParam();
  const Case setup = Cases()[number];
  const std::string text = split;
  RunRanksUnconnected(size, [&](Job job) {
    const absl::StatusOr<std::unique_ptr<JobRanks>> ranks = JobRanks::Join(std::move(job));
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    const absl::StatusOr<Parallel> parallel = Parallel::Parse(text);
    ASSERT_TRUE(parallel.ok()) << parallel.status();
    const absl::StatusOr<Outcome> together = Train(setup, DataType::kF64, KernelChoice::kReference, ranks->get(), *parallel);
    ASSERT_TRUE(together.ok()) << together.status();
    const absl::StatusOr<Outcome> again = Train(setup, DataType::kF64, KernelChoice::kReference, ranks->get(), *parallel);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_TRUE(together->scalars == again->scalars && together->states == again->states) << "two runs differ";
    // All ranks have the same, so that one of them compares it with one rank's.
    const std::string mine = HashOf(*together);
    const absl::StatusOr<std::vector<std::string>> of_ranks = (*ranks)->Gather(mine);
    ASSERT_TRUE(of_ranks.ok()) << of_ranks.status();
    EXPECT_EQ(mine, of_ranks->front()) << "rank " << (*ranks)->rank() << " differs from rank 0";
    if ((*ranks)->rank() != 0) return;
    const absl::StatusOr<Outcome> alone = Train(setup, DataType::kF64, KernelChoice::kReference, nullptr, {});
    ASSERT_TRUE(alone.ok()) << alone.status();
    ExpectNear(*alone, *together, 1e-9);
  });
}

std::string NameOf(const testing::TestParamInfo<std::tuple<int, const char*, int>>& instance) {
  const auto& [number, split, size] = instance.param;
  std::string text = split;
  std::replace(text.begin(), text.end(), '+', '_');
  return absl::StrFormat("%s_%s_over_%d", Cases()[number].name, text, size);
}

INSTANTIATE_TEST_SUITE_P(Cases, ParallelTrainTest,
                         testing::Combine(testing::Values(0, 1, 2, 3),
                                          testing::Values("batch", "space", "shard", "batch+shard", "space+shard", "batch+space"),
                                          testing::Values(2, 3, 4)),
                         NameOf);

// Layers' channels and weights in parts.
INSTANTIATE_TEST_SUITE_P(Channels, ParallelTrainTest,
                         testing::Combine(testing::Values(0, 1, 2, 3), testing::Values("channel", "batch+channel", "channel+shard"),
                                          testing::Values(2, 3, 4)),
                         NameOf);

// Generators on one half of the ranks, discriminators on the other.
INSTANTIATE_TEST_SUITE_P(Roles, ParallelTrainTest,
                         testing::Combine(testing::Values(0, 1, 2, 3), testing::Values("roles", "batch+roles", "shard+roles", "space+roles", "channel+roles"),
                                          testing::Values(2, 4)),
                         NameOf);

// Layers of every network on different ranks.
INSTANTIATE_TEST_SUITE_P(Pipeline, ParallelTrainTest,
                         testing::Combine(testing::Values(0, 1, 2, 3), testing::Values("pipeline"), testing::Values(2, 3, 4)), NameOf);
INSTANTIATE_TEST_SUITE_P(PipelineOfMeshes, ParallelTrainTest,
                         testing::Combine(testing::Values(0, 1, 2, 3),
                                          testing::Values("batch+pipeline", "space+pipeline", "channel+pipeline", "shard+pipeline"),
                                          testing::Values(4)),
                         NameOf);

// The serial schedule, and links of any speed: the same bits, and fewer than all exchanges where compute stands still.
class OverlapTest : public testing::TestWithParam<std::tuple<int, const char*, int>> {};

TEST_P(OverlapTest, GivesTheBitsOfTheSerialSchedule) {
  const auto [number, split, size] = GetParam();
  const Case setup = Cases()[number];
  const std::string text = split;
  RunRanksUnconnected(size, [&](Job job) {
    const absl::StatusOr<std::unique_ptr<JobRanks>> ranks = JobRanks::Join(std::move(job));
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    Parallel parallel = *Parallel::Parse(text);
    parallel.exchanges.bucket_bytes = 4096;  // several buckets in networks of this size
    std::vector<Outcome> outcomes;
    for (const bool overlap : {false, true}) {
      for (const bool throttled : {false, true}) {
        PlanOptions plan{.overlap = overlap};
        if (throttled) plan.link = {.bytes_per_second = 200e6, .latency_seconds = 100e-6};
        absl::StatusOr<Outcome> outcome = Train(setup, DataType::kF32, KernelChoice::kFast, ranks->get(), parallel, plan);
        ASSERT_TRUE(outcome.ok()) << outcome.status();
        outcomes.push_back(*std::move(outcome));
      }
    }
    // The last network's exchanges beside the next step.
    for (const bool throttled : {false, true}) {
      PlanOptions plan;
      if (throttled) plan.link = {.bytes_per_second = 200e6, .latency_seconds = 100e-6};
      Parallel across = parallel;
      across.across_steps = true;
      absl::StatusOr<Outcome> outcome = Train(setup, DataType::kF32, KernelChoice::kFast, ranks->get(), across, plan);
      ASSERT_TRUE(outcome.ok()) << outcome.status();
      EXPECT_EQ(outcome->has_tail, parallel.batch || parallel.space) << "where gradients are summed over ranks";
      outcomes.push_back(*std::move(outcome));
    }
    // And with what does not fit elsewhere. Planning takes seconds.
    for (const std::string_view overlap : {"off", "on", "across"}) {
      if (size != 2 || number > 1) continue;
      PlanOptions plan{.tiers = {{.name = "host"}}, .overlap = overlap != "off"};
      plan.device_memory.fraction = 0.85;
      Parallel within = parallel;
      within.across_steps = overlap == "across";
      absl::StatusOr<Outcome> outcome = Train(setup, DataType::kF32, KernelChoice::kFast, ranks->get(), within, plan);
      ASSERT_TRUE(outcome.ok()) << overlap << ": " << outcome.status();
      EXPECT_LT(outcome->arena_bytes, within.across_steps ? outcomes[4].arena_bytes : outcomes[0].arena_bytes);
      outcomes.push_back(*std::move(outcome));
    }
    for (size_t i = 1; i < outcomes.size(); ++i) {
      EXPECT_TRUE(outcomes[i].scalars == outcomes[0].scalars) << "losses of run " << i;
      EXPECT_TRUE(outcomes[i].states == outcomes[0].states) << "states of run " << i;
    }
    EXPECT_EQ(outcomes[0].beside, 0);
    // Channels alone leave no gradient to sum.
    if (!parallel.channel || parallel.batch) {
      EXPECT_GT(outcomes[2].beside, 0);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Cases, OverlapTest,
                         testing::Combine(testing::Values(0, 1, 2, 3),
                                          testing::Values("batch", "space", "shard", "batch+shard", "space+shard"), testing::Values(2, 3)),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(Channels, OverlapTest,
                         testing::Values(std::tuple(0, "channel", 2), std::tuple(1, "channel", 3), std::tuple(2, "batch+channel", 4),
                                         std::tuple(3, "batch+channel", 4)),
                         NameOf);

class GradientPiecesTest : public testing::TestWithParam<std::tuple<int, const char*, int64_t>> {};

// Large gradients come in pieces where their exchange runs beside compute: on plain images (3 a rank) and on panels (6), first and second order, sums of
// several passes.
TEST_P(GradientPiecesTest, ChangeNoBit) {
  const auto [number, split, batch] = GetParam();
  Case setup = Cases()[number];
  setup.width = 64;
  setup.batch = batch;
  constexpr int64_t kPiece = 1 << 17;
  Parallel parallel = *Parallel::Parse(split);
  parallel.exchanges = {.bucket_bytes = kPiece, .piece_bytes = kPiece};
  RunRanksUnconnected(2, [&](Job job) {
    const absl::StatusOr<std::unique_ptr<JobRanks>> ranks = JobRanks::Join(std::move(job));
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    std::vector<Outcome> outcomes;
    for (const std::string_view overlap : {"off", "on", "across"}) {
      parallel.across_steps = overlap == "across";
      absl::StatusOr<Outcome> outcome = Train(setup, DataType::kF32, KernelChoice::kFast, ranks->get(), parallel, {.chunk_bytes = kPiece, .overlap = overlap != "off"});
      ASSERT_TRUE(outcome.ok()) << outcome.status();
      outcomes.push_back(*std::move(outcome));
    }
    EXPECT_EQ(outcomes[0].pieces, 0);
    for (size_t i = 1; i < outcomes.size(); ++i) {
      EXPECT_GE(outcomes[i].pieces, 8);
      EXPECT_TRUE(outcomes[i].scalars == outcomes[0].scalars) << "losses of run " << i;
      EXPECT_TRUE(outcomes[i].states == outcomes[0].states) << "states of run " << i;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Cases, GradientPiecesTest,
                         testing::Values(std::tuple(0, "batch", int64_t{6}), std::tuple(0, "batch", int64_t{12}), std::tuple(0, "space", int64_t{6}),
                                         std::tuple(2, "batch", int64_t{6}), std::tuple(3, "batch", int64_t{12}), std::tuple(3, "space", int64_t{6})),
                         [](const testing::TestParamInfo<GradientPiecesTest::ParamType>& param) {
                           return absl::StrFormat("%s_%s_%d", Cases()[std::get<0>(param.param)].name, std::get<1>(param.param), std::get<2>(param.param));
                         });

TEST(ParallelTrainTest, LargeGradientsInPiecesAreThoseOfOneRank) {
  Case setup = Cases()[0];
  setup.width = 64;
  RunRanksUnconnected(2, [&](Job job) {
    const absl::StatusOr<std::unique_ptr<JobRanks>> ranks = JobRanks::Join(std::move(job));
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    Parallel parallel = *Parallel::Parse("batch");
    parallel.exchanges = {.bucket_bytes = 1 << 18, .piece_bytes = 1 << 18};  // of f64
    parallel.across_steps = true;
    const absl::StatusOr<Outcome> together =
        Train(setup, DataType::kF64, KernelChoice::kReference, ranks->get(), parallel, {.chunk_bytes = 1 << 18});
    ASSERT_TRUE(together.ok()) << together.status();
    EXPECT_GT(together->pieces, 0);
    const absl::StatusOr<Outcome> alone = Train(setup, DataType::kF64, KernelChoice::kReference, nullptr, {});
    ASSERT_TRUE(alone.ok()) << alone.status();
    ExpectNear(*alone, *together, 1e-9);
  });
}

TEST(ParallelTrainTest, FastKernelsAgree) {
  const Case setup = Cases()[0];
  RunRanksUnconnected(2, [&](Job job) {
    const absl::StatusOr<std::unique_ptr<JobRanks>> ranks = JobRanks::Join(std::move(job));
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    for (const std::string_view text : {"batch", "space", "batch+shard", "channel"}) {
      const absl::StatusOr<Outcome> together = Train(setup, DataType::kF32, KernelChoice::kFast, ranks->get(), *Parallel::Parse(text));
      ASSERT_TRUE(together.ok()) << together.status();
      const absl::StatusOr<Outcome> alone = Train(setup, DataType::kF32, KernelChoice::kFast, nullptr, {});
      ASSERT_TRUE(alone.ok()) << alone.status();
      // Scalars of the first step: later ones have seen Adam turn rounding into steps.
      for (const auto& [name, value] : alone->scalars[0]) {
        EXPECT_NEAR(together->scalars[0].at(name), value, 2e-3 * std::max(1.0, std::fabs(value))) << name << ", " << text;
      }
    }
  });
}

}  // namespace
}  // namespace gantry
