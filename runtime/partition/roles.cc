#include "runtime/partition/roles.h"

#include <algorithm>

#include "runtime/partition/homes.h"

namespace gantry {
namespace {

constexpr RankSet kBoth = 3;
constexpr int64_t kSmallBytes = 4096;

}  // namespace

absl::StatusOr<Program> PartitionRoles(const Program& program, const RoleAxis& axis, int index) {
  if (axis.ranks.size() != 2 || index < 0 || index > 1) {
    return absl::InvalidArgumentError(absl::StrFormat("an axis of roles has two ranks, not %d, and no place %d", axis.ranks.size(), index));
  }
  const auto RoleOf = [&](std::string_view network) {
    if (network.starts_with("ema.")) network.remove_prefix(4);
    return std::ranges::find(axis.first, network) != axis.first.end() ? 0 : 1;
  };
  const Homes homes{
      .of_state = [&](const State& state) { return state.network.empty() ? kEverywhere : RoleOf(state.network); },
      .of_op = [&](const Op& op, std::span<const RankSet> where) {
        if (UpdateCount(op) > 0) return where[op.inputs[0]] == kBoth ? kEverywhere : where[op.inputs[0]] == 1 ? 0 : 1;
        int64_t made = 0;
        for (ValueId output : op.outputs) made += program.TypeOf(output).size_bytes();
        const bool reads_both = std::ranges::all_of(op.inputs, [&](ValueId input) { return where[input] == kBoth; });
        if (reads_both && made <= kSmallBytes && !op.definition->communicates) return kEverywhere;
        const std::string& network = program.labels()[op.network];
        if (!network.empty()) return RoleOf(network);
        // To where most of its operands are.
        int64_t bytes[2] = {};
        for (ValueId input : op.inputs) {
          if (where[input] != kBoth) bytes[where[input] == 1 ? 0 : 1] += program.TypeOf(input).size_bytes();
        }
        return bytes[0] > bytes[1] ? 0 : 1;
      }};
  return PartitionByHomes(program, axis.ranks, index, homes);
}

}  // namespace gantry
