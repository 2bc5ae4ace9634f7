// Models from ONNX files over several ranks: with every operator that can be imported, also those that no partition
// rule covers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "ops/functional.h"
#include "runtime/data/npz.h"
#include "runtime/graph/differentiate.h"
#include "runtime/graph/onnx.h"
#include "runtime/partition/parallel.h"
#include "tests/support/model_runner.h"
#include "tests/support/partition_check.h"

namespace gantry {
namespace {

using test::InitialContent;
using test::RunRanks;
using test::Scalars;

// Positive, so that logarithms and roots are numbers.
double NumberAt(const std::string& name, int64_t element) {
  return 1.0 + 0.6 * std::sin(0.83 * static_cast<double>(element) + static_cast<double>(name.size()));
}

// The model with its inputs as samples, its outputs summed with any numbers, and the gradients of that where there are
// some.
Program WithProbes(const Model& model) {
  Program program;
  const Program& source = model.program;
  std::vector<ValueId> map(source.values().size(), kNoValue);
  std::vector<ValueId> variables, targets;
  for (const ValueId input : source.inputs()) {
    const Value& value = source.values()[input];
    map[input] = program.AddInput("real." + value.name, value.type);
    if (value.type.dtype == DataType::kF64) variables.push_back(map[input]);
  }
  for (const State& state : source.states()) {
    map[state.first] =
        program.AddState(state.name, state.network, state.role, source.TypeOf(state.first), state.initializer);
    if (state.role == StateRole::kParameter) variables.push_back(map[state.first]);
  }
  for (const Op& op : source.ops()) {
    std::vector<ValueId> inputs;
    for (const ValueId input : op.inputs) inputs.push_back(map[input]);
    const std::vector<ValueId> outputs = program.Emit(op.definition->name, inputs, op.attributes);
    for (size_t o = 0; o < op.outputs.size(); ++o) map[op.outputs[o]] = outputs[o];
  }
  const auto Probe = [&](ValueId value, const std::string& name) {
    const ValueId numbers = program.AddInput("probe " + name, program.TypeOf(value));
    const ValueId sum = ops::ReduceSum(program, ops::Mul(program, value, numbers), {});
    program.AddOutput(name, sum);
    return sum;
  };
  for (const NamedValue& output : source.outputs()) {
    if (source.TypeOf(output.value).dtype == DataType::kF64)
      targets.push_back(Probe(map[output.value], "output " + output.name));
  }
  Program differentiated = program;
  const std::vector<ValueId> ones(targets.size(), kNoValue);
  const absl::StatusOr<std::vector<ValueId>> gradients = Differentiate(differentiated, targets, ones, variables);
  if (!gradients.ok()) return program;
  program = std::move(differentiated);
  for (size_t i = 0; i < variables.size(); ++i) {
    if ((*gradients)[i] != kNoValue) Probe((*gradients)[i], "gradient " + program.values()[variables[i]].name);
  }
  return program;
}

// Both archives that tests/data/make_onnx_fixtures.py wrote.
TEST(PartitionOnnxTest, EveryOperatorEqualsOneRank) {
  int cases = 0;
  std::set<std::string> gathered;
  for (const char* const archive : {"operators.npz", "training.npz"}) {
    const absl::StatusOr<std::vector<NamedArray>> arrays =
        ReadNpz(std::string(GANTRY_TEST_DATA) + "/data/onnx/" + archive);
    ASSERT_TRUE(arrays.ok()) << arrays.status();
    for (const NamedArray& array : *arrays) {
      if (!array.name.ends_with("/model")) continue;
      for (const int64_t batch : {4, 5}) {
        const absl::StatusOr<Model> model = ImportOnnx(array.array.bytes(), {.batch = batch, .dtype = DataType::kF64});
        if (!model.ok()) continue;  // a model whose shapes have another batch
        const Program program = WithProbes(*model);
        ASSERT_TRUE(program.status().ok()) << program.status();
        const auto Content = [&](const std::string& name, int64_t element) {
          const State* const state = model->program.FindState(name);
          if (state != nullptr) return InitialContent(*model, *state)[static_cast<size_t>(element)];
          const ValueId input = name.starts_with("real.") ? model->program.FindInput(name.substr(5)) : kNoValue;
          if (input != kNoValue && model->program.TypeOf(input).dtype == DataType::kI64)
            return static_cast<double>(element % 2);
          return NumberAt(name, element);
        };
        std::vector<RankProgram> one(1);
        one[0].program = program;
        const absl::StatusOr<std::vector<Scalars>> expected = RunRanks(one, Content);
        if (absl::IsUnimplemented(expected.status())) continue;  // of element types that the runner has not
        ASSERT_TRUE(expected.ok()) << array.name << ": " << expected.status();
        for (const auto& [parallel, count] : {std::pair(Parallel{.batch = true}, 2),
                                              {Parallel{.space = true}, 3},
                                              {Parallel{.channel = true}, 2},
                                              {Parallel{.batch = true, .shard = true}, 3}}) {
          SCOPED_TRACE(absl::StrFormat("%s, batch %d, %s over %d", array.name, batch, parallel.Text(), count));
          std::vector<RankProgram> ranks;
          for (int rank = 0; rank < count; ++rank) {
            absl::StatusOr<RankProgram> mine = PartitionFor(program, parallel, rank, count);
            ASSERT_TRUE(mine.ok()) << mine.status();
            gathered.insert(mine->gathered.begin(), mine->gathered.end());
            ranks.push_back(*std::move(mine));
          }
          const absl::StatusOr<std::vector<Scalars>> actual = RunRanks(ranks, Content);
          ASSERT_TRUE(actual.ok()) << actual.status();
          for (const auto& [name, value] : expected->front()) {
            for (const Scalars& rank : *actual)
              EXPECT_NEAR(rank.at(name), value, 1e-9 * std::max(1.0, std::fabs(value))) << name;
          }
          ++cases;
        }
      }
    }
  }
  EXPECT_GT(cases, 300);
  EXPECT_GT(gathered.size(), 5u);  // ops without a rule for how their operands were split were among them
}

}  // namespace
}  // namespace gantry
