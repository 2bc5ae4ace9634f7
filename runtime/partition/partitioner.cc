#include "runtime/partition/partitioner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/functional.h"
#include "runtime/partition/gradient_ops.h"

namespace gantry {

Partitioner::Partitioner(const Program& source, const PartitionAxis& axis, int index, const std::vector<InputPart>& before)
    : source_(source), axis_(axis), index_(index), before_(before) {}

std::vector<int64_t> CutsOf(int64_t extent, int ranks, const std::vector<double>& shares) {
  if (extent < ranks) return {};
  double sum = 0.0;
  for (int i = 0; i < ranks; ++i) sum += shares.empty() ? 1.0 : shares[i];
  std::vector<int64_t> cuts = {0};
  double before = 0.0;
  for (int i = 0; i < ranks; ++i) {
    before += shares.empty() ? 1.0 : shares[i];
    // Every rank gets something, and leaves something for those behind it.
    const auto wanted = static_cast<int64_t>(std::llround(static_cast<double>(extent) * before / sum));
    cuts.push_back(std::clamp(wanted, cuts.back() + 1, extent - (ranks - 1 - i)));
  }
  return cuts;
}

Partitioner::Ranges Partitioner::RangesOf(const std::vector<int64_t>& cuts) const {
  return {{cuts.begin(), cuts.end() - 1}, {cuts.begin() + 1, cuts.end()}};
}

Shape Partitioner::LocalShape(const Shape& whole, const Placement& placement) const {
  if (placement.flat()) return Shape{placement.cuts[index_ + 1] - placement.cuts[index_]};
  Shape shape = whole;
  if (placement.split()) shape[placement.dim] = placement.cuts[index_ + 1] - placement.cuts[index_];
  return shape;
}

std::vector<ValueId> Partitioner::EmitLocal(std::string_view op, std::span<const ValueId> inputs, Attributes attributes) {
  return target_.Emit(op, inputs, std::move(attributes));
}

ValueId Partitioner::EmitLocal(std::string_view op, std::initializer_list<ValueId> inputs, Attributes attributes) {
  return target_.Emit(op, std::span<const ValueId>(inputs.begin(), inputs.size()), std::move(attributes))[0];
}

Attributes Partitioner::GroupAttributes() {
  return {{"ranks", std::vector<int64_t>(axis_.ranks.begin(), axis_.ranks.end())},
          {"index", static_cast<int64_t>(index_)},
          {"sequence", sequence_++}};
}

std::vector<ValueId> Partitioner::EmitGroupOp(std::string_view op, std::span<const ValueId> locals, Attributes attributes, std::string_view purpose, int ready) {
  attributes.Set("purpose", std::string(purpose));
  places_.exchanges.push_back({.ready = ready, .needed = at_});
  return EmitLocal(op, locals, std::move(attributes));
}

std::vector<ValueId> Partitioner::EmitExchange(std::string_view op, const WholeValue& value, int axis, const Ranges& from, const Ranges& to,
                                               std::string_view purpose) {
  Attributes attributes = GroupAttributes();
  attributes.Set("axis", static_cast<int64_t>(axis));
  attributes.Set("from_begins", from.begins);
  attributes.Set("from_ends", from.ends);
  attributes.Set("to_begins", to.begins);
  attributes.Set("to_ends", to.ends);
  return EmitGroupOp(op, {&value.local, 1}, std::move(attributes), purpose, value.made_at);
}

ValueId Partitioner::LocalSlice(ValueId local, int axis, int64_t begin, int64_t end) {
  const Shape& shape = target_.TypeOf(local).shape;
  if (begin == 0 && end == shape[axis]) return local;
  std::vector<int64_t> starts(shape.rank(), 0), counts = shape.dims(), steps(shape.rank(), 1);
  starts[axis] = begin;
  counts[axis] = end - begin;
  return ops::Slice(target_, local, std::move(starts), std::move(counts), std::move(steps));
}

ValueId Partitioner::LocalReshape(ValueId local, const Shape& shape) { return ops::Reshape(target_, local, shape); }

ValueId Partitioner::Add(TensorType type, Local local) {
  WholeValue value;
  value.type = std::move(type);
  value.placement = std::move(local.placement);
  value.local = local.value;
  value.condition = target_.condition();
  value.made_at = at_;
  values_.push_back(std::move(value));
  return static_cast<ValueId>(values_.size()) - 1;
}

const TensorType& Partitioner::TypeOf(ValueId value) const {
  static const TensorType* const none = new TensorType();
  return value >= 0 && value < static_cast<ValueId>(values_.size()) ? values_[value].type : *none;
}

namespace {

// Emits under another condition for as long as it lives.
class ConditionScope {
 public:
  ConditionScope(Program& program, ValueId condition) : program_(program), before_(program.condition()) {
    program_.SetCondition(condition);
  }
  ~ConditionScope() { program_.SetCondition(before_); }

 private:
  Program& program_;
  const ValueId before_;
};

}  // namespace

void Partitioner::Resolve(ValueId id) {
  WholeValue& value = values_[id];
  if (!value.placement.partial()) return;
  const ConditionScope scope(target_, value.condition);
  const int64_t elements = value.type.element_count();
  const std::string_view purpose = is_update_ ? "gradient" : "sum";
  const int ready = value.made_at;
  if (!is_update_) value.made_at = at_;  // such a sum stands where it is wanted
  if (over_channels()) {
    const auto state = is_update_ ? channel_states_.find(value.type.shape.dims()) : channel_states_.end();
    const bool activation = !is_update_ && value.type.shape.rank() >= 2 && WideEnough(value.type.shape[1]);
    if (state != channel_states_.end() || activation) {
      const Placement parts = activation ? Placement::Split(1, Cuts(value.type.shape[1])) : state->second;
      value.local = ReduceScatter(value, parts.dim, parts.cuts, is_update_ ? purpose : "channels", ready);
      value.placement = parts;
      return;
    }
  }
  if (axis_.shard_states && elements >= axis_.least_elements * ranks()) {
    const std::vector<int64_t> cuts = Cuts(elements);
    const Ranges ranges = RangesOf(cuts);
    Attributes attributes = GroupAttributes();
    attributes.Set("begins", ranges.begins);
    attributes.Set("ends", ranges.ends);
    value.local = EmitGroupOp("reduce_scatter", std::vector{LocalReshape(value.local, Shape{elements})}, std::move(attributes), purpose, ready)[0];
    value.placement = Placement::Flat(cuts);
    return;
  }
  value.local = EmitGroupOp("all_reduce", {&value.local, 1}, GroupAttributes(), purpose, ready)[0];
  value.placement = Placement::Whole();
}

ValueId Partitioner::ReduceScatter(const WholeValue& value, int dim, const std::vector<int64_t>& cuts, std::string_view purpose, int ready) {
  const Shape& shape = value.type.shape;
  int64_t before = 1, after = 1;
  for (int axis = 0; axis < shape.rank(); ++axis) (axis < dim ? before : after) *= axis == dim ? 1 : shape[axis];
  // The exchange is along axis 0.
  ValueId local = LocalReshape(value.local, Shape{before, shape[dim], after});
  if (before > 1) local = ops::Transpose(target_, local, {1, 0, 2});
  const Ranges ranges = RangesOf(cuts);
  Attributes attributes = GroupAttributes();
  attributes.Set("begins", ranges.begins);
  attributes.Set("ends", ranges.ends);
  local = EmitGroupOp("reduce_scatter", std::vector{LocalReshape(local, Shape{shape[dim], before, after})}, std::move(attributes), purpose, ready)[0];
  if (before > 1) local = ops::Transpose(target_, local, {1, 0, 2});
  return LocalReshape(local, LocalShape(shape, Placement::Split(dim, cuts)));
}

ValueId Partitioner::AsWhole(ValueId id) {
  Resolve(id);
  WholeValue& value = values_[id];
  if (value.placement.whole()) return value.local;
  const bool anew = value.placement.flat() && value.gathered_phase != target_.Label(target_.phase());
  if (value.gathered != kNoValue && !anew) return value.gathered;
  const ConditionScope scope(target_, value.condition);
  const Ranges held = RangesOf(value.placement.cuts);
  const int64_t extent = value.placement.cuts.back();
  const Ranges all{std::vector<int64_t>(ranks(), 0), std::vector<int64_t>(ranks(), extent)};
  const bool flat = value.placement.flat();
  const std::string_view purpose = flat ? "gather" : over_channels() ? "channels" : "whole";
  const ValueId whole = EmitExchange("exchange", value, flat ? 0 : value.placement.dim, held, all, purpose)[0];
  value.gathered = LocalReshape(whole, value.type.shape);
  value.gathered_phase = target_.Label(target_.phase());
  return value.gathered;
}

ValueId Partitioner::FromRecipe(const WholeValue& value, int dim, const std::vector<int64_t>& cuts) {
  const Recipe& recipe = recipes_[value.recipe];
  Attributes attributes = recipe.attributes;
  std::vector<int64_t> dims = value.type.shape.dims();
  dims[dim] = cuts[index_ + 1] - cuts[index_];
  attributes.Set("dims", dims);
  std::vector<ValueId> inputs;
  for (ValueId input : recipe.inputs) {
    const Shape& shape = TypeOf(input).shape;
    const int axis = dim - (value.type.shape.rank() - shape.rank());
    inputs.push_back(axis >= 0 && shape[axis] > 1 ? AsSplit(input, axis, cuts) : AsWhole(input));
  }
  return EmitLocal(recipe.op, inputs, std::move(attributes))[0];
}

ValueId Partitioner::AsSplit(ValueId id, int dim, const std::vector<int64_t>& cuts) {
  Resolve(id);
  WholeValue& value = values_[id];
  const Placement wanted = Placement::Split(dim, cuts);
  if (value.placement == wanted) return value.local;
  for (const auto& [placement, local] : value.parts) {
    if (placement == wanted) return local;
  }
  const ConditionScope scope(target_, value.condition);
  ValueId local = kNoValue;
  if (value.placement.split(dim)) {
    local = EmitExchange("exchange", value, dim, RangesOf(value.placement.cuts), RangesOf(cuts), "shares")[0];
  } else if (value.recipe >= 0) {
    local = FromRecipe(value, dim, cuts);
  } else {
    local = LocalSlice(AsWhole(id), dim, cuts[index_], cuts[index_ + 1]);
  }
  values_[id].parts.push_back({wanted, local});
  return local;
}

ValueId Partitioner::AsFlat(ValueId id, const std::vector<int64_t>& cuts) {
  Resolve(id);
  const WholeValue& value = values_[id];
  if (value.placement == Placement::Flat(cuts)) return value.local;
  const ConditionScope scope(target_, value.condition);
  return LocalSlice(LocalReshape(AsWhole(id), Shape{value.type.element_count()}), 0, cuts[index_], cuts[index_ + 1]);
}

ValueId Partitioner::AsWindow(ValueId id, int dim, const Ranges& ranges) {
  Resolve(id);
  WholeValue& value = values_[id];
  if (!value.placement.split(dim)) {
    const ValueId whole = AsWhole(id);
    const ConditionScope scope(target_, value.condition);
    return LocalSlice(whole, dim, ranges.begins[index_], ranges.ends[index_]);
  }
  const Ranges held = RangesOf(value.placement.cuts);
  if (held == ranges) return value.local;
  for (const auto& [key, local] : value.windows) {
    if (key.first == dim && key.second == ranges) return local;
  }
  const ConditionScope scope(target_, value.condition);
  bool inside = true;  // every rank has what it wants
  for (int i = 0; i < ranks(); ++i) inside = inside && held.begins[i] <= ranges.begins[i] && ranges.ends[i] <= held.ends[i];
  const ValueId local = inside ? LocalSlice(value.local, dim, ranges.begins[index_] - held.begins[index_], ranges.ends[index_] - held.begins[index_])
                               : EmitExchange("exchange", value, dim, held, ranges, "halo")[0];
  value.windows.push_back({{dim, ranges}, local});
  return local;
}

std::vector<ValueId> Partitioner::Halo(ValueId id, int dim, const Ranges& ranges) {
  WholeValue& value = values_[id];
  for (const auto& [key, locals] : value.halos) {
    if (key.first == dim && key.second == ranges) return locals;
  }
  const ConditionScope scope(target_, value.condition);
  value.halos.push_back({{dim, ranges}, EmitExchange("halo", value, dim, RangesOf(value.placement.cuts), ranges, "halo")});
  return value.halos.back().second;
}

ValueId Partitioner::As(ValueId value, const Placement& placement) {
  if (placement.split()) return AsSplit(value, placement.dim, placement.cuts);
  if (placement.flat()) return AsFlat(value, placement.cuts);
  return AsWhole(value);
}

std::vector<ValueId> Partitioner::Emit(std::string_view name, std::span<const ValueId> inputs, Attributes attributes) {
  const std::vector<ValueId> nothing(std::max<size_t>(4, inputs.size()), kNoValue);
  if (!status().ok()) return nothing;
  const OpDefinition* definition = FindOp(name);
  if (definition == nullptr) {
    Fail(absl::InvalidArgumentError(absl::StrFormat("there is no op '%s'", name)));
    return nothing;
  }
  std::vector<TensorType> types;
  for (ValueId input : inputs) types.push_back(TypeOf(input));
  std::vector<TensorType> outputs;
  if (definition->communicates) {
    // Its parts are those of the axis before; along this axis it passes values on as they are.
    outputs.resize(name == "halo" ? 2 : inputs.size());
  } else {
    absl::StatusOr<std::vector<TensorType>> inferred = definition->infer(types, attributes);
    if (!inferred.ok()) {
      Fail(Annotate(inferred.status(), absl::StrFormat("partitioning %s", name)));
      return nothing;
    }
    outputs = *std::move(inferred);
  }
  Locals locals = Rule(name, inputs, attributes, outputs);
  if (locals.empty()) {
    const bool apart = std::any_of(inputs.begin(), inputs.end(), [&](ValueId input) { return values_[input].placement.split(); });
    if (apart) gathered_.insert(std::string(name));
    locals = EverythingWhole(name, inputs, attributes);
  }
  if (!status().ok()) return nothing;
  std::vector<ValueId> results;
  for (size_t o = 0; o < locals.size(); ++o) {
    TensorType type = outputs[o];
    if (definition->communicates) type = target_.TypeOf(locals[o].value);
    if (definition->communicates && locals[o].placement.split()) {
      type.shape[locals[o].placement.dim] = locals[o].placement.cuts.back();
    }
    results.push_back(Add(std::move(type), std::move(locals[o])));
  }
  if ((name == "fill" || name == "broadcast") && values_[results[0]].placement.whole()) {
    values_[results[0]].recipe = static_cast<int>(recipes_.size());
    recipes_.push_back({std::string(name), {inputs.begin(), inputs.end()}, std::move(attributes)});
  }
  return results;
}

Placement Partitioner::PlaceOf(const State& state) const {
  const TensorType& type = source_.TypeOf(state.first);
  if (!state.whole.empty()) return Placement::Whole();
  if (const auto channels = channel_states_.find(type.shape.dims()); channels != channel_states_.end()) {
    // What layers read of statistics is read whole: vectors of spectral norms.
    const bool read = state.role == StateRole::kStatistic && std::any_of(source_.ops().begin(), source_.ops().end(), [&](const Op& op) {
      return UpdateCount(op) == 0 && std::find(op.inputs.begin(), op.inputs.end(), state.first) != op.inputs.end();
    });
    if (!read) return channels->second;
  }
  const bool in_parts = axis_.shard_states && state.role != StateRole::kStatistic && type.element_count() >= axis_.least_elements * ranks();
  return in_parts ? Placement::Flat(Cuts(type.element_count())) : Placement::Whole();
}

absl::StatusOr<RankProgram> Partitioner::Run() {
  GANTRY_RETURN_IF_ERROR(source_.status());
  if (over_channels()) FindChannelStates();
  gradients_only_ = NeededByUpdatesOnly(source_);
  std::vector<ValueId> map(source_.values().size(), kNoValue);
  for (ValueId input : source_.inputs()) {
    const Value& value = source_.values()[input];
    Placement placement;
    const bool samples = value.name.starts_with("real.") || value.name.starts_with("noise.") || value.name.starts_with("mix.");
    const int dim = axis_.split == SplitKind::kBatch ? 0 : axis_.split == SplitKind::kSpace && value.type.shape.rank() >= 4 ? 2 : -1;
    if (samples && dim >= 0 && dim < value.type.shape.rank() && Splittable(value.type.shape[dim])) {
      placement = Placement::Split(dim, Cuts(value.type.shape[dim]));
    }
    const Shape local = LocalShape(value.type.shape, placement);
    InputPart part{value.name, value.type.shape, std::vector<int64_t>(local.rank(), 0)};
    for (const InputPart& earlier : before_) {
      if (earlier.name == value.name) part = earlier;
    }
    if (placement.split()) part.begins[dim] += placement.cuts[index_];
    if (local != part.whole) input_parts_.push_back(std::move(part));
    const ValueId target = target_.AddInput(value.name, {value.type.dtype, local});
    map[input] = Add(value.type, {std::move(placement), target});
  }
  for (const State& state : source_.states()) {
    const TensorType& type = source_.TypeOf(state.first);
    const Placement placement = PlaceOf(state);
    if (placement.whole()) {
      State named = state;
      named.name = state.whole;
      const ValueId target = state.whole.empty()
                                 ? target_.AddState(state.name, state.network, state.role, type, state.initializer)
                                 : target_.AddStatePiece(state.name, named, state.begin, type);
      map[state.first] = Add(type, {Placement::Whole(), target});
      continue;
    }
    // Places before the split axis are one place only, so a part is a run of elements.
    const int64_t place = placement.flat() ? 1 : type.element_count() / type.shape[placement.dim];
    const ValueId target =
        target_.AddStatePiece(state.name, state, placement.cuts[index_] * place, {type.dtype, LocalShape(type.shape, placement)});
    map[state.first] = Add(type, {placement, target});
  }
  for (const Op& op : source_.ops()) {
    ++at_;
    is_update_ = op.definition->updates != nullptr || op.definition->name == "sum_squares";
    places_.first_op.push_back(static_cast<OpId>(target_.ops().size()));
    target_.SetPhase(source_.labels()[op.phase]);
    target_.SetNetwork(source_.labels()[op.network]);
    target_.SetCondition(op.condition == kNoValue ? kNoValue : AsWhole(map[op.condition]));
    std::vector<ValueId> inputs;
    for (ValueId input : op.inputs) inputs.push_back(map[input]);
    const std::vector<ValueId> outputs = Emit(op.definition->name, inputs, op.attributes);
    GANTRY_RETURN_IF_ERROR(Annotate(status(), source_.Describe(static_cast<OpId>(&op - source_.ops().data()))));
    for (size_t o = 0; o < op.outputs.size(); ++o) {
      map[op.outputs[o]] = outputs[o];
      target_.NameValue(values_[outputs[o]].local, source_.values()[op.outputs[o]].name);
    }
  }
  ++at_;
  is_update_ = false;
  places_.first_op.push_back(static_cast<OpId>(target_.ops().size()));
  target_.SetCondition(kNoValue);
  for (const State& state : source_.states()) {
    if (state.last == state.first) continue;
    target_.UpdateState(state.name, values_[map[state.last]].local);
  }
  for (const NamedValue& output : source_.outputs()) {
    const ValueId id = map[output.value];
    const bool scalar = TypeOf(id).element_count() == 1;
    const WholeValue& value = values_[id];
    target_.AddOutput(output.name, scalar || !value.placement.split() ? AsWhole(id) : value.local);
  }
  GANTRY_RETURN_IF_ERROR(target_.status());
  RankProgram result;
  result.program = std::move(target_);
  result.input_parts = std::move(input_parts_);
  result.gathered.assign(gathered_.begin(), gathered_.end());
  result.crossings = std::move(crossings_);
  result.choices = std::move(choices_);
  return result;
}

absl::StatusOr<RankProgram> Partition(const Program& program, const PartitionAxis& axis, int index, const std::vector<InputPart>& before) {
  if (axis.ranks.empty() || index < 0 || index >= static_cast<int>(axis.ranks.size())) {
    return absl::InvalidArgumentError(absl::StrFormat("an axis of %d ranks has no place %d", axis.ranks.size(), index));
  }
  if (!axis.shares.empty() && axis.shares.size() != axis.ranks.size()) {
    return absl::InvalidArgumentError(absl::StrFormat("an axis of %d ranks has %d shares", axis.ranks.size(), axis.shares.size()));
  }
  for (const double share : axis.shares) {
    if (!(share > 0.0) || !std::isfinite(share)) {
      return absl::InvalidArgumentError(absl::StrFormat("a rank's share is %g; shares must be above 0", share));
    }
  }
  Partitioner partitioner(program, axis, index, before);
  GANTRY_ASSIGN_OR_RETURN(RankProgram result, partitioner.Run());
  result.places = std::move(partitioner.places());
  return result;
}

}  // namespace gantry
