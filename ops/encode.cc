// Ops that keep less of a value than the value: the sign is all that the gradient of a leaky relu asks of its result,
// so 1 bit an element can wait in place of 32 (Jain et al., Gist: Efficient Data Encoding for Deep Neural Network
// Training, ISCA 2018, "binarize"). Only the planner emits them (runtime/plan/encode.h), in place of ops that have been
// differentiated already.
//
//   "sign_bits"(y): u8[ceil(n / 8)] over the n elements that y has in memory, padding of its layout included; bit i % 8
//   of byte
//     i / 8 is set where y[i] > 0.
//   "leaky_relu_grad_bits"(g, bits) {slope}: leaky_relu_grad(g, y) with y's sign bits; g has the layout that y had.
#include "ops/op_definition.h"

namespace gantry {
namespace {

using Types = absl::StatusOr<std::vector<TensorType>>;

int64_t MemoryElements(const TensorType& type) {
  return type.size_bytes() / static_cast<int64_t>(SizeBytes(type.dtype));
}

absl::Status RequireFloat(const TensorType& type) {
  if (IsFloat(type.dtype)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("takes f32 or f64, got %s", type.ToString()));
}

Types InferSignBits(std::span<const TensorType> inputs, const Attributes&) {
  GANTRY_RETURN_IF_ERROR(RequireFloat(inputs[0]));
  return std::vector<TensorType>{{DataType::kU8, Shape{(MemoryElements(inputs[0]) + 7) / 8}}};
}

Types InferGradient(std::span<const TensorType> inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(RequireFloat(inputs[0]));
  const TensorType bits{DataType::kU8, Shape{(MemoryElements(inputs[0]) + 7) / 8}};
  if (!(inputs[1] == bits)) {
    return absl::InvalidArgumentError(absl::StrFormat("the sign bits for %s are %s, got %s", inputs[0].ToString(),
                                                      bits.ToString(), inputs[1].ToString()));
  }
  if (const double slope = attributes.Float("slope", -1.0); !(slope >= 0.0)) {
    return absl::InvalidArgumentError(absl::StrFormat("slope is %g; it must be given and at least 0", slope));
  }
  return std::vector<TensorType>{inputs[0]};
}

}  // namespace

std::vector<OpDefinition> EncodeOps() {
  return {
      {.name = "sign_bits", .infer = InferSignBits},
      {.name = "leaky_relu_grad_bits", .min_inputs = 2, .max_inputs = 2, .infer = InferGradient, .in_place = {{0, 0}}}};
}

}  // namespace gantry
