#include "ops/functional.h"

namespace gantry {
namespace ops {

ValueId AddIf(Builder& b, ValueId x, ValueId y, ValueId flag) { return Emit1(b, "add_if", {x, y, flag}); }

}  // namespace ops

namespace {

absl::StatusOr<std::vector<TensorType>> SameType(std::span<const TensorType> inputs, const Attributes&) {
  return std::vector<TensorType>{inputs[0]};
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
          {.name = "stash", .infer = SameType, .moves = true},
          {.name = "fetch", .infer = SameType, .moves = true},
          {.name = "write_back",
           .min_inputs = 2,
           .max_inputs = 2,
           .infer = SameTypes,
           .updates = [](int, const Attributes&) { return 1; },
           .moves = true}};
}

}  // namespace gantry
