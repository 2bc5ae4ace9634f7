#include "runtime/partition/homes.h"

#include <bit>
#include <cstdlib>

#include "ops/functional.h"

namespace gantry {
namespace {

class HomePartitioner {
 public:
  HomePartitioner(const Program& source, std::span<const int> ranks, int index, const Homes& homes)
      : source_(source), ranks_(ranks.begin(), ranks.end()), index_(index), homes_(homes),
        all_(~RankSet{0} >> (kMostHomes - static_cast<int>(ranks.size()))), where_(source.values().size(), all_),
        local_(source.values().size(), kNoValue), is_output_(source.values().size(), false) {}

  absl::StatusOr<Program> Run() {
    GANTRY_RETURN_IF_ERROR(source_.status());
    for (ValueId input : source_.inputs()) local_[input] = target_.AddInput(source_.values()[input].name, source_.TypeOf(input));
    for (const State& state : source_.states()) AddState(state);
    for (const NamedValue& output : source_.outputs()) is_output_[output.value] = true;
    for (const Op& op : source_.ops()) {
      Place(op);
      GANTRY_RETURN_IF_ERROR(Annotate(target_.status(), source_.Describe(static_cast<OpId>(&op - source_.ops().data()))));
    }
    target_.SetCondition(kNoValue);
    for (const State& state : source_.states()) {
      const int home = homes_.of_state(state);
      if (state.last == state.first || !Has(At(home), index_)) continue;
      target_.UpdateState(home == kEverywhere ? state.name : PieceName(state), local_[state.last]);
    }
    for (const NamedValue& output : source_.outputs()) {
      if (local_[output.value] != kNoValue) target_.AddOutput(output.name, local_[output.value]);
    }
    GANTRY_RETURN_IF_ERROR(target_.status());
    return std::move(target_);
  }

 private:
  RankSet At(int home) const { return home == kEverywhere ? all_ : RankSet{1} << home; }
  static bool Has(RankSet set, int index) { return (set >> index & 1) != 0; }
  static std::string PieceName(const State& state) { return state.whole.empty() ? absl::StrCat(state.name, "#0") : state.name; }

  void AddState(const State& state) {
    const int home = homes_.of_state(state);
    where_[state.first] = At(home);
    if (!Has(At(home), index_)) return;
    const TensorType& type = source_.TypeOf(state.first);
    if (home == kEverywhere) {
      local_[state.first] = target_.AddState(state.name, state.network, state.role, type, state.initializer);
      return;
    }
    // A piece never has the name of the whole, which is not there on other ranks.
    State whole = state;
    if (!state.whole.empty()) whole.name = state.whole;
    local_[state.first] = target_.AddStatePiece(PieceName(state), whole, state.begin, type);
  }

  void Place(const Op& op) {
    const int home = homes_.of_op(op, where_);
    for (ValueId input : op.inputs) {
      if ((At(home) & ~where_[input]) != 0) Share(input, home);
    }
    target_.SetPhase(source_.labels()[op.phase]);
    target_.SetNetwork(homes_.network == nullptr ? source_.labels()[op.network] : homes_.network(op));
    target_.SetCondition(op.condition == kNoValue ? kNoValue : local_[op.condition]);
    for (ValueId output : op.outputs) where_[output] = At(home);
    // Numbered on all ranks, so that the order of all is one.
    const int64_t sequence = op.definition->communicates ? sequence_++ : 0;
    if (Has(At(home), index_)) {
      std::vector<ValueId> inputs;
      for (ValueId input : op.inputs) inputs.push_back(local_[input]);
      Attributes attributes = op.attributes;
      if (op.definition->communicates) attributes.Set("sequence", sequence);
      const std::vector<ValueId> outputs = target_.Emit(op.definition->name, inputs, std::move(attributes));
      if (!target_.status().ok()) return;
      for (size_t o = 0; o < op.outputs.size(); ++o) {
        local_[op.outputs[o]] = outputs[o];
        target_.NameValue(outputs[o], source_.values()[op.outputs[o]].name);
      }
    }
    // Whoever looks at a loss must see it on all ranks, and stop there on all.
    for (ValueId output : op.outputs) {
      if (is_output_[output] && home != kEverywhere && source_.TypeOf(output).element_count() == 1) Share(output, kEverywhere);
    }
  }

  // Of the ranks that have the value the one nearest to `home`; the first for all.
  int HolderFor(ValueId value, int home) const {
    int nearest = std::countr_zero(where_[value]);
    for (int index = nearest; home != kEverywhere && index < static_cast<int>(ranks_.size()); ++index) {
      if (Has(where_[value], index) && std::abs(index - home) < std::abs(nearest - home)) nearest = index;
    }
    return nearest;
  }

  // Brings the value to another rank. With `to` kEverywhere, all take what was exchanged for it.
  void Share(ValueId value, int to) {
    const TensorType& type = source_.TypeOf(value);
    const int holder = HolderFor(value, to);
    const int64_t count = type.element_count(), sequence = sequence_++;
    const bool all = to == kEverywhere;
    where_[value] |= At(to);
    if (!all && index_ != holder && index_ != to) return;  // between two others
    std::vector<int> members;  // indices on the axis
    for (int index = 0; index < static_cast<int>(ranks_.size()); ++index) {
      if (all || index == holder || index == to) members.push_back(index);
    }
    std::vector<int64_t> group, held_begins, held_ends, wanted;
    int64_t mine = 0;
    for (const int member : members) {
      if (member == index_) mine = static_cast<int64_t>(group.size());
      group.push_back(ranks_[member]);
      held_begins.push_back(member > holder ? count : 0);
      held_ends.push_back(member >= holder ? count : 0);
      wanted.push_back(all || member == to ? count : 0);
    }
    // Under the condition of what made it.
    const Value& made = source_.values()[value];
    const ValueId condition = made.kind == ValueKind::kComputed ? source_.ops()[made.producer].condition : kNoValue;
    const bool updated = made.kind == ValueKind::kComputed && UpdateCount(source_.ops()[made.producer]) > 0;
    target_.SetCondition(condition == kNoValue || updated ? kNoValue : local_[condition]);
    const ValueId inputs[] = {holder == index_ ? ops::Reshape(target_, local_[value], Shape{count}) : ops::Fill(target_, type.dtype, Shape{0}, 0.0)};
    const size_t size = members.size();
    const ValueId got = target_.Emit("exchange", inputs,
                                     {{"ranks", std::move(group)},
                                      {"index", mine},
                                      {"sequence", sequence},
                                      {"purpose", std::string("edge")},
                                      {"axis", int64_t{0}},
                                      {"from_begins", std::move(held_begins)},
                                      {"from_ends", std::move(held_ends)},
                                      {"to_begins", std::vector<int64_t>(size, 0)},
                                      {"to_ends", std::move(wanted)}})[0];
    if (!target_.status().ok()) return;
    if (holder != index_ || all) local_[value] = ops::Reshape(target_, got, type.shape);
    if (holder != index_) target_.NameValue(local_[value], made.name);
  }

  const Program& source_;
  const std::vector<int> ranks_;
  const int index_;
  const Homes& homes_;
  const RankSet all_;
  Program target_;
  std::vector<RankSet> where_;   // per value of the source
  std::vector<ValueId> local_;   // likewise: in the target; kNoValue where it is not here
  std::vector<bool> is_output_;  // likewise
  int64_t sequence_ = 0;
};

}  // namespace

absl::StatusOr<Program> PartitionByHomes(const Program& program, std::span<const int> ranks, int index, const Homes& homes) {
  if (ranks.size() < 2 || ranks.size() > kMostHomes || index < 0 || index >= static_cast<int>(ranks.size())) {
    return absl::InvalidArgumentError(
        absl::StrFormat("ops have homes on 2 to %d ranks; an axis of %d ranks with a place %d is none", kMostHomes, ranks.size(), index));
  }
  return HomePartitioner(program, ranks, index, homes).Run();
}

}  // namespace gantry
