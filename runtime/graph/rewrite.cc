#include "runtime/graph/rewrite.h"

#include <map>
#include <tuple>

#include "absl/strings/str_join.h"

namespace gantry {
namespace {

// Ops that something observable depends on.
std::vector<bool> LiveOps(const Program& program) {
  std::vector<bool> live(program.ops().size(), false);
  std::vector<bool> needed(program.values().size(), false);
  for (const NamedValue& output : program.outputs()) needed[output.value] = true;
  for (const State& state : program.states()) needed[state.last] = true;
  // Conditions are inputs of the program and need no op.
  for (OpId id = static_cast<OpId>(program.ops().size()) - 1; id >= 0; --id) {
    const Op& op = program.ops()[id];
    // Other ranks may wait for an exchange of which this one needs nothing.
    live[id] = op.definition->communicates;
    for (ValueId output : op.outputs) live[id] = live[id] || needed[output];
    if (!live[id]) continue;
    for (ValueId input : op.inputs) needed[input] = true;
  }
  return live;
}

// How many ops, outputs and states read each value.
std::vector<int> CountUses(const Program& program) {
  std::vector<int> uses(program.values().size(), 0);
  for (const Op& op : program.ops()) {
    for (ValueId input : op.inputs) ++uses[input];
  }
  for (const NamedValue& output : program.outputs()) ++uses[output.value];
  for (const State& state : program.states()) ++uses[state.last];
  return uses;
}

absl::StatusOr<Program> Checked(Program program) {
  GANTRY_RETURN_IF_ERROR(program.status());
  return program;
}

// Which ops are folded into another, and how; filled by the fusion patterns, carried out in one copy.
class Fuser {
 public:
  Fuser(const Program& program, const FuseOptions& options)
      : program_(program), options_(options), uses_(CountUses(program)), fold_into_producer_(program.ops().size(), false) {}

  absl::StatusOr<Program> Run() {
    Program target;
    ProgramCopier copier(program_, target);
    copier_ = &copier;
    target_ = &target;
    const OpId count = static_cast<OpId>(program_.ops().size());
    for (OpId id = 0; id < count; ++id) {
      if (fold_into_producer_[id]) continue;
      if (options_.activation && FuseActivation(id)) continue;
      if (options_.activation && FuseActivationGradient(id)) continue;
      if (options_.buckets) {
        if (const OpId end = BucketEnd(id); end > id + 1) {
          EmitBucket(id, end);
          id = end - 1;
          continue;
        }
      }
      copier.Copy(id);
    }
    copier.Finish();
    return Checked(std::move(target));
  }

 private:
  // The only op that reads `value`, or -1.
  OpId OnlyReader(ValueId value, OpId after) const {
    if (uses_[value] != 1) return -1;
    for (OpId id = after + 1; id < static_cast<OpId>(program_.ops().size()); ++id) {
      for (ValueId input : program_.ops()[id].inputs) {
        if (input == value) return id;
      }
    }
    return -1;
  }

  bool FuseActivation(OpId id) {
    const Op& op = program_.ops()[id];
    const std::string_view name = op.definition->name;
    constexpr std::string_view kNames[] = {"conv", "conv_transpose", "normalize", "normalize_apply"};
    if (std::find(std::begin(kNames), std::end(kNames), name) == std::end(kNames) || op.attributes.Has("slope")) return false;
    const OpId reader = OnlyReader(op.outputs[0], id);
    if (reader < 0 || program_.ops()[reader].definition->name != "leaky_relu") return false;
    const Op& activation = program_.ops()[reader];
    Attributes attributes = op.attributes;
    attributes.Set("slope", activation.attributes.Float("slope"));
    copier_->SetLabels(op);
    const std::vector<ValueId> outputs = target_->Emit(name, Inputs(op), std::move(attributes));
    for (size_t i = 0; i < op.outputs.size(); ++i) copier_->Map(op.outputs[i], outputs[i]);
    copier_->Map(activation.outputs[0], outputs[0]);
    target_->NameValue(outputs[0], program_.values()[activation.outputs[0]].name);
    fold_into_producer_[reader] = true;
    return true;
  }

  static bool IsNormalizeGrad(const Op& op) {
    constexpr std::string_view kNames[] = {"normalize_grad", "normalize_grad_sums", "normalize_grad_apply"};
    return std::find(std::begin(kNames), std::end(kNames), op.definition->name) != std::end(kNames) && !op.attributes.Has("slope");
  }

  // leaky_relu_grad(g, y) that feeds a normalize_grad, or its halves, alone: normalize_grad(g, x, scale, mean, variance, y) {slope}.
  bool FuseActivationGradient(OpId id) {
    const Op& op = program_.ops()[id];
    if (!IsNormalizeGrad(op)) return false;
    const Value& gradient = program_.values()[op.inputs[0]];
    if (gradient.kind != ValueKind::kComputed) return false;
    const Op& activation = program_.ops()[gradient.producer];
    if (activation.definition->name != "leaky_relu_grad") return false;
    int readers = 0;
    for (OpId other = gradient.producer + 1; other < static_cast<OpId>(program_.ops().size()); ++other) {
      const Op& reader = program_.ops()[other];
      readers += IsNormalizeGrad(reader) && reader.inputs[0] == op.inputs[0];
    }
    if (uses_[op.inputs[0]] != readers) return false;
    Attributes attributes = op.attributes;
    attributes.Set("slope", activation.attributes.Float("slope"));
    std::vector<ValueId> inputs = Inputs(op);
    inputs[0] = copier_->Mapped(activation.inputs[0]);
    inputs.push_back(copier_->Mapped(activation.inputs[1]));
    copier_->SetLabels(op);
    const std::vector<ValueId> outputs = target_->Emit(op.definition->name, inputs, std::move(attributes));
    for (size_t i = 0; i < op.outputs.size(); ++i) copier_->Map(op.outputs[i], outputs[i]);
    return true;  // the activation's own copy is dead now and goes with the next Simplify
  }

  // End of the run of updates, starting at `id`, that can be one op: same kind, attributes, scalars and labels, none of
  // which reads what another writes.
  OpId BucketEnd(OpId id) const {
    const Op& first = program_.ops()[id];
    if (UpdateCount(first) == 0 || !first.attributes.Has("count")) return id;
    OpId end = id + 1;
    for (; end < static_cast<OpId>(program_.ops().size()); ++end) {
      const Op& next = program_.ops()[end];
      if (next.definition != first.definition || next.phase != first.phase || next.network != first.network ||
          next.condition != first.condition) {
        break;
      }
      if (!(next.attributes == first.attributes) || next.inputs.size() != first.inputs.size()) break;
      if (!std::equal(first.inputs.begin() + Tensors(first), first.inputs.end(), next.inputs.begin() + Tensors(next))) break;
      if (options_.buckets_by_exchange && ExchangeOf(next) != ExchangeOf(first)) break;
      bool reads_earlier = false;
      for (ValueId input : next.inputs) {
        const OpId producer = program_.values()[input].producer;
        reads_earlier = reads_earlier || (producer >= id && producer < end);
      }
      if (reads_earlier) break;
    }
    return end;
  }

  // The exchange that brings an update its gradient, or -1.
  OpId ExchangeOf(const Op& update) const {
    for (ValueId input : update.inputs) {
      OpId maker = program_.values()[input].producer;
      while (maker >= 0 && program_.ops()[maker].definition->is_view) maker = program_.values()[program_.ops()[maker].inputs[0]].producer;
      if (maker >= 0 && program_.ops()[maker].definition->communicates) return maker;
    }
    return -1;
  }

  // Inputs are groups of `count` tensors (weights, moments, gradients), then scalars that the whole bucket shares.
  static size_t Scalars(const Op& op) { return op.definition->name == "lerp_update" ? 0 : 3; }
  static size_t Tensors(const Op& op) { return op.inputs.size() - Scalars(op); }

  void EmitBucket(OpId begin, OpId end) {
    const Op& first = program_.ops()[begin];
    const int count = static_cast<int>(first.attributes.Int("count", 1));
    const int groups = static_cast<int>(Tensors(first)) / count;
    std::vector<ValueId> inputs;
    for (int group = 0; group < groups; ++group) {
      for (OpId id = begin; id < end; ++id) {
        for (int i = 0; i < count; ++i) inputs.push_back(copier_->Mapped(program_.ops()[id].inputs[group * count + i]));
      }
    }
    for (size_t i = Tensors(first); i < first.inputs.size(); ++i) inputs.push_back(copier_->Mapped(first.inputs[i]));
    Attributes attributes = first.attributes;
    const int total = count * (end - begin);
    attributes.Set("count", int64_t{total});
    copier_->SetLabels(first);
    const std::vector<ValueId> outputs = target_->Emit(first.definition->name, inputs, std::move(attributes));
    for (OpId id = begin; id < end; ++id) {
      const Op& op = program_.ops()[id];
      for (size_t i = 0; i < op.outputs.size(); ++i) {
        const size_t group = i / count;
        copier_->Map(op.outputs[i], outputs[group * total + (id - begin) * count + i % count]);
      }
    }
  }

  std::vector<ValueId> Inputs(const Op& op) const {
    std::vector<ValueId> inputs;
    for (ValueId input : op.inputs) inputs.push_back(copier_->Mapped(input));
    return inputs;
  }

  const Program& program_;
  const FuseOptions& options_;
  std::vector<int> uses_;
  std::vector<bool> fold_into_producer_;
  ProgramCopier* copier_ = nullptr;
  Program* target_ = nullptr;
};

}  // namespace

absl::StatusOr<Program> Simplify(const Program& program) {
  GANTRY_RETURN_IF_ERROR(program.status());
  const std::vector<bool> live = LiveOps(program);
  Program target;
  ProgramCopier copier(program, target);
  std::map<std::tuple<const OpDefinition*, std::vector<ValueId>, std::string>, OpId> seen;
  for (OpId id = 0; id < static_cast<OpId>(program.ops().size()); ++id) {
    if (!live[id]) continue;
    const Op& op = program.ops()[id];
    if (UpdateCount(op) == 0) {
      std::vector<ValueId> inputs;
      for (ValueId input : op.inputs) inputs.push_back(copier.Mapped(input));
      const auto [place, is_new] = seen.try_emplace({op.definition, std::move(inputs), op.attributes.ToString()}, id);
      const Op& earlier = program.ops()[place->second];
      // What ran only under a condition cannot stand in for what always runs.
      if (!is_new && earlier.condition != kNoValue && earlier.condition != op.condition) {
        place->second = id;
      } else if (!is_new) {
        for (size_t i = 0; i < op.outputs.size(); ++i) copier.Map(op.outputs[i], copier.Mapped(earlier.outputs[i]));
        continue;
      }
    }
    copier.Copy(id);
  }
  copier.Finish();
  return Checked(std::move(target));
}

absl::StatusOr<Program> Fuse(const Program& program, const FuseOptions& options) {
  GANTRY_RETURN_IF_ERROR(program.status());
  return Fuser(program, options).Run();
}

}  // namespace gantry
