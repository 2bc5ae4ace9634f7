#include "tests/support/program_runner.h"

#include <algorithm>
#include <cstring>

namespace gantry::test {
namespace {

size_t Units(size_t bytes) { return bytes / sizeof(std::max_align_t) + 1; }

// Calls body(typed pointer) for the memory of a value.
template <typename Body>
void WithType(DataType type, void* data, Body body) {
  switch (type) {
    case DataType::kF32:
      return body(static_cast<float*>(data));
    case DataType::kF64:
      return body(static_cast<double*>(data));
    case DataType::kI32:
      return body(static_cast<int32_t*>(data));
    case DataType::kI64:
      return body(static_cast<int64_t*>(data));
    case DataType::kU8:
      return body(static_cast<uint8_t*>(data));
  }
}

}  // namespace

absl::StatusOr<ProgramRunner> ProgramRunner::Create(const Program& program, const KernelLibrary& library) {
  GANTRY_RETURN_IF_ERROR(program.status());
  ProgramRunner runner(program);
  for (const Value& value : program.values()) runner.memory_.emplace_back(Units(value.type.size_bytes()));
  size_t scratch_bytes = 0;
  for (size_t id = 0; id < program.ops().size(); ++id) {
    const Op& op = program.ops()[id];
    runner.kernels_.emplace_back();
    if (op.definition->is_view) continue;
    std::vector<TensorType> inputs, outputs;
    for (ValueId input : op.inputs) inputs.push_back(program.TypeOf(input));
    for (ValueId output : op.outputs) outputs.push_back(program.TypeOf(output));
    GANTRY_ASSIGN_OR_RETURN(
        runner.kernels_.back(),
        library.Make({.op = *op.definition, .attributes = op.attributes, .inputs = inputs, .outputs = outputs}));
    if (runner.kernels_.back() == nullptr) {
      return absl::UnimplementedError(
          absl::StrFormat("no %s kernel for %s", library.name(), program.Describe(static_cast<OpId>(id))));
    }
    scratch_bytes = std::max(scratch_bytes, runner.kernels_.back()->scratch_bytes());
  }
  runner.scratch_.resize(Units(scratch_bytes + 64));
  return runner;
}

void ProgramRunner::Set(ValueId value, std::span<const double> content) {
  WithType(program_->TypeOf(value).dtype, memory_[value].data(), [&](auto* data) {
    for (size_t i = 0; i < content.size(); ++i)
      data[i] = static_cast<std::remove_pointer_t<decltype(data)>>(content[i]);
  });
}

std::vector<double> ProgramRunner::Get(ValueId value) const {
  std::vector<double> content(program_->TypeOf(value).element_count());
  WithType(program_->TypeOf(value).dtype, const_cast<std::max_align_t*>(memory_[value].data()), [&](const auto* data) {
    for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<double>(data[i]);
  });
  return content;
}

absl::Status ProgramRunner::Run(std::span<const ValueId> targets) {
  std::vector<bool> needed(program_->values().size(), false);
  for (ValueId target : targets) needed[target] = true;
  const std::vector<Op>& ops = program_->ops();
  std::vector<bool> runs(ops.size(), false);
  for (size_t id = ops.size(); id-- > 0;) {
    for (ValueId output : ops[id].outputs) runs[id] = runs[id] || needed[output];
    if (!runs[id]) continue;
    for (ValueId input : ops[id].inputs) needed[input] = true;
  }
  void* scratch = scratch_.data();
  size_t space = scratch_.size() * sizeof(std::max_align_t);
  scratch = std::align(64, 1, scratch, space);
  for (size_t id = 0; id < ops.size(); ++id) {
    if (!runs[id]) continue;
    std::vector<const void*> inputs;
    std::vector<void*> outputs;
    for (ValueId input : ops[id].inputs) inputs.push_back(memory_[input].data());
    for (ValueId output : ops[id].outputs) outputs.push_back(memory_[output].data());
    if (kernels_[id] == nullptr) {
      std::memcpy(outputs[0], inputs[0], program_->TypeOf(ops[id].outputs[0]).size_bytes());
      continue;
    }
    GANTRY_RETURN_IF_ERROR(Annotate(kernels_[id]->Run({.inputs = inputs, .outputs = outputs, .scratch = scratch}),
                                    program_->Describe(static_cast<OpId>(id))));
  }
  return absl::OkStatus();
}

}  // namespace gantry::test
