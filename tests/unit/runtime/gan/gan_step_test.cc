#include "runtime/gan/gan_step.h"

#include <gtest/gtest.h>

#include <map>

#include "runtime/gan/gan_session.h"
#include "runtime/graph/rewrite.h"
#include "tests/support/small_gan.h"

namespace gantry {
namespace {

using testing::MakeSmallGan;
using testing::SmallGan;

Program Build(const GanStepConfig& config, int64_t batch = 4) {
  const SmallGan gan = MakeSmallGan(batch, config.dtype);
  absl::StatusOr<Program> program = BuildGanStep(config, gan.generators, gan.discriminators);
  EXPECT_TRUE(program.ok()) << program.status();
  absl::StatusOr<Program> simple = Simplify(*program);
  EXPECT_TRUE(simple.ok()) << simple.status();
  return *std::move(simple);
}

int Count(const Program& program, std::string_view op, std::string_view phase, std::string_view network) {
  int count = 0;
  for (const Op& candidate : program.ops()) {
    count += candidate.definition->name == op && program.labels()[candidate.phase] == phase &&
             (network.empty() || program.labels()[candidate.network] == network);
  }
  return count;
}

TEST(GanStepTest, NoWeightGradientOfTheFrozenDiscriminatorExists) {
  const Program program = Build({});
  EXPECT_EQ(Count(program, "conv_weight_grad", "generator_gradient", "discriminator"), 0);
  EXPECT_EQ(Count(program, "conv_weight_grad", "generator_gradient", "generator"), 3);
  // The pass back through the discriminator: one input gradient for each of its convolutions.
  EXPECT_EQ(Count(program, "conv_transpose", "generator_gradient", "discriminator"), 3);
  // Real and made samples each give a weight gradient; the first layer's input gradient is not needed.
  EXPECT_EQ(Count(program, "conv_weight_grad", "discriminator_gradient", "discriminator"), 6);
  EXPECT_EQ(Count(program, "conv_transpose", "discriminator_gradient", "discriminator"), 4);
  // The generator runs forward once, and nothing of it is differentiated for the discriminator.
  EXPECT_EQ(Count(program, "conv_transpose", "generate", "generator"), 3);
  EXPECT_EQ(Count(program, "conv_weight_grad", "discriminator_gradient", "generator"), 0);
}

TEST(GanStepTest, DumpIsStable) {
  GanStepConfig config;
  config.r1 = 1.0;
  EXPECT_EQ(Build(config).Dump(), Build(config).Dump());
  EXPECT_NE(Build(config).Dump().find("phase generator_update"), std::string::npos);
}

TEST(GanStepTest, RolesThatDoNotFitAreNamed) {
  SmallGan gan = MakeSmallGan(4, DataType::kF32, 3);
  const SmallGan grey = MakeSmallGan(4, DataType::kF32, 1);
  const absl::Status status = BuildGanStep({}, gan.generators, grey.discriminators).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(Message(status).find("'generator' makes f32[4,3,8,8], but 'discriminator' judges f32[4,1,8,8]"), std::string::npos)
      << status;
}

struct Outcome {
  std::map<std::string, double> scalars;
  std::map<std::string, std::vector<double>> states;
};

std::vector<float> Samples(int64_t count, int seed) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(std::sin(0.37 * i + seed));
  return values;
}

Outcome Train(const GanStepConfig& config, PlanOptions plan, int steps, int discriminators = 1, int64_t batch = 8) {
  SmallGan gan = MakeSmallGan(batch, config.dtype);
  for (int i = 1; i < discriminators; ++i) {
    gan.discriminators.push_back(gan.discriminators[0]);
    gan.discriminators.back().name = absl::StrCat("discriminator", i + 1);
  }
  const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = 2});
  absl::StatusOr<std::unique_ptr<GanSession>> session =
      GanSession::Create({.step = config, .plan = plan, .seed = 7}, gan.generators, gan.discriminators, *device);
  EXPECT_TRUE(session.ok()) << session.status();
  for (int step = 0; step < steps; ++step) {
    const std::vector<float> real = Samples((*session)->real_elements() * (*session)->draws_per_step(), step);
    const absl::Status status = (*session)->Step({.real = real});
    EXPECT_TRUE(status.ok()) << status;
  }
  Outcome run;
  for (const std::string& name : (*session)->ScalarNames()) run.scalars[name] = *(*session)->Scalar(name);
  for (const std::string& name : (*session)->StateNames()) {
    std::vector<double> values((*session)->StateType(name)->element_count());
    EXPECT_TRUE((*session)->ReadState(name, values).ok());
    run.states[name] = std::move(values);
  }
  // Peak is known in advance, to the byte.
  EXPECT_EQ((*session)->executor().high_water_bytes(), (*session)->plan().arena_bytes);
  EXPECT_EQ(device->reserved_bytes(), (*session)->plan().arena_bytes);
  return run;
}

GanStepConfig Rich(DataType dtype) {
  GanStepConfig config;
  config.dtype = dtype;
  config.r1 = 0.5;
  config.r2 = 0.3;
  config.gradient_penalty = 2.0;
  config.n_critic = 2;
  config.ema = 0.9;
  return config;
}

TEST(GanSessionTest, FusionAndInPlaceDoNotChangeABit) {
  for (DataType dtype : {DataType::kF32, DataType::kF64}) {
    PlanOptions plain{.kernels = KernelChoice::kReference, .thread_count = 2, .fuse = false, .in_place = false};
    PlanOptions rewritten{.kernels = KernelChoice::kReference, .thread_count = 2};
    EXPECT_EQ(Train(Rich(dtype), plain, 3).states, Train(Rich(dtype), rewritten, 3).states) << Name(dtype);
  }
}

TEST(GanSessionTest, FastKernelsAgreeWithReferenceInDouble) {
  const Outcome fast = Train(Rich(DataType::kF32), {.kernels = KernelChoice::kFast, .thread_count = 2}, 2);
  const Outcome truth = Train(Rich(DataType::kF64), {.kernels = KernelChoice::kReference}, 2);
  for (const auto& [name, value] : truth.scalars) EXPECT_NEAR(fast.scalars.at(name), value, 1e-4 * (1 + std::abs(value))) << name;
}

TEST(GanSessionTest, LazyPenaltiesCountOnTheirStepsOnly) {
  GanStepConfig lazy;
  lazy.dtype = DataType::kF64;
  lazy.r1 = 1.0;
  lazy.penalty_every = 2;
  GanStepConfig always = lazy;
  always.penalty_every = 1;
  const PlanOptions plan{.kernels = KernelChoice::kReference};
  EXPECT_GT(Train(lazy, plan, 1).scalars.at("r1"), 0.0);
  EXPECT_EQ(Train(lazy, plan, 2).scalars.at("r1"), 0.0);
  const Outcome one_lazy = Train(lazy, plan, 1), one = Train(always, plan, 1);
  for (const auto& [name, values] : one.states) {
    for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(one_lazy.states.at(name)[i], values[i], 1e-12) << name;
  }
  GanStepConfig none = lazy;
  none.r1 = 0.0;
  EXPECT_NE(Train(lazy, plan, 2).states, Train(none, plan, 2).states);
}

TEST(GanSessionTest, AccumulationOfEqualMicroBatchesIsOneUpdate) {
  // Without batch statistics in play the same micro-batch twice gives the mean gradient of one.
  GanStepConfig config;
  config.dtype = DataType::kF64;
  config.accumulate = 2;
  const Outcome twice = Train(config, {.kernels = KernelChoice::kReference}, 2);
  for (const auto& [name, value] : twice.scalars) EXPECT_TRUE(std::isfinite(value)) << name;
}

TEST(GanSessionTest, SeveralDiscriminatorsTrainTogether) {
  GanStepConfig config;
  config.dtype = DataType::kF64;
  const Outcome two = Train(config, {.kernels = KernelChoice::kReference}, 2, 2);
  EXPECT_TRUE(two.states.contains("discriminator2.0.weight.moment1"));
  EXPECT_NE(two.states.at("discriminator2.0.weight"), two.states.at("discriminator.0.weight"));
}

TEST(GanSessionTest, NotFiniteInputStopsTheStepAndIsNamed) {
  const SmallGan gan = MakeSmallGan(4, DataType::kF32);
  const std::unique_ptr<Device> device = MakeCpuDevice({});
  auto session = GanSession::Create({}, gan.generators, gan.discriminators, *device);
  ASSERT_TRUE(session.ok()) << session.status();
  std::vector<float> real = Samples((*session)->real_elements(), 0);
  ASSERT_TRUE((*session)->Step({.real = real}).ok());
  real[5] = std::nanf("");
  const absl::Status status = (*session)->Step({.real = real});
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(Message(status).find("step 2"), std::string::npos) << status;
  EXPECT_NE(Message(status).find("input real.0.0"), std::string::npos) << status;
}

TEST(GanSessionTest, NotFiniteWeightIsNamed) {
  const SmallGan gan = MakeSmallGan(4, DataType::kF32);
  const std::unique_ptr<Device> device = MakeCpuDevice({});
  auto session = GanSession::Create({}, gan.generators, gan.discriminators, *device);
  ASSERT_TRUE(session.ok()) << session.status();
  std::vector<double> weight((*session)->StateType("discriminator.5.weight")->element_count(), 3e38);
  ASSERT_TRUE((*session)->WriteState("discriminator.5.weight", weight).ok());
  const absl::Status status = (*session)->Step({.real = Samples((*session)->real_elements(), 0)});
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(Message(status).find("the first NaN or infinity is in op"), std::string::npos) << status;
}

TEST(GanSessionTest, SizesThatDoNotFitAreNamed) {
  const SmallGan gan = MakeSmallGan(4, DataType::kF32);
  const std::unique_ptr<Device> device = MakeCpuDevice({});
  auto session = GanSession::Create({}, gan.generators, gan.discriminators, *device);
  ASSERT_TRUE(session.ok()) << session.status();
  const absl::Status status = (*session)->Step({.real = std::vector<float>(7)});
  EXPECT_NE(Message(status).find("768 elements of 'real', got 7"), std::string::npos) << status;
}

TEST(GanSessionTest, OverBudgetSaysHowManyBytesAreShort) {
  const SmallGan gan = MakeSmallGan(4, DataType::kF32);
  const std::unique_ptr<Device> device = MakeCpuDevice({.capacity_bytes = 1000});
  const absl::Status status = GanSession::Create({}, gan.generators, gan.discriminators, *device).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(Message(status).find("short"), std::string::npos) << status;
}

TEST(GanSessionTest, SamplesDependOnTheirSeedOnly) {
  GanStepConfig config;
  config.ema = 0.5;
  const SmallGan gan = MakeSmallGan(4, DataType::kF32);
  const std::unique_ptr<Device> device = MakeCpuDevice({});
  auto session = GanSession::Create({.step = config}, gan.generators, gan.discriminators, *device);
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE((*session)->Step({.real = Samples((*session)->real_elements(), 0)}).ok());
  const auto first = (*session)->Sample(6, 3, true), again = (*session)->Sample(6, 3, true);
  const auto other = (*session)->Sample(6, 4, true), weights = (*session)->Sample(6, 3, false);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->size(), 6u * 3 * 8 * 8);
  EXPECT_EQ(*first, *again);
  EXPECT_NE(*first, *other);
  EXPECT_NE(*first, *weights);
}

}  // namespace
}  // namespace gantry
