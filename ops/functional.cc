#include "ops/functional.h"

namespace gantry::ops {

ValueId Emit1(Builder& b, std::string_view op, std::initializer_list<ValueId> inputs, Attributes attributes) {
  const std::vector<ValueId> outputs =
      b.Emit(op, std::span<const ValueId>(inputs.begin(), inputs.size()), std::move(attributes));
  return outputs.empty() ? kNoValue : outputs[0];
}

}  // namespace gantry::ops
