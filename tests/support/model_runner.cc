#include "tests/support/model_runner.h"

#include <random>

#include "tests/support/program_runner.h"

namespace gantry::test {

std::vector<double> InitialContent(const Model& model, const State& state) {
  const int64_t count = model.program.TypeOf(state.first).element_count();
  const Initializer& initializer = state.initializer;
  if (initializer.kind == Initializer::Kind::kData) return initializer.data;
  std::vector<double> content(count, initializer.a);
  std::mt19937_64 bits(std::hash<std::string>()(state.name));
  if (initializer.kind == Initializer::Kind::kNormal) {
    std::normal_distribution<double> normal(initializer.a, initializer.b);
    for (double& value : content) value = initializer.b == 0.0 ? initializer.a : normal(bits);
  } else if (initializer.kind == Initializer::Kind::kUniform) {
    std::uniform_real_distribution<double> uniform(initializer.a, initializer.b);
    for (double& value : content) value = uniform(bits);
  }
  return content;
}

absl::StatusOr<ModelResult> RunModel(const Model& model, const NamedContents& inputs, const NamedContents& states) {
  const Program& program = model.program;
  GANTRY_ASSIGN_OR_RETURN(ProgramRunner runner, ProgramRunner::Create(program, ReferenceKernels()));
  const auto Set = [&](ValueId value, const std::vector<double>& content) -> absl::Status {
    const int64_t count = program.TypeOf(value).element_count();
    if (static_cast<int64_t>(content.size()) != count) {
      return absl::InvalidArgumentError(
          absl::StrFormat("'%s' takes %d elements, got %d", program.values()[value].name, count, content.size()));
    }
    runner.Set(value, content);
    return absl::OkStatus();
  };
  for (ValueId input : program.inputs()) {
    const auto given = inputs.find(program.values()[input].name);
    if (given == inputs.end()) {
      return absl::InvalidArgumentError(absl::StrFormat("the input '%s' is not given", program.values()[input].name));
    }
    GANTRY_RETURN_IF_ERROR(Set(input, given->second));
  }
  std::vector<ValueId> targets;
  for (const State& state : program.states()) {
    const auto given = states.find(state.name);
    GANTRY_RETURN_IF_ERROR(Set(state.first, given == states.end() ? InitialContent(model, state) : given->second));
    targets.push_back(state.last);
  }
  for (const NamedValue& output : program.outputs()) targets.push_back(output.value);
  GANTRY_RETURN_IF_ERROR(runner.Run(targets));
  ModelResult result;
  for (const State& state : program.states()) result.states[state.name] = runner.Get(state.last);
  for (const NamedValue& output : program.outputs()) result.outputs[output.name] = runner.Get(output.value);
  return result;
}

}  // namespace gantry::test
