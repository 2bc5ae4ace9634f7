#include "runtime/plan/reside.h"

#include <algorithm>

#include "runtime/graph/lanes.h"
#include "runtime/plan/cost_model.h"
#include "runtime/plan/encode.h"

namespace gantry {
namespace {

// Copies of less are not worth an entry in a lane.
constexpr int64_t kLeastBytes = 4096;

// Buffers begin at multiples of 64 bytes.
int64_t Aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

Resider::Resider(const Plan& base, const std::vector<TakeOver>& taken_over, const PlanOptions& options)
    : base_(base), options_(options) {
  BuildProblem(taken_over);
}

void Resider::BuildProblem(const std::vector<TakeOver>& taken_over) {
  const Program& program = base_.program;
  const CostModel costs(options_);
  item_of_.assign(program.values().size(), -1);
  const auto AddItem = [&](ValueId value) {
    const Value& v = program.values()[value];
    ResidencyItem item;
    item.name = !v.name.empty() ? v.name
                : v.kind == ValueKind::kComputed ? std::string(program.ops()[v.producer].definition->name)
                                                 : "";
    item.bytes = Aligned(v.type.size_bytes());
    if (item.bytes < kLeastBytes) item.tiers = 0;
    problem_.items.push_back(std::move(item));
    value_of_.push_back(value);
    item_of_[value] = static_cast<int>(problem_.items.size()) - 1;
    return item_of_[value];
  };
  for (const State& state : program.states()) {
    ResidencyItem& item = problem_.items[AddItem(state.first)];
    item.kept = item.wraps = true;
  }
  std::vector<bool> read(program.values().size(), false);
  for (const Op& op : program.ops()) {
    for (ValueId input : op.inputs) read[input] = true;
    if (op.condition != kNoValue) read[op.condition] = true;
  }
  for (const NamedValue& output : program.outputs()) read[output.value] = true;
  for (ValueId input : program.inputs()) {
    if (read[input]) AddItem(input);
  }
  const ValueId tail = program.FindInput(kTailFlag);
  for (size_t step = 0; step < base_.schedule.size(); ++step) {
    const OpId id = base_.schedule[step].op;
    const Op& op = program.ops()[id];
    if (op.definition->is_view) {
      item_of_[op.outputs[0]] = item_of_[op.inputs[0]];
      continue;
    }
    const int index = static_cast<int>(problem_.ops.size());
    op_of_.push_back(id);
    ResidencyOp cost;
    cost.seconds = costs.Seconds(program, id, base_.schedule[step].kernel.get());
    cost.scratch_bytes = base_.schedule[step].kernel != nullptr
                             ? Aligned(static_cast<int64_t>(base_.schedule[step].kernel->scratch_bytes()))
                             : 0;
    const int updates = UpdateCount(op);
    const bool in_tail = tail != kNoValue && op.condition == tail;
    cost.repeatable = updates == 0 && !in_tail && !op.definition->communicates;  // a rank cannot meet the others on its own
    const auto Read = [&](ValueId value) {
      const int item = item_of_[value];
      if (std::find(cost.reads.begin(), cost.reads.end(), item) != cost.reads.end()) return;
      cost.reads.push_back(item);
      problem_.items[item].uses.push_back(index);
    };
    for (ValueId input : op.inputs) Read(input);
    if (op.condition != kNoValue) Read(op.condition);
    for (size_t o = 0; o < op.outputs.size(); ++o) {
      if (static_cast<int>(o) < updates) {
        const int item = item_of_[op.inputs[o]];
        item_of_[op.outputs[o]] = item;
        problem_.items[item].changes.push_back(index);
      } else {
        const int item = AddItem(op.outputs[o]);
        if (options_.recompute && IsDraw(op)) problem_.items[item].tiers = 0;
        problem_.items[item].made_by = index;
        cost.makes.push_back(item);
      }
    }
    // A tail may run by itself between steps, when no copies do: what it has stays on the device.
    if (in_tail) {
      for (const int item : cost.reads) problem_.items[item].tiers = 0;
      for (const int item : cost.makes) problem_.items[item].tiers = 0;
    }
    problem_.ops.push_back(std::move(cost));
  }
  for (const NamedValue& output : program.outputs()) problem_.items[item_of_[output.value]].kept = true;
  for (const TakeOver& pair : taken_over) problem_.items[item_of_[pair.input]].taken_over_by = item_of_[pair.output];
  for (size_t i = 0; i < problem_.items.size(); ++i) {
    ResidencyItem& item = problem_.items[i];
    // The caller fills inputs and reads outputs by address, which only host memory has.
    const bool callers = item.kept != item.wraps || (item.made_by < 0 && !item.wraps);
    for (size_t tier = 0; callers && tier < options_.tiers.size(); ++tier) {
      if (options_.tiers[tier].kind != TierKind::kHost) item.tiers &= ~(1u << tier);
    }
  }
  for (const TierOptions& tier : options_.tiers) problem_.tiers.push_back(costs.TierOf(tier));
}

absl::Status CheckActions(const ResidencyProblem& problem, int tier_count, const ResidencySolution& solution) {
  const int items = static_cast<int>(problem.items.size()), ops = static_cast<int>(problem.ops.size());
  const int actions = static_cast<int>(solution.schedule.actions.size());
  if (static_cast<int>(solution.choice.size()) != items) {
    return absl::InvalidArgumentError(absl::StrFormat("the plan has choices for %d values, the program has %d", solution.choice.size(), items));
  }
  std::vector<bool> on_device(items, false), in_tier(items, false);
  for (int i = 0; i < items; ++i) {
    const ResidencyItem& item = problem.items[i];
    const std::vector<Residence>& gaps = solution.choice[i];
    if (gaps.size() != item.uses.size() + 1) return absl::InvalidArgumentError(absl::StrFormat("value %d has %d gaps, not %d", i,
                                                                                               gaps.size(), item.uses.size() + 1));
    if (item.made_by >= 0) continue;
    if (gaps.front() == Residence::kRecompute) return absl::InvalidArgumentError(absl::StrFormat("value %d cannot be made again", i));
    (IsTier(gaps.front()) ? in_tier : on_device)[i] = true;
  }
  int next = 0;
  for (int a = 0; a < actions; ++a) {
    const ResidencyAction& action = solution.schedule.actions[a];
    const auto Wrong = [&](std::string_view what) {
      return absl::InvalidArgumentError(absl::StrFormat("action %d of the plan: %s", a, what));
    };
    const bool copy = action.kind == ResidencyAction::Kind::kFetch || action.kind == ResidencyAction::Kind::kStash;
    if (copy) {
      if (action.item < 0 || action.item >= items || action.tier < 0 || action.tier >= tier_count) return Wrong("no such value or tier");
      const bool fetch = action.kind == ResidencyAction::Kind::kFetch;
      const bool goes_on = !fetch && problem.items[action.item].wraps && action.done_by < actions + a;
      if (action.done_by <= a || (action.done_by > actions && !goes_on)) return Wrong("it is done before it begins, or never");
      if (!(fetch ? in_tier : on_device)[action.item]) return Wrong("it copies what is not there");
      (fetch ? on_device : in_tier)[action.item] = true;
      continue;
    }
    if (action.op < 0 || action.op >= ops) return Wrong("no such op");
    const bool again = action.kind == ResidencyAction::Kind::kAgain;
    if (!again && action.op != next++) return Wrong("ops are not in their order");
    if (again && (!problem.ops[action.op].repeatable || action.op >= next)) return Wrong("the op cannot run again");
    for (const int item : problem.ops[action.op].reads) {
      if (!on_device[item]) return Wrong("the op reads what is not there");
    }
    for (const int item : action.items) {
      if (item < 0 || item >= items || problem.items[item].made_by != action.op) return Wrong("the op does not make that");
    }
    for (const int item : problem.ops[action.op].makes) on_device[item] = true;
  }
  if (next != ops) return absl::InvalidArgumentError(absl::StrFormat("the plan runs %d of %d ops", next, ops));
  for (int i = 0; i < items; ++i) {
    if (!problem.items[i].kept) continue;
    const bool there = IsTier(solution.choice[i].back()) ? in_tier[i] : on_device[i];
    if (!there) return absl::InvalidArgumentError(absl::StrFormat("value %d is not where it is kept when the step ends", i));
  }
  return absl::OkStatus();
}

void Resider::Tighten(int tier, int64_t bytes) {
  int64_t& budget = problem_.tiers[static_cast<size_t>(tier)].budget_bytes;
  budget = std::max<int64_t>(0, budget - std::max(bytes, budget / 64));
}

absl::StatusOr<ResidencySolution> Resider::Solve(int64_t budget_bytes, bool recompute) {
  problem_.budget_bytes = budget_bytes;
  return SolveResidency(problem_, {.recompute = recompute});
}

namespace {

// Emits the base program's ops in the order of the actions, with the copies between them.
class Rewriter {
 public:
  Rewriter(const Program& source, const ResidencyProblem& problem, const std::vector<OpId>& op_of,
           const std::vector<int>& item_of, const std::vector<ValueId>& value_of, const PlanOptions& options)
      : source_(source), problem_(problem), op_of_(op_of), item_of_(item_of), value_of_(value_of), options_(options),
        copier_(source, target_), items_(problem.items.size()), views_(source.values().size()) {}

  absl::StatusOr<ResidentProgram> Run(const ResidencySolution& solution) {
    for (size_t i = 0; i < items_.size(); ++i) {
      if (problem_.items[i].made_by >= 0) continue;
      const ValueId first = copier_.Mapped(value_of_[i]);
      const Residence home = solution.choice[i].front();
      if (IsTier(home)) {
        target_.SetTier(first, TierOf(home));
        items_[i].in_tier = first;
        items_[i].tier = TierOf(home);
      } else {
        items_[i].on_device = first;
      }
    }
    std::vector<int> first_op(solution.schedule.actions.size() + 1);
    std::vector<std::pair<OpId, int>> copies;  // op, action that it is done by
    for (size_t a = 0; a < solution.schedule.actions.size(); ++a) {
      const ResidencyAction& action = solution.schedule.actions[a];
      first_op[a] = static_cast<int>(target_.ops().size());
      switch (action.kind) {
        case ResidencyAction::Kind::kRun: RunOp(op_of_[action.op], nullptr); break;
        case ResidencyAction::Kind::kAgain: RunOp(op_of_[action.op], &action.items); break;
        case ResidencyAction::Kind::kFetch: copies.push_back({Fetch(action.item), action.done_by}); break;
        case ResidencyAction::Kind::kStash: copies.push_back({Stash(action.item, action.tier), action.done_by}); break;
      }
      GANTRY_RETURN_IF_ERROR(target_.status());
    }
    first_op.back() = static_cast<int>(target_.ops().size());
    for (const State& state : source_.states()) {
      const Item& item = items_[item_of_[state.first]];
      const ValueId last = item.tier >= 0 ? item.in_tier : item.on_device;
      if (last != copier_.Mapped(state.first)) target_.UpdateState(state.name, last);
    }
    for (const NamedValue& output : source_.outputs()) {
      Item& item = items_[item_of_[output.value]];
      if (IsTier(solution.choice[item_of_[output.value]].back()) && item.in_tier != kNoValue) {
        item.on_device = item.in_tier;  // where it is when the step ends
        ++item.version;
      }
      target_.AddOutput(output.name, Resolve(output.value));
    }
    GANTRY_RETURN_IF_ERROR(target_.status());
    ResidentProgram result;
    result.done_by.assign(target_.ops().size(), -1);
    const int actions = static_cast<int>(solution.schedule.actions.size()), ops = static_cast<int>(target_.ops().size());
    for (const auto& [op, action] : copies) result.done_by[op] = action <= actions ? first_op[action] : ops + first_op[action - actions];
    result.program = std::move(target_);
    return result;
  }

 private:
  struct Item {
    ValueId on_device = kNoValue, in_tier = kNoValue;
    int tier = -1;    // home of a state or input
    std::string_view encoding;  // of what is in the tier
    int version = 0;  // counts every new value of on_device: views of an older one are stale
  };
  struct View {
    ValueId value = kNoValue;
    int version = -1;
  };

  // The value of the target that holds a value of the source now.
  ValueId Resolve(ValueId value) {
    Item& item = items_[item_of_[value]];
    const Value& v = source_.values()[value];
    if (v.kind != ValueKind::kComputed || !source_.ops()[v.producer].definition->is_view) return item.on_device;
    View& view = views_[value];
    if (view.version != item.version) {
      const Op& op = source_.ops()[v.producer];
      const ValueId input = Resolve(op.inputs[0]);
      SetLabels(op);
      const ValueId inputs[] = {input};
      view.value = target_.Emit(op.definition->name, inputs, op.attributes)[0];
      target_.SetLayout(view.value, v.type.layout);
      if (input != kNoValue) target_.SetTier(view.value, target_.values()[input].tier);
      view.version = item.version;
    }
    return view.value;
  }

  // `only`: the items that a repeated op brings back; null: all that it makes.
  void RunOp(OpId id, const std::vector<int>* only) {
    const Op& op = source_.ops()[id];
    std::vector<ValueId> inputs;
    for (ValueId input : op.inputs) inputs.push_back(Resolve(input));
    SetLabels(op);
    const std::vector<ValueId> outputs = target_.Emit(op.definition->name, inputs, op.attributes);
    if (!target_.status().ok()) return;
    for (size_t o = 0; o < op.outputs.size(); ++o) {
      target_.SetLayout(outputs[o], source_.TypeOf(op.outputs[o]).layout);
      const int item = item_of_[op.outputs[o]];
      if (only != nullptr && std::find(only->begin(), only->end(), item) == only->end()) continue;
      target_.NameValue(outputs[o], source_.values()[op.outputs[o]].name);
      items_[item].on_device = outputs[o];
      ++items_[item].version;
    }
  }

  void SetLabels(const Op& op) {
    copier_.SetLabels(op);
    if (op.condition != kNoValue) target_.SetCondition(items_[item_of_[op.condition]].on_device);
  }

  // A copy belongs where what it copies was made, and happens under the same condition.
  void SetLabelsOf(int item) {
    if (problem_.items[item].made_by >= 0) {
      SetLabels(source_.ops()[op_of_[problem_.items[item].made_by]]);
      return;
    }
    target_.SetNetwork("");
    target_.SetCondition(kNoValue);
    for (const State& state : source_.states()) {
      if (state.first == value_of_[item]) target_.SetNetwork(state.network);
    }
  }

  OpId Fetch(int index) {
    Item& item = items_[index];
    SetLabelsOf(index);
    const ValueId inputs[] = {item.in_tier};
    Attributes attributes = EncodingAttributes(item);
    if (item.encoding == "bf16") attributes.Set("dims", source_.TypeOf(value_of_[index]).shape.dims());
    item.on_device = target_.Emit("fetch", inputs, std::move(attributes))[0];
    CopyType(index, item.on_device);
    ++item.version;
    return static_cast<OpId>(target_.ops().size()) - 1;
  }

  OpId Stash(int index, int tier) {
    Item& item = items_[index];
    SetLabelsOf(index);
    if (item.tier >= 0 && problem_.items[index].wraps) {
      const ValueId inputs[] = {item.in_tier, item.on_device};
      item.in_tier = target_.Emit("write_back", inputs, {})[0];
    } else {
      const ValueId inputs[] = {item.on_device};
      // What must be there when the step ends is read where it is, by whoever knows nothing of encodings.
      if (!problem_.items[index].kept) item.encoding = StashEncoding(source_, value_of_[index], options_.tiers[tier], options_);
      item.in_tier = target_.Emit("stash", inputs, EncodingAttributes(item))[0];
    }
    CopyType(index, item.in_tier);
    target_.SetTier(item.in_tier, tier);
    return static_cast<OpId>(target_.ops().size()) - 1;
  }

  static Attributes EncodingAttributes(const Item& item) {
    return item.encoding.empty() ? Attributes{} : Attributes{{"encoding", std::string(item.encoding)}};
  }

  void CopyType(int index, ValueId value) {
    const Value& source = source_.values()[value_of_[index]];
    if (target_.TypeOf(value).dtype == source.type.dtype) target_.SetLayout(value, source.type.layout);
    target_.NameValue(value, problem_.items[index].name);
  }

  const Program& source_;
  const ResidencyProblem& problem_;
  const std::vector<OpId>& op_of_;
  const std::vector<int>& item_of_;
  const std::vector<ValueId>& value_of_;
  const PlanOptions& options_;
  Program target_;
  ProgramCopier copier_;
  std::vector<Item> items_;
  std::vector<View> views_;
};

}  // namespace

absl::StatusOr<ResidentProgram> Resider::Rewrite(const ResidencySolution& solution) const {
  return Rewriter(base_.program, problem_, op_of_, item_of_, value_of_, options_).Run(solution);
}

}  // namespace gantry
