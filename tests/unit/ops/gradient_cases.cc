#include "tests/unit/ops/gradient_cases.h"

#include "ops/functional.h"

namespace gantry::test {
namespace {

using Ids = std::span<const ValueId>;
using Values = std::vector<ValueId>;
using Ints = std::vector<int64_t>;

}  // namespace

std::vector<GradientCase> ElementwiseGradientCases() {
  const Shape grid = {2, 3, 4};
  return {
      {.name = "Add", .op = "add", .inputs = {{grid}, {grid}}},
      {.name = "AddBroadcast", .op = "add", .inputs = {{{3, 1}}, {grid}}},
      {.name = "AddScalar", .op = "add", .inputs = {{grid}, {{}}}},
      {.name = "Sub", .op = "sub", .inputs = {{grid}, {{1, 3, 1}}}},
      {.name = "Mul", .op = "mul", .inputs = {{grid}, {grid}}},
      {.name = "MulBroadcastBoth", .op = "mul", .inputs = {{{2, 1, 4}}, {{3, 1}}}},
      {.name = "MulSelf",
       .op = "mul",
       .inputs = {{grid}},
       .build = [](Builder& b, Ids x) { return Values{ops::Mul(b, x[0], x[0])}; }},
      {.name = "Div", .op = "div", .inputs = {{grid}, {grid, 0.5, 2.0}}},
      {.name = "DivBroadcast", .op = "div", .inputs = {{{4}}, {{2, 3, 1}, -2.0, -0.5}}},
      {.name = "Pow", .op = "pow", .inputs = {{grid, 0.5, 2.0}, {{4}, -2.0, 3.0}}},
      // An integer exponent, negative bases and zero among them, as x^2 and x^1 and x^0 come from models.
      {.name = "PowSquare",
       .op = "pow",
       .inputs = {{{6}}},
       .build =
           [](Builder& b, Ids x) {
             const ValueId base = ops::Mul(b, x[0], ops::Fill(b, DataType::kF64, {6}, 1.0));
             Values powers;
             for (double exponent : {0.0, 1.0, 2.0, 3.0}) {
               powers.push_back(ops::Pow(b, base, ops::Fill(b, DataType::kF64, {}, exponent)));
             }
             return powers;
           }},
      {.name = "Minimum", .op = "minimum", .inputs = {{{4, 5}, -2, 2, {}, true}, {{4, 5}, -2, 2, {}, true}}},
      {.name = "Maximum", .op = "maximum", .inputs = {{{4, 5}, -2, 2, {}, true}, {{5}, -2, 2, {}, true}}},
      // x against a copy of itself: both get half.
      {.name = "MaximumTie",
       .op = "maximum",
       .inputs = {{{5}}},
       .build =
           [](Builder& b, Ids x) {
             return Values{ops::Maximum(b, x[0], x[0]), ops::Minimum(b, x[0], x[0])};
           }},
      {.name = "Scale", .op = "scale", .inputs = {{grid}}, .attributes = {{"alpha", -1.5}, {"beta", 0.25}}},
      {.name = "Neg", .op = "neg", .inputs = {{grid}}},
      {.name = "Abs", .op = "abs", .inputs = {{grid, -1, 1, {0}}}},
      {.name = "Sqrt", .op = "sqrt", .inputs = {{grid, 0.5, 2.0}}},
      {.name = "Rsqrt", .op = "rsqrt", .inputs = {{grid, 0.5, 2.0}}},
      {.name = "Exp", .op = "exp", .inputs = {{grid, -2, 2}}},
      {.name = "Log", .op = "log", .inputs = {{grid, 0.5, 3.0}}},
      {.name = "Square", .op = "square", .inputs = {{grid, -2, 2}}},
      {.name = "Reciprocal", .op = "reciprocal", .inputs = {{grid, -2.0, -0.5}}},
      {.name = "Erf", .op = "erf", .inputs = {{grid, -2, 2}}},
      {.name = "Clip",
       .op = "clip",
       .inputs = {{grid, -1, 1, {-0.5, 0.4}}},
       .attributes = {{"low", -0.5}, {"high", 0.4}}},
      {.name = "LeakyRelu", .op = "leaky_relu", .inputs = {{grid, -1, 1, {0}}}, .attributes = {{"slope", 0.2}}},
      {.name = "Relu", .op = "leaky_relu", .inputs = {{grid, -1, 1, {0}}}, .attributes = {{"slope", 0.0}}},
      {.name = "LeakyReluGrad",
       .op = "leaky_relu_grad",
       .inputs = {{grid}, {grid, -1, 1, {0}}},
       .attributes = {{"slope", 0.2}}},
      {.name = "LeakyReluOfSquare",
       .op = "leaky_relu",
       .inputs = {{{7}, -1, 1, {-0.5, 0.5}}},
       .build = [](Builder& b,
                   Ids x) { return Values{ops::LeakyRelu(b, ops::Scale(b, ops::Square(b, x[0]), 1.0, -0.25), 0.1)}; }},
      {.name = "Sigmoid", .op = "sigmoid", .inputs = {{grid, -3, 3}}},
      {.name = "SigmoidGrad", .op = "sigmoid_grad", .inputs = {{grid}, {grid}}},
      {.name = "Tanh", .op = "tanh", .inputs = {{grid, -2, 2}}},
      {.name = "TanhGrad", .op = "tanh_grad", .inputs = {{grid}, {grid}}},
      {.name = "Softplus", .op = "softplus", .inputs = {{grid, -3, 3}}},
      {.name = "Silu", .op = "silu", .inputs = {{grid, -3, 3}}},
      {.name = "Gelu", .op = "gelu", .inputs = {{grid, -3, 3}}},
      {.name = "Cast",
       .op = "cast",
       .inputs = {{grid}},
       .build = [](Builder& b, Ids x) { return Values{ops::Square(b, ops::Cast(b, x[0], DataType::kF64))}; }},
      // What is defined as constant must be so in the gradient too.
      {.name = "StopGradient",
       .op = "stop_gradient",
       .inputs = {{grid}, {grid}},
       .build = [](Builder& b, Ids x) { return Values{ops::Mul(b, x[0], ops::StopGradient(b, x[1]))}; },
       .constant_inputs = {1}},
      {.name = "SignAndComparisons",
       .op = "sign",
       .inputs = {{{20}, -2, 2, {}, true}, {{20}, -2, 2, {}, true}},
       .build =
           [](Builder& b, Ids x) {
             return Values{ops::Mul(b, x[0], ops::Sign(b, x[0])), ops::Mul(b, x[1], ops::Greater(b, x[0], x[1])),
                           ops::Mul(b, x[1], ops::Equal(b, x[0], x[1]))};
           }},
  };
}

std::vector<GradientCase> ReductionGradientCases() {
  const Shape grid = {2, 3, 4};
  const auto Axes = [](Ints axes, int64_t keep_dims) {
    return Attributes{{"axes", std::move(axes)}, {"keep_dims", keep_dims}};
  };
  return {
      {.name = "ReduceSum", .op = "reduce_sum", .inputs = {{grid}}, .attributes = Axes({0, -1}, 0)},
      {.name = "ReduceSumAll", .op = "reduce_sum", .inputs = {{grid}}, .attributes = Axes({}, 1)},
      {.name = "ReduceMean", .op = "reduce_mean", .inputs = {{grid}}, .attributes = Axes({1}, 1)},
      {.name = "ReduceMeanAll", .op = "reduce_mean", .inputs = {{grid}}, .attributes = Axes({}, 0)},
      {.name = "ReduceMax", .op = "reduce_max", .inputs = {{grid, -2, 2, {}, true}}, .attributes = Axes({0, 2}, 0)},
      {.name = "ReduceMaxAll", .op = "reduce_max", .inputs = {{grid, -2, 2, {}, true}}, .attributes = Axes({}, 1)},
      {.name = "MeanOfSquares",
       .op = "reduce_mean",
       .inputs = {{grid}},
       .build =
           [](Builder& b, Ids x) {
             return Values{ops::ReduceMean(b, ops::Square(b, x[0]), {0, 2})};
           }},
      {.name = "Broadcast", .op = "broadcast", .inputs = {{{3, 1}}}, .attributes = {{"dims", Ints{2, 3, 4}}}},
      {.name = "BroadcastScalar",
       .op = "broadcast",
       .inputs = {{{}}},
       .build = [grid](Builder& b, Ids x) { return Values{ops::Square(b, ops::Broadcast(b, x[0], grid))}; }},
      {.name = "SumTo",
       .op = "reduce_sum",
       .inputs = {{grid}},
       .build =
           [](Builder& b, Ids x) {
             return Values{ops::Square(b, ops::SumTo(b, x[0], {3, 1}))};
           }},
      {.name = "Softmax", .op = "softmax", .inputs = {{grid}}, .attributes = {{"axis", int64_t{1}}}},
      {.name = "SoftmaxLast", .op = "softmax", .inputs = {{{3, 5}, -3, 3}}, .attributes = {{"axis", int64_t{-1}}}},
  };
}

std::vector<GradientCase> ShapeGradientCases() {
  const Shape grid = {2, 3, 4};
  return {
      {.name = "Reshape",
       .op = "reshape",
       .inputs = {{grid}},
       .build =
           [](Builder& b, Ids x) {
             return Values{ops::Square(b, ops::Reshape(b, x[0], {6, 4}))};
           }},
      {.name = "Transpose",
       .op = "transpose",
       .inputs = {{grid}, {{4, 2, 3}}},
       .build =
           [](Builder& b, Ids x) {
             return Values{ops::Mul(b, ops::Transpose(b, x[0], {2, 0, 1}), x[1])};
           }},
      {.name = "Slice",
       .op = "slice",
       .inputs = {{{5, 7}}},
       .build =
           [](Builder& b, Ids x) {
             return Values{ops::Square(b, ops::Slice(b, x[0], {4, 1}, {2, 3}, {-3, 2}))};
           }},
      {.name = "SliceGrad",
       .op = "slice_grad",
       .inputs = {{{2, 3}}},
       .build =
           [](Builder& b, Ids x) {
             return Values{ops::Square(b, ops::SliceGrad(b, x[0], {5, 7}, {4, 1}, {-3, 2}))};
           }},
      {.name = "Pad", .op = "pad", .inputs = {{{2, 3}}}, .attributes = {{"pads", Ints{1, 0, 2, 3}}, {"value", 0.5}}},
      {.name = "PadReflect",
       .op = "pad",
       .inputs = {{{3, 4}}},
       .build =
           [](Builder& b, Ids x) {
             return Values{ops::Square(b, ops::PadReflect(b, x[0], {2, 1, 1, 3}))};
           }},
      {.name = "PadEdge",
       .op = "pad",
       .inputs = {{{2, 3}}},
       .build =
           [](Builder& b, Ids x) {
             return Values{ops::Square(b, ops::PadEdge(b, x[0], {2, 0, 1, 3}))};
           }},
      {.name = "Concat",
       .op = "concat",
       .inputs = {{{2, 1, 3}}, {{2, 2, 3}}, {{2, 3, 3}}},
       .build =
           [](Builder& b, Ids x) {
             return Values{ops::Square(b, ops::Concat(b, std::vector{x[0], x[1], x[2]}, -2))};
           }},
      {.name = "Split",
       .op = "slice",
       .inputs = {{{2, 6}}},
       .build =
           [](Builder& b, Ids x) {
             const Values parts = ops::Split(b, x[0], 1, Ints{1, 3, 2});
             return Values{ops::Mul(b, parts[0], parts[1]), ops::Square(b, parts[2])};
           }},
  };
}

std::vector<GradientCase> ProductGradientCases() {
  std::vector<GradientCase> cases = {
      {.name = "MatmulBatch",
       .op = "matmul",
       .inputs = {{{2, 1, 3, 4}}, {{5, 4, 2}}},
       .attributes = {{"transpose_a", int64_t{0}}, {"transpose_b", int64_t{0}}}},
      {.name = "MatmulBroadcastWeight",
       .op = "matmul",
       .inputs = {{{3, 2, 4}}, {{5, 4}}},
       .attributes = {{"transpose_a", int64_t{0}}, {"transpose_b", int64_t{1}}}},
      {.name = "Linear",
       .op = "matmul",
       .inputs = {{{2, 3, 4}}, {{5, 4}}, {{5}}},
       .build = [](Builder& b, Ids x) { return Values{ops::Linear(b, x[0], x[1], x[2])}; }},
      {.name = "Gather",
       .op = "gather",
       .inputs = {{{2, 4, 3}}, {.shape = {2, 3}, .integers = {0, 3, 1, -1, 3, 0}}},
       .build = [](Builder& b, Ids x) { return Values{ops::Square(b, ops::Gather(b, x[0], x[1], 1))}; }},
      {.name = "GatherGrad",
       .op = "gather_grad",
       .inputs = {{{5, 2}}, {.shape = {5}, .integers = {1, 1, 0, -1, 2}}},
       .build =
           [](Builder& b, Ids x) {
             return Values{ops::Square(
                 b, ops::Emit1(b, "gather_grad", {x[0], x[1]}, {{"axis", int64_t{0}}, {"extent", int64_t{4}}}))};
           }},
      {.name = "SumSquares", .op = "sum_squares", .inputs = {{{3, 2}}, {{4}}, {{}}}},
      {.name = "Dropout",
       .op = "mul",
       .inputs = {{{3, 5}}, {.shape = {2}, .integers = {7, 1}}},
       .build = [](Builder& b, Ids x) { return Values{ops::Square(b, ops::Dropout(b, x[0], x[1], 0, 0.5))}; }},
  };
  for (int64_t a : {0, 1}) {
    for (int64_t b : {0, 1}) {
      cases.push_back({.name = absl::StrCat("Matmul", a, b),
                       .op = "matmul",
                       .inputs = {{a == 1 ? Shape{4, 3} : Shape{3, 4}}, {b == 1 ? Shape{2, 4} : Shape{4, 2}}},
                       .attributes = {{"transpose_a", a}, {"transpose_b", b}}});
    }
  }
  return cases;
}

}  // namespace gantry::test
