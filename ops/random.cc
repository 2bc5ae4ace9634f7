// Definitions of the random draws.
#include "ops/functional.h"
#include "ops/infer.h"
#include "ops/philox.h"

namespace gantry {
namespace ops {
namespace {

Attributes DrawAttributes(DataType dtype, const Shape& shape, int64_t stream) {
  return {{"dims", shape.dims()}, {"dtype", std::string(Name(dtype))}, {"stream", stream}};
}

}  // namespace

ValueId RandomUniform(Builder& b, ValueId state, DataType dtype, const Shape& shape, int64_t stream, double low,
                      double high) {
  Attributes attributes = DrawAttributes(dtype, shape, stream);
  attributes.Set("low", low);
  attributes.Set("high", high);
  return Emit1(b, "random_uniform", {state}, std::move(attributes));
}

ValueId RandomNormal(Builder& b, ValueId state, DataType dtype, const Shape& shape, int64_t stream, double mean,
                     double deviation) {
  Attributes attributes = DrawAttributes(dtype, shape, stream);
  attributes.Set("mean", mean);
  attributes.Set("deviation", deviation);
  return Emit1(b, "random_normal", {state}, std::move(attributes));
}

ValueId DropoutMask(Builder& b, ValueId state, DataType dtype, const Shape& shape, int64_t stream, double rate) {
  Attributes attributes = DrawAttributes(dtype, shape, stream);
  attributes.Set("rate", rate);
  return Emit1(b, "dropout_mask", {state}, std::move(attributes));
}

ValueId Dropout(Builder& b, ValueId x, ValueId state, int64_t stream, double rate) {
  if (x == kNoValue) return x;
  const TensorType type = b.TypeOf(x);
  return Mul(b, x, DropoutMask(b, state, type.dtype, type.shape, stream, rate));
}

}  // namespace ops

namespace {

using infer::Inputs;
using infer::Outputs;

Outputs InferDraw(Inputs inputs, const Attributes& attributes) {
  if (inputs[0].dtype != DataType::kI64 || inputs[0].shape != Shape{2}) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the generator's state must be i64[2] (seed, counter), got %s", inputs[0].ToString()));
  }
  GANTRY_RETURN_IF_ERROR(infer::IntAttribute(attributes, "stream", 0, kMaxRandomStream).status());
  GANTRY_ASSIGN_OR_RETURN(Shape shape, infer::ShapeAttribute(attributes, "dims"));
  GANTRY_ASSIGN_OR_RETURN(const DataType dtype, infer::DataTypeAttribute(attributes, "dtype"));
  if (!IsFloat(dtype)) {
    return absl::InvalidArgumentError(absl::StrFormat("only f32 and f64 can be drawn, not %s", Name(dtype)));
  }
  return infer::One(dtype, std::move(shape));
}

Outputs InferUniform(Inputs inputs, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(const double low, infer::FloatAttribute(attributes, "low"));
  GANTRY_ASSIGN_OR_RETURN(const double high, infer::FloatAttribute(attributes, "high"));
  if (low > high) return absl::InvalidArgumentError(absl::StrFormat("low %g is above high %g", low, high));
  return InferDraw(inputs, attributes);
}

Outputs InferNormal(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::FloatAttribute(attributes, "mean").status());
  GANTRY_ASSIGN_OR_RETURN(const double deviation, infer::FloatAttribute(attributes, "deviation"));
  if (deviation < 0.0) return absl::InvalidArgumentError(absl::StrFormat("deviation %g is negative", deviation));
  return InferDraw(inputs, attributes);
}

Outputs InferDropoutMask(Inputs inputs, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(const double rate, infer::FloatAttribute(attributes, "rate"));
  if (rate < 0.0 || rate >= 1.0) {
    return absl::InvalidArgumentError(absl::StrFormat("rate is %g; it must be at least 0 and below 1", rate));
  }
  return InferDraw(inputs, attributes);
}

// Ten rounds of two products and four further operations, for four elements, and the transformation.
Cost DrawCost(Inputs, std::span<const TensorType> outputs, const Attributes&) {
  return {.flops = 20.0 * static_cast<double>(outputs[0].element_count())};
}

OpDefinition Draw(std::string_view name, decltype(OpDefinition::infer) infer) {
  return {.name = name, .infer = infer, .cost = DrawCost, .zero_gradient = true};
}

}  // namespace

std::vector<OpDefinition> RandomOps() {
  return {Draw("random_uniform", InferUniform), Draw("random_normal", InferNormal),
          Draw("dropout_mask", InferDropoutMask)};
}

}  // namespace gantry
