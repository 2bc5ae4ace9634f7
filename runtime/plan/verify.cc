#include <algorithm>
#include <map>

#include "runtime/plan/plan.h"

namespace gantry {
namespace {

// Who wrote each byte of the arena last, as disjoint intervals. A writer is a content number.
class Ownership {
 public:
  explicit Ownership(int64_t bytes) { intervals_[0] = {bytes, -1}; }

  void Write(int64_t begin, int64_t end, int content) {
    if (begin == end) return;
    Split(begin);
    Split(end);
    intervals_.erase(intervals_.lower_bound(begin), intervals_.lower_bound(end));
    intervals_[begin] = {end, content};
  }

  // The first content in [begin, end) that is not `content`, or `content` where it has all of it.
  int Intruder(int64_t begin, int64_t end, int content) const {
    if (begin == end) return content;
    for (auto place = std::prev(intervals_.upper_bound(begin)); place != intervals_.end() && place->first < end; ++place) {
      if (place->second.content != content) return place->second.content;
    }
    return content;
  }

 private:
  struct Interval {
    int64_t end;
    int content;
  };
  void Split(int64_t at) {
    const auto after = intervals_.upper_bound(at);
    if (after == intervals_.begin()) return;
    const auto place = std::prev(after);
    if (place->first == at || place->second.end <= at) return;
    const Interval tail = place->second;
    place->second.end = at;
    intervals_[at] = tail;
  }
  std::map<int64_t, Interval> intervals_;
};

class Verifier {
 public:
  explicit Verifier(const Plan& plan)
      : plan_(plan), program_(plan.program), content_(program_.values().size(), -1), made_by_transfer_(program_.values().size(), -1) {
    tail_flag_ = program_.FindInput("tail");
    owners_.emplace_back(plan.arena_bytes);
    for (const PlannedTier& tier : plan.tiers) owners_.emplace_back(tier.bytes);
  }

  absl::Status Run() {
    for (ValueId input : program_.inputs()) GANTRY_RETURN_IF_ERROR(Place(input, "input"));
    for (const State& state : program_.states()) GANTRY_RETURN_IF_ERROR(Place(state.first, "state"));
    GANTRY_RETURN_IF_ERROR(GoOn());
    std::vector<bool> done(program_.ops().size(), false);
    for (time_ = 0; time_ < static_cast<int>(plan_.schedule.size()); ++time_) {
      GANTRY_RETURN_IF_ERROR(EndTransfers());
      const PlannedOp& step = plan_.schedule[time_];
      if (step.op < 0 || step.op >= static_cast<OpId>(done.size()) || done[step.op]) {
        return absl::InternalError(absl::StrFormat("the schedule runs op %d twice, or it does not exist", step.op));
      }
      done[step.op] = true;
      GANTRY_RETURN_IF_ERROR(Annotate(RunOp(step), program_.Describe(step.op)));
    }
    GANTRY_RETURN_IF_ERROR(EndTransfers());
    // What goes on into the next step was intact to the end of this one, and that it is there GoOn has shown.
    for (const Transfer& transfer : transfers_) GANTRY_RETURN_IF_ERROR(CheckIntact(transfer));
    for (size_t op = 0; op < done.size(); ++op) {
      if (!done[op]) return absl::InternalError(absl::StrFormat("%s is not in the schedule", program_.Describe(op)));
    }
    for (const NamedValue& output : program_.outputs()) {
      GANTRY_RETURN_IF_ERROR(Annotate(Read(output.value), absl::StrCat("output ", output.name)));
    }
    for (const State& state : program_.states()) {
      if (made_by_transfer_[content_[state.last]] < 0) GANTRY_RETURN_IF_ERROR(Annotate(Read(state.last), absl::StrCat("state ", state.name)));
      if (plan_.offsets[state.first] != plan_.offsets[state.last]) {
        return absl::InternalError(absl::StrFormat("state %s begins at offset %d and ends at %d", state.name,
                                                   plan_.offsets[state.first], plan_.offsets[state.last]));
      }
    }
    return absl::OkStatus();
  }

 private:
  struct Transfer {
    OpId op;
    int done_by;
    std::vector<std::pair<ValueId, int>> reads;  // and their contents
    std::vector<ValueId> writes;
    int64_t scratch_offset = 0, scratch_bytes = 0;

    bool IsWrittenOver(const Plan& plan, ValueId read) const {
      return std::any_of(writes.begin(), writes.end(), [&](ValueId value) {
        return plan.offsets[value] == plan.offsets[read] && plan.program.values()[value].tier == plan.program.values()[read].tier;
      });
    }
  };

  std::string NameOf(ValueId value) const {
    const std::string& name = program_.values()[value].name;
    return absl::StrCat("value ", value, name.empty() ? "" : " ", name, " ", program_.TypeOf(value).ToString());
  }

  absl::Status CheckRange(int tier, int64_t offset, int64_t bytes, std::string_view what) const {
    const int64_t end = tier == kDeviceTier ? plan_.arena_bytes : plan_.tiers[tier].bytes;
    const int64_t alignment = tier != kDeviceTier && plan_.tiers[tier].options.kind == TierKind::kFile ? 4096 : 64;
    if (offset < 0 || offset % alignment != 0 || offset + bytes > end) {
      return absl::InternalError(absl::StrFormat("%s: %d bytes at offset %d are unaligned or outside the %d bytes of %s", what,
                                                 bytes, offset, end,
                                                 tier == kDeviceTier ? "the arena" : plan_.tiers[tier].options.name));
    }
    return absl::OkStatus();
  }

  int TierOf(ValueId value) const { return program_.values()[value].tier; }
  Ownership& OwnerOf(ValueId value) { return owners_[TierOf(value) + 1]; }
  const Ownership& OwnerOf(ValueId value) const { return owners_[TierOf(value) + 1]; }

  // Copies and exchanges that must be done before the present step: nobody has touched what they read and write since they began.
  absl::Status EndTransfers() {
    for (size_t i = 0; i < transfers_.size();) {
      const Transfer transfer = transfers_[i];
      if (transfer.done_by > time_) {
        ++i;
        continue;
      }
      for (ValueId value : transfer.writes) made_by_transfer_[value] = -1;
      GANTRY_RETURN_IF_ERROR(CheckIntact(transfer));
      transfers_.erase(transfers_.begin() + static_cast<int64_t>(i));
    }
    return absl::OkStatus();
  }

  absl::Status CheckIntact(const Transfer& transfer) const {
    const auto Intact = [&](ValueId value, int content) -> absl::Status {
      const int64_t begin = plan_.offsets[value];
      if (OwnerOf(value).Intruder(begin, begin + program_.TypeOf(value).size_bytes(), content) == content) return absl::OkStatus();
      return absl::InternalError(absl::StrFormat("%s: %s was written to before the %s was done", program_.Describe(transfer.op), NameOf(value),
                                                 program_.ops()[transfer.op].definition->moves ? "copy" : "exchange"));
    };
    // What an exchange sums in place is read where its result is written.
    for (const auto& [value, content] : transfer.reads) {
      if (!transfer.IsWrittenOver(plan_, value)) GANTRY_RETURN_IF_ERROR(Intact(value, content));
    }
    for (ValueId value : transfer.writes) GANTRY_RETURN_IF_ERROR(Intact(value, value));
    if (transfer.scratch_bytes > 0 && owners_[0].Intruder(transfer.scratch_offset, transfer.scratch_offset + transfer.scratch_bytes,
                                                          ScratchOf(transfer.op)) != ScratchOf(transfer.op)) {
      return absl::InternalError(absl::StrFormat("%s: its scratch was written to before the exchange was done", program_.Describe(transfer.op)));
    }
    return absl::OkStatus();
  }

  // Contents of scratch: numbers behind those of values, one an op.
  int ScratchOf(OpId op) const { return static_cast<int>(content_.size()) + op; }

  // The step before has left its last copies of states to this one: they read the device where they did, and the state is not there until
  // they are done.
  absl::Status GoOn() {
    const int end = static_cast<int>(plan_.schedule.size());
    made_together_.clear();
    for (int time = 0; time < end; ++time) {
      const PlannedOp& step = plan_.schedule[time];
      if (step.done_by <= end || step.op < 0 || step.op >= static_cast<OpId>(program_.ops().size())) continue;
      const Op& op = program_.ops()[step.op];
      if (!op.definition->moves || op.definition->name == "fetch" || step.done_by >= end + time) {
        return absl::InternalError(absl::StrFormat("%s is done in the next step, by step %d of it", program_.Describe(step.op), step.done_by - end));
      }
      const auto state = std::find_if(program_.states().begin(), program_.states().end(), [&](const State& other) { return other.last == op.outputs[0]; });
      if (state == program_.states().end()) {
        return absl::InternalError(absl::StrFormat("%s goes on into the next step, but is no state's last", program_.Describe(step.op)));
      }
      const ValueId from = op.inputs.back();
      GANTRY_RETURN_IF_ERROR(CheckRange(kDeviceTier, plan_.offsets[from], program_.TypeOf(from).size_bytes(), NameOf(from)));
      // States on the device and inputs are there already.
      const int64_t begin = plan_.offsets[from];
      if (OwnerOf(from).Intruder(begin, begin + program_.TypeOf(from).size_bytes(), -1) != -1) {
        return absl::InternalError(absl::StrFormat("%s: its source %s is in the way of what the next step begins with", program_.Describe(step.op), NameOf(from)));
      }
      OwnerOf(from).Write(begin, begin + program_.TypeOf(from).size_bytes(), from);
      made_by_transfer_[state->first] = step.op;
      transfers_.push_back({.op = step.op, .done_by = step.done_by - end, .reads = {{from, from}}, .writes = {state->first}});
    }
    return absl::OkStatus();
  }

  // A copy between the device and a tier, or within a tier's slab, nowhere else.
  absl::Status CheckCopy(const PlannedOp& step, const Op& op) const {
    const int from = TierOf(op.inputs.back()), to = TierOf(op.outputs[0]);
    const bool in = op.definition->name == "fetch";
    if ((from == kDeviceTier) == in || (to == kDeviceTier) != in) {
      return absl::InternalError("a fetch goes from a tier to the device, a stash and a write_back the other way");
    }
    const Value& source = program_.values()[op.inputs.back()];
    if (in && source.kind == ValueKind::kComputed &&
        program_.ops()[source.producer].attributes.String("encoding") != op.attributes.String("encoding")) {
      return absl::InternalError("a fetch reads another encoding than its stash wrote");
    }
    const int end = static_cast<int>(plan_.schedule.size());
    if (step.done_by <= time_ || step.done_by >= end + time_) {
      return absl::InternalError(absl::StrFormat("the copy begins at step %d and is done by step %d", time_, step.done_by));
    }
    return absl::OkStatus();
  }

  absl::Status CheckDoneBy(const PlannedOp& step) const {
    if (step.done_by > time_ && step.done_by <= static_cast<int>(plan_.schedule.size())) return absl::OkStatus();
    return absl::InternalError(absl::StrFormat("it begins at step %d and is done by step %d", time_, step.done_by));
  }

  // `value` gets content of its own.
  absl::Status Place(ValueId value, std::string_view what) {
    const int64_t offset = plan_.offsets[value];
    const int64_t bytes = program_.TypeOf(value).size_bytes();
    if (offset == kNoOffset && what == "input") return absl::OkStatus();  // an input that nobody reads has no place
    if (TierOf(value) < kDeviceTier || TierOf(value) >= static_cast<int>(plan_.tiers.size())) {
      return absl::InternalError(absl::StrFormat("%s is in a tier that the plan does not have", NameOf(value)));
    }
    GANTRY_RETURN_IF_ERROR(CheckRange(TierOf(value), offset, bytes, NameOf(value)));
    for (ValueId other : made_together_) {
      if (TierOf(other) != TierOf(value)) continue;
      const int64_t begin = plan_.offsets[other];
      if (begin < offset + bytes && offset < begin + program_.TypeOf(other).size_bytes()) {
        return absl::InternalError(absl::StrFormat("%s overlaps %s", NameOf(value), NameOf(other)));
      }
    }
    made_together_.push_back(value);
    content_[value] = value;
    OwnerOf(value).Write(offset, offset + bytes, value);
    return absl::OkStatus();
  }

  // A view of what is still on its way reads nothing; whoever reads the view does.
  absl::Status Read(ValueId value, bool by_view = false) const {
    if (content_[value] < 0) return absl::InternalError(absl::StrFormat("%s is read before it is made", NameOf(value)));
    if (const OpId maker = made_by_transfer_[content_[value]]; maker >= 0 && !by_view) {
      return absl::InternalError(absl::StrFormat("%s is read before %s is done", NameOf(value), program_.Describe(maker)));
    }
    const int64_t offset = plan_.offsets[value];
    const int intruder = OwnerOf(value).Intruder(offset, offset + program_.TypeOf(value).size_bytes(), content_[value]);
    if (intruder == content_[value]) return absl::OkStatus();
    return absl::InternalError(absl::StrFormat("%s at offset %d has been overwritten by %s", NameOf(value), offset,
                                               intruder < 0 ? "nobody, it is undefined"
                                               : intruder >= static_cast<int>(content_.size())
                                                   ? "scratch"
                                                   : NameOf(intruder)));
  }

  // What a conditional op makes may be read under the same condition only, or as the second operand of add_if.
  absl::Status CheckConditions(const Op& op) const {
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      const Value& value = program_.values()[op.inputs[i]];
      if (value.kind != ValueKind::kComputed) continue;
      OpId made_by = value.producer;
      while (program_.ops()[made_by].definition->is_view && program_.values()[program_.ops()[made_by].inputs[0]].kind == ValueKind::kComputed) {
        made_by = program_.values()[program_.ops()[made_by].inputs[0]].producer;
      }
      // What runs between steps, too, has only states and what it makes itself.
      if (op.condition != kNoValue && op.condition == tail_flag_ && !program_.ops()[made_by].definition->is_view &&
          program_.ops()[made_by].condition != tail_flag_) {
        return absl::InternalError(absl::StrFormat("it is of the tail, but reads %s, which a whole step makes", NameOf(op.inputs[i])));
      }
      const Op& maker = program_.ops()[value.producer];
      const bool updates_state = maker.definition->updates != nullptr;  // skipped, it leaves the old version in place
      if (maker.condition == kNoValue || maker.condition == op.condition || updates_state) continue;
      if (op.definition->name == "add_if" && i == 1 && op.inputs[2] == maker.condition) continue;
      return absl::InternalError(absl::StrFormat("reads %s, which is made only under a condition", NameOf(op.inputs[i])));
    }
    return absl::OkStatus();
  }

  absl::Status RunOp(const PlannedOp& step) {
    const Op& op = program_.ops()[step.op];
    for (ValueId input : op.inputs) GANTRY_RETURN_IF_ERROR(Read(input, op.definition->is_view));
    if (op.condition != kNoValue) GANTRY_RETURN_IF_ERROR(Read(op.condition));
    GANTRY_RETURN_IF_ERROR(CheckConditions(op));
    made_together_.clear();
    if (op.definition->is_view) {
      const ValueId input = op.inputs[0], output = op.outputs[0];
      if (plan_.offsets[input] != plan_.offsets[output] || TierOf(input) != TierOf(output) ||
          program_.TypeOf(input).size_bytes() != program_.TypeOf(output).size_bytes()) {
        return absl::InternalError("a view lies elsewhere than what it views");
      }
      content_[output] = content_[input];
      return absl::OkStatus();
    }
    if (op.definition->moves) {
      GANTRY_RETURN_IF_ERROR(CheckCopy(step, op));
      if (op.inputs.size() == 2 && plan_.offsets[op.inputs[0]] != plan_.offsets[op.outputs[0]]) {
        return absl::InternalError(absl::StrFormat("%s is not updated in place", NameOf(op.inputs[0])));
      }
      GANTRY_RETURN_IF_ERROR(Place(op.outputs[0], "output"));
      Begin(step, {op.inputs.back()}, {content_[op.inputs.back()]});
      return absl::OkStatus();
    }
    if (step.done_by >= 0) {
      if (LaneOf(*op.definition, op.attributes) == PlanLane::kCompute) return absl::InternalError("it has no lane to run on beside compute");
      GANTRY_RETURN_IF_ERROR(CheckDoneBy(step));
    }
    std::vector<int> contents;
    for (ValueId input : op.inputs) contents.push_back(content_[input]);
    for (ValueId input : op.inputs) {
      if (TierOf(input) != kDeviceTier) return absl::InternalError(absl::StrFormat("reads %s in a tier", NameOf(input)));
    }
    for (ValueId output : op.outputs) {
      if (TierOf(output) != kDeviceTier) return absl::InternalError(absl::StrFormat("makes %s in a tier", NameOf(output)));
    }
    if (step.kernel == nullptr) return absl::InternalError("has no kernel");
    const auto scratch = static_cast<int64_t>(step.kernel->scratch_bytes());
    if (scratch > 0) GANTRY_RETURN_IF_ERROR(CheckRange(kDeviceTier, step.scratch_offset, scratch, "scratch"));
    // Scratch must spare what the op reads and writes; outputs must spare inputs but where the op allows it.
    const int updates = UpdateCount(op);
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      const int64_t begin = plan_.offsets[op.inputs[i]];
      const int64_t end = begin + program_.TypeOf(op.inputs[i]).size_bytes();
      if (scratch > 0 && begin < step.scratch_offset + scratch && step.scratch_offset < end) {
        return absl::InternalError(absl::StrFormat("its scratch overlaps its input %s", NameOf(op.inputs[i])));
      }
      for (size_t o = 0; o < op.outputs.size(); ++o) {
        const int64_t out_begin = plan_.offsets[op.outputs[o]];
        const int64_t out_end = out_begin + program_.TypeOf(op.outputs[o]).size_bytes();
        if (begin >= out_end || out_begin >= end) continue;
        bool allowed = begin == out_begin && static_cast<int>(o) < updates && o == i;
        for (const Alias& alias : op.definition->in_place) {
          allowed = allowed || (begin == out_begin && end == out_end && alias.output == static_cast<int>(o) &&
                                alias.input < static_cast<int>(op.inputs.size()) && op.inputs[alias.input] == op.inputs[i]);
        }
        if (!allowed) {
          return absl::InternalError(
              absl::StrFormat("its output %s overlaps its input %s", NameOf(op.outputs[o]), NameOf(op.inputs[i])));
        }
      }
    }
    if (scratch > 0) owners_[0].Write(step.scratch_offset, step.scratch_offset + scratch, ScratchOf(step.op));
    for (size_t o = 0; o < op.outputs.size(); ++o) {
      GANTRY_RETURN_IF_ERROR(Place(op.outputs[o], "output"));
      if (static_cast<int>(o) < updates && plan_.offsets[op.outputs[o]] != plan_.offsets[op.inputs[o]]) {
        return absl::InternalError(absl::StrFormat("%s is not updated in place", NameOf(op.inputs[o])));
      }
    }
    // An output over the op's own scratch would be found as soon as someone reads it only if scratch were written later.
    for (ValueId output : op.outputs) {
      const int64_t begin = plan_.offsets[output];
      if (scratch > 0 && begin < step.scratch_offset + scratch &&
          step.scratch_offset < begin + program_.TypeOf(output).size_bytes()) {
        return absl::InternalError(absl::StrFormat("its scratch overlaps its output %s", NameOf(output)));
      }
    }
    if (step.done_by >= 0) Begin(step, op.inputs, contents);
    return absl::OkStatus();
  }

  // A copy or exchange that reads `values`, and makes its op's outputs.
  void Begin(const PlannedOp& step, const std::vector<ValueId>& values, const std::vector<int>& contents) {
    const Op& op = program_.ops()[step.op];
    Transfer transfer{.op = step.op, .done_by = step.done_by, .writes = op.outputs};
    for (size_t i = 0; i < values.size(); ++i) transfer.reads.emplace_back(values[i], contents[i]);
    if (step.kernel != nullptr && step.kernel->scratch_bytes() > 0) {
      transfer.scratch_offset = step.scratch_offset;
      transfer.scratch_bytes = static_cast<int64_t>(step.kernel->scratch_bytes());
    }
    for (ValueId output : op.outputs) made_by_transfer_[output] = step.op;
    transfers_.push_back(std::move(transfer));
  }

  const Plan& plan_;
  const Program& program_;
  std::vector<Ownership> owners_;  // of the arena, then of every tier
  std::vector<int> content_;       // per value: whose bytes it reads
  std::vector<OpId> made_by_transfer_;  // per value: the copy or exchange that is making it, or -1
  std::vector<Transfer> transfers_;     // under way
  int time_ = 0;
  ValueId tail_flag_ = kNoValue;
  std::vector<ValueId> made_together_;
};

}  // namespace

absl::Status VerifyPlan(const Plan& plan) {
  if (plan.offsets.size() != plan.program.values().size()) {
    return absl::InternalError(absl::StrFormat("the plan has %d offsets for %d values", plan.offsets.size(),
                                               plan.program.values().size()));
  }
  return Verifier(plan).Run();
}

}  // namespace gantry
