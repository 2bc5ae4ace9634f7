#include "tests/support/torch_ops.h"

#include <gtest/gtest.h>

namespace gantry::test {
namespace {

TEST(TorchOpsTest, ReferenceInF64EqualsPyTorch) {
  EXPECT_EQ(CheckTorchOps(DataType::kF64, ReferenceKernels(), 1e-12, true), 118);
}

TEST(TorchOpsTest, ReferenceInF32EqualsPyTorchInF64UpToRounding) {
  EXPECT_EQ(CheckTorchOps(DataType::kF32, ReferenceKernels(), 2e-6, true), 118);
}

}  // namespace
}  // namespace gantry::test
