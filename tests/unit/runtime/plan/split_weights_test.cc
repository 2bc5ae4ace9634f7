#include "runtime/plan/split_weights.h"

#include <gtest/gtest.h>

#include "ops/functional.h"
#include "tests/support/count_ops.h"

namespace gantry {
namespace {

using testing::CountOps;

// x [2, 8, 16, 16] through a convolution with weights [64, 8, 4, 4] and back, with a gradient and an update by plain descent.
struct Chain {
  Program program;
  ValueId weight = kNoValue, gradient = kNoValue;

  explicit Chain(bool norm = false) {
    const ValueId x = program.AddInput("x", {DataType::kF32, Shape{2, 8, 16, 16}});
    const ValueId rate = program.AddInput("rate", {DataType::kF32, Shape()});
    weight = program.AddState("w", "net", StateRole::kParameter, {DataType::kF32, Shape{64, 8, 4, 4}}, {});
    const ops::ConvAttributes halve = {.strides = {2, 2}, .pads = {1, 1, 1, 1}};
    const ValueId y = ops::Conv(program, x, weight, kNoValue, halve);
    program.AddOutput("image", ops::ConvTranspose(program, y, weight, kNoValue, halve, {16, 16}));
    gradient = ops::Scale(program, ops::ConvWeightGrad(program, x, y, halve, {4, 4}), 0.5);
    if (norm) {
      const ValueId one[] = {gradient};
      program.AddOutput("norm", ops::SumSquares(program, one));
    }
    const ValueId inputs[] = {weight, gradient, rate, rate, rate};
    program.UpdateState("w", program.Emit("sgd_update", inputs, {{"count", int64_t{1}}, {"momentum", 0.0}, {"nesterov", int64_t{0}},
                                                                 {"weight_decay", 0.0}, {"dampening", 0.0}})[0]);
  }
};

// 64 rows of 512 bytes; chunks of 16 rows.
constexpr int64_t kChunkBytes = 1 << 13;

TEST(SplitWeightsTest, WeightsFromTwoChunksOnAreUsedByChunks) {
  const Chain chain;
  ASSERT_TRUE(chain.program.status().ok()) << chain.program.status();
  const absl::StatusOr<Program> chunked = ChunkWeights(chain.program, kChunkBytes);
  ASSERT_TRUE(chunked.ok()) << chunked.status();
  for (const Op& op : chunked->ops()) EXPECT_EQ(op.attributes.Int("chunk"), op.definition->name.starts_with("conv") ? 16 : 0);
  const absl::StatusOr<Program> large = ChunkWeights(chain.program, 1 << 15);
  ASSERT_TRUE(large.ok());
  EXPECT_EQ(large->Dump(), chain.program.Dump());
}

TEST(SplitWeightsTest, PiecesAreWholeChunksOfTheStateItsGradientAndItsUpdate) {
  const Program chunked = *ChunkWeights(Chain().program, kChunkBytes);
  const absl::StatusOr<Program> split = SplitWeights(chunked, 20'000);  // two chunks, and what is left
  ASSERT_TRUE(split.ok()) << split.status();
  ASSERT_EQ(split->states().size(), 2u);
  for (int piece = 0; piece < 2; ++piece) {
    const State& state = split->states()[piece];
    EXPECT_EQ(state.whole, "w");
    EXPECT_EQ(state.begin, piece * 32 * 128);
    EXPECT_EQ(split->TypeOf(state.first).shape, (Shape{32, 8, 4, 4}));
    EXPECT_NE(state.last, state.first);
  }
  for (const char* op : {"conv_rows", "conv_transpose_rows", "conv_weight_grad_rows", "scale", "sgd_update"}) EXPECT_EQ(CountOps(*split, op), 2) << op;
  for (const char* op : {"conv", "conv_transpose", "conv_weight_grad", "concat"}) EXPECT_EQ(CountOps(*split, op), 0) << op;
  // Pieces no smaller than the weight are the weight.
  EXPECT_EQ(SplitWeights(chunked, 1 << 20)->Dump(), chunked.Dump());
}

TEST(SplitWeightsTest, NormsGoOverPieces) {
  const Program chunked = *ChunkWeights(Chain(true).program, kChunkBytes);
  const absl::StatusOr<Program> split = SplitWeights(chunked, 1);
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->states().size(), 4u);
  EXPECT_EQ(CountOps(*split, "sum_squares_rows"), 4);
  EXPECT_EQ(split->TypeOf(split->FindOutput("norm")), (TensorType{DataType::kF32, Shape()}));
}

TEST(SplitWeightsTest, WhatAnOpWantsWholeStaysWhole) {
  Chain chain;
  chain.program.AddOutput("largest", ops::ReduceMax(chain.program, chain.weight, {}));
  const Program chunked = *ChunkWeights(chain.program, kChunkBytes);
  const absl::StatusOr<Program> split = SplitWeights(chunked, 1);
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->Dump(), chunked.Dump());
  Chain shown;
  shown.program.AddOutput("gradient", shown.gradient);
  const Program other = *ChunkWeights(shown.program, kChunkBytes);
  EXPECT_EQ(SplitWeights(other, 1)->Dump(), other.Dump());
}

}  // namespace
}  // namespace gantry
