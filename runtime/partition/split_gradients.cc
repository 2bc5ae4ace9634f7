#include "runtime/partition/split_gradients.h"

#include <algorithm>
#include <map>

#include "ops/functional.h"
#include "ops/weight_rows.h"
#include "runtime/graph/lanes.h"
#include "runtime/partition/order_exchanges.h"

namespace gantry {
namespace {

constexpr int64_t kUpdateElements = 16384;  // pieces of updates begin at multiples of it (ops/functional.h)

bool IsOneOf(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// An update of one whole tensor by its gradient.
bool IsUpdateByGradient(const Op& op) {
  return IsOneOf(op.definition->name, {"adam_update", "sgd_update"}) && op.attributes.Int("count") == 1 && !op.attributes.Has("begin");
}

class GradientSplitter {
 public:
  GradientSplitter(const Program& program, int64_t piece_bytes)
      : program_(program), piece_bytes_(piece_bytes), copier_(program, target_), readers_(program.values().size()), rows_(program.values().size(), 0) {
    for (OpId id = 0; id < static_cast<OpId>(program.ops().size()); ++id) {
      for (ValueId input : program.ops()[id].inputs) readers_[input].push_back(id);
    }
    for (const NamedValue& output : program.outputs()) readers_[output.value].push_back(-1);
  }

  absl::StatusOr<Program> Run() {
    bool any = false;
    for (OpId id = static_cast<OpId>(program_.ops().size()) - 1; id >= 0; --id) {
      const Op& op = program_.ops()[id];
      const bool is_large = op.definition->name == "all_reduce" && op.inputs.size() == 1 && LaneOf(*op.definition, op.attributes) == PlanLane::kGradients;
      any = (is_large && Take(op)) || any;
    }
    if (!any) return program_;
    for (OpId id = 0; id < static_cast<OpId>(program_.ops().size()); ++id) {
      CopyOp(id);
      GANTRY_RETURN_IF_ERROR(target_.status());
    }
    copier_.Finish();
    GANTRY_RETURN_IF_ERROR(target_.status());
    NumberExchanges(target_);
    return std::move(target_);
  }

 private:
  // Marks the sum and what it is made of; false where it stays whole.
  bool Take(const Op& sum) {
    const TensorType& type = program_.TypeOf(sum.outputs[0]);
    const bool large = IsFloat(type.dtype) && type.shape.rank() >= 3 && type.size_bytes() >= 2 * piece_bytes_;
    if (!large) return false;
    const int64_t rows = WeightChunkRows(type, piece_bytes_);
    if (rows >= type.shape[0] || rows * RowElements(type) % kUpdateElements != 0) return false;
    for (OpId reader : readers_[sum.outputs[0]]) {
      if (reader < 0) return false;
      const Op& op = program_.ops()[reader];
      const bool updates = IsUpdateByGradient(op) && std::count(op.inputs.begin(), op.inputs.end(), sum.outputs[0]) == 1;
      if (!updates && op.definition->name != "sum_squares") return false;
    }
    if (!Make(sum.inputs[0], rows)) return false;
    rows_[sum.outputs[0]] = rows;
    return true;
  }

  // Marks `value` and what makes it in rows, down to convolutions; what they do not make is cut into rows where it is needed.
  bool Make(ValueId value, int64_t rows) {
    const Value& made = program_.values()[value];
    if (rows_[value] > 0) return rows_[value] == rows;
    if (made.kind != ValueKind::kComputed || readers_[value].size() != 1) return false;
    const Op& op = program_.ops()[made.producer];
    const std::string_view name = op.definition->name;
    bool makes = name == "conv_weight_grad" && op.attributes.Int("groups", 1) == 1;
    if (IsOneOf(name, {"add", "sub", "neg", "scale", "add_if"})) {
      for (ValueId input : op.inputs) makes = (program_.TypeOf(input) == made.type && Make(input, rows)) || makes;
    }
    if (makes) rows_[value] = rows;
    return makes;
  }

  static int64_t RowElements(const TensorType& type) { return type.element_count() / type.shape[0]; }

  void CopyOp(OpId id) {
    const Op& op = program_.ops()[id];
    ValueId split = kNoValue;  // an operand or result in pieces
    for (const std::vector<ValueId>* values : {&op.inputs, &op.outputs}) {
      for (ValueId value : *values) split = rows_[value] > 0 ? value : split;
    }
    if (split == kNoValue) return copier_.Copy(id);
    copier_.SetLabels(op);
    if (op.definition->name == "sum_squares") return CopyNorm(op);
    const TensorType& type = program_.TypeOf(split);
    std::vector<ValueId> last;
    for (int64_t begin = 0; begin < type.shape[0] && target_.status().ok(); begin += rows_[split]) {
      last = EmitPiece(op, type, begin, std::min(rows_[split], type.shape[0] - begin), last);
    }
    // An update's results are whole.
    if (UpdateCount(op) == 0) return;
    for (size_t o = 0; o < op.outputs.size() && o < last.size(); ++o) {
      copier_.Map(op.outputs[o], last[o]);
      target_.NameValue(last[o], program_.values()[op.outputs[o]].name);
    }
  }

  // Rows [begin, begin + rows) of what the op makes, or updates; `before`: the results of the update of the rows before.
  std::vector<ValueId> EmitPiece(const Op& op, const TensorType& type, int64_t begin, int64_t rows, const std::vector<ValueId>& before) {
    if (op.definition->name == "conv_weight_grad") {
      Attributes attributes = op.attributes;
      attributes.Set("chunk", rows_[op.outputs[0]]);
      attributes.Set("begin", begin);
      attributes.Set("rows", rows);
      const ValueId inputs[] = {copier_.Mapped(op.inputs[0]), copier_.Mapped(op.inputs[1])};
      return Define(op, target_.Emit("conv_weight_grad_rows", inputs, std::move(attributes)));
    }
    std::vector<ValueId> inputs;
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      const ValueId input = op.inputs[i];
      if (rows_[input] > 0) {
        inputs.push_back(pieces_[input][static_cast<size_t>(begin / rows_[input])]);
      } else if (static_cast<int>(i) < UpdateCount(op) && !before.empty()) {
        inputs.push_back(before[i]);
      } else if (UpdateCount(op) == 0 && program_.TypeOf(input) == type) {
        inputs.push_back(RowsOf(copier_.Mapped(input), begin, rows));
      } else {
        inputs.push_back(copier_.Mapped(input));
      }
    }
    Attributes attributes = op.attributes;
    if (UpdateCount(op) > 0) attributes.Set("begin", begin * RowElements(type));
    const std::vector<ValueId> outputs = target_.Emit(op.definition->name, inputs, std::move(attributes));
    return UpdateCount(op) > 0 ? outputs : Define(op, outputs);
  }

  std::vector<ValueId> Define(const Op& op, const std::vector<ValueId>& outputs) {
    target_.NameValue(outputs[0], program_.values()[op.outputs[0]].name);
    pieces_[op.outputs[0]].push_back(outputs[0]);
    return outputs;
  }

  ValueId RowsOf(ValueId value, int64_t begin, int64_t rows) {
    std::vector<int64_t> counts = target_.TypeOf(value).shape.dims();
    std::vector<int64_t> starts(counts.size(), 0);
    const std::vector<int64_t> steps(counts.size(), 1);
    starts[0] = begin;
    counts[0] = rows;
    return target_.Emit("slice", std::span(&value, 1), {{"starts", starts}, {"counts", counts}, {"steps", steps}})[0];
  }

  void CopyNorm(const Op& op) {
    std::vector<ValueId> inputs;
    for (ValueId input : op.inputs) {
      if (rows_[input] > 0) {
        inputs.insert(inputs.end(), pieces_[input].begin(), pieces_[input].end());
      } else {
        inputs.push_back(copier_.Mapped(input));
      }
    }
    copier_.Map(op.outputs[0], target_.Emit("sum_squares", inputs, op.attributes)[0]);
  }

  const Program& program_;
  const int64_t piece_bytes_;
  Program target_;
  ProgramCopier copier_;
  std::vector<std::vector<OpId>> readers_;  // per value; -1: an output of the program
  std::vector<int64_t> rows_;               // per value: rows of a piece; 0: it stays whole
  std::map<ValueId, std::vector<ValueId>> pieces_;
};

}  // namespace

absl::StatusOr<Program> SplitGradients(const Program& program, int64_t piece_bytes) {
  GANTRY_RETURN_IF_ERROR(program.status());
  return GradientSplitter(program, piece_bytes).Run();
}

}  // namespace gantry
