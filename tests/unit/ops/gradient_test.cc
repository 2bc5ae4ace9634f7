#include <gtest/gtest.h>

#include <set>

#include "tests/unit/ops/gradient_cases.h"

namespace gantry::test {
namespace {

std::vector<GradientCase> AllCases() {
  std::vector<GradientCase> cases;
  for (const std::vector<GradientCase>& family :
       {ElementwiseGradientCases(), ReductionGradientCases(), ShapeGradientCases(), ProductGradientCases(),
        ConvolutionGradientCases(), PoolingGradientCases(), ResizeGradientCases(), NormalizationGradientCases()}) {
    cases.insert(cases.end(), family.begin(), family.end());
  }
  return cases;
}

class GradientTest : public ::testing::TestWithParam<GradientCase> {};

TEST_P(GradientTest, FirstAndSecondMatchDifferences) {
  const absl::Status status = CheckGradients(GetParam());
  EXPECT_TRUE(status.ok()) << status;
}

INSTANTIATE_TEST_SUITE_P(Ops, GradientTest, ::testing::ValuesIn(AllCases()),
                         [](const auto& info) { return info.param.name; });

TEST(GradientTableTest, EveryDifferentiableOpIsChecked) {
  std::set<std::string_view> checked;
  const std::vector<GradientCase> cases = AllCases();
  for (const GradientCase& one : cases) checked.insert(one.op);
  for (const OpDefinition* op : AllOps()) {
    if (op->differentiate == nullptr && op->decompose == nullptr) continue;
    EXPECT_TRUE(checked.contains(op->name)) << op->name << " has a gradient, but no case in gradient_cases";
  }
}

TEST(GradientTableTest, CasesNameKnownOps) {
  for (const GradientCase& one : AllCases()) EXPECT_NE(FindOp(one.op), nullptr) << one.name << ": " << one.op;
}

// The check itself notices a wrong gradient: a value is hidden from differentiation but not from the differences.
TEST(GradientCheckTest, AWrongGradientIsFound) {
  const GradientCase wrong = {.name = "Wrong", .op = "stop_gradient", .inputs = {{{3}}}};
  const absl::Status status = CheckGradients(wrong);
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find("the first gradient by input 0"), std::string::npos) << status;
}

}  // namespace
}  // namespace gantry::test
