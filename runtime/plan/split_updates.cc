#include <algorithm>

#include "runtime/plan/order.h"

namespace gantry {
namespace {

constexpr int64_t kBlockElements = 16384;  // what updates allow pieces to begin at

// Which inputs of an update are states that nothing but updates uses; the others stay whole.
std::vector<int> PieceInputs(const Op& op) {
  const std::string_view name = op.definition->name;
  if (op.attributes.Has("begin") || !op.attributes.Has("count") || op.attributes.Int("count") != 1) return {};
  if (name == "adam_update") return {1, 2};
  if (name == "sgd_update" && op.attributes.Float("momentum") != 0.0) return {1};
  if (name == "lerp_update") return {0};
  return {};
}

class Splitter {
 public:
  Splitter(const Program& source, int64_t bytes) : source_(source), bytes_(bytes), map_(source.values().size()) {}

  absl::StatusOr<Program> Run() {
    const std::vector<bool> split = FindStates();
    for (ValueId input : source_.inputs()) {
      map_[input] = {target_.AddInput(source_.values()[input].name, source_.TypeOf(input))};
    }
    for (size_t s = 0; s < source_.states().size(); ++s) {
      const State& state = source_.states()[s];
      const TensorType& type = source_.TypeOf(state.first);
      if (!state.whole.empty()) {
        State whole = state;
        whole.name = state.whole;
        map_[state.first] = {target_.AddStatePiece(state.name, whole, state.begin, type)};
        continue;
      }
      if (!split[s]) {
        map_[state.first] = {target_.AddState(state.name, state.network, state.role, type, state.initializer)};
        continue;
      }
      const int64_t step = PieceElements(type);
      for (int64_t begin = 0; begin < type.element_count(); begin += step) {
        const int64_t count = std::min(step, type.element_count() - begin);
        map_[state.first].push_back(
            target_.AddStatePiece(absl::StrFormat("%s#%d", state.name, begin), state, begin, {type.dtype, Shape{count}}));
      }
    }
    for (const Op& op : source_.ops()) Copy(op);
    for (size_t s = 0; s < source_.states().size(); ++s) {
      const State& state = source_.states()[s];
      if (state.last == state.first) continue;
      for (size_t piece = 0; piece < map_[state.first].size(); ++piece) {
        target_.UpdateState(target_.values()[map_[state.first][piece]].name, map_[state.last][piece]);
      }
    }
    for (const NamedValue& output : source_.outputs()) target_.AddOutput(output.name, map_[output.value][0]);
    GANTRY_RETURN_IF_ERROR(target_.status());
    return std::move(target_);
  }

 private:
  int64_t PieceElements(const TensorType& type) const {
    const int64_t wanted = bytes_ / static_cast<int64_t>(SizeBytes(type.dtype));
    return std::max<int64_t>(1, wanted / kBlockElements) * kBlockElements;
  }

  // Per state: every op that reads any of its versions is an update that can take it in pieces.
  std::vector<bool> FindStates() const {
    std::vector<int> state_of(source_.values().size(), -1);
    std::vector<bool> split(source_.states().size());
    for (size_t s = 0; s < source_.states().size(); ++s) {
      const TensorType& type = source_.TypeOf(source_.states()[s].first);
      state_of[source_.states()[s].first] = static_cast<int>(s);
      split[s] = source_.states()[s].whole.empty() && type.layout == TensorLayout::kPlain && type.element_count() > PieceElements(type);
    }
    for (const Op& op : source_.ops()) {
      const std::vector<int> pieces = PieceInputs(op);
      const int updates = UpdateCount(op);
      for (int i = 0; i < static_cast<int>(op.inputs.size()); ++i) {
        const int state = state_of[op.inputs[i]];
        if (state < 0) continue;
        if (i < updates) state_of[op.outputs[i]] = state;
        if (std::find(pieces.begin(), pieces.end(), i) == pieces.end()) split[state] = false;
      }
    }
    for (const NamedValue& output : source_.outputs()) {
      if (state_of[output.value] >= 0) split[state_of[output.value]] = false;
    }
    // An update takes all of its states in pieces, or none.
    for (bool changed = true; changed;) {
      changed = false;
      for (const Op& op : source_.ops()) {
        const std::vector<int> pieces = PieceInputs(op);
        const bool all = std::all_of(pieces.begin(), pieces.end(), [&](int i) { return state_of[op.inputs[i]] >= 0 && split[state_of[op.inputs[i]]]; });
        for (const int i : pieces) {
          const int state = state_of[op.inputs[i]];
          if (all || state < 0 || !split[state]) continue;
          split[state] = false;
          changed = true;
        }
      }
    }
    return split;
  }

  void Copy(const Op& op) {
    target_.SetPhase(source_.labels()[op.phase]);
    target_.SetNetwork(source_.labels()[op.network]);
    target_.SetCondition(op.condition == kNoValue ? kNoValue : map_[op.condition][0]);
    const std::vector<int> pieces = PieceInputs(op);
    const size_t count = pieces.empty() ? 1 : map_[op.inputs[pieces[0]]].size();
    for (size_t o = 0; o < op.outputs.size(); ++o) map_[op.outputs[o]].clear();
    int64_t begin = 0;
    for (size_t piece = 0; piece < count; ++piece) {
      std::vector<ValueId> inputs;
      for (size_t i = 0; i < op.inputs.size(); ++i) {
        const bool in_pieces = count > 1 && std::find(pieces.begin(), pieces.end(), static_cast<int>(i)) != pieces.end();
        // The whole tensor that the update writes is what the piece before left.
        const bool chained = count > 1 && !in_pieces && piece > 0 && i == 0;
        inputs.push_back(chained ? map_[op.outputs[0]][0] : map_[op.inputs[i]][in_pieces ? piece : 0]);
      }
      Attributes attributes = op.attributes;
      if (count > 1) attributes.Set("begin", begin);
      const std::vector<ValueId> outputs = target_.Emit(op.definition->name, inputs, std::move(attributes));
      if (!target_.status().ok()) return;
      for (size_t o = 0; o < op.outputs.size(); ++o) {
        const bool in_pieces = count > 1 && std::find(pieces.begin(), pieces.end(), static_cast<int>(o)) != pieces.end();
        std::vector<ValueId>& to = map_[op.outputs[o]];
        if (in_pieces) {
          to.push_back(outputs[o]);
        } else {
          to = {outputs[o]};
        }
        target_.SetLayout(outputs[o], source_.TypeOf(op.outputs[o]).layout);
        if (piece + 1 == count && !in_pieces) target_.NameValue(outputs[o], source_.values()[op.outputs[o]].name);
      }
      if (count > 1) begin += target_.TypeOf(inputs[pieces[0]]).element_count();
    }
  }

  const Program& source_;
  const int64_t bytes_;
  Program target_;
  std::vector<std::vector<ValueId>> map_;  // per value: what it is in the target; several where it is in pieces
};

}  // namespace

absl::StatusOr<Program> SplitUpdates(const Program& program, int64_t bytes) {
  GANTRY_RETURN_IF_ERROR(program.status());
  return Splitter(program, bytes).Run();
}

}  // namespace gantry
