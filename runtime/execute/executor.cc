#include "runtime/execute/executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

namespace gantry {
namespace {

template <typename T>
bool AllFinite(const void* data, int64_t count) {
  const T* values = static_cast<const T*>(data);
  return std::all_of(values, values + count, [](T value) { return std::isfinite(value); });
}

bool AllFinite(const void* data, const TensorType& type) {
  const int64_t count = type.size_bytes() / static_cast<int64_t>(SizeBytes(type.dtype));
  if (type.dtype == DataType::kF32) return AllFinite<float>(data, count);
  if (type.dtype == DataType::kF64) return AllFinite<double>(data, count);
  return true;
}

bool IsZero(const void* scalar, DataType type) {
  return type == DataType::kF64 ? *static_cast<const double*>(scalar) == 0.0 : *static_cast<const float*>(scalar) == 0.0f;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Executor>> Executor::Create(Plan plan, Device& device) {
  GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<Slab> arena, device.Reserve(plan.arena_bytes));
  return std::unique_ptr<Executor>(new Executor(std::move(plan), std::move(arena)));
}

Executor::Executor(Plan plan, std::unique_ptr<Slab> arena) : plan_(std::move(plan)), arena_(std::move(arena)) { Bind(); }

void Executor::Bind() {
  const Program& program = plan_.program;
  std::vector<bool> watched(program.values().size(), false);
  for (const NamedValue& output : program.outputs()) {
    watched[output.value] = program.TypeOf(output.value).shape.rank() == 0 && IsFloat(program.TypeOf(output.value).dtype);
  }
  size_t inputs = 0, outputs = 0;
  for (const PlannedOp& step : plan_.schedule) {
    inputs += program.ops()[step.op].inputs.size();
    outputs += program.ops()[step.op].outputs.size();
  }
  input_pointers_.reserve(inputs);
  output_pointers_.reserve(outputs);
  for (const PlannedOp& step : plan_.schedule) {
    const Op& op = program.ops()[step.op];
    if (step.kernel == nullptr) continue;
    BoundOp bound{};
    bound.kernel = step.kernel.get();
    bound.op = step.op;
    if (op.condition != kNoValue) {
      bound.condition = arena_->data() + plan_.offsets[op.condition];
      bound.condition_type = program.TypeOf(op.condition).dtype;
    }
    const size_t first_input = input_pointers_.size(), first_output = output_pointers_.size();
    const auto Touch = [&](int64_t offset, int64_t bytes) { bound.top = std::max(bound.top, offset + bytes); };
    for (ValueId input : op.inputs) {
      input_pointers_.push_back(arena_->data() + plan_.offsets[input]);
      Touch(plan_.offsets[input], program.TypeOf(input).size_bytes());
    }
    for (ValueId output : op.outputs) {
      output_pointers_.push_back(arena_->data() + plan_.offsets[output]);
      Touch(plan_.offsets[output], program.TypeOf(output).size_bytes());
      if (watched[output]) {
        bound.watched_scalar = output_pointers_.back();
        bound.watched_type = program.TypeOf(output).dtype;
      }
    }
    bound.inputs = {input_pointers_.data() + first_input, op.inputs.size()};
    bound.outputs = {output_pointers_.data() + first_output, op.outputs.size()};
    if (step.scratch_offset != kNoOffset) {
      bound.scratch = arena_->data() + step.scratch_offset;
      Touch(step.scratch_offset, static_cast<int64_t>(step.kernel->scratch_bytes()));
    }
    ops_.push_back(bound);
  }
  op_seconds_.assign(ops_.size(), 0.0);
}

std::span<std::byte> Executor::Data(ValueId value) {
  if (value < 0 || value >= static_cast<ValueId>(plan_.offsets.size()) || plan_.offsets[value] == kNoOffset) return {};
  return {arena_->data() + plan_.offsets[value], static_cast<size_t>(plan_.program.TypeOf(value).size_bytes())};
}

std::span<std::byte> Executor::Data(std::string_view name) {
  if (const State* state = plan_.program.FindState(name)) return Data(state->last);
  if (const ValueId input = plan_.program.FindInput(name); input != kNoValue) return Data(input);
  return Data(plan_.program.FindOutput(name));
}

absl::Status Executor::Run() {
  for (const ValueId input : plan_.program.inputs()) {
    if (plan_.offsets[input] == kNoOffset) continue;
    high_water_ = std::max(high_water_, plan_.offsets[input] + plan_.program.TypeOf(input).size_bytes());
  }
  for (size_t index = 0; index < ops_.size(); ++index) {
    BoundOp& op = ops_[index];
    if (op.condition != nullptr && IsZero(op.condition, op.condition_type)) continue;
    std::chrono::steady_clock::time_point start;
    if (profiling_) start = std::chrono::steady_clock::now();
    if (absl::Status status = op.kernel->Run({op.inputs, op.outputs, op.scratch}); !status.ok()) {
      return Annotate(status, plan_.program.Describe(op.op));
    }
    high_water_ = std::max(high_water_, op.top);
    if (profiling_) op_seconds_[index] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (op.watched_scalar != nullptr) {
      const bool finite = op.watched_type == DataType::kF64 ? AllFinite<double>(op.watched_scalar, 1)
                                                           : AllFinite<float>(op.watched_scalar, 1);
      if (!finite) {
        stopped_at_ = index;
        return absl::DataLossError(absl::StrFormat("%s made a value that is not finite", plan_.program.Describe(op.op)));
      }
    }
  }
  return absl::OkStatus();
}

std::string Executor::FindFirstNonFinite() {
  const Program& program = plan_.program;
  for (ValueId input : program.inputs()) {
    const std::span<std::byte> data = Data(input);
    if (!data.empty() && !AllFinite(data.data(), program.TypeOf(input))) {
      return absl::StrCat("input ", program.values()[input].name);
    }
  }
  for (const State& state : program.states()) {
    // Running statistics follow what the step computed; they say nothing about where it began.
    if (state.role == StateRole::kStatistic) continue;
    if (!AllFinite(Data(state.last).data(), program.TypeOf(state.last))) return absl::StrCat("state ", state.name);
  }
  for (size_t index = 0; index <= stopped_at_; ++index) {
    const BoundOp& bound = ops_[index];
    if (bound.condition != nullptr && IsZero(bound.condition, bound.condition_type)) continue;
    if (!bound.kernel->Run({bound.inputs, bound.outputs, bound.scratch}).ok()) return program.Describe(bound.op);
    const Op& op = program.ops()[bound.op];
    for (size_t i = 0; i < op.outputs.size(); ++i) {
      if (!AllFinite(bound.outputs[i], program.TypeOf(op.outputs[i]))) return program.Describe(bound.op);
    }
  }
  return "nothing: the step is finite when run again";
}

void Executor::SetProfiling(bool on) {
  profiling_ = on;
  if (on) std::fill(op_seconds_.begin(), op_seconds_.end(), 0.0);
}

}  // namespace gantry
