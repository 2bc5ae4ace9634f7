#include "runtime/partition/gradient_ops.h"

#include <algorithm>

namespace gantry {

std::vector<bool> NeededByUpdatesOnly(const Program& program) {
  const auto count = static_cast<OpId>(program.ops().size());
  std::vector<bool> wanted(program.values().size(), false), otherwise(program.values().size(), false), result(program.ops().size(), false);
  for (const NamedValue& output : program.outputs()) otherwise[output.value] = true;
  for (OpId id = count - 1; id >= 0; --id) {
    const Op& op = program.ops()[id];
    const bool ends = UpdateCount(op) > 0 || op.definition->name == "sum_squares";
    result[id] = !ends && std::any_of(op.outputs.begin(), op.outputs.end(), [&](ValueId output) { return wanted[output]; }) &&
                 std::none_of(op.outputs.begin(), op.outputs.end(), [&](ValueId output) { return otherwise[output]; });
    for (ValueId input : op.inputs) (ends || result[id] ? wanted : otherwise)[input] = true;
  }
  return result;
}

}  // namespace gantry
