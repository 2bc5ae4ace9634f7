// Definitions of the elementwise ops. Gradient formulas use the result where that is cheaper to keep than the input.
#include <cmath>
#include <numbers>

#include "ops/functional.h"
#include "ops/infer.h"

namespace gantry {
namespace ops {

ValueId Add(Builder& b, ValueId x, ValueId y) { return Emit1(b, "add", {x, y}); }
ValueId Sub(Builder& b, ValueId x, ValueId y) { return Emit1(b, "sub", {x, y}); }
ValueId Mul(Builder& b, ValueId x, ValueId y) { return Emit1(b, "mul", {x, y}); }
ValueId Div(Builder& b, ValueId x, ValueId y) { return Emit1(b, "div", {x, y}); }
ValueId Pow(Builder& b, ValueId x, ValueId y) { return Emit1(b, "pow", {x, y}); }
ValueId Minimum(Builder& b, ValueId x, ValueId y) { return Emit1(b, "minimum", {x, y}); }
ValueId Maximum(Builder& b, ValueId x, ValueId y) { return Emit1(b, "maximum", {x, y}); }
ValueId Greater(Builder& b, ValueId x, ValueId y) { return Emit1(b, "greater", {x, y}); }
ValueId Equal(Builder& b, ValueId x, ValueId y) { return Emit1(b, "equal", {x, y}); }
ValueId Neg(Builder& b, ValueId x) { return Emit1(b, "neg", {x}); }
ValueId Abs(Builder& b, ValueId x) { return Emit1(b, "abs", {x}); }
ValueId Sign(Builder& b, ValueId x) { return Emit1(b, "sign", {x}); }
ValueId Sqrt(Builder& b, ValueId x) { return Emit1(b, "sqrt", {x}); }
ValueId Rsqrt(Builder& b, ValueId x) { return Emit1(b, "rsqrt", {x}); }
ValueId Exp(Builder& b, ValueId x) { return Emit1(b, "exp", {x}); }
ValueId Log(Builder& b, ValueId x) { return Emit1(b, "log", {x}); }
ValueId Square(Builder& b, ValueId x) { return Emit1(b, "square", {x}); }
ValueId Reciprocal(Builder& b, ValueId x) { return Emit1(b, "reciprocal", {x}); }
ValueId Erf(Builder& b, ValueId x) { return Emit1(b, "erf", {x}); }
ValueId Sigmoid(Builder& b, ValueId x) { return Emit1(b, "sigmoid", {x}); }
ValueId Tanh(Builder& b, ValueId x) { return Emit1(b, "tanh", {x}); }
ValueId Softplus(Builder& b, ValueId x) { return Emit1(b, "softplus", {x}); }
ValueId Silu(Builder& b, ValueId x) { return Emit1(b, "silu", {x}); }
ValueId Gelu(Builder& b, ValueId x) { return Emit1(b, "gelu", {x}); }
ValueId StopGradient(Builder& b, ValueId x) { return Emit1(b, "stop_gradient", {x}); }
ValueId SigmoidGrad(Builder& b, ValueId g, ValueId y) { return Emit1(b, "sigmoid_grad", {g, y}); }
ValueId TanhGrad(Builder& b, ValueId g, ValueId y) { return Emit1(b, "tanh_grad", {g, y}); }
ValueId Relu(Builder& b, ValueId x) { return LeakyRelu(b, x, 0.0); }

ValueId Scale(Builder& b, ValueId x, double alpha, double beta) {
  return Emit1(b, "scale", {x}, {{"alpha", alpha}, {"beta", beta}});
}
ValueId Clip(Builder& b, ValueId x, double low, double high) {
  return Emit1(b, "clip", {x}, {{"low", low}, {"high", high}});
}
ValueId LeakyRelu(Builder& b, ValueId x, double slope) { return Emit1(b, "leaky_relu", {x}, {{"slope", slope}}); }
ValueId LeakyReluGrad(Builder& b, ValueId g, ValueId y, double slope) {
  return Emit1(b, "leaky_relu_grad", {g, y}, {{"slope", slope}});
}
ValueId Cast(Builder& b, ValueId x, DataType to) { return Emit1(b, "cast", {x}, {{"dtype", std::string(Name(to))}}); }
ValueId Fill(Builder& b, DataType dtype, const Shape& shape, double value) {
  return Emit1(b, "fill", {}, {{"value", value}, {"dims", shape.dims()}, {"dtype", std::string(Name(dtype))}});
}

}  // namespace ops

namespace {

using namespace ops;  // NOLINT: gradient rules read as formulas
using infer::Inputs;
using infer::Outputs;

Outputs InferBinary(Inputs inputs, const Attributes&) {
  GANTRY_RETURN_IF_ERROR(infer::RequireSameFloat(inputs));
  GANTRY_ASSIGN_OR_RETURN(Shape shape, infer::Broadcast(inputs));
  return infer::One(inputs[0].dtype, std::move(shape));
}

// One shape and float type for all inputs, which the output has too.
Outputs InferSame(Inputs inputs, const Attributes&) {
  GANTRY_RETURN_IF_ERROR(infer::RequireSameFloat(inputs));
  GANTRY_RETURN_IF_ERROR(infer::RequireSameShape(inputs));
  return infer::One(inputs[0].dtype, inputs[0].shape);
}

Outputs InferScale(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::FloatAttribute(attributes, "alpha").status());
  GANTRY_RETURN_IF_ERROR(infer::FloatAttribute(attributes, "beta").status());
  return InferSame(inputs, attributes);
}

Outputs InferClip(Inputs inputs, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(const double low, infer::FloatAttribute(attributes, "low", false));
  GANTRY_ASSIGN_OR_RETURN(const double high, infer::FloatAttribute(attributes, "high", false));
  if (low > high) return absl::InvalidArgumentError(absl::StrFormat("low %g is above high %g", low, high));
  return InferSame(inputs, attributes);
}

Outputs InferSlope(Inputs inputs, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(const double slope, infer::FloatAttribute(attributes, "slope"));
  if (slope < 0.0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "slope is %g; it must not be negative, since the gradient tells the sides by the result", slope));
  }
  return InferSame(inputs, attributes);
}

Outputs InferCast(Inputs inputs, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(const DataType dtype, infer::DataTypeAttribute(attributes, "dtype"));
  return infer::One(dtype, inputs[0].shape);
}

Outputs InferStopGradient(Inputs inputs, const Attributes&) { return infer::One(inputs[0].dtype, inputs[0].shape); }

Outputs InferFill(Inputs, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(Shape shape, infer::ShapeAttribute(attributes, "dims"));
  GANTRY_ASSIGN_OR_RETURN(const DataType dtype, infer::DataTypeAttribute(attributes, "dtype"));
  GANTRY_RETURN_IF_ERROR(infer::FloatAttribute(attributes, "value", !IsFloat(dtype)).status());
  if (dtype == DataType::kU8) return absl::InvalidArgumentError("u8 is not supported; use f32, f64, i32 or i64");
  return infer::One(dtype, std::move(shape));
}

// The rule of a unary op: kFormula(builder, gradient of the result, input, result) is the input's gradient.
template <auto kFormula>
void UnaryRule(GradientContext& c) {
  if (c.wanted[0]) c.input_gradients[0] = kFormula(c.builder, c.output_gradients[0], c.inputs[0], c.outputs[0]);
}

// The rule of a broadcasting binary op: kForX and kForY give the gradients in the broadcast shape.
template <auto kForX, auto kForY>
void BinaryRule(GradientContext& c) {
  Builder& b = c.builder;
  const ValueId g = c.output_gradients[0], x = c.inputs[0], y = c.inputs[1], z = c.outputs[0];
  // Copies: what TypeOf returns may move when an op is emitted.
  const Shape x_shape = b.TypeOf(x).shape, y_shape = b.TypeOf(y).shape;
  if (c.wanted[0]) c.input_gradients[0] = SumTo(b, kForX(b, g, x, y, z), x_shape);
  if (c.wanted[1]) c.input_gradients[1] = SumTo(b, kForY(b, g, x, y, z), y_shape);
}

ValueId Constant(Builder& b, ValueId like, double value) { return Fill(b, b.TypeOf(like).dtype, {}, value); }

// y * x^(y-1). Where both are 0 the base is taken as 1, so that the result is 0 instead of 0 * inf.
ValueId PowInBase(Builder& b, ValueId g, ValueId x, ValueId y, ValueId) {
  const ValueId zero = Constant(b, x, 0.0);
  const ValueId base = Add(b, x, Mul(b, Equal(b, y, zero), Equal(b, x, zero)));
  return Mul(b, g, Mul(b, y, Pow(b, base, Scale(b, y, 1.0, -1.0))));
}

// x^y * log(x), 0 where x is 0.
ValueId PowInExponent(Builder& b, ValueId g, ValueId x, ValueId, ValueId z) {
  return Mul(b, g, Mul(b, z, Log(b, Add(b, x, Equal(b, x, Constant(b, x, 0.0))))));
}

// g where x > y, half of it where they are equal.
ValueId WhereGreater(Builder& b, ValueId g, ValueId x, ValueId y) {
  return Mul(b, g, Add(b, Greater(b, x, y), Scale(b, Equal(b, x, y), 0.5)));
}

ValueId SiluInInput(Builder& b, ValueId g, ValueId x, ValueId) {
  const ValueId s = Sigmoid(b, x);
  return Mul(b, g, Mul(b, s, Scale(b, Mul(b, x, Scale(b, s, -1.0, 1.0)), 1.0, 1.0)));
}

ValueId GeluInInput(Builder& b, ValueId g, ValueId x, ValueId) {
  const ValueId cumulative = Scale(b, Erf(b, Scale(b, x, 1.0 / std::numbers::sqrt2)), 0.5, 0.5);
  const ValueId density =
      Scale(b, Exp(b, Scale(b, Square(b, x), -0.5)), std::numbers::inv_sqrtpi / std::numbers::sqrt2);
  return Mul(b, g, Add(b, cumulative, Mul(b, x, density)));
}

void ScaleRule(GradientContext& c) {
  if (c.wanted[0]) c.input_gradients[0] = Scale(c.builder, c.output_gradients[0], c.attributes.Float("alpha"));
}

void ClipRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  Builder& b = c.builder;
  const ValueId x = c.inputs[0];
  const ValueId below = Greater(b, Constant(b, x, c.attributes.Float("low")), x);
  const ValueId above = Greater(b, x, Constant(b, x, c.attributes.Float("high")));
  c.input_gradients[0] = Mul(b, c.output_gradients[0], Scale(b, Add(b, below, above), -1.0, 1.0));
}

void LeakyReluRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  c.input_gradients[0] = LeakyReluGrad(c.builder, c.output_gradients[0], c.outputs[0], c.attributes.Float("slope"));
}

void LeakyReluGradRule(GradientContext& c) {
  if (!c.wanted[0]) return;
  c.input_gradients[0] = LeakyReluGrad(c.builder, c.output_gradients[0], c.inputs[1], c.attributes.Float("slope"));
}

void SigmoidGradRule(GradientContext& c) {
  Builder& b = c.builder;
  const ValueId gg = c.output_gradients[0], g = c.inputs[0], y = c.inputs[1];
  if (c.wanted[0]) c.input_gradients[0] = SigmoidGrad(b, gg, y);
  if (c.wanted[1]) c.input_gradients[1] = Mul(b, Mul(b, gg, g), Scale(b, y, -2.0, 1.0));
}

void TanhGradRule(GradientContext& c) {
  Builder& b = c.builder;
  const ValueId gg = c.output_gradients[0], g = c.inputs[0], y = c.inputs[1];
  if (c.wanted[0]) c.input_gradients[0] = TanhGrad(b, gg, y);
  if (c.wanted[1]) c.input_gradients[1] = Scale(b, Mul(b, Mul(b, gg, g), y), -2.0);
}

void CastRule(GradientContext& c) {
  const DataType from = c.builder.TypeOf(c.inputs[0]).dtype;
  if (!c.wanted[0] || !IsFloat(from) || !IsFloat(c.builder.TypeOf(c.outputs[0]).dtype)) return;
  c.input_gradients[0] = Cast(c.builder, c.output_gradients[0], from);
}

using Rule = void (*)(GradientContext&);

// Same size in and out means that nothing is broadcast, so either input's memory may take the result.
OpDefinition Binary(std::string_view name, Rule rule) {
  return {.name = name,
          .min_inputs = 2,
          .max_inputs = 2,
          .infer = InferBinary,
          .differentiate = rule,
          .zero_gradient = rule == nullptr,
          .in_place = {{0, 0}, {0, 1}}};
}

OpDefinition Unary(std::string_view name, Rule rule, decltype(OpDefinition::infer) infer = InferSame) {
  return {.name = name, .infer = infer, .differentiate = rule, .zero_gradient = rule == nullptr, .in_place = {{0, 0}}};
}

// An activation's gradient: (g, y) of one shape.
OpDefinition ActivationGrad(std::string_view name, Rule rule, decltype(OpDefinition::infer) infer = InferSame) {
  return {.name = name,
          .min_inputs = 2,
          .max_inputs = 2,
          .infer = infer,
          .differentiate = rule,
          .in_place = {{0, 0}, {0, 1}}};
}

using B = Builder;
using V = ValueId;

}  // namespace

std::vector<OpDefinition> ElementwiseOps() {
  return {
      Binary("add", BinaryRule<[](B&, V g, V, V, V) { return g; }, [](B&, V g, V, V, V) { return g; }>),
      Binary("sub", BinaryRule<[](B&, V g, V, V, V) { return g; }, [](B& b, V g, V, V, V) { return Neg(b, g); }>),
      Binary("mul", BinaryRule<[](B& b, V g, V, V y, V) { return Mul(b, g, y); },
                               [](B& b, V g, V x, V, V) { return Mul(b, g, x); }>),
      Binary("div", BinaryRule<[](B& b, V g, V, V y, V) { return Div(b, g, y); },
                               [](B& b, V g, V, V y, V z) { return Neg(b, Div(b, Mul(b, g, z), y)); }>),
      Binary("pow", BinaryRule<PowInBase, PowInExponent>),
      Binary("minimum", BinaryRule<[](B& b, V g, V x, V y, V) { return WhereGreater(b, g, y, x); },
                                   [](B& b, V g, V x, V y, V) { return WhereGreater(b, g, x, y); }>),
      Binary("maximum", BinaryRule<[](B& b, V g, V x, V y, V) { return WhereGreater(b, g, x, y); },
                                   [](B& b, V g, V x, V y, V) { return WhereGreater(b, g, y, x); }>),
      Binary("greater", nullptr),
      Binary("equal", nullptr),
      Unary("neg", UnaryRule<[](B& b, V g, V, V) { return Neg(b, g); }>),
      Unary("abs", UnaryRule<[](B& b, V g, V x, V) { return Mul(b, g, Sign(b, x)); }>),
      Unary("sign", nullptr),
      Unary("sqrt", UnaryRule<[](B& b, V g, V, V y) { return Scale(b, Div(b, g, y), 0.5); }>),
      Unary("rsqrt", UnaryRule<[](B& b, V g, V, V y) { return Scale(b, Mul(b, g, Mul(b, y, Square(b, y))), -0.5); }>),
      Unary("exp", UnaryRule<[](B& b, V g, V, V y) { return Mul(b, g, y); }>),
      Unary("log", UnaryRule<[](B& b, V g, V x, V) { return Div(b, g, x); }>),
      Unary("square", UnaryRule<[](B& b, V g, V x, V) { return Scale(b, Mul(b, g, x), 2.0); }>),
      Unary("reciprocal", UnaryRule<[](B& b, V g, V, V y) { return Neg(b, Mul(b, g, Square(b, y))); }>),
      Unary("erf", UnaryRule<[](B& b, V g, V x, V) {
              return Scale(b, Mul(b, g, Exp(b, Neg(b, Square(b, x)))), 2.0 * std::numbers::inv_sqrtpi);
            }>),
      Unary("scale", ScaleRule, InferScale),
      Unary("clip", ClipRule, InferClip),
      Unary("leaky_relu", LeakyReluRule, InferSlope),
      ActivationGrad("leaky_relu_grad", LeakyReluGradRule, InferSlope),
      Unary("sigmoid", UnaryRule<[](B& b, V g, V, V y) { return SigmoidGrad(b, g, y); }>),
      ActivationGrad("sigmoid_grad", SigmoidGradRule),
      Unary("tanh", UnaryRule<[](B& b, V g, V, V y) { return TanhGrad(b, g, y); }>),
      ActivationGrad("tanh_grad", TanhGradRule),
      Unary("softplus", UnaryRule<[](B& b, V g, V x, V) { return Mul(b, g, Sigmoid(b, x)); }>),
      Unary("silu", UnaryRule<SiluInInput>),
      Unary("gelu", UnaryRule<GeluInInput>),
      {.name = "cast", .infer = InferCast, .differentiate = CastRule},
      {.name = "stop_gradient", .infer = InferStopGradient, .zero_gradient = true, .is_view = true},
      {.name = "fill", .min_inputs = 0, .max_inputs = 0, .infer = InferFill},
  };
}

}  // namespace gantry
