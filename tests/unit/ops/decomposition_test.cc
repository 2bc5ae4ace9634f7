// An op and its decomposition into simpler ops give the same.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "runtime/graph/program.h"
#include "tests/support/program_runner.h"

namespace gantry::test {
namespace {

using Ints = std::vector<int64_t>;

void Compare(std::string_view op, const std::vector<Shape>& shapes, const Attributes& attributes, double low) {
  Program program;
  std::vector<ValueId> inputs;
  for (const Shape& shape : shapes) {
    inputs.push_back(program.AddInput(absl::StrCat("x", inputs.size()), {DataType::kF64, shape}));
  }
  const std::vector<ValueId> whole = program.Emit(op, inputs, attributes);
  const std::vector<ValueId> parts = FindOp(op)->decompose(program, inputs, attributes);
  ASSERT_TRUE(program.status().ok()) << program.status();
  ASSERT_EQ(whole.size(), parts.size());
  auto runner = ProgramRunner::Create(program, ReferenceKernels());
  ASSERT_TRUE(runner.ok()) << runner.status();
  std::mt19937_64 random(61);
  for (size_t i = 0; i < inputs.size(); ++i) {
    std::vector<double> values(shapes[i].element_count());
    for (double& value : values) value = std::uniform_real_distribution<double>(low, 1.0)(random);
    runner->Set(inputs[i], values);
  }
  std::vector<ValueId> targets = whole;
  targets.insert(targets.end(), parts.begin(), parts.end());
  ASSERT_TRUE(runner->Run(targets).ok());
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_EQ(program.TypeOf(whole[i]), program.TypeOf(parts[i]));
    EXPECT_THAT(runner->Get(whole[i]), testing::Pointwise(testing::DoubleNear(1e-12), runner->Get(parts[i])))
        << op << " " << attributes.ToString() << " output " << i;
  }
}

TEST(DecompositionTest, Normalize) {
  Compare("normalize", {{4, 3, 5}, {1, 3, 1}, {3, 1}}, {{"axes", Ints{0, 2}}, {"eps", 1e-3}}, -1.0);
  Compare("normalize", {{4, 3, 5}, {3, 5}, {1}}, {{"axes", Ints{1, 2}}, {"eps", 0.5}, {"slope", 0.2}}, -1.0);
  Compare("normalize", {{4, 3}, {4, 3}, {}}, {{"axes", Ints{}}, {"eps", 0.0}}, -1.0);
}

TEST(DecompositionTest, NormalizeGrad) {
  // Any mean and any positive variance will do.
  Compare("normalize_grad", {{4, 3, 5}, {4, 3, 5}, {1, 3, 1}, {1, 3, 1}, {1, 3, 1}},
          {{"axes", Ints{0, 2}}, {"eps", 1e-3}}, 0.1);
  Compare("normalize_grad", {{4, 3, 5}, {4, 3, 5}, {5}, {4, 1, 1}, {4, 1, 1}}, {{"axes", Ints{-1, 1}}, {"eps", 0.5}},
          0.1);
}

}  // namespace
}  // namespace gantry::test
