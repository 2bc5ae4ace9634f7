// oneDNN's kernels against the float64 reference.
#include "ops/cpu/onednn.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/support/conv_case.h"
#include "tests/support/run_op.h"
#include "tests/support/torch_ops.h"

namespace gantry {
namespace {

using test::ConvCase;
using test::RandomConvCase;
using test::RandomTensor;
using test::Tensor;
using testing::HasSubstr;
using testing::Not;
using Ints = std::vector<int64_t>;

class OneDnnLibrary final : public KernelLibrary {
 public:
  std::string_view name() const override { return "oneDNN"; }
  absl::StatusOr<std::unique_ptr<Kernel>> Make(const KernelRequest& request) const override {
    GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<Kernel> kernel, cpu::MakeOneDnnKernel(request));
    if (kernel != nullptr) {
      EXPECT_THAT(std::string(kernel->implementation()), Not(HasSubstr("ref")));
      ++implementations[std::string(kernel->implementation())];
    }
    return kernel;
  }
  mutable std::map<std::string, int> implementations;  // how often each was made
};

// Counts of kernels made and refused.
struct Tally {
  int made = 0;
  int refused = 0;
};

// Runs `op` on f32 inputs with one and three threads and compares with the reference in f64. Twice with each kernel: a
// run leaves nothing behind.
void Compare(std::string_view op, const std::vector<Tensor>& inputs, const Attributes& attributes,
             const OneDnnLibrary& library, Tally& tally, double tolerance = 3e-6) {
  std::vector<Tensor> exact_inputs;
  std::vector<TensorType> types;
  for (const Tensor& input : inputs) {
    exact_inputs.push_back(Cast(input, DataType::kF64));
    types.push_back(input.type);
  }
  const auto exact = RunOp(op, exact_inputs, attributes);
  ASSERT_TRUE(exact.ok()) << exact.status();
  const auto outputs = test::InferOp(op, types, attributes);
  for (int threads : {1, 3}) {
    auto kernel = library.Make({*FindOp(op), attributes, types, *outputs, threads});
    ASSERT_TRUE(kernel.ok()) << kernel.status();
    ++(*kernel == nullptr ? tally.refused : tally.made);
    if (*kernel == nullptr) continue;
    const auto first = RunKernel(**kernel, inputs, *outputs), second = RunKernel(**kernel, inputs, *outputs);
    ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
    EXPECT_LT(RelativeDifference((*first)[0], (*exact)[0]), tolerance)
        << op << " " << (*kernel)->implementation() << " " << types[0].ToString() << " " << attributes.ToString();
    EXPECT_EQ((*first)[0].values, (*second)[0].values);
  }
}

void CompareConvolutions(const ConvCase& geometry, std::mt19937_64& random, const OneDnnLibrary& library, Tally& tally,
                         double tolerance = 3e-6) {
  const Tensor x = RandomTensor(geometry.x, random, DataType::kF32),
               w = RandomTensor(geometry.w, random, DataType::kF32);
  const Tensor y = RandomTensor(geometry.y, random, DataType::kF32);
  Compare("conv", {x, w}, geometry.conv, library, tally, tolerance);
  Compare("conv_transpose", {y, w}, geometry.transpose, library, tally, tolerance);
  Compare("conv_weight_grad", {x, y}, geometry.weight_grad, library, tally, tolerance);
  const Tensor output_bias = RandomTensor({geometry.y[1]}, random, DataType::kF32);
  const Tensor input_bias = RandomTensor({geometry.x[1]}, random, DataType::kF32);
  Attributes fused = geometry.conv, fused_transpose = geometry.transpose;
  fused.Set("slope", 0.2);
  fused_transpose.Set("slope", 0.0);
  Compare("conv", {x, w, output_bias}, fused, library, tally, tolerance);
  Compare("conv_transpose", {y, w, input_bias}, fused_transpose, library, tally, tolerance);
}

TEST(OneDnnConvTest, AnyGeometry) {
  std::mt19937_64 random(51);
  const OneDnnLibrary library;
  Tally tally;
  for (int round = 0; round < 80; ++round) CompareConvolutions(RandomConvCase(random), random, library, tally);
  for (const auto& [name, count] : library.implementations) RecordProperty(name, count);
  EXPECT_GT(tally.made, 10 * tally.refused) << "of " << tally.made + tally.refused;
}

TEST(OneDnnConvTest, LayersOfGans) {
  std::mt19937_64 random(52);
  const OneDnnLibrary library;
  Tally tally;
  for (const ConvCase& geometry :
       {test::MakeConvCase(2, 3, 1, 32, 16, 4, 2, 1), test::MakeConvCase(2, 2, 3, 16, 20, 4, 2, 1),
        test::MakeConvCase(2, 4, 16, 16, 32, 4, 2, 1), test::MakeConvCase(2, 4, 24, 4, 1, 4, 1, 0),
        test::MakeConvCase(2, 4, 32, 4, 40, 4, 1, 0), test::MakeConvCase(2, 2, 16, 9, 24, 3, 1, 1),
        test::MakeConvCase(2, 2, 16, 9, 24, 1, 1, 0), test::MakeConvCase(2, 2, 32, 8, 32, 3, 1, 1, 1, 8),
        test::MakeConvCase(2, 2, 16, 8, 16, 3, 1, 1, 1, 16), test::MakeConvCase(3, 1, 8, 6, 16, 3, 1, 1),
        test::MakeConvCase(3, 1, 3, 6, 16, 4, 2, 1), test::MakeConvCase(1, 2, 16, 40, 8, 25, 4, 11),
        test::MakeConvCase(2, 1, 8, 16, 8, 3, 1, 4, 4)}) {
    CompareConvolutions(geometry, random, library, tally);
  }
  EXPECT_EQ(tally.refused, 0) << "of " << tally.made + tally.refused;
}

TEST(OneDnnMatmulTest, AnyShapes) {
  std::mt19937_64 random(53);
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  const OneDnnLibrary library;
  Tally tally;
  for (int round = 0; round < 120; ++round) {
    const int64_t rows = draw(1, 40), inner = draw(1, 40), columns = draw(1, 40), transpose_a = draw(0, 1),
                  transpose_b = draw(0, 1);
    Ints a, b;
    for (int64_t axis = draw(0, 2); axis > 0; --axis) {
      const int64_t dim = draw(1, 3), kind = draw(0, 3);
      if (kind != 0 || !a.empty()) a.push_back(kind == 1 ? 1 : dim);
      if (kind != 3 || !b.empty()) b.push_back(kind == 2 ? 1 : dim);
    }
    a.insert(a.end(), {transpose_a ? inner : rows, transpose_a ? rows : inner});
    b.insert(b.end(), {transpose_b ? columns : inner, transpose_b ? inner : columns});
    Compare("matmul", {RandomTensor(Shape(a), random, DataType::kF32), RandomTensor(Shape(b), random, DataType::kF32)},
            {{"transpose_a", transpose_a}, {"transpose_b", transpose_b}}, library, tally);
  }
  EXPECT_GT(tally.made, 5 * tally.refused) << "of " << tally.made + tally.refused;
}

TEST(OneDnnTest, EqualsPyTorch) {
  const OneDnnLibrary library;
  EXPECT_GT(test::CheckTorchOps(DataType::kF32, library, 3e-6, false), 50);
}

TEST(OneDnnTest, LeavesTheRestToOthers) {
  const OneDnnLibrary library;
  const auto made = [&](std::string_view op, std::vector<TensorType> inputs, const Attributes& attributes) {
    const auto outputs = test::InferOp(op, inputs, attributes);
    EXPECT_TRUE(outputs.ok()) << outputs.status();
    auto kernel = library.Make({*FindOp(op), attributes, inputs, *outputs, 1});
    EXPECT_TRUE(kernel.ok()) << kernel.status();
    return *kernel != nullptr;
  };
  const TensorType x{DataType::kF32, {1, 2, 5}}, w{DataType::kF32, {2, 2, 3}};
  EXPECT_TRUE(made("conv", {x, w}, {}));
  EXPECT_FALSE(made("conv", {{DataType::kF64, x.shape}, {DataType::kF64, w.shape}}, {}));
  EXPECT_FALSE(made("conv", {{DataType::kF32, {0, 2, 5}}, w}, {}));
  EXPECT_FALSE(made("resize", {x}, {{"mode", std::string("nearest")}, {"output_spatial", Ints{10}}}));
  // The last window reaches beyond the pad, and oneDNN would count what lies there.
  const TensorType line{DataType::kF32, {1, 1, 4}};
  const Attributes overhang = {{"kernel", Ints{3}},
                               {"strides", Ints{3}},
                               {"pads", Ints{0, 1}},
                               {"ceil_mode", int64_t{1}},
                               {"count_include_pad", int64_t{1}}};
  EXPECT_FALSE(made("avg_pool", {line}, overhang));
}

}  // namespace
}  // namespace gantry
