// Activation functions, Clip and the softmax family, on values of the program.
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "ops/functional.h"
#include "runtime/graph/onnx/node.h"

namespace gantry::onnx {
namespace {

using namespace ops;  // NOLINT: emission reads as formulas

// max(x, 0) - slope * max(-x, 0): leaky relu of any slope.
ValueId Rectified(Program& program, ValueId x, double slope) {
  if (slope >= 0.0) return LeakyRelu(program, x, slope);
  return Sub(program, Relu(program, x), Scale(program, Relu(program, Neg(program, x)), slope));
}

// gamma * (max(x, 0) + alpha * (exp(min(x, 0) / width) - 1)).
ValueId ExponentialUnit(Program& program, ValueId x, double alpha, double width, double gamma) {
  const ValueId negative = Scale(program, Relu(program, Neg(program, x)), -1.0 / width);
  const ValueId sum = Add(program, Relu(program, x), Scale(program, Exp(program, negative), alpha, -alpha));
  return gamma == 1.0 ? sum : Scale(program, sum, gamma);
}

ValueId GeluTanh(Program& program, ValueId x) {
  const ValueId cube = Mul(program, x, Square(program, x));
  const ValueId inner =
      Scale(program, Add(program, x, Scale(program, cube, 0.044715)), std::sqrt(2 / std::numbers::pi));
  return Mul(program, x, Scale(program, Tanh(program, inner), 0.5, 0.5));
}

absl::Status ImportActivation(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const ValueId x, node.Value(0));
  Program& p = node.program();
  const std::string_view op = node.op();
  if (op == "Relu") return node.SetValue(0, Relu(p, x));
  if (op == "LeakyRelu") return node.SetValue(0, Rectified(p, x, node.Float("alpha", 0.01)));
  if (op == "Sigmoid") return node.SetValue(0, Sigmoid(p, x));
  if (op == "Tanh") return node.SetValue(0, Tanh(p, x));
  if (op == "Softplus") return node.SetValue(0, Softplus(p, x));
  if (op == "Softsign") return node.SetValue(0, Div(p, x, Scale(p, Abs(p, x), 1.0, 1.0)));
  if (op == "Elu") return node.SetValue(0, ExponentialUnit(p, x, node.Float("alpha", 1.0), 1.0, 1.0));
  if (op == "Celu") {
    const double alpha = node.Float("alpha", 1.0);
    if (alpha == 0.0) return absl::InvalidArgumentError("alpha is 0");
    return node.SetValue(0, ExponentialUnit(p, x, alpha, alpha, 1.0));
  }
  if (op == "Selu") {
    const double alpha = node.Float("alpha", 1.67326319217681884765625);
    return node.SetValue(0, ExponentialUnit(p, x, alpha, 1.0, node.Float("gamma", 1.05070102214813232421875)));
  }
  if (op == "HardSigmoid") {
    const ValueId line = Scale(p, x, node.Float("alpha", 0.2), node.Float("beta", 0.5));
    return node.SetValue(0, Clip(p, line, 0.0, 1.0));
  }
  if (op == "HardSwish") return node.SetValue(0, Mul(p, x, Clip(p, Scale(p, x, 1.0 / 6.0, 0.5), 0.0, 1.0)));
  if (op == "Mish") return node.SetValue(0, Mul(p, x, Tanh(p, Softplus(p, x))));
  if (op == "Gelu") return node.SetValue(0, node.String("approximate", "none") == "tanh" ? GeluTanh(p, x) : Gelu(p, x));
  const ValueId threshold = Fill(p, node.dtype(), Shape(), node.Float("alpha", 1.0));  // ThresholdedRelu
  return node.SetValue(0, Mul(p, x, Greater(p, x, threshold)));
}

absl::Status ImportPRelu(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const ValueId x, node.Value(0));
  GANTRY_ASSIGN_OR_RETURN(const ValueId slope, node.Value(1));
  Program& p = node.program();
  return node.SetValue(0, Sub(p, Relu(p, x), Mul(p, slope, Relu(p, Neg(p, x)))));
}

absl::Status ImportClip(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(ValueId x, node.Value(0));
  Program& p = node.program();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double bounds[2] = {node.Float("min", -kInfinity), node.Float("max", kInfinity)};
  for (int i : {0, 1}) {
    if (!node.HasInput(i + 1)) continue;
    GANTRY_ASSIGN_OR_RETURN(const Operand* bound, node.Raw(i + 1));
    if (bound->value == kNoValue) {
      GANTRY_ASSIGN_OR_RETURN(bounds[i], node.ConstantFloat(i + 1));
    } else {
      x = i == 0 ? Maximum(p, x, bound->value) : Minimum(p, x, bound->value);
    }
  }
  const bool bounded = bounds[0] != -kInfinity || bounds[1] != kInfinity;
  return node.SetValue(0, bounded ? Clip(p, x, bounds[0], bounds[1]) : x);
}

ValueId LogSoftmax(Program& p, ValueId x, int64_t axis) {
  const ValueId shifted = Sub(p, x, StopGradient(p, ReduceMax(p, x, {axis}, true)));
  return Sub(p, shifted, Log(p, ReduceSum(p, Exp(p, shifted), {axis}, true)));
}

// Before opset 13 all axes from `axis` on are one.
absl::Status ImportSoftmax(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(ValueId x, node.Value(0));
  Program& p = node.program();
  const Shape shape = p.TypeOf(x).shape;
  const bool flattens = node.opset() < 13;
  GANTRY_ASSIGN_OR_RETURN(int axis, NormalizeAxis(node.Int("axis", flattens ? 1 : -1), shape.rank()));
  if (flattens) {
    const auto& dims = shape.dims();
    const int64_t outer = std::accumulate(dims.begin(), dims.begin() + axis, int64_t{1}, std::multiplies<>());
    const int64_t inner = std::accumulate(dims.begin() + axis, dims.end(), int64_t{1}, std::multiplies<>());
    x = Reshape(p, x, Shape{outer, inner});
    axis = 1;
  }
  const ValueId y = node.op() == "Softmax" ? Softmax(p, x, axis) : LogSoftmax(p, x, axis);
  return node.SetValue(0, Reshape(p, y, shape));
}

}  // namespace

std::vector<Operator> ActivationOperators() {
  std::vector<Operator> list = {
      {"PRelu", ImportPRelu}, {"Clip", ImportClip}, {"Softmax", ImportSoftmax}, {"LogSoftmax", ImportSoftmax}};
  for (std::string_view name : {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Elu", "Celu", "Selu",
                                "HardSigmoid", "HardSwish", "Mish", "Gelu", "ThresholdedRelu"}) {
    list.push_back({name, ImportActivation});
  }
  return list;
}

}  // namespace gantry::onnx
