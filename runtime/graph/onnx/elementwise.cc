// Arithmetic, comparisons, Where and Cast. Comparisons give floats 0 and 1; logic works on those.
#include <cmath>
#include <numbers>

#include "ops/functional.h"
#include "runtime/graph/onnx/fold.h"
#include "runtime/graph/onnx/node.h"

namespace gantry::onnx {
namespace {

using namespace ops;  // NOLINT: emission reads as formulas

// The op that made `value` if it is called `name`, else null.
const Op* MadeBy(const Program& program, ValueId value, std::string_view name) {
  if (value == kNoValue || program.values()[value].kind != ValueKind::kComputed) return nullptr;
  const Op& op = program.ops()[program.values()[value].producer];
  return op.definition->name == name ? &op : nullptr;
}

bool Near(double a, double b) { return std::abs(a - b) <= 1e-7 * std::abs(b); }

const Op* ScaledBy(const Program& program, ValueId value, double alpha, double beta) {
  const Op* op = MadeBy(program, value, "scale");
  return op != nullptr && Near(op->attributes.Float("alpha"), alpha) && op->attributes.Float("beta") == beta ? op
                                                                                                             : nullptr;
}

// a where `value` is 1 + erf(a / sqrt(2)), else kNoValue.
ValueId ErfGateOf(const Program& program, ValueId value) {
  const Op* sum = ScaledBy(program, value, 1.0, 1.0);
  const Op* erf = sum == nullptr ? nullptr : MadeBy(program, sum->inputs[0], "erf");
  const Op* scale = erf == nullptr ? nullptr : ScaledBy(program, erf->inputs[0], std::numbers::sqrt2 / 2, 0.0);
  return scale == nullptr ? kNoValue : scale->inputs[0];
}

// alpha * x, where alpha = 0.5 may complete gelu: 0.5 * (a * (1 + erf(a / sqrt(2)))).
ValueId Scaled(Program& program, ValueId x, double alpha) {
  if (const Op* product = alpha == 0.5 ? MadeBy(program, x, "mul") : nullptr; product != nullptr) {
    for (int side : {0, 1}) {
      const ValueId a = product->inputs[side];
      if (ErfGateOf(program, product->inputs[1 - side]) == a) return Gelu(program, a);
    }
  }
  return alpha == 1.0 ? x : Scale(program, x, alpha);
}

// x * y, where that is silu or gelu in parts.
ValueId Multiply(Program& program, ValueId x, ValueId y) {
  for (const auto& [a, b] : {std::pair(x, y), std::pair(y, x)}) {
    if (const Op* gate = MadeBy(program, b, "sigmoid"); gate != nullptr && gate->inputs[0] == a)
      return Silu(program, a);
    const Op* half = ScaledBy(program, a, 0.5, 0.0);
    if (half != nullptr && ErfGateOf(program, b) == half->inputs[0]) return Gelu(program, half->inputs[0]);
    const Op* half_gate = ScaledBy(program, b, 0.5, 0.0);
    if (half_gate != nullptr && ErfGateOf(program, half_gate->inputs[0]) == a) return Gelu(program, a);
  }
  return Mul(program, x, y);
}

ValueId Power(Program& program, ValueId x, double exponent) {
  if (exponent == 1.0) return x;
  if (exponent == 2.0) return Square(program, x);
  if (exponent == 3.0) return Mul(program, x, Square(program, x));
  if (exponent == 4.0) return Square(program, Square(program, x));
  if (exponent == 0.5) return Sqrt(program, x);
  if (exponent == -0.5) return Rsqrt(program, x);
  if (exponent == -1.0) return Reciprocal(program, x);
  return Pow(program, x, Fill(program, program.TypeOf(x).dtype, Shape(), exponent));
}

// The number that all elements of a constant are, if broadcasting it to `other` leaves `other` as it is.
std::optional<double> ScalarBeside(const Operand& operand, const Shape& other) {
  if (operand.constant == nullptr || !operand.constant->is_splat()) return std::nullopt;
  const absl::StatusOr<Shape> both = BroadcastShapes(operand.constant->shape, other);
  if (!both.ok() || !(*both == other)) return std::nullopt;
  return BeforeRounding(operand.constant->Real(0));
}

// x op c, or c op x where `first`. kNoValue where there is no shorter form than the binary op.
ValueId WithScalar(Program& program, std::string_view op, ValueId x, double c, bool first) {
  if (op == "Add") return c == 0.0 ? x : Scale(program, x, 1.0, c);
  if (op == "Sub") return first ? Scale(program, x, -1.0, c) : Scale(program, x, 1.0, -c);
  if (op == "Mul") return Scaled(program, x, c);
  if (op == "Div" && first) return Scaled(program, Reciprocal(program, x), c);
  if (op == "Div" && c != 0.0) return Scaled(program, x, 1.0 / c);
  if (op == "Pow" && !first) return Power(program, x, c);
  return kNoValue;
}

ValueId EmitBinary(Program& program, std::string_view op, ValueId a, ValueId b) {
  if (op == "Add") return Add(program, a, b);
  if (op == "Sub") return Sub(program, a, b);
  if (op == "Mul" || op == "And") return Multiply(program, a, b);
  if (op == "Div") return Div(program, a, b);
  if (op == "Pow") return Pow(program, a, b);
  if (op == "Min") return Minimum(program, a, b);
  if (op == "Max" || op == "Or") return Maximum(program, a, b);
  if (op == "Greater") return Greater(program, a, b);
  if (op == "Less") return Greater(program, b, a);
  if (op == "GreaterOrEqual") return Scale(program, Greater(program, b, a), -1.0, 1.0);
  if (op == "LessOrEqual") return Scale(program, Greater(program, a, b), -1.0, 1.0);
  if (op == "Equal") return Equal(program, a, b);
  if (op == "Xor") return Abs(program, Sub(program, a, b));
  program.Fail(absl::UnimplementedError("it is supported between constants only"));
  return kNoValue;
}

absl::StatusOr<Operand> Binary(Node& node, std::string_view op, Operand a, Operand b) {
  if (a.constant != nullptr && b.constant != nullptr) {
    GANTRY_ASSIGN_OR_RETURN(HostTensor folded, FoldBinary(op, *a.constant, *b.constant));
    return MakeConstant(std::move(folded));
  }
  Program& program = node.program();
  const bool is_float = IsFloat(program.TypeOf(a.value != kNoValue ? a.value : b.value).dtype);
  const std::optional<double> first = ScalarBeside(a, node.ShapeOf(b));
  const std::optional<double> second = ScalarBeside(b, node.ShapeOf(a));
  if (is_float && (first || second)) {
    const ValueId result =
        first ? WithScalar(program, op, b.value, *first, true) : WithScalar(program, op, a.value, *second, false);
    if (result != kNoValue || !program.status().ok()) return MakeValue(result);
  }
  GANTRY_ASSIGN_OR_RETURN(const ValueId x, node.ToValue(a));
  GANTRY_ASSIGN_OR_RETURN(const ValueId y, node.ToValue(b));
  return MakeValue(EmitBinary(program, op, x, y));
}

absl::Status ImportBinary(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(Operand a, node.Get(0));
  GANTRY_ASSIGN_OR_RETURN(Operand b, node.Get(1));
  GANTRY_ASSIGN_OR_RETURN(Operand result, Binary(node, node.op(), std::move(a), std::move(b)));
  return node.Set(0, std::move(result));
}

// The exponent only sets up the op, whatever its name.
absl::Status ImportPow(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const Operand* exponent, node.Raw(1));
  if (exponent->value == kNoValue) {
    GANTRY_ASSIGN_OR_RETURN(const auto host, node.Constant(1));
    if (host->is_splat()) {
      GANTRY_ASSIGN_OR_RETURN(Operand base, node.Get(0));
      Operand power{.constant = host};
      GANTRY_ASSIGN_OR_RETURN(Operand result, Binary(node, "Pow", std::move(base), std::move(power)));
      return node.Set(0, std::move(result));
    }
  }
  return ImportBinary(node);
}

// Sum, Mean, Min, Max of any number of inputs.
absl::Status ImportVariadic(Node& node) {
  const std::string_view op = node.op() == "Sum" || node.op() == "Mean" ? "Add" : node.op();
  GANTRY_ASSIGN_OR_RETURN(Operand result, node.Get(0));
  for (int i = 1; i < node.input_count(); ++i) {
    GANTRY_ASSIGN_OR_RETURN(Operand next, node.Get(i));
    GANTRY_ASSIGN_OR_RETURN(result, Binary(node, op, std::move(result), std::move(next)));
  }
  if (node.op() == "Mean") {
    Operand share = MakeConstant(HostTensor::Floats(Shape(), {1.0 / node.input_count()}));
    GANTRY_ASSIGN_OR_RETURN(result, Binary(node, "Mul", std::move(result), std::move(share)));
  }
  return node.Set(0, std::move(result));
}

absl::Status ImportUnary(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(Operand x, node.Get(0));
  const std::string_view op = node.op();
  if (x.constant != nullptr) {
    GANTRY_ASSIGN_OR_RETURN(HostTensor folded, FoldUnary(op, *x.constant));
    return node.SetConstant(0, std::move(folded));
  }
  Program& program = node.program();
  if (op == "Neg") return node.SetValue(0, Neg(program, x.value));
  if (op == "Abs") return node.SetValue(0, Abs(program, x.value));
  if (op == "Sign") return node.SetValue(0, Sign(program, x.value));
  if (op == "Sqrt") return node.SetValue(0, Sqrt(program, x.value));
  if (op == "Exp") return node.SetValue(0, Exp(program, x.value));
  if (op == "Log") return node.SetValue(0, Log(program, x.value));
  if (op == "Erf") return node.SetValue(0, Erf(program, x.value));
  if (op == "Reciprocal") {
    if (const Op* root = MadeBy(program, x.value, "sqrt"); root != nullptr)
      return node.SetValue(0, Rsqrt(program, root->inputs[0]));
    return node.SetValue(0, Reciprocal(program, x.value));
  }
  if (op == "Not") return node.SetValue(0, Scale(program, x.value, -1.0, 1.0));
  return absl::UnimplementedError("it is supported on constants only");
}

// The infinite branch of a mask would turn into NaN in condition * x + (1 - condition) * y.
absl::Status RequireFinite(const Operand& operand) {
  if (operand.constant == nullptr) return absl::OkStatus();
  for (double value : operand.constant->floats) {
    if (!std::isfinite(value)) {
      return absl::UnimplementedError("a choice of Where that is not finite is not supported; use a large number");
    }
  }
  return absl::OkStatus();
}

absl::Status ImportWhere(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(Operand condition, node.Get(0));
  GANTRY_ASSIGN_OR_RETURN(Operand x, node.Get(1));
  GANTRY_ASSIGN_OR_RETURN(Operand y, node.Get(2));
  if (condition.constant != nullptr && x.constant != nullptr && y.constant != nullptr) {
    GANTRY_ASSIGN_OR_RETURN(HostTensor folded, FoldWhere(*condition.constant, *x.constant, *y.constant));
    return node.SetConstant(0, std::move(folded));
  }
  if (condition.constant != nullptr && condition.constant->is_splat()) {
    Operand& chosen = condition.constant->Real(0) != 0 ? x : y;
    GANTRY_ASSIGN_OR_RETURN(const Shape choices, BroadcastShapes(node.ShapeOf(x), node.ShapeOf(y)));
    GANTRY_ASSIGN_OR_RETURN(const Shape shape, BroadcastShapes(choices, condition.constant->shape));
    GANTRY_ASSIGN_OR_RETURN(const ValueId value, node.ToValue(chosen));
    return node.SetValue(0, Broadcast(node.program(), value, shape));
  }
  GANTRY_RETURN_IF_ERROR(RequireFinite(x));
  GANTRY_RETURN_IF_ERROR(RequireFinite(y));
  Program& program = node.program();
  GANTRY_ASSIGN_OR_RETURN(const ValueId mask, node.ToValue(condition));
  GANTRY_ASSIGN_OR_RETURN(const ValueId yes, node.ToValue(x));
  GANTRY_ASSIGN_OR_RETURN(const ValueId no, node.ToValue(y));
  return node.SetValue(0, Add(program, Mul(program, mask, yes), Mul(program, Scale(program, mask, -1.0, 1.0), no)));
}

// What CastLike casts to: the kind of its second input.
absl::StatusOr<ElementKind> KindOfInput(Node& node, int input, int* element_bytes) {
  GANTRY_ASSIGN_OR_RETURN(const Operand* like, node.Raw(input));
  *element_bytes = 8;
  if (like->constant != nullptr) return like->constant->kind;
  if (like->weight != nullptr) return like->weight->header.kind;
  const DataType dtype = node.program().TypeOf(like->value).dtype;
  if (dtype == DataType::kI32) *element_bytes = 4;
  return IsFloat(dtype) ? ElementKind::kFloat : ElementKind::kInt;
}

absl::Status ImportCast(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(Operand x, node.Get(0));
  int element_bytes = 0;
  ElementKind kind;
  if (node.op() == "CastLike") {
    GANTRY_ASSIGN_OR_RETURN(kind, KindOfInput(node, 1, &element_bytes));
  } else {
    GANTRY_ASSIGN_OR_RETURN(kind, KindOf(static_cast<int32_t>(node.Int("to", 0)), &element_bytes));
  }
  if (x.constant != nullptr) {
    GANTRY_ASSIGN_OR_RETURN(HostTensor folded, FoldCast(*x.constant, kind));
    return node.SetConstant(0, std::move(folded));
  }
  Program& program = node.program();
  if (kind == ElementKind::kBool) {
    const ValueId zero = Fill(program, program.TypeOf(x.value).dtype, Shape(), 0.0);
    const ValueId is_zero = Cast(program, Equal(program, x.value, zero), node.dtype());
    return node.SetValue(0, Scale(program, is_zero, -1.0, 1.0));
  }
  DataType to = node.dtype();
  if (kind == ElementKind::kInt) to = element_bytes == 4 ? DataType::kI32 : DataType::kI64;
  return node.SetValue(0, program.TypeOf(x.value).dtype == to ? x.value : Cast(program, x.value, to));
}

}  // namespace

std::vector<Operator> ElementwiseOperators() {
  std::vector<Operator> list = {
      {"Pow", ImportPow}, {"Where", ImportWhere}, {"Cast", ImportCast}, {"CastLike", ImportCast}};
  for (std::string_view name : {"Sum", "Mean", "Min", "Max"}) list.push_back({name, ImportVariadic});
  for (std::string_view name : {"Add", "Sub", "Mul", "Div", "Mod", "And", "Or", "Xor", "Equal", "Greater",
                                "GreaterOrEqual", "Less", "LessOrEqual"}) {
    list.push_back({name, ImportBinary});
  }
  for (std::string_view name : {"Neg", "Abs", "Sign", "Sqrt", "Exp", "Log", "Reciprocal", "Floor", "Ceil", "Round",
                                "Erf", "Sin", "Cos", "Not"}) {
    list.push_back({name, ImportUnary});
  }
  return list;
}

}  // namespace gantry::onnx
