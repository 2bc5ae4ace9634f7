#include "runtime/plan/part_splitter.h"

#include <algorithm>

namespace gantry {

PartSplitter::PartSplitter(const Program& source, int axis, int parts, int64_t least_bytes)
    : source_(source), copier_(source, target_), part_count_(parts), least_bytes_(least_bytes), parts_(source.values().size()),
      whole_(source.values().size(), false), in_parts_(source.values().size(), false), pending_(source.values().size(), false), axis_(axis) {
  for (ValueId input : source.inputs()) whole_[input] = true;
  for (const State& state : source.states()) whole_[state.first] = true;
}

absl::StatusOr<Program> PartSplitter::Run() {
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

void PartSplitter::CopyWhole(OpId id) {
  const Op& op = source_.ops()[id];
  const bool reads = std::any_of(op.inputs.begin(), op.inputs.end(), [&](ValueId input) { return pending_[input]; });
  if (reads || UpdateCount(op) > 0 || (op.condition != kNoValue && pending_[op.condition])) Flush();
  for (ValueId input : op.inputs) Whole(input);
  copier_.Copy(id);
  for (ValueId output : op.outputs) whole_[output] = true;
}

ValueId PartSplitter::Whole(ValueId value) {
  if (whole_[value]) return copier_.Mapped(value);
  copier_.SetLabels(source_.ops()[source_.values()[value].producer]);
  const TensorType& type = source_.TypeOf(value);
  ValueId whole = kNoValue;
  int64_t begin = 0;
  for (const ValueId part : parts_[value]) {
    whole = Put(part, whole, begin, Extent(type));
    if (whole == kNoValue) return whole;
    target_.SetLayout(whole, type.layout);
    begin += Extent(target_.TypeOf(part));
  }
  DefineWhole(value, whole);
  return whole;
}

ValueId PartSplitter::Part(ValueId value, int64_t part) {
  std::vector<ValueId>& parts = parts_[value];
  // What is made in parts may have no such axis: bits.
  if (!parts.empty() && parts[static_cast<size_t>(part)] != kNoValue) return parts[static_cast<size_t>(part)];
  const Value& v = source_.values()[value];
  const int64_t extent = Extent(v.type);
  if (parts.empty()) parts.assign(static_cast<size_t>(PartsOf(extent)), kNoValue);
  ValueId& made = parts[static_cast<size_t>(part)];
  const ValueId condition = target_.condition();
  // It is taken whenever the value is made, whoever needs it first.
  target_.SetCondition(v.kind == ValueKind::kComputed ? copier_.Mapped(source_.ops()[v.producer].condition) : kNoValue);
  const int64_t begin = part * SizeOfPart(extent);
  made = TakeOut(copier_.Mapped(value), v.type, begin, std::min(SizeOfPart(extent), extent - begin));
  target_.SetCondition(condition);
  if (made != kNoValue) target_.SetLayout(made, v.type.layout);
  return made;
}

void PartSplitter::Define(ValueId value, ValueId part) {
  if (part == kNoValue) return;
  target_.SetLayout(part, source_.TypeOf(value).layout);
  target_.NameValue(part, source_.values()[value].name);
  parts_[value].push_back(part);
}

void PartSplitter::DefineWhole(ValueId value, ValueId made) {
  if (made == kNoValue) return;
  target_.NameValue(made, source_.values()[value].name);
  copier_.Map(value, made);
  whole_[value] = true;
}

}  // namespace gantry
