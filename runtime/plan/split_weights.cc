#include "runtime/plan/split_weights.h"

#include <algorithm>
#include <numeric>

#include "ops/weight_rows.h"

namespace gantry {
namespace {

enum class WeightUse : uint8_t { kNone, kReads, kMakes };

WeightUse WeightUseOf(std::string_view op) {
  if (op == "conv" || op == "conv_transpose") return WeightUse::kReads;
  return op == "conv_weight_grad" ? WeightUse::kMakes : WeightUse::kNone;
}

// The weight of a convolution.
ValueId WeightOf(const Op& op) { return WeightUseOf(op.definition->name) == WeightUse::kMakes ? op.outputs[0] : op.inputs[1]; }

// A sum of squares that can take its tensor in pieces.
bool IsSumOfOne(const Op& op) { return op.definition->name == "sum_squares" && op.inputs.size() == 1; }

int64_t RowBytes(const TensorType& type) { return type.size_bytes() / type.shape[0]; }

// Values that are in pieces together or not at all: versions of a weight, its gradients, moments and averages. Each group is known by
// one of its values, its root.
class Groups {
 public:
  explicit Groups(const Program& program)
      : program_(program), parent_(program.values().size()), chunk_(parent_.size(), 0), whole_(parent_.size(), false) {
    std::iota(parent_.begin(), parent_.end(), 0);
    for (const Op& op : program.ops()) Look(op);
    for (ValueId input : program.inputs()) whole_[Root(input)] = true;
    for (const NamedValue& output : program.outputs()) whole_[Root(output.value)] = true;
    for (const State& state : program.states()) {
      if (!state.whole.empty()) whole_[Root(state.first)] = true;
    }
  }

  // Rows of a chunk; 0 where the value stays whole.
  int64_t Chunk(ValueId value) {
    const ValueId root = Root(value);
    return whole_[root] ? 0 : chunk_[root];
  }

 private:
  ValueId Root(ValueId value) {
    while (parent_[value] != value) value = parent_[value] = parent_[parent_[value]];
    return value;
  }

  void Join(ValueId a, ValueId b) {
    a = Root(a), b = Root(b);
    if (a == b) return;
    if (!(program_.TypeOf(a) == program_.TypeOf(b)) || (chunk_[a] > 0 && chunk_[b] > 0 && chunk_[a] != chunk_[b])) {
      whole_[a] = whole_[b] = true;
    }
    parent_[a] = b;
    chunk_[b] = std::max(chunk_[a], chunk_[b]);
    whole_[b] = whole_[a] || whole_[b];
  }

  void Look(const Op& op) {
    if (WeightUseOf(op.definition->name) != WeightUse::kNone) {
      const ValueId weight = WeightOf(op);
      for (const std::vector<ValueId>& values : {op.inputs, op.outputs}) {
        for (ValueId value : values) {
          if (value != weight) whole_[Root(value)] = true;
        }
      }
      const ValueId root = Root(weight);
      const int64_t chunk = op.attributes.Int("chunk");
      whole_[root] = whole_[root] || chunk == 0 || (chunk_[root] > 0 && chunk_[root] != chunk);
      chunk_[root] = chunk;
      return;
    }
    if (IsSumOfOne(op)) return;
    const std::vector<ValueId> together = Together(op);
    for (size_t i = 1; i < together.size(); ++i) Join(together[0], together[i]);
    for (const std::vector<ValueId>& values : {op.inputs, op.outputs}) {
      for (ValueId value : values) {
        if (std::find(together.begin(), together.end(), value) == together.end()) whole_[Root(value)] = true;
      }
    }
  }

  // The operands and results of an elementwise op that are in pieces together; empty for other ops. Scalars are none of them.
  std::vector<ValueId> Together(const Op& op) const {
    constexpr std::string_view kElementwise[] = {"add", "sub", "mul", "scale", "neg", "add_if"};
    constexpr std::string_view kUpdates[] = {"adam_update", "sgd_update", "lerp_update"};
    const std::string_view name = op.definition->name;
    const bool update = std::find(std::begin(kUpdates), std::end(kUpdates), name) != std::end(kUpdates);
    if (!update && std::find(std::begin(kElementwise), std::end(kElementwise), name) == std::end(kElementwise)) return {};
    if (update && (op.attributes.Int("count") != 1 || op.attributes.Has("begin"))) return {};
    const TensorType& type = program_.TypeOf(op.outputs[0]);
    std::vector<ValueId> together = op.outputs;
    for (ValueId input : op.inputs) {
      const TensorType& operand = program_.TypeOf(input);
      if (operand == type) {
        together.push_back(input);
      } else if (operand.element_count() != 1) {
        return {};
      }
    }
    return together;
  }

  const Program& program_;
  std::vector<ValueId> parent_;
  std::vector<int64_t> chunk_;  // per root
  std::vector<bool> whole_;     // per root: somebody wants it whole
};

}  // namespace

absl::StatusOr<Program> ChunkWeights(const Program& program, int64_t chunk_bytes) {
  GANTRY_RETURN_IF_ERROR(program.status());
  Program target;
  ProgramCopier copier(program, target);
  for (OpId id = 0; id < static_cast<OpId>(program.ops().size()); ++id) {
    const Op& op = program.ops()[id];
    copier.Copy(id);
    if (WeightUseOf(op.definition->name) == WeightUse::kNone || op.attributes.Int("groups", 1) != 1) continue;
    const TensorType& type = program.TypeOf(WeightOf(op));
    if (!IsFloat(type.dtype) || type.layout != TensorLayout::kPlain || type.size_bytes() < 2 * chunk_bytes) continue;
    const int64_t rows = WeightChunkRows(type, chunk_bytes);
    if (rows < type.shape[0]) target.SetAttribute(id, "chunk", rows);
  }
  copier.Finish();
  GANTRY_RETURN_IF_ERROR(target.status());
  // Norms of gradients that may come in pieces.
  Groups groups(target);
  for (OpId id = 0; id < static_cast<OpId>(target.ops().size()); ++id) {
    const Op& op = target.ops()[id];
    const int64_t rows = IsSumOfOne(op) ? groups.Chunk(op.inputs[0]) : 0;
    if (rows == 0) continue;
    const TensorType& type = target.TypeOf(op.inputs[0]);
    target.SetAttribute(id, "chunk", rows * (type.element_count() / type.shape[0]));
  }
  return target;
}

namespace {

class WeightSplitter {
 public:
  WeightSplitter(const Program& source, int64_t piece_bytes)
      : source_(source), piece_bytes_(piece_bytes), groups_(source), map_(source.values().size()) {}

  absl::StatusOr<Program> Run() {
    for (ValueId input : source_.inputs()) map_[input] = {target_.AddInput(source_.values()[input].name, source_.TypeOf(input))};
    for (const State& state : source_.states()) AddState(state);
    for (const Op& op : source_.ops()) {
      target_.SetPhase(source_.labels()[op.phase]);
      target_.SetNetwork(source_.labels()[op.network]);
      target_.SetCondition(op.condition == kNoValue ? kNoValue : map_[op.condition][0]);
      Copy(op);
      GANTRY_RETURN_IF_ERROR(target_.status());
    }
    for (const State& state : source_.states()) {
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
  // Rows of a piece; 0 where the value stays whole.
  int64_t PieceRows(ValueId value) {
    const int64_t chunk = groups_.Chunk(value);
    if (chunk == 0) return 0;
    const TensorType& type = source_.TypeOf(value);
    const int64_t rows = std::max<int64_t>(1, piece_bytes_ / (chunk * RowBytes(type))) * chunk;
    return rows < type.shape[0] ? rows : 0;
  }

  static TensorType Rows(TensorType type, int64_t rows) {
    std::vector<int64_t> dims = type.shape.dims();
    dims[0] = rows;
    type.shape = Shape(std::move(dims));
    return type;
  }

  void AddState(const State& state) {
    const TensorType& type = source_.TypeOf(state.first);
    const int64_t step = PieceRows(state.first);
    if (!state.whole.empty()) {
      State whole = state;
      whole.name = state.whole;
      map_[state.first] = {target_.AddStatePiece(state.name, whole, state.begin, type)};
    } else if (step == 0) {
      map_[state.first] = {target_.AddState(state.name, state.network, state.role, type, state.initializer)};
    }
    for (int64_t row = 0; step > 0 && row < type.shape[0]; row += step) {
      const int64_t begin = row * (type.element_count() / type.shape[0]);
      map_[state.first].push_back(target_.AddStatePiece(absl::StrFormat("%s#%d", state.name, begin), state, begin,
                                                        Rows(type, std::min(step, type.shape[0] - row))));
    }
  }

  void Copy(const Op& op) {
    if (const WeightUse use = WeightUseOf(op.definition->name); use != WeightUse::kNone && PieceRows(WeightOf(op)) > 0) {
      return use == WeightUse::kReads ? CopyReader(op) : CopyMaker(op);
    }
    if (IsSumOfOne(op) && map_[op.inputs[0]].size() > 1) return CopySum(op);
    // An elementwise op in as many pieces as its results are.
    const int64_t step = op.outputs.empty() ? 0 : PieceRows(op.outputs[0]);
    const int64_t rows = step > 0 ? source_.TypeOf(op.outputs[0]).shape[0] : 1;
    const auto pieces = static_cast<size_t>(step > 0 ? (rows + step - 1) / step : 1);
    for (size_t piece = 0; piece < pieces; ++piece) {
      std::vector<ValueId> inputs;
      for (ValueId input : op.inputs) inputs.push_back(map_[input].size() > 1 ? map_[input][piece] : map_[input][0]);
      const std::vector<ValueId> outputs = target_.Emit(op.definition->name, inputs, op.attributes);
      if (!target_.status().ok()) return;
      for (size_t o = 0; o < op.outputs.size(); ++o) Define(op.outputs[o], outputs[o]);
    }
  }

  // A convolution as a chain: each link adds what one piece of the weight gives.
  void CopyReader(const Op& op) {
    const bool transpose = op.definition->name == "conv_transpose";
    const TensorType& type = source_.TypeOf(op.outputs[0]);
    const std::vector<ValueId>& weight = map_[op.inputs[1]];
    ValueId result = target_.Emit("fill", {}, {{"value", 0.0}, {"dims", type.shape.dims()}, {"dtype", std::string(Name(type.dtype))}})[0];
    int64_t begin = 0;
    for (size_t piece = 0; piece < weight.size() && target_.status().ok(); ++piece) {
      const bool last = piece + 1 == weight.size();
      const int64_t rows = target_.TypeOf(weight[piece]).shape[0];
      std::vector<ValueId> inputs = {result, map_[op.inputs[0]][0], weight[piece]};
      Attributes attributes;
      for (const auto& [name, value] : op.attributes.entries()) {
        if (name != "slope" || !transpose || last) attributes.Set(name, value);
      }
      attributes.Set("begin", begin);
      if (op.inputs.size() > 2 && transpose && last) inputs.push_back(map_[op.inputs[2]][0]);
      if (op.inputs.size() > 2 && !transpose) {
        const ValueId bias[] = {map_[op.inputs[2]][0]};
        inputs.push_back(target_.Emit("slice", bias,
                                      {{"starts", std::vector<int64_t>{begin}}, {"counts", std::vector<int64_t>{rows}},
                                       {"steps", std::vector<int64_t>{1}}})[0]);
      }
      result = target_.Emit(transpose ? "conv_transpose_rows" : "conv_rows", inputs, std::move(attributes))[0];
      begin += rows;
    }
    Define(op.outputs[0], result);
  }

  // A weight's gradient, piece by piece.
  void CopyMaker(const Op& op) {
    const int64_t step = PieceRows(op.outputs[0]), count = source_.TypeOf(op.outputs[0]).shape[0];
    const ValueId inputs[] = {map_[op.inputs[0]][0], map_[op.inputs[1]][0]};
    for (int64_t begin = 0; begin < count && target_.status().ok(); begin += step) {
      Attributes attributes = op.attributes;
      attributes.Set("begin", begin);
      attributes.Set("rows", std::min(step, count - begin));
      Define(op.outputs[0], target_.Emit("conv_weight_grad_rows", inputs, std::move(attributes))[0]);
    }
  }

  void CopySum(const Op& op) {
    const std::vector<ValueId>& pieces = map_[op.inputs[0]];
    ValueId sum = target_.Emit("fill", {}, {{"value", 0.0}, {"dims", std::vector<int64_t>{}}, {"dtype", std::string(Name(DataType::kF64))}})[0];
    for (size_t piece = 0; piece < pieces.size() && target_.status().ok(); ++piece) {
      Attributes attributes = op.attributes;
      attributes.Set("last", static_cast<int64_t>(piece + 1 == pieces.size()));
      const ValueId inputs[] = {sum, pieces[piece]};
      sum = target_.Emit("sum_squares_rows", inputs, std::move(attributes))[0];
    }
    Define(op.outputs[0], sum);
  }

  void Define(ValueId value, ValueId made) {
    target_.SetLayout(made, source_.TypeOf(value).layout);
    target_.NameValue(made, source_.values()[value].name);
    map_[value].push_back(made);
  }

  const Program& source_;
  const int64_t piece_bytes_;
  Groups groups_;
  Program target_;
  std::vector<std::vector<ValueId>> map_;  // per value: what it is in the target; several where it is in pieces
};

}  // namespace

absl::StatusOr<Program> SplitWeights(const Program& program, int64_t piece_bytes) {
  GANTRY_RETURN_IF_ERROR(program.status());
  return WeightSplitter(program, piece_bytes).Run();
}

}  // namespace gantry
