#include "runtime/plan/lay_out.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "memory/layout/layout_check.h"
#include "memory/layout/layout_solver.h"
#include "ops/conv_bands.h"

namespace gantry {
namespace {

constexpr int64_t kAlignmentBytes = 64;
constexpr int64_t kFileBlockBytes = 4096;  // what a file tier asks for
constexpr int64_t kWorkPerByte = 1000;     // of planning, about a millisecond for a KiB: small programs are planned in no time
constexpr int64_t kMissedShare = 128;      // of a capacity that is missed, which is what residency leaves free in the next round

// Which values share memory. Each class is known by one of its values, its root.
class StorageClasses {
 public:
  explicit StorageClasses(size_t values) : parent_(values) { std::iota(parent_.begin(), parent_.end(), 0); }
  ValueId Root(ValueId value) {
    while (parent_[value] != value) value = parent_[value] = parent_[parent_[value]];
    return value;
  }
  void Join(ValueId value, ValueId into) { parent_[Root(value)] = Root(into); }

 private:
  std::vector<ValueId> parent_;
};

class LayoutMaker {
 public:
  LayoutMaker(Plan& plan, const PlanOptions& options, int64_t capacity, int64_t work)
      : plan_(plan), program_(plan.program), options_(options), capacity_(capacity), work_(work), classes_(program_.values().size()) {}

  absl::StatusOr<std::vector<TakeOver>> Run() {
    FindLastUses();
    ShareMemory();
    GANTRY_RETURN_IF_ERROR(LayOut());
    return std::move(taken_over_);
  }

 private:
  int End() const { return static_cast<int>(plan_.schedule.size()); }

  void FindLastUses() {
    last_use_.assign(program_.values().size(), -1);
    first_.assign(program_.values().size(), -1);
    for (int step = 0; step < End(); ++step) {
      const Op& op = program_.ops()[plan_.schedule[step].op];
      for (ValueId input : op.inputs) last_use_[input] = step;
      if (op.condition != kNoValue) last_use_[op.condition] = step;
      for (ValueId output : op.outputs) first_[output] = last_use_[output] = step;
    }
    last_read_ = last_use_;
    // Both ends of a copy, and what an exchange reads and makes, stay until it is done.
    for (int step = 0; step < End(); ++step) {
      const int done_by = plan_.schedule[step].done_by;
      if (done_by < 0) continue;
      const Op& op = program_.ops()[plan_.schedule[step].op];
      for (ValueId input : op.inputs) last_use_[input] = std::max(last_use_[input], std::min(done_by, End()) - 1);
      for (ValueId output : op.outputs) last_use_[output] = std::max(last_use_[output], std::min(done_by, End()) - 1);
    }
    for (ValueId input : program_.inputs()) first_[input] = 0;
    for (const State& state : program_.states()) {
      first_[state.first] = 0;
      last_use_[state.first] = last_use_[state.last] = End();
    }
    for (const NamedValue& output : program_.outputs()) last_use_[output.value] = End();
    // A tail may run by itself between steps: what is read then is not in its way.
    if (program_.FindInput("tail") != kNoValue) {
      for (const NamedValue& output : program_.outputs()) first_[output.value] = 0;
    }
  }

  // Joins views with what they view, new versions of states with old ones, and results with inputs that die there.
  void ShareMemory() {
    // Per root: the last use of any of its values, the last op that reads or makes one, by when copies and exchanges of it are done that
    // have begun, and whether it may be written over.
    std::vector<int> class_end = last_use_, class_read = last_read_, busy_until(program_.values().size(), 0);
    std::vector<bool> owned(program_.values().size(), true);
    for (ValueId input : program_.inputs()) owned[input] = false;  // the caller's data: may be read again by name
    for (const State& state : program_.states()) owned[state.first] = owned[state.last] = false;
    for (const NamedValue& output : program_.outputs()) owned[output.value] = false;
    const auto Join = [&](ValueId value, ValueId into) {
      const ValueId from = classes_.Root(value), to = classes_.Root(into);
      classes_.Join(value, into);
      class_end[to] = std::max(class_end[to], class_end[from]);
      class_read[to] = std::max(class_read[to], class_read[from]);
      busy_until[to] = std::max(busy_until[to], busy_until[from]);
      owned[to] = owned[to] && owned[from];
    };
    for (const PlannedOp& step : plan_.schedule) {
      const Op& op = program_.ops()[step.op];
      if (op.definition->is_view) Join(op.outputs[0], op.inputs[0]);
      for (int i = 0; i < UpdateCount(op); ++i) Join(op.outputs[i], op.inputs[i]);
    }
    if (!options_.in_place) return;
    for (int time = 0; time < End(); ++time) {
      const Op& op = program_.ops()[plan_.schedule[time].op];
      std::set<ValueId> taken;
      for (const Alias& alias : op.definition->in_place) {
        if (alias.output >= static_cast<int>(op.outputs.size()) || alias.input >= static_cast<int>(op.inputs.size())) continue;
        const ValueId input = op.inputs[alias.input], output = op.outputs[alias.output];
        const ValueId root = classes_.Root(input);
        // An exchange that begins here is what its operand stays for.
        const bool dies_here = class_end[root] == time || (plan_.schedule[time].done_by >= 0 && class_read[root] == time);
        if (!owned[root] || !dies_here || busy_until[root] > time || taken.contains(root)) continue;
        if (taken.contains(output)) continue;
        if (program_.TypeOf(input).size_bytes() != program_.TypeOf(output).size_bytes()) continue;
        if (SharedWithAnotherInput(op, alias.input, root)) continue;
        Join(output, input);
        taken_over_.push_back({input, output});
        taken.insert(root);
        taken.insert(output);
      }
      if (const int done_by = plan_.schedule[time].done_by; done_by >= 0) {
        for (const auto* values : {&op.inputs, &op.outputs}) {
          for (ValueId value : *values) busy_until[classes_.Root(value)] = std::max(busy_until[classes_.Root(value)], done_by);
        }
      }
    }
  }

  // A second, different input in the same memory (a view of another shape) must not be written over.
  bool SharedWithAnotherInput(const Op& op, int index, ValueId root) {
    for (ValueId other : op.inputs) {
      if (other != op.inputs[index] && classes_.Root(other) == root) return true;
    }
    return false;
  }

  absl::Status LayOut() {
    const size_t values = program_.values().size();
    std::vector<int> lower(values, INT32_MAX), upper(values, -1);
    std::vector<int64_t> bytes(values, 0);
    std::vector<ValueId> maker(values, kNoValue);
    for (ValueId value = 0; value < static_cast<ValueId>(values); ++value) {
      if (first_[value] < 0 || last_use_[value] < 0) continue;
      const ValueId root = classes_.Root(value);
      if (first_[value] < lower[root]) maker[root] = value;
      lower[root] = std::min(lower[root], first_[value]);
      upper[root] = std::max(upper[root], last_use_[value] + 1);
      bytes[root] = std::max(bytes[root], program_.TypeOf(value).size_bytes());
    }
    for (const State& state : program_.states()) lower[classes_.Root(state.first)] = 0;
    // Until when the step after still copies from it.
    std::vector<int> goes_on(values, 0);
    for (const PlannedOp& step : plan_.schedule) {
      if (step.done_by <= End()) continue;
      int& until = goes_on[classes_.Root(program_.ops()[step.op].inputs.back())];
      until = std::max(until, step.done_by - End());
    }
    std::vector<int> buffer_of(values, -1);
    plan_.buffers.clear();
    const auto AddBuffer = [&](PlannedBuffer buffer) {
      plan_.buffers.push_back(std::move(buffer));
      return static_cast<int>(plan_.buffers.size()) - 1;
    };
    for (ValueId root = 0; root < static_cast<ValueId>(values); ++root) {
      if (upper[root] < 0) continue;
      const Value& value = program_.values()[maker[root]];
      PlannedBuffer buffer{.name = value.name, .bytes = bytes[root], .lower = lower[root], .upper = upper[root],
                           .persistent = value.kind == ValueKind::kState, .tier = value.tier};
      if (value.kind == ValueKind::kComputed) {
        const Op& op = program_.ops()[value.producer];
        if (buffer.name.empty()) buffer.name = std::string(op.definition->name);
        buffer.network = program_.labels()[op.network];
        buffer.phase = program_.labels()[op.phase];
      }
      buffer_of[root] = AddBuffer(buffer);
      if (goes_on[root] == 0) continue;
      // The same memory at the other end of the step.
      alias_group_[buffer_of[root]] = buffer_of[root];
      buffer.lower = 0;
      buffer.upper = std::min(goes_on[root], lower[root]);
      alias_group_[AddBuffer(std::move(buffer))] = buffer_of[root];
    }
    std::vector<int> scratch_of(plan_.schedule.size(), -1);
    for (int time = 0; time < End(); ++time) {
      const PlannedOp& step = plan_.schedule[time];
      if (step.kernel == nullptr || step.kernel->scratch_bytes() == 0) continue;
      const Op& op = program_.ops()[step.op];
      scratch_of[time] = AddBuffer({.name = "scratch", .network = program_.labels()[op.network],
                                    .phase = program_.labels()[op.phase],
                                    .bytes = static_cast<int64_t>(step.kernel->scratch_bytes()), .lower = time,
                                    .upper = std::max(time + 1, step.done_by)});
    }
    for (int tier = kDeviceTier; tier < static_cast<int>(plan_.tiers.size()); ++tier) GANTRY_RETURN_IF_ERROR(Place(tier));
    plan_.offsets.assign(values, kNoOffset);
    for (ValueId value = 0; value < static_cast<ValueId>(values); ++value) {
      if (first_[value] < 0 || last_use_[value] < 0) continue;
      plan_.offsets[value] = plan_.buffers[buffer_of[classes_.Root(value)]].offset;
    }
    for (int time = 0; time < End(); ++time) {
      if (scratch_of[time] >= 0) plan_.schedule[time].scratch_offset = plan_.buffers[scratch_of[time]].offset;
    }
    return absl::OkStatus();
  }

  // Offsets of the buffers of one tier, or of the arena.
  absl::Status Place(int tier) {
    const bool device = tier == kDeviceTier;
    const int64_t alignment = !device && plan_.tiers[tier].options.kind == TierKind::kFile ? kFileBlockBytes : kAlignmentBytes;
    LayoutProblem problem;
    std::vector<size_t> index;
    for (size_t i = 0; i < plan_.buffers.size(); ++i) {
      const PlannedBuffer& buffer = plan_.buffers[i];
      if (buffer.tier != tier) continue;
      index.push_back(i);
      const auto group = alias_group_.find(static_cast<int>(i));
      problem.buffers.push_back(LayoutBuffer{.lower = buffer.lower, .upper = buffer.upper, .size = buffer.bytes, .alignment = alignment,
                                             .alias_group = group != alias_group_.end() ? group->second : -1});
    }
    LayoutOptions layout_options{.work_limit = work_, .work_per_byte = kWorkPerByte};
    const int64_t capacity = device ? capacity_ : plan_.tiers[tier].options.budget_bytes;
    if (capacity > 0 && capacity < INT64_MAX) {
      layout_options.capacity = capacity;
      layout_options.work_limit = std::min(work_ / kWorkPerByte, capacity / kMissedShare) * kWorkPerByte + 1;
    }
    GANTRY_ASSIGN_OR_RETURN(const Layout layout, SolveLayout(problem, layout_options));
    GANTRY_RETURN_IF_ERROR(CheckLayout(problem, layout));
    for (size_t i = 0; i < index.size(); ++i) plan_.buffers[index[i]].offset = layout.offsets[i];
    if (device) {
      plan_.arena_bytes = layout.height;
      plan_.lower_bound_bytes = layout.lower_bound;
      plan_.layout_method = layout.method;
    } else {
      plan_.tiers[tier].bytes = layout.height;
      plan_.tiers[tier].lower_bound_bytes = layout.lower_bound;
    }
    return absl::OkStatus();
  }

  Plan& plan_;
  const Program& program_;
  const PlanOptions& options_;
  const int64_t capacity_, work_;
  StorageClasses classes_;
  std::vector<TakeOver> taken_over_;
  std::map<int, int> alias_group_;     // of buffers that are one piece of memory at two times
  std::vector<int> first_, last_use_;  // per value, as steps of the schedule
  std::vector<int> last_read_;         // last_use_ without what copies and exchanges under way add
};

absl::StatusOr<std::unique_ptr<Kernel>> MakeKernel(const Program& program, OpId id, const PlanOptions& options,
                                                   std::set<std::string>& fallbacks) {
  const Op& op = program.ops()[id];
  std::vector<TensorType> inputs, outputs;
  for (ValueId input : op.inputs) inputs.push_back(program.TypeOf(input));
  for (ValueId output : op.outputs) outputs.push_back(program.TypeOf(output));
  const KernelRequest request{*op.definition, op.attributes, inputs, outputs, options.thread_count};
  const auto Try = [&](const KernelLibrary& library) -> absl::StatusOr<std::unique_ptr<Kernel>> {
    auto kernel = library.Make(request);
    if (!kernel.ok()) return Annotate(kernel.status(), program.Describe(id));
    return kernel;
  };
  if (op.definition->communicates) {
    if (options.exchanges == nullptr) return absl::FailedPreconditionError(absl::StrCat(program.Describe(id), ": there are no other ranks"));
    return Try(*options.exchanges);
  }
  if (IsByRows(*op.definition, op.attributes) || IsByBands(*op.definition, op.attributes)) {
    for (const KernelLibrary* library : {&CpuKernels(), &ReferenceKernels()}) {
      if (library == &CpuKernels() && options.kernels != KernelChoice::kFast) continue;
      auto kernel = MakePartsKernel(request, [&](const KernelRequest& part) { return library->Make(part); });
      if (!kernel.ok()) return Annotate(kernel.status(), program.Describe(id));
      if (*kernel == nullptr) continue;
      if (options.kernels == KernelChoice::kFast && library == &ReferenceKernels()) fallbacks.insert(std::string(op.definition->name));
      return kernel;
    }
  }
  if (options.kernels == KernelChoice::kFast) {
    GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<Kernel> kernel, Try(CpuKernels()));
    if (kernel != nullptr) return kernel;
  }
  GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<Kernel> kernel, Try(ReferenceKernels()));
  if (kernel == nullptr) {
    return absl::UnimplementedError(absl::StrFormat("%s: no kernel for output %s", program.Describe(id),
                                                    outputs.empty() ? "" : outputs[0].ToString()));
  }
  if (options.kernels == KernelChoice::kFast && outputs[0].dtype == DataType::kF32) {
    fallbacks.insert(std::string(op.definition->name));
  }
  return kernel;
}

}  // namespace

absl::Status ChooseKernels(Plan& plan, const PlanOptions& options) {
  std::set<std::string> fallbacks;
  plan.schedule.clear();
  for (OpId id = 0; id < static_cast<OpId>(plan.program.ops().size()); ++id) {
    const OpDefinition& definition = *plan.program.ops()[id].definition;
    PlannedOp step;
    step.op = id;
    if (!definition.is_view && !definition.moves) {
      GANTRY_ASSIGN_OR_RETURN(step.kernel, MakeKernel(plan.program, id, options, fallbacks));
    }
    plan.schedule.push_back(std::move(step));
  }
  plan.fallbacks.assign(fallbacks.begin(), fallbacks.end());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TakeOver>> LayOut(Plan& plan, const PlanOptions& options, int64_t capacity, int64_t work) {
  return LayoutMaker(plan, options, capacity, work).Run();
}

}  // namespace gantry
