#include "ops/functional.h"

namespace gantry {
namespace ops {

ValueId AddIf(Builder& b, ValueId x, ValueId y, ValueId flag) { return Emit1(b, "add_if", {x, y, flag}); }

}  // namespace ops

namespace {

// A stash {encoding = "bf16"} takes half the bytes; "zeros" and none take as many.
absl::StatusOr<std::vector<TensorType>> StashType(std::span<const TensorType> inputs, const Attributes& attributes) {
  const std::string encoding = attributes.String("encoding");
  if (encoding.empty()) return std::vector<TensorType>{inputs[0]};
  if (encoding != "zeros" && encoding != "bf16") {
    return absl::InvalidArgumentError(absl::StrFormat("encoding is \"%s\"; it can be \"zeros\" or \"bf16\"", encoding));
  }
  if (inputs[0].dtype != DataType::kF32) {
    return absl::InvalidArgumentError(absl::StrFormat("encoding \"%s\" takes f32, got %s", encoding, inputs[0].ToString()));
  }
  if (encoding == "zeros") return std::vector<TensorType>{inputs[0]};
  return std::vector<TensorType>{{DataType::kU8, Shape{inputs[0].size_bytes() / 2}}};
}

// Back as it was; {encoding = "bf16", dims} says what it was.
absl::StatusOr<std::vector<TensorType>> FetchType(std::span<const TensorType> inputs, const Attributes& attributes) {
  if (attributes.String("encoding") != "bf16") return std::vector<TensorType>{inputs[0]};
  return std::vector<TensorType>{{DataType::kF32, Shape(attributes.Ints("dims"))}};
}

absl::StatusOr<std::vector<TensorType>> SameTypes(std::span<const TensorType> inputs, const Attributes&) {
  if (!(inputs[0] == inputs[1])) {
    return absl::InvalidArgumentError(absl::StrFormat("takes two equal types, got %s and %s", inputs[0].ToString(),
                                                      inputs[1].ToString()));
  }
  return std::vector<TensorType>{inputs[0]};
}

}  // namespace

std::vector<OpDefinition> ControlOps() {
  OpDefinition add_if;
  add_if.name = "add_if";
  add_if.min_inputs = add_if.max_inputs = 3;
  add_if.infer = [](std::span<const TensorType> inputs, const Attributes&) -> absl::StatusOr<std::vector<TensorType>> {
    if (!IsFloat(inputs[0].dtype) || !(inputs[0] == inputs[1])) {
      return absl::InvalidArgumentError(absl::StrFormat("takes two equal float types, got %s and %s", inputs[0].ToString(),
                                                        inputs[1].ToString()));
    }
    if (inputs[2].dtype != inputs[0].dtype || inputs[2].element_count() != 1) {
      return absl::InvalidArgumentError(absl::StrFormat("the flag must be one %s, got %s", Name(inputs[0].dtype),
                                                        inputs[2].ToString()));
    }
    return std::vector<TensorType>{inputs[0]};
  };
  add_if.in_place = {{0, 0}};
  return {add_if,
          {.name = "stash", .infer = StashType, .moves = true},
          {.name = "fetch", .infer = FetchType, .moves = true},
          {.name = "write_back",
           .min_inputs = 2,
           .max_inputs = 2,
           .infer = SameTypes,
           .updates = [](int, const Attributes&) { return 1; },
           .moves = true},
          // assign(old, value): a new version of a state.
          {.name = "assign",
           .min_inputs = 2,
           .max_inputs = 2,
           .infer = SameTypes,
           .updates = [](int, const Attributes&) { return 1; },
           .planner_only = true}};
}

}  // namespace gantry
