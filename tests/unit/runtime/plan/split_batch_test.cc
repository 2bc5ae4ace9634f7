#include "runtime/plan/split_batch.h"

#include <gtest/gtest.h>

#include <random>

#include "ops/functional.h"
#include "runtime/plan/plan.h"
#include "tests/support/count_ops.h"
#include "tests/support/program_runner.h"

namespace gantry {
namespace {

using testing::CountOps;

// x [batch, 16, 16, 16] through a convolution, a batch norm with a leaky relu, and another convolution, with the first weight's gradient.
struct Chain {
  Program program;

  explicit Chain(int64_t batch) {
    const ValueId x = program.AddInput("x", {DataType::kF32, Shape{batch, 16, 16, 16}});
    const ValueId first = program.AddInput("first", {DataType::kF32, Shape{32, 16, 4, 4}});
    const ValueId second = program.AddInput("second", {DataType::kF32, Shape{16, 32, 4, 4}});
    const ValueId scale = program.AddInput("scale", {DataType::kF32, Shape{1, 32, 1, 1}});
    const ops::ConvAttributes halve = {.strides = {2, 2}, .pads = {1, 1, 1, 1}};
    const ValueId y = ops::Conv(program, x, first, kNoValue, halve);
    const ops::Normalized normal = ops::Normalize(program, y, scale, scale, {0, 2, 3}, 1e-5);
    const ValueId z = ops::LeakyRelu(program, normal.y, 0.2);
    const ValueId out = ops::Conv(program, z, second, kNoValue, halve);
    program.AddOutput("out", out);
    program.AddOutput("mean", ops::ReduceMean(program, out, {}, false));
    const ValueId inputs[] = {z, y, scale, normal.mean, normal.variance};
    const std::vector<ValueId> back = program.Emit("normalize_grad", inputs, {{"axes", std::vector<int64_t>{0, 2, 3}}, {"eps", 1e-5}});
    program.AddOutput("weight_gradient", ops::ConvWeightGrad(program, x, back[0], halve, {4, 4}));
    program.AddOutput("scale_gradient", back[1]);
  }
};

constexpr int64_t kChunkBytes = 1 << 14;

absl::StatusOr<Program> Lowered(int64_t batch) { return PrepareProgram(Chain(batch).program, {.chunk_bytes = kChunkBytes}, 0); }

TEST(SplitBatchTest, SumsOverLargeBatchesAreOverSoManyImagesInEveryPlan) {
  const absl::StatusOr<Program> lowered = Lowered(80);
  ASSERT_TRUE(lowered.ok()) << lowered.status();
  for (const Op& op : lowered->ops()) {
    const std::string_view name = op.definition->name;
    const bool sums = name == "normalize" || name == "normalize_grad" || name == "panel_conv_weight_grad";
    EXPECT_EQ(op.attributes.Int("images", 0), sums ? 32 : 0) << name;  // an eighth of 80 is less than 32
  }
  // Nothing is cut where the batch or the bytes are few.
  const absl::StatusOr<Program> small = Lowered(8);
  for (const Op& op : small->ops()) EXPECT_FALSE(op.attributes.Has("images"));
  const absl::StatusOr<Program> few = PrepareProgram(Chain(40).program, {}, 0);
  for (const Op& op : few->ops()) EXPECT_FALSE(op.attributes.Has("images"));
}

TEST(SplitBatchTest, NoOpHasAllImages) {
  const Program lowered = *Lowered(80);
  const absl::StatusOr<Program> split = SplitBatch(lowered, 8, 1);
  ASSERT_TRUE(split.ok()) << split.status();
  for (const char* name : {"batch_norm_sums", "normalize_apply", "batch_norm_grad_sums", "batch_norm_grad_apply", "panel_conv_weight_grad"}) {
    EXPECT_EQ(CountOps(*split, name), 3) << name;
  }
  EXPECT_EQ(CountOps(*split, "panel_conv"), 6);
  for (const char* name : {"batch_norm_statistics", "batch_norm_grad_parameters"}) EXPECT_EQ(CountOps(*split, name), 1) << name;
  for (const char* name : {"normalize", "normalize_grad"}) EXPECT_EQ(CountOps(*split, name), 0) << name;
  for (const Op& op : split->ops()) {
    if (!op.attributes.Has("geometry") || op.definition->name == "pack_weights") continue;
    EXPECT_LE(op.attributes.Ints("geometry")[0], 32);
  }
  // Only the output and the mean over everything want all images, the one plain and the other as it is.
  EXPECT_EQ(CountOps(*split, "put_images"), 6);
  // In fewer parts, each a multiple of the images that sums take.
  EXPECT_EQ(CountOps(*SplitBatch(lowered, 4, 1), "normalize_apply"), 2);
  // Parts that are no smaller, and ops with too few bytes.
  EXPECT_EQ(SplitBatch(lowered, 1, 1)->Dump(), lowered.Dump());
  EXPECT_EQ(SplitBatch(lowered, 8, int64_t{1} << 40)->Dump(), lowered.Dump());
  for (const int parts : {-1, 0, 3, 16}) EXPECT_EQ(SplitBatch(lowered, parts, 1).status().code(), absl::StatusCode::kInvalidArgument) << parts;
}

TEST(SplitBatchTest, ABudgetBelowTheLargestOpIsMet) {
  const Program program = Chain(128).program;
  const PlanOptions free{.thread_count = 1, .chunk_bytes = kChunkBytes};
  const absl::StatusOr<Plan> whole = MakePlan(program, free);
  ASSERT_TRUE(whole.ok()) << whole.status();
  int64_t largest = 0;
  for (const PlannedOp& step : whole->schedule) {
    const Op& op = whole->program.ops()[step.op];
    if (op.definition->name != "panel_conv") continue;
    largest = std::max(largest, whole->program.TypeOf(op.inputs[0]).size_bytes() + whole->program.TypeOf(op.outputs[0]).size_bytes());
  }
  PlanOptions tight = free;
  tight.device_memory = {.bytes = largest * 7 / 8};
  tight.tiers = {TierOptions{.name = "host"}};
  const absl::StatusOr<Plan> plan = MakePlan(program, tight);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GT(plan->residency.batch_parts, 1);
  EXPECT_LE(plan->arena_bytes, tight.device_memory.bytes);
  EXPECT_NE(Describe(*plan).find("parts of the batch"), std::string::npos);
  // Below what the weights of one convolution take nothing helps, and the error says which op it is.
  tight.device_memory = {.bytes = 40'000};
  const absl::Status error = MakePlan(program, tight).status();
  EXPECT_EQ(error.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(error.message().find("The largest op alone needs"), std::string::npos) << error;
  EXPECT_NE(error.message().find("pack_weights"), std::string::npos) << error;
}

TEST(SplitBatchTest, ImagesAreTakenAndPutInEitherLayout) {
  std::mt19937 random(1);
  constexpr int64_t kBatch = 7, kImage = 20 * 3 * 2;
  std::vector<double> whole(kBatch * kImage);
  for (double& value : whole) value = std::uniform_int_distribution(1, 1000)(random);
  for (const TensorLayout layout : {TensorLayout::kPlain, TensorLayout::kPanel}) {
    Program program;
    const ValueId x = program.AddInput("x", {DataType::kF32, Shape{kBatch, 20, 3, 2}});
    const auto In = [&](ValueId value, TensorLayout to) {
      if (layout == TensorLayout::kPlain) return value;
      const ValueId inputs[] = {value};
      const ValueId made = program.Emit("reorder", inputs, {{"layout", std::string(Name(to))}})[0];
      program.SetLayout(made, to);
      return made;
    };
    const ValueId source = In(x, layout);
    const auto Emit = [&](std::string_view op, std::vector<ValueId> inputs, Attributes attributes) {
      const ValueId made = program.Emit(op, inputs, std::move(attributes))[0];
      program.SetLayout(made, layout);
      return made;
    };
    // Images 2 to 4 behind three images of zeros, and 5 and 6 in front.
    const ValueId middle = Emit("take_images", {source}, {{"begin", int64_t{2}}, {"count", int64_t{3}}});
    const ValueId last = Emit("take_images", {source}, {{"begin", int64_t{5}}, {"count", int64_t{2}}});
    const ValueId first = Emit("put_images", {middle}, {{"begin", int64_t{3}}, {"batch", int64_t{6}}});
    const ValueId out = In(Emit("put_images", {last, first}, {{"begin", int64_t{0}}, {"batch", int64_t{6}}}), TensorLayout::kPlain);
    ASSERT_TRUE(program.status().ok()) << program.status();
    absl::StatusOr<test::ProgramRunner> runner = test::ProgramRunner::Create(program, CpuKernels());
    ASSERT_TRUE(runner.ok()) << runner.status();
    runner->Set(x, whole);
    const ValueId targets[] = {out};
    ASSERT_TRUE(runner->Run(targets).ok());
    const std::vector<double> result = runner->Get(out);
    for (int64_t i = 0; i < 6 * kImage; ++i) {
      const int64_t image = i / kImage;
      const double expected = image == 2 ? 0.0 : whole[(image < 2 ? image + 5 : image - 1) * kImage + i % kImage];
      ASSERT_EQ(result[i], expected) << Name(layout) << " element " << i;
    }
  }
}

}  // namespace
}  // namespace gantry
