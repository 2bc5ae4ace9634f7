#include "tests/support/partition_check.h"

#include "tests/support/lockstep_runner.h"

namespace gantry::test {

std::vector<int64_t> Elements(const Shape& whole, const std::vector<int64_t>& begins, const Shape& part) {
  std::vector<int64_t> elements;
  const std::vector<int64_t> strides = whole.Strides();
  std::vector<int64_t> place(part.rank(), 0);
  for (int64_t count = part.element_count(); count > 0; --count) {
    int64_t element = 0;
    for (int axis = 0; axis < part.rank(); ++axis) element += (begins[axis] + place[axis]) * strides[axis];
    elements.push_back(element);
    for (int axis = part.rank() - 1; axis >= 0 && ++place[axis] == part[axis]; --axis) place[axis] = 0;
  }
  return elements;
}

absl::StatusOr<std::vector<Scalars>> RunRanks(
    const std::vector<RankProgram>& ranks,
    const std::function<double(const std::string& name, int64_t element)>& content_of) {
  std::vector<const Program*> programs;
  for (const RankProgram& rank : ranks) programs.push_back(&rank.program);
  GANTRY_ASSIGN_OR_RETURN(LockstepRunner runner, LockstepRunner::Create(programs));
  for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
    for (const State& state : programs[r]->states()) {
      std::vector<double> content(programs[r]->TypeOf(state.first).element_count());
      for (size_t e = 0; e < content.size(); ++e) {
        content[e] = content_of(state.whole.empty() ? state.name : state.whole, state.begin + static_cast<int64_t>(e));
      }
      runner.Set(r, state.first, content);
    }
    for (const ValueId input : programs[r]->inputs()) {
      const Value& value = programs[r]->values()[input];
      Shape whole = value.type.shape;
      std::vector<int64_t> begins(whole.rank(), 0);
      for (const InputPart& part : ranks[r].input_parts) {
        if (part.name != value.name) continue;
        whole = part.whole;
        begins = part.begins;
      }
      std::vector<double> content;
      for (const int64_t element : Elements(whole, begins, value.type.shape))
        content.push_back(content_of(value.name, element));
      runner.Set(r, input, content);
    }
  }
  GANTRY_RETURN_IF_ERROR(runner.Run());
  std::vector<Scalars> results(ranks.size());
  for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
    for (const NamedValue& output : programs[r]->outputs()) {
      if (programs[r]->TypeOf(output.value).element_count() == 1)
        results[r][output.name] = runner.Get(r, output.value)[0];
    }
  }
  return results;
}

}  // namespace gantry::test
