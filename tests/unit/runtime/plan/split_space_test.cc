#include "runtime/plan/split_space.h"

#include <gtest/gtest.h>

#include "ops/functional.h"
#include "runtime/plan/plan.h"
#include "tests/support/count_ops.h"

namespace gantry {
namespace {

using testing::CountOps;

// x [1, 16, 64, 64] through a convolution in groups, a leaky relu with a bias before it, and a convolution that halves, with the gradients of
// the mean of what comes out.
struct Chain {
  Program program;

  Chain() {
    const ValueId x = program.AddInput("x", {DataType::kF32, Shape{1, 16, 64, 64}});
    const ValueId first = program.AddInput("first", {DataType::kF32, Shape{16, 4, 3, 3}});
    const ValueId bias = program.AddInput("bias", {DataType::kF32, Shape{1, 16, 1, 1}});
    const ValueId second = program.AddInput("second", {DataType::kF32, Shape{16, 16, 4, 4}});
    const ValueId g = program.AddInput("g", {DataType::kF32, Shape{1, 16, 32, 32}});
    const ops::ConvAttributes grouped = {.pads = {1, 1, 1, 1}, .groups = 4}, halve = {.strides = {2, 2}, .pads = {1, 1, 1, 1}};
    const ValueId y = ops::Conv(program, x, first, kNoValue, grouped);
    const ValueId z = ops::LeakyRelu(program, ops::Add(program, y, bias), 0.2);
    program.AddOutput("out", ops::Conv(program, z, second, kNoValue, halve));
    program.AddOutput("second_gradient", ops::ConvWeightGrad(program, z, g, halve, {4, 4}));
    const ValueId inputs[] = {ops::ConvTranspose(program, g, second, kNoValue, halve, {64, 64}), z};
    const ValueId back = program.Emit("leaky_relu_grad", inputs, {{"slope", 0.2}})[0];
    program.AddOutput("bias_gradient", ops::ReduceSum(program, back, {0, 2, 3}));
    program.AddOutput("first_gradient", ops::ConvWeightGrad(program, x, back, grouped, {3, 3}));
  }
};

// Images of 64x64 are 256 KiB, two of them 16 bands of 4 rows.
constexpr int64_t kBandBytes = 1 << 15;

TEST(SplitSpaceTest, ConvolutionsOverLargeImagesAreByBandsInEveryPlan) {
  const Chain chain;
  ASSERT_TRUE(chain.program.status().ok()) << chain.program.status();
  const absl::StatusOr<Program> chunked = ChunkImages(chain.program, kBandBytes);
  ASSERT_TRUE(chunked.ok()) << chunked.status();
  for (const Op& op : chunked->ops()) {
    // 32 rows for the two that halve: as many of x again and a quarter of that, in 10 bands.
    const bool halves = op.attributes.Has("strides") && op.attributes.Ints("strides")[0] == 2;
    const bool places = op.definition->name == "conv_transpose";
    EXPECT_EQ(op.attributes.Int("band"), !op.attributes.Has("strides") ? 0 : halves && !places ? 2 : 4) << op.definition->name;
  }
  EXPECT_EQ(ChunkImages(chain.program, 1 << 19)->Dump(), chain.program.Dump());
  // An image alone decides, not how many there are.
  Program many;
  const ValueId x = many.AddInput("x", {DataType::kF32, Shape{64, 4, 16, 16}}), w = many.AddInput("w", {DataType::kF32, Shape{4, 4, 3, 3}});
  many.AddOutput("y", ops::Conv(many, x, w, kNoValue, {.pads = {1, 1, 1, 1}}));
  EXPECT_EQ(ChunkImages(many, kBandBytes)->Dump(), many.Dump());
  EXPECT_NE(ChunkImages(many, 1 << 11)->Dump(), many.Dump());
}

TEST(SplitSpaceTest, NoOpHasAllRows) {
  const Program chunked = *ChunkImages(Chain().program, kBandBytes);
  const absl::StatusOr<Program> split = SplitSpace(chunked, 8, 1);
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(CountOps(*split, "conv_bands"), 16);
  EXPECT_EQ(CountOps(*split, "conv_transpose_bands"), 8);
  EXPECT_EQ(CountOps(*split, "conv_weight_grad_bands"), 16);
  for (const char* name : {"add", "leaky_relu", "leaky_relu_grad"}) EXPECT_EQ(CountOps(*split, name), 8) << name;
  for (const char* name : {"conv", "conv_transpose", "conv_weight_grad", "slice"}) EXPECT_EQ(CountOps(*split, name), 0) << name;
  // Only an output and the sum over everything want all rows.
  EXPECT_EQ(CountOps(*split, "put_rows"), 16);
  EXPECT_EQ(CountOps(*SplitSpace(chunked, 2, 1), "conv_bands"), 4);
  // Parts that are no smaller, and ops with too few bytes.
  EXPECT_EQ(SplitSpace(chunked, 1, 1)->Dump(), chunked.Dump());
  EXPECT_EQ(SplitSpace(chunked, 8, int64_t{1} << 40)->Dump(), chunked.Dump());
  for (const int parts : {-1, 0, 3, 16}) EXPECT_EQ(SplitSpace(chunked, parts, 1).status().code(), absl::StatusCode::kInvalidArgument) << parts;
}

TEST(SplitSpaceTest, ABudgetBelowTheLargestOpIsMet) {
  const Program program = Chain().program;
  const PlanOptions free{.thread_count = 1, .chunk_bytes = kBandBytes / 2};
  const absl::StatusOr<Plan> whole = MakePlan(program, free);
  ASSERT_TRUE(whole.ok()) << whole.status();
  PlanOptions tight = free;
  tight.device_memory = {.bytes = 2 * 256 << 10};  // what the first convolution reads and makes, without scratch and weights
  tight.tiers = {TierOptions{.name = "host"}};
  const absl::StatusOr<Plan> plan = MakePlan(program, tight);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GT(plan->residency.batch_parts, 1);
  EXPECT_LE(plan->arena_bytes, tight.device_memory.bytes);
  EXPECT_NE(Describe(*plan).find("parts of the batch or of their rows"), std::string::npos);
}

}  // namespace
}  // namespace gantry
