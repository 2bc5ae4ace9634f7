#include "runtime/plan/lower.h"

#include <gtest/gtest.h>

#include <random>

#include "ops/functional.h"
#include "runtime/graph/differentiate.h"
#include "tests/support/program_runner.h"
#include "tests/support/run_op.h"

namespace gantry {
namespace {

int Count(const Program& program, std::string_view name) {
  int count = 0;
  for (const Op& op : program.ops()) count += op.definition->name == name;
  return count;
}

struct Chain {
  Program program;
  std::vector<ValueId> inputs, targets;  // targets: the result, and its gradient in the first input
};

// Images are made larger between two convolutions and smaller between two others; then all of it backwards.
Chain MakeChain(DataType dtype) {
  Chain chain;
  Program& p = chain.program;
  const ops::ConvAttributes same = {.pads = {1, 1, 1, 1}};
  chain.inputs.push_back(p.AddInput("x", {dtype, Shape{6, 20, 8, 8}}));
  for (const char* name : {"w0", "w1", "w2"}) chain.inputs.push_back(p.AddInput(name, {dtype, Shape{20, 20, 3, 3}}));
  ValueId y = ops::Conv(p, chain.inputs[0], chain.inputs[1], kNoValue, same);
  y = ops::Resize(p, y, {16, 16}, {{"mode", std::string("nearest")}});
  y = ops::Conv(p, y, chain.inputs[2], kNoValue, same);
  y = ops::AvgPool(p, y, {.kernel = {2, 2}, .strides = {2, 2}});
  y = ops::Conv(p, y, chain.inputs[3], kNoValue, same);
  const ValueId losses[] = {ops::ReduceSum(p, ops::Square(p, y), {0, 1, 2, 3}, false)};
  const ValueId seeds[] = {kNoValue}, wanted[] = {chain.inputs[0]};
  const auto gradients = Differentiate(p, losses, seeds, wanted);
  EXPECT_TRUE(gradients.ok()) << gradients.status();
  p.AddOutput("y", y);
  p.AddOutput("dx", (*gradients)[0]);
  chain.targets = {y, (*gradients)[0]};
  return chain;
}

TEST(LowerTest, ResizeAndPoolingStayInPanelsBetweenConvolutions) {
  const Chain chain = MakeChain(DataType::kF32);
  const auto lowered = Lower(chain.program, {});
  ASSERT_TRUE(lowered.ok()) << lowered.status();
  EXPECT_EQ(Count(*lowered, "panel_conv"), 6);
  // x and the gradient of y on the way in, each result on the way out.
  EXPECT_EQ(Count(*lowered, "reorder"), 4) << lowered->Dump();
}

TEST(LowerTest, TheLoweredProgramComputesTheSame) {
  const Chain exact = MakeChain(DataType::kF64), chain = MakeChain(DataType::kF32);
  const auto lowered = Lower(chain.program, {});
  ASSERT_TRUE(lowered.ok()) << lowered.status();
  auto truth = test::ProgramRunner::Create(exact.program, ReferenceKernels());
  auto fast = test::ProgramRunner::Create(*lowered, CpuKernels());
  ASSERT_TRUE(truth.ok() && fast.ok()) << truth.status() << fast.status();
  std::mt19937_64 random(7);
  for (const ValueId input : exact.inputs) {
    const test::Tensor values = test::RandomTensor(exact.program.TypeOf(input).shape, random, DataType::kF32);
    truth->Set(input, values.values);
    fast->Set(lowered->FindInput(exact.program.values()[input].name), values.values);
  }
  ASSERT_TRUE(truth->Run(exact.targets).ok());
  const std::vector<ValueId> targets = {lowered->FindOutput("y"), lowered->FindOutput("dx")};
  ASSERT_TRUE(fast->Run(targets).ok());
  for (size_t i = 0; i < targets.size(); ++i) {
    const std::vector<double> expected = truth->Get(exact.targets[i]), found = fast->Get(targets[i]);
    const Shape shape{static_cast<int64_t>(expected.size())};
    EXPECT_LT(test::RelativeDifference(test::MakeTensor(shape, found), test::MakeTensor(shape, expected)), 2e-6);
  }
}

}  // namespace
}  // namespace gantry
