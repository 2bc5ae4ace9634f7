#include "runtime/graph/lanes.h"

#include <algorithm>

namespace gantry {

std::string_view Name(PlanLane lane) {
  switch (lane) {
    case PlanLane::kCompute: return "compute";
    case PlanLane::kCopy: return "copy";
    case PlanLane::kGradients: return "gradients";
    case PlanLane::kUrgent: return "urgent";
    case PlanLane::kActivations: return "activations";
  }
  return "unknown";
}

PlanLane LaneOf(const OpDefinition& definition, const Attributes& attributes) {
  if (definition.moves) return PlanLane::kCopy;
  if (!definition.communicates) return PlanLane::kCompute;
  const std::string purpose = attributes.String("purpose");
  if (purpose == "gradient") return attributes.Int("urgent") != 0 ? PlanLane::kUrgent : PlanLane::kGradients;
  if (purpose == "gather") return PlanLane::kUrgent;
  const bool soon = purpose == "halo" || (purpose == "statistics" && attributes.Int("backward") != 0);
  return soon ? PlanLane::kActivations : PlanLane::kCompute;
}

int64_t LinkBytes(const Program& program, OpId id) {
  const Op& op = program.ops()[id];
  if (!op.definition->communicates) return 0;
  const auto ranks = static_cast<int64_t>(op.attributes.Ints("ranks").size());
  const int64_t index = op.attributes.Int("index");
  const TensorType& x = program.TypeOf(op.inputs[0]);
  if (op.definition->name == "all_reduce") {
    int64_t bytes = 0;
    for (ValueId input : op.inputs) bytes += program.TypeOf(input).size_bytes();
    return 2 * (ranks - 1) * bytes / ranks;
  }
  const int64_t mine = program.TypeOf(op.outputs[0]).size_bytes();
  if (op.definition->name == "reduce_scatter") return std::max(x.size_bytes() - mine, (ranks - 1) * mine);
  const std::vector<int64_t> from_begins = op.attributes.Ints("from_begins"), from_ends = op.attributes.Ints("from_ends");
  const std::vector<int64_t> to_begins = op.attributes.Ints("to_begins"), to_ends = op.attributes.Ints("to_ends");
  const auto Common = [&](int64_t holder, int64_t taker) {
    return std::max<int64_t>(0, std::min(from_ends[holder], to_ends[taker]) - std::max(from_begins[holder], to_begins[taker]));
  };
  int64_t sent = 0, got = 0;  // places along the axis
  for (int64_t other = 0; other < ranks; ++other) {
    if (other == index) continue;
    sent += Common(index, other);
    got += Common(other, index);
  }
  const int64_t held = from_ends[index] - from_begins[index], wanted = to_ends[index] - to_begins[index];
  const int64_t place_bytes = held > 0 ? x.size_bytes() / held : wanted > 0 ? mine / wanted : 0;
  return std::max(sent, got) * place_bytes;
}

}  // namespace gantry
