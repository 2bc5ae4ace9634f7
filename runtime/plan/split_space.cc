#include "runtime/plan/split_space.h"

#include <algorithm>
#include <bit>

#include "ops/conv_bands.h"
#include "ops/convolution.h"
#include "runtime/plan/split_batch.h"

namespace gantry {
namespace {

constexpr int kRowAxis = 2;  // of [N, C, spatial...]

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

class SpaceSplitter {
 public:
  SpaceSplitter(const Program& source, int parts, int64_t least_bytes)
      : source_(source), copier_(source, target_), part_count_(parts), least_bytes_(least_bytes), parts_(source.values().size()),
        whole_(source.values().size(), false), in_parts_(source.values().size(), false), pending_(source.values().size(), false) {
    for (ValueId input : source.inputs()) whole_[input] = true;
    for (const State& state : source.states()) whole_[state.first] = true;
  }

  absl::StatusOr<Program> Run() {
    for (OpId id = 0; id < static_cast<OpId>(source_.ops().size()); ++id) {
      Take(id);
      GANTRY_RETURN_IF_ERROR(target_.status());
    }
    Flush();
    for (const State& state : source_.states()) Whole(state.last);
    for (const NamedValue& output : source_.outputs()) Whole(output.value);
    copier_.Finish();
    GANTRY_RETURN_IF_ERROR(target_.status());
    return std::move(target_);
  }

 private:
  int64_t RowsOfPart(int64_t rows) const {
    const int64_t unit = RowUnit(rows), least = (rows + part_count_ - 1) / part_count_;
    return (least + unit - 1) / unit * unit;
  }
  int64_t PartsOf(int64_t rows) const { return (rows + RowsOfPart(rows) - 1) / RowsOfPart(rows); }
  RowSpan SpanOf(int64_t rows, int64_t part) const { return {part * RowsOfPart(rows), std::min((part + 1) * RowsOfPart(rows), rows)}; }

  void Take(OpId id) {
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

  void CopyWhole(OpId id) {
    const Op& op = source_.ops()[id];
    const bool reads = std::any_of(op.inputs.begin(), op.inputs.end(), [&](ValueId input) { return pending_[input]; });
    if (reads || UpdateCount(op) > 0 || (op.condition != kNoValue && pending_[op.condition])) Flush();
    for (ValueId input : op.inputs) Whole(input);
    copier_.Copy(id);
    for (ValueId output : op.outputs) whole_[output] = true;
  }

  // Adds an op to the run of those that go part by part together: a convolution, and elementwise ops.
  void Push(OpId id, int64_t rows) {
    run_rows_ = rows;
    run_.push_back(id);
    const ValueId output = source_.ops()[id].outputs[0];
    pending_[output] = in_parts_[output] = true;
  }

  void Flush() {
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
      for (ValueId input : op.inputs) inputs.push_back(ComesInParts(op, input) ? PartOf(input, part) : Whole(input));
      made = target_.Emit(op.definition->name, inputs, op.attributes)[0];
    }
    if (made == kNoValue) return;
    target_.NameValue(made, source_.values()[op.outputs[0]].name);
    parts_[op.outputs[0]].push_back(made);
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
    if (sum == kNoValue) return;
    target_.NameValue(sum, source_.values()[op.outputs[0]].name);
    copier_.Map(op.outputs[0], sum);
    whole_[op.outputs[0]] = true;
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
      first = reads.begin / RowsOfPart(extent) * RowsOfPart(extent);
      for (int64_t row = first; row < reads.end; row += RowsOfPart(extent)) {
        inputs.push_back(parts_[operand][static_cast<size_t>(row / RowsOfPart(extent))]);
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

  // The value as a whole, put together where it is in parts only.
  ValueId Whole(ValueId value) {
    if (whole_[value]) return copier_.Mapped(value);
    const Value& v = source_.values()[value];
    copier_.SetLabels(source_.ops()[v.producer]);
    ValueId whole = kNoValue;
    int64_t begin = 0;
    for (const ValueId part : parts_[value]) {
      std::vector<ValueId> inputs = {part};
      if (whole != kNoValue) inputs.push_back(whole);
      whole = target_.Emit("put_rows", inputs, {{"begin", begin}, {"extent", Rows(v.type)}})[0];
      if (whole == kNoValue) return whole;
      begin += Rows(target_.TypeOf(part));
    }
    target_.NameValue(whole, v.name);
    copier_.Map(value, whole);
    whole_[value] = true;
    return whole;
  }

  // Part of a value, taken out of the whole where there is nothing else.
  ValueId PartOf(ValueId value, int64_t part) {
    std::vector<ValueId>& parts = parts_[value];
    if (in_parts_[value]) return parts[static_cast<size_t>(part)];
    const Value& v = source_.values()[value];
    if (parts.empty()) parts.assign(static_cast<size_t>(PartsOf(Rows(v.type))), kNoValue);
    ValueId& made = parts[static_cast<size_t>(part)];
    if (made != kNoValue) return made;
    const ValueId condition = target_.condition();
    // It is taken whenever the value is made, whoever needs it first.
    target_.SetCondition(v.kind == ValueKind::kComputed ? copier_.Mapped(source_.ops()[v.producer].condition) : kNoValue);
    const RowSpan span = SpanOf(Rows(v.type), part);
    const int rank = v.type.shape.rank();
    std::vector<int64_t> starts(rank, 0), counts = v.type.shape.dims();
    starts[kRowAxis] = span.begin;
    counts[kRowAxis] = span.end - span.begin;
    const ValueId inputs[] = {copier_.Mapped(value)};
    made = target_.Emit("slice", inputs, {{"starts", starts}, {"counts", counts}, {"steps", std::vector<int64_t>(rank, 1)}})[0];
    target_.SetCondition(condition);
    return made;
  }

  const Program& source_;
  Program target_;
  ProgramCopier copier_;
  const int part_count_;
  const int64_t least_bytes_;
  std::vector<std::vector<ValueId>> parts_;  // per value: its parts in the target, as far as there are any
  std::vector<bool> whole_;                  // per value: the target has it as a whole
  std::vector<bool> in_parts_;               // per value: it is made in parts
  std::vector<bool> pending_;                // per value: ops of the run make it
  std::vector<OpId> run_;                    // ops that go part by part together
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
