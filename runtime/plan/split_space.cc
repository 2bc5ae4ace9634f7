#include "runtime/plan/split_space.h"

#include <algorithm>
#include <bit>
#include <span>

#include "ops/conv_bands.h"
#include "ops/convolution.h"
#include "runtime/plan/part_splitter.h"
#include "runtime/plan/split_batch.h"

namespace gantry {
namespace {

int64_t Rows(const TensorType& type) { return type.shape[kRowAxis]; }

int64_t PowerOfTwo(int64_t most) { return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(most))); }

// Parts of so many rows are multiples of it, and bands divide it.
int64_t RowUnit(int64_t rows) { return PowerOfTwo(std::max<int64_t>(rows / kMostBatchParts, 2)); }

bool IsConvolution(std::string_view name) { return name == "conv" || name == "conv_transpose" || name == "conv_weight_grad"; }
bool IsWeightGradient(const Op& op) { return op.definition->name == "conv_weight_grad"; }

// The images of a convolution whose rows bands are of: the result, or g. The others are its first operand.
ValueId SideOf(const Op& op) { return IsWeightGradient(op) ? op.inputs[1] : op.outputs[0]; }

int64_t ImageBytes(const Program& program, const Op& op) {
  return program.TypeOf(op.inputs[0]).size_bytes() + program.TypeOf(SideOf(op)).size_bytes();
}

struct Types {
  std::vector<TensorType> inputs, outputs;
};

Types TypesOf(const Program& program, const Op& op) {
  Types types;
  for (ValueId input : op.inputs) types.inputs.push_back(program.TypeOf(input));
  for (ValueId output : op.outputs) types.outputs.push_back(program.TypeOf(output));
  return types;
}

class SpaceSplitter final : public PartSplitter {
 public:
  SpaceSplitter(const Program& source, int parts, int64_t least_bytes) : PartSplitter(source, kRowAxis, parts, least_bytes) {}

 private:
  int64_t SizeOfPart(int64_t rows) const override {
    const int64_t unit = RowUnit(rows), least = (rows + part_count_ - 1) / part_count_;
    return (least + unit - 1) / unit * unit;
  }
  RowSpan SpanOf(int64_t rows, int64_t part) const { return {part * SizeOfPart(rows), std::min((part + 1) * SizeOfPart(rows), rows)}; }

  ValueId Put(ValueId part, ValueId into, int64_t begin, int64_t extent) override {
    std::vector<ValueId> inputs = {part};
    if (into != kNoValue) inputs.push_back(into);
    return target_.Emit("put_rows", inputs, {{"begin", begin}, {"extent", extent}})[0];
  }
  ValueId TakeOut(ValueId whole, const TensorType& type, int64_t begin, int64_t count) override {
    std::vector<int64_t> counts = type.shape.dims(), starts(counts.size(), 0), steps(counts.size(), 1);
    starts[kRowAxis] = begin;
    counts[kRowAxis] = count;
    return target_.Emit("slice", std::span(&whole, 1), {{"starts", starts}, {"counts", counts}, {"steps", steps}})[0];
  }

  void Take(OpId id) override {
    const Op& op = source_.ops()[id];
    if (IsConvolution(op.definition->name)) return TakeConvolution(id);
    const int64_t rows = RowsOfElementwise(op);
    if (rows == 0) return CopyWhole(id);
    const bool waits = std::any_of(op.inputs.begin(), op.inputs.end(), [&](ValueId input) { return pending_[input] && !in_parts_[input]; });
    if (waits || (!run_.empty() && rows != run_rows_)) Flush();
    Push(id, rows);
  }

  // A convolution whose weights go by rows has large weights rather than large images.
  void TakeConvolution(OpId id) {
    const Op& op = source_.ops()[id];
    const int64_t rows = Rows(source_.TypeOf(SideOf(op)));
    const bool splits = op.attributes.Has("band") && !op.attributes.Has("chunk") && ImageBytes(source_, op) >= least_bytes_ && PartsOf(rows) > 1;
    if (!splits || (IsWeightGradient(op) && !in_parts_[op.inputs[0]] && !in_parts_[op.inputs[1]])) return CopyWhole(id);
    // It reads rows of the parts beside its own.
    Flush();
    for (ValueId input : op.inputs) {
      if (!in_parts_[input]) Whole(input);
    }
    if (IsWeightGradient(op)) return EmitWeightGradient(id);
    Push(id, rows);
  }

  // The rows over which an elementwise op goes along with operands in parts; 0 where it stays whole.
  int64_t RowsOfElementwise(const Op& op) const {
    const std::string_view name = op.definition->name;
    // Bits lie in memory as the values that they are of, so they are in parts where those are.
    if (name == "sign_bits") return in_parts_[op.inputs[0]] ? Rows(source_.TypeOf(op.inputs[0])) : 0;
    if (name == "leaky_relu_grad_bits") return in_parts_[op.inputs[1]] ? Rows(source_.TypeOf(op.inputs[0])) : 0;
    if (!IsElementwise(name)) return 0;
    const TensorType& result = source_.TypeOf(op.outputs[0]);
    bool any = false;
    for (ValueId input : op.inputs) {
      const TensorType& type = source_.TypeOf(input);
      if (type.layout != TensorLayout::kPlain) return 0;
      any = any || (in_parts_[input] && HasRowsOf(type, result));
    }
    return any && result.layout == TensorLayout::kPlain ? Rows(result) : 0;
  }

  static bool HasRowsOf(const TensorType& type, const TensorType& result) {
    return type.shape.rank() == result.shape.rank() && type.shape.rank() > kRowAxis && Rows(type) == Rows(result);
  }

  // The operands of an op that come in parts where it runs in parts.
  bool ComesInParts(const Op& op, ValueId input) const {
    const bool bits = op.definition->name == "sign_bits" || op.definition->name == "leaky_relu_grad_bits";
    return bits || HasRowsOf(source_.TypeOf(input), source_.TypeOf(op.outputs[0]));
  }

  // Adds an op to the run of those that go part by part together: a convolution, and elementwise ops.
  void Push(OpId id, int64_t rows) {
    run_rows_ = rows;
    run_.push_back(id);
    const ValueId output = source_.ops()[id].outputs[0];
    pending_[output] = in_parts_[output] = true;
  }

  void Flush() override {
    std::vector<OpId> run = std::move(run_);
    run_.clear();
    for (int64_t part = 0; !run.empty() && part < PartsOf(run_rows_); ++part) {
      for (OpId id : run) {
        EmitPart(id, part);
        if (!target_.status().ok()) return;
      }
    }
    for (OpId id : run) pending_[source_.ops()[id].outputs[0]] = false;
  }

  void EmitPart(OpId id, int64_t part) {
    const Op& op = source_.ops()[id];
    copier_.SetLabels(op);
    ValueId made = kNoValue;
    if (IsConvolution(op.definition->name)) {
      made = EmitBands(op, SpanOf(run_rows_, part), {});
    } else {
      std::vector<ValueId> inputs;
      for (ValueId input : op.inputs) inputs.push_back(ComesInParts(op, input) ? Part(input, part) : Whole(input));
      made = target_.Emit(op.definition->name, inputs, op.attributes)[0];
    }
    Define(op.outputs[0], made);
  }

  // Each part adds to what those before gave.
  void EmitWeightGradient(OpId id) {
    const Op& op = source_.ops()[id];
    const ValueId g = op.inputs[1];
    const int64_t rows = Rows(source_.TypeOf(g));
    copier_.SetLabels(op);
    ValueId sum = kNoValue;
    for (int64_t part = 0; part < PartsOf(rows) && target_.status().ok(); ++part) {
      const RowSpan span = SpanOf(rows, part);
      sum = EmitBands(op, span, {in_parts_[g] ? parts_[g][static_cast<size_t>(part)] : copier_.Mapped(g), sum}, in_parts_[g] ? span.begin : 0);
    }
    DefineWhole(op.outputs[0], sum);
  }

  // Some bands of a convolution; of a weight gradient with g's rows, the first of which is `g_first`, and the sum so far.
  ValueId EmitBands(const Op& op, const RowSpan& rows, std::vector<ValueId> of_gradient, int64_t g_first = 0) {
    const ValueId operand = op.inputs[0];
    const int64_t extent = Rows(source_.TypeOf(operand));
    const Types types = TypesOf(source_, op);
    const RowSpan reads = RowsRead(op.definition->name, types.inputs, types.outputs, op.attributes, rows);
    std::vector<ValueId> inputs;
    int64_t first = 0;
    if (in_parts_[operand]) {
      first = reads.begin / SizeOfPart(extent) * SizeOfPart(extent);
      for (int64_t row = first; row < reads.end; row += SizeOfPart(extent)) {
        inputs.push_back(parts_[operand][static_cast<size_t>(row / SizeOfPart(extent))]);
      }
    } else {
      inputs.push_back(copier_.Mapped(operand));
    }
    Attributes attributes = op.attributes;
    attributes.Set("parts", static_cast<int64_t>(inputs.size()));
    attributes.Set("first", first);
    attributes.Set("extent", extent);
    attributes.Set("row", rows.begin);
    attributes.Set("count", rows.end - rows.begin);
    if (IsWeightGradient(op)) {
      attributes.Set("g_first", g_first);
      for (ValueId input : of_gradient) {
        if (input != kNoValue) inputs.push_back(input);
      }
    } else {
      for (size_t i = 1; i < op.inputs.size(); ++i) inputs.push_back(copier_.Mapped(op.inputs[i]));
    }
    return target_.Emit(std::string(op.definition->name) + "_bands", inputs, std::move(attributes))[0];
  }

  std::vector<OpId> run_;  // ops that go part by part together
  int64_t run_rows_ = 0;
};

}  // namespace

absl::StatusOr<Program> ChunkImages(const Program& program, int64_t band_bytes) {
  GANTRY_RETURN_IF_ERROR(program.status());
  Program target = program;
  for (OpId id = 0; id < static_cast<OpId>(program.ops().size()); ++id) {
    const Op& op = program.ops()[id];
    if (!IsConvolution(op.definition->name)) continue;
    const Types types = TypesOf(program, op);
    const bool plain = std::all_of(types.inputs.begin(), types.inputs.end(), [](const TensorType& type) { return type.layout == TensorLayout::kPlain; });
    const int64_t bytes = ImageBytes(program, op), rows = Rows(program.TypeOf(SideOf(op)));
    const WindowAxis axis = GeometryOf(op.definition->name, types.inputs, types.outputs, op.attributes).window.spatial(0);
    // Every window has a row of the image, and every row between them one of a window.
    const bool covers = std::max(axis.pad_begin, axis.pad_end) < axis.extent() && axis.stride <= axis.extent();
    if (!plain || !covers || bytes / types.inputs[0].shape[0] < 2 * band_bytes) continue;
    // A band has more rows of its own than of those beside it.
    int64_t band = PowerOfTwo(std::max<int64_t>(band_bytes * rows / bytes, 1));
    while (band * axis.stride <= axis.extent() - axis.stride) band *= 2;
    band = std::min(band, RowUnit(rows));
    if (band < rows) target.SetAttribute(id, "band", band);
  }
  return target;
}

absl::StatusOr<Program> SplitSpace(const Program& program, int parts, int64_t least_bytes) {
  GANTRY_RETURN_IF_ERROR(program.status());
  if (!IsBatchParts(parts)) return absl::InvalidArgumentError(absl::StrFormat("rows cannot be taken in %d parts", parts));
  if (parts == 1) return program;
  return SpaceSplitter(program, parts, least_bytes).Run();
}

}  // namespace gantry
