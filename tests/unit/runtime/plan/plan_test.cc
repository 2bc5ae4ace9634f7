#include "runtime/plan/plan.h"

#include <gtest/gtest.h>

#include <cstring>

#include "memory/device.h"
#include "runtime/execute/executor.h"
#include "runtime/gan/gan_step.h"
#include "runtime/graph/rewrite.h"
#include "tests/support/small_gan.h"

namespace gantry {
namespace {

using testing::MakeSmallGan;
using testing::SmallGan;

Plan MakeSmallPlan(KernelChoice kernels) {
  GanStepConfig config;
  config.r1 = 1.0;
  config.penalty_every = 4;
  config.ema = 0.9;
  const SmallGan gan = MakeSmallGan(8, DataType::kF32);
  absl::StatusOr<Program> program = BuildGanStep(config, gan.generators, gan.discriminators);
  EXPECT_TRUE(program.ok()) << program.status();
  absl::StatusOr<Plan> plan = MakePlan(*program, {.kernels = kernels});
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

TEST(PlanTest, ArenaIsCloseToItsLowerBound) {
  for (KernelChoice kernels : {KernelChoice::kFast, KernelChoice::kReference}) {
    const Plan plan = MakeSmallPlan(kernels);
    EXPECT_GE(plan.arena_bytes, plan.lower_bound_bytes);
    EXPECT_LE(static_cast<double>(plan.arena_bytes), 1.02 * static_cast<double>(plan.lower_bound_bytes));
    EXPECT_NE(Describe(plan).find("arena"), std::string::npos);
  }
}

TEST(VerifyPlanTest, FindsTwoLiveValuesInOnePlace) {
  Plan plan = MakeSmallPlan(KernelChoice::kReference);
  ASSERT_TRUE(VerifyPlan(plan).ok());
  // Moves each computed value in turn onto a weight; the plan must never pass.
  const ValueId weight = plan.program.FindState("discriminator.2.weight")->first;
  int moved = 0;
  for (ValueId value = 0; value < static_cast<ValueId>(plan.offsets.size()); ++value) {
    const Value& candidate = plan.program.values()[value];
    if (candidate.kind != ValueKind::kComputed || plan.offsets[value] == kNoOffset) continue;
    if (plan.offsets[value] == plan.offsets[weight]) continue;
    const int64_t before = plan.offsets[value];
    plan.offsets[value] = plan.offsets[weight];
    const absl::Status status = VerifyPlan(plan);
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << "value " << value << " " << candidate.name;
    plan.offsets[value] = before;
    ++moved;
  }
  EXPECT_GT(moved, 50);
}

TEST(VerifyPlanTest, FindsAnOpThatComesTooLateOrTwice) {
  Plan plan = MakeSmallPlan(KernelChoice::kReference);
  std::swap(plan.schedule.front(), plan.schedule.back());
  EXPECT_FALSE(VerifyPlan(plan).ok());
  std::swap(plan.schedule.front(), plan.schedule.back());
  ASSERT_TRUE(VerifyPlan(plan).ok());
  plan.schedule[3].op = plan.schedule[4].op;
  EXPECT_FALSE(VerifyPlan(plan).ok());
}

TEST(VerifyPlanTest, FindsScratchOverAnOperandAndAnArenaThatIsTooSmall) {
  Plan plan = MakeSmallPlan(KernelChoice::kReference);
  bool tried = false;
  for (PlannedOp& step : plan.schedule) {
    if (step.kernel == nullptr || step.kernel->scratch_bytes() == 0) continue;
    const int64_t before = step.scratch_offset;
    step.scratch_offset = plan.offsets[plan.program.ops()[step.op].inputs[0]];
    EXPECT_FALSE(VerifyPlan(plan).ok());
    step.scratch_offset = before;
    tried = true;
  }
  EXPECT_TRUE(tried);
  plan.arena_bytes -= 64;
  EXPECT_FALSE(VerifyPlan(plan).ok());
}

TEST(VerifyPlanTest, FindsAConditionalValueReadInEveryStep) {
  Program program;
  const TensorType type{DataType::kF32, Shape{16}};
  const ValueId x = program.AddInput("x", type);
  const ValueId flag = program.AddInput("flag", {DataType::kF32, Shape{}});
  program.SetCondition(flag);
  const ValueId y = ops::Scale(program, x, 2.0);
  program.SetCondition(kNoValue);
  program.AddOutput("z", ops::Exp(program, y));
  const absl::Status status = MakePlan(program, {.kernels = KernelChoice::kReference}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_NE(Message(status).find("condition"), std::string::npos) << status;
}

TEST(RewriteTest, EqualExpressionsAreComputedOnceAndUnusedOnesNotAtAll) {
  Program program;
  const ValueId x = program.AddInput("x", {DataType::kF32, Shape{4}});
  const ValueId a = ops::Exp(program, x), b = ops::Exp(program, x);
  ops::Log(program, x);
  program.AddOutput("sum", ops::Add(program, a, b));
  const absl::StatusOr<Program> simple = Simplify(program);
  ASSERT_TRUE(simple.ok()) << simple.status();
  EXPECT_EQ(simple->ops().size(), 2u);
}

TEST(RewriteTest, UpdatesOfOneNetworkBecomeOneOp) {
  const Plan plan = MakeSmallPlan(KernelChoice::kReference);
  int updates = 0;
  for (const Op& op : plan.program.ops()) updates += op.definition->name == "adam_update";
  EXPECT_EQ(updates, 2);
}

TEST(ProgramTest, TypesStayWhereTheyAreWhileOpsAreEmitted) {
  Program program;
  const ValueId x = program.AddInput("x", {DataType::kF32, Shape{3}});
  const TensorType* const type = &program.TypeOf(x);
  ValueId y = x;
  for (int i = 0; i < 1000; ++i) y = ops::Exp(program, y);
  EXPECT_EQ(type, &program.TypeOf(x));
  EXPECT_EQ(type->shape, Shape{3});
}

TEST(ProgramTest, ShapesThatDoNotFitAreNamedWithTheOp) {
  Program program;
  const ValueId x = program.AddInput("images", {DataType::kF32, Shape{2, 3, 8, 8}});
  const ValueId w = program.AddInput("w", {DataType::kF32, Shape{4, 5, 3, 3}});
  ops::Conv(program, x, w, kNoValue, {});
  EXPECT_NE(Message(program.status()).find("conv(images f32[2,3,8,8], w f32[4,5,3,3])"), std::string::npos)
      << program.status();
}

// What a step touches, measured on the bytes: the arena is painted, and the highest byte that changed is the peak.
TEST(ExecutorTest, HighestChangedByteIsThePlannedPeak) {
  const std::unique_ptr<Device> device = MakeCpuDevice({});
  absl::StatusOr<std::unique_ptr<Executor>> executor = Executor::Create(MakeSmallPlan(KernelChoice::kReference), *device);
  ASSERT_TRUE(executor.ok()) << executor.status();
  const Program& program = (*executor)->program();
  const PlannedBuffer* top = nullptr;
  for (const PlannedBuffer& buffer : (*executor)->plan().buffers) {
    if (top == nullptr || buffer.offset + buffer.bytes > top->offset + top->bytes) top = &buffer;
  }
  for (ValueId input : program.inputs()) {
    const std::span<std::byte> data = (*executor)->Data(input);
    for (size_t i = 0; i + sizeof(float) <= data.size(); i += sizeof(float)) {
      const float value = 0.25f + 0.001f * static_cast<float>(i % 97);
      std::memcpy(data.data() + i, &value, sizeof(value));
    }
  }
  for (const State& state : program.states()) {
    const std::span<std::byte> data = (*executor)->Data(state.first);
    for (size_t i = 0; i + sizeof(float) <= data.size(); i += sizeof(float)) {
      const float value = 0.1f;
      std::memcpy(data.data() + i, &value, sizeof(value));
    }
  }
  ASSERT_TRUE((*executor)->Run().ok());
  EXPECT_EQ(top->offset + top->bytes, (*executor)->plan().arena_bytes);
  EXPECT_EQ((*executor)->high_water_bytes(), (*executor)->plan().arena_bytes);
}

}  // namespace
}  // namespace gantry
