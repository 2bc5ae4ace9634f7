#include "runtime/plan/encode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "memory/device.h"
#include "ops/functional.h"
#include "runtime/execute/executor.h"
#include "runtime/gan/families.h"
#include "runtime/gan/gan_step.h"
#include "runtime/gan/network_builder.h"

namespace gantry {
namespace {

// One phase through a network that is not trained: y = leaky_relu(x) is read by the next op, then only for its sign.
struct Chain {
  Program program;
  std::vector<ValueId> activations;
};

Chain MakeChain(int layers, int64_t count) {
  Chain chain;
  Program& p = chain.program;
  const ValueId x = p.AddInput("x", {DataType::kF32, Shape{count}});
  ValueId value = x;
  for (int i = 0; i < layers; ++i) {
    value = ops::LeakyRelu(p, ops::Scale(p, value, 1.25, -0.1), 0.2);
    chain.activations.push_back(value);
  }
  ValueId gradient = ops::Scale(p, value, 0.5);
  for (int i = layers; i-- > 0;)
    gradient = ops::Scale(p, ops::LeakyReluGrad(p, gradient, chain.activations[i], 0.2), 1.25);
  p.AddOutput("gradient", gradient);
  return chain;
}

int Count(const Program& program, std::string_view name) {
  int count = 0;
  for (const Op& op : program.ops()) count += op.definition->name == name;
  return count;
}

std::vector<float> RunProgram(const Program& program, const PlanOptions& options = {.fuse = false}) {
  absl::StatusOr<Plan> plan = MakePlan(program, options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = 1});
  auto executor = Executor::Create(*std::move(plan), *device);
  EXPECT_TRUE(executor.ok()) << executor.status();
  const std::span<std::byte> x = (*executor)->Data("x");
  for (size_t i = 0; i < x.size() / sizeof(float); ++i)
    reinterpret_cast<float*>(x.data())[i] = std::sin(0.7f * static_cast<float>(i));
  EXPECT_TRUE((*executor)->Run().ok());
  const std::span<std::byte> out = (*executor)->Data("gradient");
  std::vector<float> values(out.size() / sizeof(float));
  std::memcpy(values.data(), out.data(), out.size());
  return values;
}

TEST(KeepSignsTest, AChainKeepsBitsAndItsGradient) {
  const Chain chain = MakeChain(6, 20000);
  int masks = 0;
  const absl::StatusOr<Program> kept = KeepSigns(chain.program, &masks);
  ASSERT_TRUE(kept.ok()) << kept.status();
  // The last one is read again at once.
  EXPECT_EQ(masks, 5);
  EXPECT_EQ(Count(*kept, "sign_bits"), masks);
  EXPECT_EQ(Count(*kept, "leaky_relu_grad_bits"), masks);
  EXPECT_EQ(Count(*kept, "leaky_relu_grad"), 1);
  EXPECT_EQ(RunProgram(*kept), RunProgram(chain.program));
  const auto before = MakePlan(chain.program, {.fuse = false}), after = MakePlan(*kept, {.fuse = false});
  ASSERT_TRUE(before.ok() && after.ok());
  EXPECT_LT(after->arena_bytes, before->arena_bytes / 2);
}

TEST(KeepSignsTest, SmallValuesStay) {
  int masks = -1;
  const absl::StatusOr<Program> kept = KeepSigns(MakeChain(6, 1000).program, &masks);
  ASSERT_TRUE(kept.ok());
  EXPECT_EQ(masks, 0);
  EXPECT_EQ(kept->Dump(), MakeChain(6, 1000).program.Dump());
}

// Who reads more than the sign at the end keeps the value: another op, a view of it, an output.
TEST(KeepSignsTest, WholeReadersKeepTheValue) {
  for (const int reader : {0, 1, 2}) {
    Chain chain = MakeChain(6, 20000);
    Program& p = chain.program;
    const ValueId value = chain.activations[2];
    if (reader == 0) p.AddOutput("late", ops::ReduceSum(p, value, {0}, false));
    if (reader == 1) p.AddOutput("late", ops::ReduceSum(p, ops::Reshape(p, value, Shape{100, 200}), {0, 1}, false));
    if (reader == 2) p.AddOutput("late", value);
    int masks = 0;
    const absl::StatusOr<Program> kept = KeepSigns(p, &masks);
    ASSERT_TRUE(kept.ok()) << kept.status();
    EXPECT_EQ(masks, 4) << reader;
    EXPECT_EQ(RunProgram(*kept), RunProgram(p));
  }
}

// Of every family, the discriminator's activations in the generator's phase: weights' gradients, which read them whole,
// are not made.
TEST(KeepSignsTest, EveryFamilyWithLeakyReluGains) {
  for (const std::string& name : FamilyNames()) {
    const FamilyDefaults defaults = *DefaultsOf(name);
    GanStepConfig step;
    step.loss = defaults.loss;
    step.gradient_penalty = defaults.gradient_penalty;
    step.r1 = defaults.r1;
    step.r2 = defaults.r2;
    Family family = *BuildFamily(name, {.image_size = 32, .channels = 3, .width = 16, .latent_size = 16, .batch = 8});
    const GanRole generators[] = {{.name = "generator", .model = std::move(family.generator)}};
    const GanRole discriminators[] = {{.name = "discriminator", .model = std::move(family.discriminator)}};
    const absl::StatusOr<Program> program = BuildGanStep(step, generators, discriminators);
    ASSERT_TRUE(program.ok()) << program.status();
    const absl::StatusOr<Program> lowered = PrepareProgram(*program, {}, 0);
    ASSERT_TRUE(lowered.ok()) << lowered.status();
    int masks = 0;
    const absl::StatusOr<Program> kept = KeepSigns(*lowered, &masks);
    ASSERT_TRUE(kept.ok()) << kept.status();
    EXPECT_GE(masks, 2) << name;
  }
}

TEST(StashEncodingTest, ZerosForSlowCopiesOfReluAndBf16OnlyWhenAskedFor) {
  Program p;
  const ValueId x = p.AddInput("x", {DataType::kF32, Shape{100}});
  const ValueId relu = ops::Relu(p, x), leaky = ops::LeakyRelu(p, x, 0.2);
  const TierOptions host{.name = "host"}, file{.name = "file", .kind = TierKind::kFile};
  TierOptions slow = host;
  slow.out.bytes_per_second = 1e8;
  EXPECT_EQ(StashEncoding(p, relu, host, {}), "");
  EXPECT_EQ(StashEncoding(p, relu, slow, {}), "zeros");
  EXPECT_EQ(StashEncoding(p, relu, file, {}), "zeros");
  EXPECT_EQ(StashEncoding(p, leaky, slow, {}), "");
  EXPECT_EQ(StashEncoding(p, x, slow, {}), "");
  EXPECT_EQ(StashEncoding(p, relu, slow, {.encode = false}), "");
  for (const ValueId value : {relu, leaky})
    EXPECT_EQ(StashEncoding(p, value, host, {.stash_dtype = StashDtype::kBf16}), "bf16");
  EXPECT_EQ(StashEncoding(p, x, host, {.stash_dtype = StashDtype::kBf16}), "");
}

// A network with dropout: masks are read forward and backward.
Program MakeDropoutChain(int layers, int64_t count) {
  Program p;
  const ValueId x = p.AddInput("x", {DataType::kF32, Shape{count}}),
                random = p.AddInput("random", {DataType::kI64, Shape{2}});
  std::vector<ValueId> masks, activations;
  ValueId value = x;
  for (int i = 0; i < layers; ++i) {
    masks.push_back(ops::DropoutMask(p, random, DataType::kF32, Shape{count}, i, 0.3));
    activations.push_back(ops::Tanh(p, ops::Mul(p, value, masks.back())));
    value = activations.back();
  }
  ValueId gradient = ops::Scale(p, value, 0.5);
  for (int i = layers; i-- > 0;) gradient = ops::Mul(p, ops::TanhGrad(p, gradient, activations[i]), masks[i]);
  p.AddOutput("gradient", gradient);
  return p;
}

TEST(DrawTest, MasksAreDrawnAgainAndNeverStashed) {
  const Program program = MakeDropoutChain(8, 50000);
  PlanOptions options{.device_memory = {.fraction = 0.5}, .tiers = {TierOptions{.name = "host"}}};
  const absl::StatusOr<Plan> plan = MakePlan(program, options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const auto StashedMasks = [](const Plan& of) {
    int stashed = 0;
    for (const Op& op : of.program.ops()) {
      if (op.definition->name != "stash") continue;
      stashed += IsDraw(of.program.ops()[of.program.values()[op.inputs[0]].producer]);
    }
    return stashed;
  };
  EXPECT_EQ(StashedMasks(*plan), 0);
  EXPECT_GT(Count(plan->program, "dropout_mask"), 8);
  EXPECT_EQ(RunProgram(program, options), RunProgram(program));
  // Where nothing may run again they wait like anything else.
  options.recompute = false;
  const absl::StatusOr<Plan> stashed = MakePlan(program, options);
  ASSERT_TRUE(stashed.ok()) << stashed.status();
  EXPECT_GT(StashedMasks(*stashed), 0);
}

}  // namespace
}  // namespace gantry
