#include <algorithm>
#include <numeric>
#include <set>

#include "memory/layout/layout_check.h"
#include "memory/layout/layout_solver.h"
#include "runtime/graph/rewrite.h"
#include "runtime/plan/lower.h"
#include "runtime/plan/plan.h"

namespace gantry {
namespace {

constexpr int64_t kAlignmentBytes = 64;
// About a third of a second of search: training programs meet their bound much earlier or not at all.
constexpr int64_t kLayoutWork = 300'000'000;

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

class Planner {
 public:
  Planner(Plan& plan, const PlanOptions& options)
      : plan_(plan), program_(plan.program), options_(options), classes_(program_.values().size()) {}

  absl::Status Run() {
    GANTRY_RETURN_IF_ERROR(ChooseKernels());
    FindLastUses();
    ShareMemory();
    return LayOut();
  }

 private:
  int End() const { return static_cast<int>(plan_.schedule.size()); }

  absl::Status ChooseKernels() {
    std::set<std::string> fallbacks;
    for (OpId id = 0; id < static_cast<OpId>(program_.ops().size()); ++id) {
      const Op& op = program_.ops()[id];
      PlannedOp step;
      step.op = id;
      if (!op.definition->is_view) {
        GANTRY_ASSIGN_OR_RETURN(step.kernel, MakeKernel(id, fallbacks));
      }
      plan_.schedule.push_back(std::move(step));
    }
    plan_.fallbacks.assign(fallbacks.begin(), fallbacks.end());
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<Kernel>> MakeKernel(OpId id, std::set<std::string>& fallbacks) {
    const Op& op = program_.ops()[id];
    std::vector<TensorType> inputs, outputs;
    for (ValueId input : op.inputs) inputs.push_back(program_.TypeOf(input));
    for (ValueId output : op.outputs) outputs.push_back(program_.TypeOf(output));
    const KernelRequest request{*op.definition, op.attributes, inputs, outputs, options_.thread_count};
    const auto Try = [&](const KernelLibrary& library) -> absl::StatusOr<std::unique_ptr<Kernel>> {
      auto kernel = library.Make(request);
      if (!kernel.ok()) return Annotate(kernel.status(), program_.Describe(id));
      return kernel;
    };
    if (options_.kernels == KernelChoice::kFast) {
      GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<Kernel> kernel, Try(CpuKernels()));
      if (kernel != nullptr) return kernel;
    }
    GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<Kernel> kernel, Try(ReferenceKernels()));
    if (kernel == nullptr) {
      return absl::UnimplementedError(absl::StrFormat("%s: no kernel for output %s", program_.Describe(id),
                                                      outputs.empty() ? "" : outputs[0].ToString()));
    }
    if (options_.kernels == KernelChoice::kFast && IsFloat(outputs[0].dtype) && outputs[0].dtype == DataType::kF32) {
      fallbacks.insert(std::string(op.definition->name));
    }
    return kernel;
  }

  void FindLastUses() {
    last_use_.assign(program_.values().size(), -1);
    first_.assign(program_.values().size(), -1);
    for (int step = 0; step < End(); ++step) {
      const Op& op = program_.ops()[plan_.schedule[step].op];
      for (ValueId input : op.inputs) last_use_[input] = step;
      if (op.condition != kNoValue) last_use_[op.condition] = step;
      for (ValueId output : op.outputs) first_[output] = last_use_[output] = step;
    }
    for (ValueId input : program_.inputs()) first_[input] = 0;
    for (const State& state : program_.states()) {
      first_[state.first] = 0;
      last_use_[state.first] = last_use_[state.last] = End();
    }
    for (const NamedValue& output : program_.outputs()) last_use_[output.value] = End();
  }

  // Joins views with what they view, new versions of states with old ones, and results with inputs that die there.
  void ShareMemory() {
    // Per root: the last use of any of its values, and whether it may be written over.
    std::vector<int> class_end = last_use_;
    std::vector<bool> owned(program_.values().size(), true);
    for (ValueId input : program_.inputs()) owned[input] = false;  // the caller's data: may be read again by name
    for (const State& state : program_.states()) owned[state.first] = owned[state.last] = false;
    for (const NamedValue& output : program_.outputs()) owned[output.value] = false;
    const auto Join = [&](ValueId value, ValueId into) {
      const ValueId from = classes_.Root(value), to = classes_.Root(into);
      classes_.Join(value, into);
      class_end[to] = std::max(class_end[to], class_end[from]);
      owned[to] = owned[to] && owned[from];
    };
    for (const PlannedOp& step : plan_.schedule) {
      const Op& op = program_.ops()[step.op];
      if (op.definition->is_view) Join(op.outputs[0], op.inputs[0]);
      if (op.definition->updates == nullptr) continue;
      const int updates = op.definition->updates(static_cast<int>(op.inputs.size()), op.attributes);
      for (int i = 0; i < updates; ++i) Join(op.outputs[i], op.inputs[i]);
    }
    if (!options_.in_place) return;
    for (int time = 0; time < End(); ++time) {
      const Op& op = program_.ops()[plan_.schedule[time].op];
      std::set<ValueId> taken;
      for (const Alias& alias : op.definition->in_place) {
        if (alias.output >= static_cast<int>(op.outputs.size()) || alias.input >= static_cast<int>(op.inputs.size())) continue;
        const ValueId input = op.inputs[alias.input], output = op.outputs[alias.output];
        const ValueId root = classes_.Root(input);
        if (!owned[root] || class_end[root] != time || taken.contains(root)) continue;
        if (taken.contains(output)) continue;
        if (program_.TypeOf(input).size_bytes() != program_.TypeOf(output).size_bytes()) continue;
        if (SharedWithAnotherInput(op, alias.input, root)) continue;
        Join(output, input);
        taken.insert(root);
        taken.insert(output);
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
    LayoutProblem problem;
    std::vector<int> buffer_of(values, -1);
    const auto AddBuffer = [&](PlannedBuffer buffer) {
      problem.buffers.push_back(LayoutBuffer{.lower = buffer.lower, .upper = buffer.upper, .size = buffer.bytes,
                                             .alignment = kAlignmentBytes});
      plan_.buffers.push_back(std::move(buffer));
      return static_cast<int>(plan_.buffers.size()) - 1;
    };
    for (ValueId root = 0; root < static_cast<ValueId>(values); ++root) {
      if (upper[root] < 0) continue;
      const Value& value = program_.values()[maker[root]];
      PlannedBuffer buffer{.name = value.name, .bytes = bytes[root], .lower = lower[root], .upper = upper[root],
                           .persistent = value.kind == ValueKind::kState};
      if (value.kind == ValueKind::kComputed) {
        const Op& op = program_.ops()[value.producer];
        if (buffer.name.empty()) buffer.name = std::string(op.definition->name);
        buffer.network = program_.labels()[op.network];
        buffer.phase = program_.labels()[op.phase];
      }
      buffer_of[root] = AddBuffer(std::move(buffer));
    }
    std::vector<int> scratch_of(plan_.schedule.size(), -1);
    for (int time = 0; time < End(); ++time) {
      const PlannedOp& step = plan_.schedule[time];
      if (step.kernel == nullptr || step.kernel->scratch_bytes() == 0) continue;
      const Op& op = program_.ops()[step.op];
      scratch_of[time] = AddBuffer({.name = "scratch", .network = program_.labels()[op.network],
                                    .phase = program_.labels()[op.phase],
                                    .bytes = static_cast<int64_t>(step.kernel->scratch_bytes()), .lower = time, .upper = time + 1});
    }
    GANTRY_ASSIGN_OR_RETURN(const Layout layout, SolveLayout(problem, {.work_limit = kLayoutWork}));
    GANTRY_RETURN_IF_ERROR(CheckLayout(problem, layout));
    for (size_t i = 0; i < plan_.buffers.size(); ++i) plan_.buffers[i].offset = layout.offsets[i];
    plan_.arena_bytes = layout.height;
    plan_.lower_bound_bytes = layout.lower_bound;
    plan_.layout_method = layout.method;
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

  Plan& plan_;
  const Program& program_;
  const PlanOptions& options_;
  StorageClasses classes_;
  std::vector<int> first_, last_use_;  // per value, as steps of the schedule
};

}  // namespace

absl::StatusOr<Plan> MakePlan(const Program& program, const PlanOptions& options) {
  Plan plan;
  GANTRY_ASSIGN_OR_RETURN(plan.program, Simplify(program));
  if (options.fuse) {
    GANTRY_ASSIGN_OR_RETURN(plan.program, Fuse(plan.program, FuseOptions()));
    GANTRY_ASSIGN_OR_RETURN(plan.program, Simplify(plan.program));
  }
  if (options.kernels == KernelChoice::kFast) {
    GANTRY_ASSIGN_OR_RETURN(plan.program, Lower(plan.program, options));
    GANTRY_ASSIGN_OR_RETURN(plan.program, Simplify(plan.program));
  }
  GANTRY_RETURN_IF_ERROR(Planner(plan, options).Run());
  GANTRY_RETURN_IF_ERROR(VerifyPlan(plan));
  return plan;
}

std::string Describe(const Plan& plan) {
  int peak_time = 0;
  int64_t peak = 0;
  std::vector<int64_t> change(plan.schedule.size() + 2, 0);
  for (const PlannedBuffer& buffer : plan.buffers) {
    change[buffer.lower] += buffer.bytes;
    change[buffer.upper] -= buffer.bytes;
  }
  int64_t live = 0;
  for (size_t time = 0; time < change.size(); ++time) {
    live += change[time];
    if (live > peak) {
      peak = live;
      peak_time = static_cast<int>(time);
    }
  }
  int64_t persistent = 0;
  std::vector<const PlannedBuffer*> at_peak;
  for (const PlannedBuffer& buffer : plan.buffers) {
    if (buffer.persistent) persistent += buffer.bytes;
    if (buffer.lower <= peak_time && peak_time < buffer.upper) at_peak.push_back(&buffer);
  }
  std::stable_sort(at_peak.begin(), at_peak.end(), [](const auto* a, const auto* b) { return a->bytes > b->bytes; });
  std::string text = absl::StrFormat(
      "ops            %d\nbuffers        %d\narena          %d bytes (lower bound %d, gap %.3f %%, %s)\n"
      "state          %d bytes of it\npeak at        %s\n",
      plan.schedule.size(), plan.buffers.size(), plan.arena_bytes, plan.lower_bound_bytes,
      plan.lower_bound_bytes > 0 ? 100.0 * static_cast<double>(plan.arena_bytes - plan.lower_bound_bytes) /
                                       static_cast<double>(plan.lower_bound_bytes)
                                 : 0.0,
      plan.layout_method, persistent,
      peak_time < static_cast<int>(plan.schedule.size()) ? plan.program.Describe(plan.schedule[peak_time].op) : "the end");
  absl::StrAppend(&text, "largest at the peak:\n");
  for (size_t i = 0; i < std::min<size_t>(10, at_peak.size()); ++i) {
    absl::StrAppend(&text, absl::StrFormat("  %12d  %s  %s %s\n", at_peak[i]->bytes, at_peak[i]->name, at_peak[i]->network,
                                           at_peak[i]->phase));
  }
  if (!plan.fallbacks.empty()) {
    absl::StrAppend(&text, "on reference kernels:");
    for (const std::string& name : plan.fallbacks) absl::StrAppend(&text, " ", name);
    text += '\n';
  }
  return text;
}

}  // namespace gantry
