// How many ops of a kind a program has.
#pragma once

#include <algorithm>
#include <string_view>

#include "runtime/graph/program.h"

namespace gantry::testing {

inline int CountOps(const Program& program, std::string_view name) {
  return static_cast<int>(std::count_if(program.ops().begin(), program.ops().end(), [&](const Op& op) { return op.definition->name == name; }));
}

}  // namespace gantry::testing
