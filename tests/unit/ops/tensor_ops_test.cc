// Values and errors of reductions, shape ops, matmul, gather, random draws and optimizers, on the reference kernels.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "ops/functional.h"
#include "ops/philox.h"
#include "runtime/graph/program.h"
#include "tests/support/program_runner.h"
#include "tests/support/run_op.h"

namespace gantry::test {
namespace {

using ::testing::DoubleNear;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pointwise;
using Ints = std::vector<int64_t>;

std::vector<Tensor> Outputs(std::string_view op, const std::vector<Tensor>& inputs, const Attributes& attributes = {}) {
  const auto outputs = RunOp(op, inputs, attributes);
  EXPECT_TRUE(outputs.ok()) << op << ": " << outputs.status();
  return outputs.ok() ? *outputs : std::vector<Tensor>(1);
}

std::vector<double> Values(std::string_view op, const std::vector<Tensor>& inputs, const Attributes& attributes = {}) {
  return Outputs(op, inputs, attributes)[0].values;
}

std::string Error(std::string_view op, const std::vector<TensorType>& inputs, const Attributes& attributes) {
  const auto outputs = InferOp(op, inputs, attributes);
  EXPECT_EQ(outputs.status().code(), absl::StatusCode::kInvalidArgument) << op;
  return std::string(Message(outputs.status()));
}

// 0, 1, 2, ...
Tensor Counting(const Shape& shape, DataType dtype = DataType::kF64) {
  std::vector<double> values(shape.element_count());
  std::iota(values.begin(), values.end(), 0.0);
  return MakeTensor(shape, std::move(values), dtype);
}

Attributes Over(Ints axes, bool keep_dims = false) {
  return {{"axes", std::move(axes)}, {"keep_dims", static_cast<int64_t>(keep_dims)}};
}

TEST(ReductionTest, Values) {
  const Tensor x = Counting({2, 3, 2});
  EXPECT_THAT(Values("reduce_sum", {x}, Over({1})), ElementsAre(6, 9, 24, 27));
  EXPECT_THAT(Values("reduce_sum", {x}, Over({0, -1})), ElementsAre(14, 22, 30));
  EXPECT_THAT(Values("reduce_mean", {x}, Over({})), ElementsAre(5.5));
  EXPECT_THAT(Values("reduce_max", {x}, Over({2})), ElementsAre(1, 3, 5, 7, 9, 11));
  EXPECT_EQ(Outputs("reduce_sum", {x}, Over({1}, true))[0].type.shape, Shape({2, 1, 2}));
  EXPECT_EQ(Outputs("reduce_sum", {x}, Over({0, 1, 2}))[0].type.shape, Shape());
  EXPECT_THAT(Values("reduce_sum", {MakeTensor({0, 2}, {})}, Over({0})), ElementsAre(0, 0));
  EXPECT_TRUE(std::isnan(Values("reduce_max", {MakeTensor({3}, {1, std::nan(""), 2})}, Over({}))[0]));
}

TEST(ReductionTest, SinglePrecisionSumsAreAccurate) {
  std::vector<double> values(1 << 20, 0.1f);
  EXPECT_NEAR(Values("reduce_sum", {MakeTensor({1 << 20}, values, DataType::kF32)}, Over({}))[0],
              0.1f * static_cast<double>(1 << 20), 0.004);
}

TEST(ReductionTest, Errors) {
  const TensorType x = {DataType::kF32, {2, 3}};
  EXPECT_THAT(Error("reduce_sum", {x}, Over({2})), HasSubstr("axis 2 is outside a shape of 2 dimensions"));
  EXPECT_THAT(Error("reduce_sum", {x}, Over({1, -1})), HasSubstr("twice"));
  EXPECT_THAT(Error("reduce_max", {{DataType::kF32, {2, 0}}}, Over({1})), HasSubstr("f32[2,0]"));
  EXPECT_THAT(Error("broadcast", {x}, {{"dims", Ints{2, 4}}}), HasSubstr("[2,3] and [2,4]"));
  EXPECT_THAT(Error("broadcast", {x}, {{"dims", Ints{3}}}), HasSubstr("does not broadcast"));
  EXPECT_THAT(Error("softmax", {x}, {{"axis", int64_t{2}}}), HasSubstr("axis 2"));
}

TEST(ReductionTest, BroadcastAndSoftmax) {
  EXPECT_THAT(Values("broadcast", {MakeTensor({2, 1}, {1, 2})}, {{"dims", Ints{2, 2, 3}}}),
              ElementsAre(1, 1, 1, 2, 2, 2, 1, 1, 1, 2, 2, 2));
  const std::vector<double> y =
      Values("softmax", {MakeTensor({2, 2}, {1000, 0, 1000 + std::log(3.0), 0})}, {{"axis", int64_t{0}}});
  EXPECT_THAT(y, Pointwise(DoubleNear(1e-12), {0.25, 0.5, 0.75, 0.5}));
}

TEST(ShapeOpsTest, TransposeAndConcat) {
  EXPECT_THAT(Values("transpose", {Counting({2, 3})}, {{"perm", Ints{1, 0}}}), ElementsAre(0, 3, 1, 4, 2, 5));
  const Tensor moved = Outputs("transpose", {Counting({2, 1, 3}, DataType::kU8)}, {{"perm", Ints{2, 0, 1}}})[0];
  EXPECT_EQ(moved.type, (TensorType{DataType::kU8, {3, 2, 1}}));
  EXPECT_THAT(moved.values, ElementsAre(0, 3, 1, 4, 2, 5));
  EXPECT_THAT(Values("concat", {Counting({2, 1}), MakeTensor({2, 2}, {5, 6, 7, 8})}, {{"axis", int64_t{-1}}}),
              ElementsAre(0, 5, 6, 1, 7, 8));
  EXPECT_THAT(Values("concat", {Counting({2}, DataType::kI64), Counting({0}, DataType::kI64)}, {{"axis", int64_t{0}}}),
              ElementsAre(0, 1));
}

Attributes SliceOf(Ints starts, Ints counts, Ints steps) {
  return {{"starts", std::move(starts)}, {"counts", std::move(counts)}, {"steps", std::move(steps)}};
}

TEST(ShapeOpsTest, Slices) {
  const Tensor x = Counting({3, 4});
  EXPECT_THAT(Values("slice", {x}, SliceOf({2, 1}, {2, 2}, {-2, 2})), ElementsAre(9, 11, 1, 3));
  EXPECT_THAT(Values("slice", {x}, SliceOf({3, 0}, {0, 4}, {1, 1})), ElementsAre());
  // A step that is never taken may be anything but 0.
  EXPECT_THAT(Values("slice", {x}, SliceOf({1, 1}, {1, 1}, {INT64_MIN, INT64_MAX})), ElementsAre(5));
  EXPECT_THAT(Values("slice_grad", {MakeTensor({1, 2}, {7, 8})},
                     {{"dims", Ints{2, 4}}, {"starts", Ints{1, 3}}, {"steps", Ints{1, -2}}}),
              ElementsAre(0, 0, 0, 0, 0, 8, 0, 7));
  EXPECT_THAT(Values("pad", {Counting({1, 2})}, {{"pads", Ints{1, 0, 0, 1}}, {"value", -1.5}}),
              ElementsAre(-1.5, -1.5, -1.5, 0, 1, -1.5));
  EXPECT_THAT(Values("pad", {Counting({2}, DataType::kI32)}, {{"pads", Ints{1, 0}}, {"value", -3.0}}),
              ElementsAre(-3, 0, 1));
}

TEST(ShapeOpsTest, PartsAreAdded) {
  const Tensor x = Counting({2, 3}), rows = MakeTensor({1, 3}, {10, 20, 30}), column = MakeTensor({2, 1}, {10, 20});
  const auto at = [](int64_t axis, int64_t begin) { return Attributes{{"axis", axis}, {"begin", begin}}; };
  EXPECT_THAT(Values("add_part", {x, rows}, at(0, 1)), ElementsAre(0, 1, 2, 13, 24, 35));
  EXPECT_THAT(Values("add_part", {x, column}, at(-1, 2)), ElementsAre(0, 1, 12, 3, 4, 25));
  EXPECT_THAT(Values("add_part", {x, MakeTensor({0, 3}, {})}, at(0, 2)), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(Error("add_part", {x.type, rows.type}, at(0, 2)), HasSubstr("f64[1,3] is no part of f64[2,3] from place 2 of axis 0 on"));
  EXPECT_THAT(Error("add_part", {x.type, column.type}, at(0, 0)), HasSubstr("is no part of"));
  EXPECT_THAT(Error("add_part", {x.type, {DataType::kF64, {3}}}, at(0, 0)), HasSubstr("is no part of"));
}

TEST(ShapeOpsTest, Errors) {
  const TensorType x = {DataType::kF32, {3, 4}};
  for (const Attributes& outside :
       {SliceOf({0, 0}, {4, 1}, {1, 1}), SliceOf({0, 3}, {1, 2}, {1, 1}), SliceOf({0, 0}, {2, 1}, {-1, 1}),
        SliceOf({-1, 0}, {1, 1}, {1, 1}), SliceOf({0, 0}, {1, 1}, {0, 1}), SliceOf({3, 0}, {1, 1}, {1, 1}),
        SliceOf({0, 0}, {-1, 1}, {1, 1}), SliceOf({1, 0}, {2, 1}, {INT64_MAX, 1}),
        SliceOf({1, 0}, {2, 1}, {INT64_MIN, 1}), SliceOf({0, 0}, {INT64_MAX, 1}, {INT64_MAX, 1})}) {
    EXPECT_THAT(Error("slice", {x}, outside), HasSubstr("does not lie inside shape [3,4]")) << outside.ToString();
  }
  EXPECT_THAT(Error("slice", {x}, SliceOf({0}, {1}, {1})), HasSubstr("'starts' has 1 entries"));
  EXPECT_THAT(Error("reshape", {x}, {{"dims", Ints{5, 2}}}),
              HasSubstr("f32[3,4] has 12 elements, the new shape [5,2] has 10"));
  EXPECT_THAT(Error("reshape", {x}, {{"dims", Ints{-1, 2}}}), HasSubstr("negative"));
  EXPECT_THAT(Error("transpose", {x}, {{"perm", Ints{0, 0}}}), HasSubstr("twice"));
  EXPECT_THAT(Error("transpose", {x}, {{"perm", Ints{0, 2}}}), HasSubstr("'perm' is 2"));
  EXPECT_THAT(Error("pad", {x}, {{"pads", Ints{-1, 0, 0, 0}}, {"value", 0.0}}), HasSubstr("'pads' is -1"));
  EXPECT_THAT(Error("pad", {x}, {{"pads", Ints{1ll << 40, 0, 1ll << 40, 0}}, {"value", 0.0}}),
              HasSubstr("1099511627776"));
  EXPECT_THAT(Error("concat", {x, {DataType::kF32, {3, 4, 1}}}, {{"axis", int64_t{0}}}), HasSubstr("f32[3,4,1]"));
  EXPECT_THAT(Error("concat", {x, {DataType::kF32, {3, 5}}}, {{"axis", int64_t{0}}}),
              HasSubstr("equal but for axis 0"));
}

TEST(MatmulTest, Values) {
  const auto Product = [](const Tensor& a, const Tensor& b, int64_t transpose_a, int64_t transpose_b) {
    return Values("matmul", {a, b}, {{"transpose_a", transpose_a}, {"transpose_b", transpose_b}});
  };
  const Tensor a = MakeTensor({2, 3}, {1, 2, 3, 4, 5, 6}), b = MakeTensor({3, 2}, {1, 0, 2, 1, 0, 3});
  const Tensor a_transposed = MakeTensor({3, 2}, {1, 4, 2, 5, 3, 6}),
               b_transposed = MakeTensor({2, 3}, {1, 2, 0, 0, 1, 3});
  EXPECT_THAT(Product(a, b, 0, 0), ElementsAre(5, 11, 14, 23));
  EXPECT_THAT(Product(a_transposed, b, 1, 0), ElementsAre(5, 11, 14, 23));
  EXPECT_THAT(Product(a, b_transposed, 0, 1), ElementsAre(5, 11, 14, 23));
  EXPECT_THAT(Product(a_transposed, b_transposed, 1, 1), ElementsAre(5, 11, 14, 23));
  // Leading dimensions broadcast.
  EXPECT_THAT(Product(MakeTensor({2, 1, 1, 2}, {1, 2, 3, 4}), MakeTensor({2, 2, 1}, {1, 1, 1, -1}), 0, 0),
              ElementsAre(3, -1, 7, -1));
  EXPECT_THAT(Product(MakeTensor({2, 0}, {}), MakeTensor({0, 2}, {}), 0, 0), ElementsAre(0, 0, 0, 0));
}

TEST(MatmulTest, Errors) {
  const Attributes plain = {{"transpose_a", int64_t{0}}, {"transpose_b", int64_t{0}}};
  const TensorType a = {DataType::kF32, {2, 3}};
  EXPECT_THAT(Error("matmul", {a, a}, plain), HasSubstr("f32[2,3] has 3 columns, f32[2,3] has 2 rows"));
  EXPECT_THAT(Error("matmul", {a, {DataType::kF32, {3}}}, plain),
              HasSubstr("right operand must have 2 to 8 dimensions"));
  EXPECT_THAT(Error("matmul", {{DataType::kF32, {2, 2, 3}}, {DataType::kF32, {3, 3, 2}}}, plain),
              HasSubstr("[2] and [3]"));
}

TEST(GatherTest, Values) {
  const Tensor x = Counting({2, 3});
  const Tensor indices = MakeTensor({2, 2}, {0, 2, -1, 1}, DataType::kI32);
  const Tensor rows = Outputs("gather", {x, indices}, {{"axis", int64_t{1}}})[0];
  EXPECT_EQ(rows.type.shape, Shape({2, 2, 2}));
  EXPECT_THAT(rows.values, ElementsAre(0, 2, 2, 1, 3, 5, 5, 4));
  EXPECT_THAT(Values("gather_grad", {MakeTensor({2, 2, 2}, {1, 2, 4, 8, 16, 32, 64, 128}), indices},
                     {{"axis", int64_t{1}}, {"extent", int64_t{3}}}),
              ElementsAre(1, 8, 6, 16, 128, 96));
}

TEST(GatherTest, AnIndexOutsideIsAnErrorOfTheRun) {
  for (double index : {3.0, -4.0}) {
    const auto run =
        RunOp("gather", {Counting({3}), MakeTensor({2}, {0, index}, DataType::kI64)}, {{"axis", int64_t{0}}});
    EXPECT_EQ(run.status().code(), absl::StatusCode::kOutOfRange);
    EXPECT_THAT(Message(run.status()),
                HasSubstr(absl::StrCat("index ", index, " (at place 1) is outside an axis of 3")));
  }
  const auto run = RunOp("gather_grad", {Counting({1}), MakeTensor({1}, {9}, DataType::kI64)},
                         {{"axis", int64_t{0}}, {"extent", int64_t{3}}});
  EXPECT_EQ(run.status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(Error("gather", {{DataType::kF32, {3}}, {DataType::kF32, {1}}}, {{"axis", int64_t{0}}}),
              HasSubstr("f32[1]"));
  EXPECT_THAT(Error("gather_grad", {{DataType::kF32, {3}}, {DataType::kI64, {2}}},
                    {{"axis", int64_t{0}}, {"extent", int64_t{1}}}),
              HasSubstr("indices' shape [2]"));
}

// The known answers of the Random123 distribution (kat_vectors, philox4x32 with 10 rounds).
TEST(PhiloxTest, KnownAnswers) {
  const auto Words = [](PhiloxWords words) { return std::vector<uint32_t>(words.word, words.word + 4); };
  EXPECT_THAT(Words(Philox4x32({{0, 0, 0, 0}}, 0, 0)), ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(Words(Philox4x32({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u)),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(Words(Philox4x32({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0)),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

Tensor StateOf(double seed, double counter) { return MakeTensor({2}, {seed, counter}, DataType::kI64); }

Attributes DrawOf(Ints dims, int64_t stream, std::string dtype = "f64") {
  return {{"dims", std::move(dims)}, {"stream", stream}, {"dtype", std::move(dtype)}};
}

TEST(RandomTest, UniformHasItsMomentsAndCanBeDrawnAgain) {
  Attributes attributes = DrawOf({100003}, 5);
  attributes.Set("low", -1.0);
  attributes.Set("high", 3.0);
  const std::vector<double> x = Values("random_uniform", {StateOf(1, 2)}, attributes);
  double sum = 0, squares = 0;
  for (double value : x) sum += value, squares += (value - 1) * (value - 1);
  EXPECT_NEAR(sum / x.size(), 1.0, 0.02);
  EXPECT_NEAR(squares / x.size(), 16.0 / 12.0, 0.02);
  EXPECT_GE(*std::min_element(x.begin(), x.end()), -1.0);
  EXPECT_LT(*std::max_element(x.begin(), x.end()), 3.0);
  EXPECT_EQ(Values("random_uniform", {StateOf(1, 2)}, attributes), x);
  EXPECT_NE(Values("random_uniform", {StateOf(2, 2)}, attributes), x);
  EXPECT_NE(Values("random_uniform", {StateOf(1, 3)}, attributes), x);
  // A shorter draw is the beginning of a longer one, and the float types draw the same.
  attributes.Set("dims", Ints{2, 3});
  const std::vector<double> beginning = Values("random_uniform", {StateOf(1, 2)}, attributes);
  EXPECT_EQ(beginning, std::vector<double>(x.begin(), x.begin() + 6));
  attributes.Set("dtype", std::string("f32"));
  EXPECT_THAT(Values("random_uniform", {StateOf(1, 2)}, attributes), Pointwise(DoubleNear(2e-7), beginning));
  attributes.Set("stream", int64_t{6});
  EXPECT_NE(Values("random_uniform", {StateOf(1, 2)}, attributes)[0], static_cast<double>(static_cast<float>(x[0])));
}

TEST(RandomTest, NormalHasItsMoments) {
  Attributes attributes = DrawOf({200001}, 0);
  attributes.Set("mean", 2.0);
  attributes.Set("deviation", 0.5);
  const std::vector<double> x = Values("random_normal", {StateOf(-3, 1ll << 40)}, attributes);
  double moments[5] = {};
  for (double value : x) {
    for (int k = 1; k <= 4; ++k) moments[k] += std::pow((value - 2.0) / 0.5, k) / static_cast<double>(x.size());
  }
  EXPECT_NEAR(moments[1], 0.0, 0.01);
  EXPECT_NEAR(moments[2], 1.0, 0.02);
  EXPECT_NEAR(moments[3], 0.0, 0.03);
  EXPECT_NEAR(moments[4], 3.0, 0.1);
  // Neighbours are independent: no correlation at distances 1 to 3.
  for (size_t distance : {1, 2, 3}) {
    double product = 0;
    for (size_t i = 0; i + distance < x.size(); ++i) product += (x[i] - 2.0) * (x[i + distance] - 2.0) * 4.0;
    EXPECT_NEAR(product / static_cast<double>(x.size()), 0.0, 0.01) << distance;
  }
}

TEST(RandomTest, DropoutMaskKeepsItsShare) {
  Attributes attributes = DrawOf({100000}, 1);
  attributes.Set("rate", 0.3);
  double kept = 0;
  for (double value : Values("dropout_mask", {StateOf(1, 1)}, attributes)) {
    ASSERT_TRUE(value == 0.0 || value == 1.0 / 0.7) << value;
    kept += value != 0.0;
  }
  EXPECT_NEAR(kept / 100000, 0.7, 0.01);
  attributes.Set("rate", 0.0);
  EXPECT_THAT(Values("dropout_mask", {StateOf(1, 1)}, attributes), Each(1.0));
}

TEST(RandomTest, Errors) {
  Attributes attributes = DrawOf({2}, 1);
  attributes.Set("rate", 1.0);
  EXPECT_THAT(Error("dropout_mask", {{DataType::kI64, {2}}}, attributes), HasSubstr("rate is 1"));
  attributes.Set("rate", 0.5);
  EXPECT_THAT(Error("dropout_mask", {{DataType::kI64, {3}}}, attributes),
              HasSubstr("i64[2] (seed, counter), got i64[3]"));
  attributes.Set("stream", int64_t{1} << 24);
  EXPECT_THAT(Error("dropout_mask", {{DataType::kI64, {2}}}, attributes), HasSubstr("'stream'"));
  attributes = DrawOf({2}, 1, "i32");
  attributes.Set("rate", 0.5);
  EXPECT_THAT(Error("dropout_mask", {{DataType::kI64, {2}}}, attributes), HasSubstr("i32"));
}

// Three steps of an update on the weights {0.5, -1}, with `states` moments; the gradients are fixed.
std::vector<double> Train(std::string_view op, int states, const Attributes& attributes) {
  const std::vector<std::vector<double>> gradients = {{0.3, -0.2}, {-0.1, 0.4}, {0.25, 0.05}};
  std::vector<Tensor> tensors = {MakeTensor({2}, {0.5, -1.0})};
  for (int i = 0; i < states; ++i) tensors.push_back(MakeTensor({2}, {0.0, 0.0}));
  for (int step = 1; step <= 3; ++step) {
    std::vector<Tensor> inputs = tensors;
    // gradient_scale is 2: the gradients come in halves.
    inputs.push_back(MakeTensor({2}, {gradients[step - 1][0] / 2, gradients[step - 1][1] / 2}));
    for (double scalar : {0.1, static_cast<double>(step), 2.0}) inputs.push_back(MakeTensor({}, {scalar}));
    tensors = Outputs(op, inputs, attributes);
  }
  return tensors[0].values;
}

// Expected values: torch.optim (PyTorch 2.15, float64), learning rate 0.1.
TEST(OptimizerTest, ThreeStepsAreAsPyTorchs) {
  const auto Adam = [](double weight_decay, int64_t decoupled) {
    return Train("adam_update", 2,
                 {{"count", int64_t{1}},
                  {"beta1", 0.5},
                  {"beta2", 0.9},
                  {"epsilon", 1e-3},
                  {"weight_decay", weight_decay},
                  {"decoupled", decoupled}});
  };
  const auto Sgd = [](double momentum, int64_t nesterov, double weight_decay, double dampening) {
    return Train("sgd_update", momentum == 0.0 ? 0 : 1,
                 {{"count", int64_t{1}},
                  {"momentum", momentum},
                  {"nesterov", nesterov},
                  {"weight_decay", weight_decay},
                  {"dampening", dampening}});
  };
  const auto Near = [](double a, double b) { return Pointwise(DoubleNear(1e-13), std::vector<double>{a, b}); };
  EXPECT_THAT(Adam(0.0, 0), Near(0.317387662789693, -1.00688245172032));
  EXPECT_THAT(Adam(0.1, 0), Near(0.29399955850528, -0.943658569965524));
  EXPECT_THAT(Adam(0.1, 1), Near(0.304672170944574, -0.978540784131599));
  EXPECT_THAT(Sgd(0.0, 0, 0.1, 0.0), Near(0.4406465, -0.995297));
  EXPECT_THAT(Sgd(0.9, 0, 0.1, 0.25), Near(0.39074240625, -0.9583845625));
  EXPECT_THAT(Sgd(0.9, 1, 0.0, 0.0), Near(0.37643, -1.04912));
}

TEST(OptimizerTest, LerpAndSumSquares) {
  const auto lerp = Outputs(
      "lerp_update", {MakeTensor({2}, {1, 2}), MakeTensor({}, {3}), MakeTensor({2}, {5, 6}), MakeTensor({}, {7})},
      {{"count", int64_t{2}}, {"weight", 0.25}, {"scale", 2.0}});
  ASSERT_EQ(lerp.size(), 2);
  EXPECT_THAT(lerp[0].values, ElementsAre(3.25, 4.5));
  EXPECT_THAT(lerp[1].values, ElementsAre(5.75));
  EXPECT_THAT(Values("sum_squares", {MakeTensor({2}, {1, 2}), MakeTensor({}, {-3})}), ElementsAre(14));
}

TEST(OptimizerTest, Errors) {
  const TensorType w = {DataType::kF32, {2}}, other = {DataType::kF32, {3}}, scalar = {DataType::kF32, {}};
  const Attributes lerp = {{"count", int64_t{1}}, {"weight", 0.5}, {"scale", 1.0}};
  EXPECT_THAT(Error("lerp_update", {w, other}, lerp),
              HasSubstr("input 1 is f32[3], but input 0, which it belongs to, is f32[2]"));
  EXPECT_THAT(Error("lerp_update", {w, w, w}, lerp), HasSubstr("got 3"));
  const auto Sgd = [](double momentum, int64_t nesterov) {
    return Attributes{{"count", int64_t{1}},
                      {"momentum", momentum},
                      {"nesterov", nesterov},
                      {"weight_decay", 0.0},
                      {"dampening", 0.0}};
  };
  EXPECT_THAT(Error("sgd_update", {w, w, scalar, scalar, w}, Sgd(0.0, 0)), HasSubstr("scalar input 4"));
  EXPECT_THAT(Error("sgd_update", {w, w, scalar, scalar, scalar}, Sgd(0.0, 1)), HasSubstr("nesterov"));
  EXPECT_THAT(Error("sgd_update", {w, w, scalar, scalar, scalar}, Sgd(0.9, 0)), HasSubstr("need 6 inputs"));
}

// The helpers that are put together from several ops.
TEST(HelpersTest, PaddingSplitAndLinear) {
  Program program;
  const ValueId x = program.AddInput("x", {DataType::kF64, {2, 3}});
  const ValueId reflected = ops::PadReflect(program, x, {1, 2, 0, 1});
  const ValueId edge = ops::PadEdge(program, x, {0, 2, 1, 0});
  const std::vector<ValueId> parts = ops::Split(program, x, 1, Ints{2, 1});
  const ValueId weight = program.AddInput("w", {DataType::kF64, {1, 3}}),
                bias = program.AddInput("b", {DataType::kF64, {1}});
  const ValueId linear = ops::Linear(program, ops::Reshape(program, x, {2, 1, 3}), weight, bias);
  auto runner = ProgramRunner::Create(program, ReferenceKernels());
  ASSERT_TRUE(runner.ok()) << runner.status();
  runner->Set(x, std::vector<double>{1, 2, 3, 4, 5, 6});
  runner->Set(weight, std::vector<double>{1, 10, 100});
  runner->Set(bias, std::vector<double>{0.5});
  ASSERT_TRUE(runner->Run(std::vector<ValueId>{reflected, edge, parts[0], parts[1], linear}).ok());
  EXPECT_THAT(runner->Get(reflected), ElementsAre(6, 5, 4, 5, 6, 5, 3, 2, 1, 2, 3, 2, 6, 5, 4, 5, 6, 5));
  EXPECT_THAT(runner->Get(edge), ElementsAre(1, 1, 1, 2, 3, 4, 4, 4, 5, 6, 4, 4, 4, 5, 6));
  EXPECT_THAT(runner->Get(parts[0]), ElementsAre(1, 2, 4, 5));
  EXPECT_THAT(runner->Get(parts[1]), ElementsAre(3, 6));
  EXPECT_EQ(program.TypeOf(linear).shape, Shape({2, 1, 1}));
  EXPECT_THAT(runner->Get(linear), ElementsAre(321.5, 654.5));
}

TEST(HelpersTest, WrongArgumentsStick) {
  const auto Fails = [](auto emit) {
    Program program;
    const ValueId x = program.AddInput("x", {DataType::kF64, {2, 3}});
    emit(program, x);
    return std::string(Message(program.status()));
  };
  EXPECT_THAT(Fails([](Program& p, ValueId x) { ops::PadReflect(p, x, {2, 0, 0, 0}); }), HasSubstr("slice"));
  EXPECT_THAT(Fails([](Program& p, ValueId x) {
                ops::PadReflect(p, x, {1, 0});
              }),
              HasSubstr("pads [1,0] do not fit f64[2,3]"));
  EXPECT_THAT(Fails([](Program& p, ValueId x) { ops::Split(p, x, 1, Ints{2, 2}); }), HasSubstr("split lengths [2,2]"));
  EXPECT_THAT(Fails([](Program& p, ValueId x) { ops::Split(p, x, 5, Ints{3}); }), HasSubstr("axis 5"));
  EXPECT_THAT(Fails([](Program& p, ValueId x) {
                ops::SumTo(p, x, {2, 2});
              }),
              HasSubstr("[2,3] cannot be summed to [2,2]"));
  EXPECT_THAT(Fails([](Program& p, ValueId) { ops::SumTo(p, ops::PadEdge(p, kNoValue, {}), {}); }), HasSubstr(""));
}

}  // namespace
}  // namespace gantry::test
