#include "runtime/graph/onnx.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/data/npz.h"
#include "tests/support/model_runner.h"

namespace gantry {
namespace {

using test::ModelResult;
using test::NamedContents;
using test::RunModel;

// One case of an archive that tests/data/make_onnx_fixtures.py wrote.
struct Fixture {
  std::vector<std::byte> model;
  NamedContents inputs, outputs, states;
};

std::string DataPath(std::string_view name) {
  return std::string(GANTRY_TEST_DATA) + "/data/onnx/" + std::string(name);
}

std::vector<double> ToDoubles(const HostArray& array) {
  std::vector<double> values(array.element_count());
  ConvertToF64(array.type(), array.bytes().data(), array.element_count(), values.data());
  return values;
}

std::map<std::string, Fixture> ReadFixtures(std::string_view file) {
  absl::StatusOr<std::vector<NamedArray>> arrays = ReadNpz(DataPath(file));
  if (!arrays.ok()) return {};
  std::map<std::string, Fixture> fixtures;
  for (const NamedArray& array : *arrays) {
    const size_t slash = array.name.find('/');
    Fixture& fixture = fixtures[array.name.substr(0, slash)];
    const std::string key = array.name.substr(slash + 1);
    if (key == "model") fixture.model.assign(array.array.bytes().begin(), array.array.bytes().end());
    if (key.starts_with("in/")) fixture.inputs[key.substr(3)] = ToDoubles(array.array);
    if (key.starts_with("out/")) fixture.outputs[key.substr(4)] = ToDoubles(array.array);
    if (key.starts_with("state/")) fixture.states[key.substr(6)] = ToDoubles(array.array);
  }
  return fixtures;
}

const std::map<std::string, Fixture>& OperatorFixtures() {
  static const auto* const fixtures = new std::map<std::string, Fixture>(ReadFixtures("operators.npz"));
  return *fixtures;
}
const std::map<std::string, Fixture>& TrainingFixtures() {
  static const auto* const fixtures = new std::map<std::string, Fixture>(ReadFixtures("training.npz"));
  return *fixtures;
}

std::vector<std::string> Names(const std::map<std::string, Fixture>& fixtures) {
  std::vector<std::string> names;
  for (const auto& [name, fixture] : fixtures) names.push_back(name);
  return names;
}

// The greatest difference, relative to the greatest expected value.
double Difference(const std::vector<double>& got, const std::vector<double>& expected) {
  if (got.size() != expected.size()) return INFINITY;
  double difference = 0.0;
  double greatest = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) {
    difference = std::max(difference, std::abs(got[i] - expected[i]));
    greatest = std::max(greatest, std::abs(expected[i]));
    if (std::isnan(got[i]) != std::isnan(expected[i])) return INFINITY;
  }
  return difference / greatest;
}

void ExpectNear(const NamedContents& got, const NamedContents& expected, double tolerance) {
  for (const auto& [name, values] : expected) {
    ASSERT_TRUE(got.contains(name)) << name;
    EXPECT_LE(Difference(got.at(name), values), tolerance) << name;
  }
}

// Imports with the batch that fits the fixture's first input: batches differ from case to case, but are small.
absl::StatusOr<Model> ImportFor(const Fixture& fixture, OnnxOptions options) {
  absl::StatusOr<Model> model = absl::UnknownError("no batch fits");
  for (options.batch = 1; options.batch <= 8; ++options.batch) {
    model = ImportOnnx(fixture.model, options);
    if (!model.ok()) continue;
    bool fits = true;
    for (ValueId input : model->program.inputs()) {
      const auto given = fixture.inputs.find(model->program.values()[input].name);
      fits = fits && given != fixture.inputs.end() &&
             static_cast<int64_t>(given->second.size()) == model->program.TypeOf(input).element_count();
    }
    if (fits) return model;
  }
  return model;
}

class OnnxOperatorTest : public testing::TestWithParam<std::string> {};

TEST_P(OnnxOperatorTest, ComputesWhatOnnxRuntimeComputes) {
  const Fixture& fixture = OperatorFixtures().at(GetParam());
  ASSERT_FALSE(fixture.outputs.empty());
  for (DataType dtype : {DataType::kF64, DataType::kF32}) {
    absl::StatusOr<Model> model =
        fixture.model.empty() ? ImportOnnxFile(DataPath(GetParam().substr(5) + ".onnx"), {.batch = 4, .dtype = dtype})
                              : ImportFor(fixture, {.dtype = dtype});
    ASSERT_TRUE(model.ok()) << model.status();
    const absl::StatusOr<ModelResult> result = RunModel(*model, fixture.inputs);
    ASSERT_TRUE(result.ok()) << result.status();
    ExpectNear(result->outputs, fixture.outputs, 3e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(All, OnnxOperatorTest, testing::ValuesIn(Names(OperatorFixtures())), [](const auto& info) {
  std::string name = info.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
  return name;
});

class OnnxTrainingTest : public testing::TestWithParam<std::string> {};

TEST_P(OnnxTrainingTest, ComputesWhatPyTorchComputesInF64) {
  const Fixture& fixture = TrainingFixtures().at(GetParam());
  ASSERT_FALSE(fixture.outputs.empty());
  // The newer exporter writes batch norm for inference (see onnx.h).
  absl::StatusOr<Model> model =
      ImportFor(fixture, {.dtype = DataType::kF64, .force_training = GetParam().starts_with("dynamo")});
  ASSERT_TRUE(model.ok()) << model.status();
  const absl::StatusOr<ModelResult> result = RunModel(*model, fixture.inputs);
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectNear(result->outputs, fixture.outputs, 1e-12);
  ExpectNear(result->states, fixture.states, 1e-12);
}

INSTANTIATE_TEST_SUITE_P(All, OnnxTrainingTest, testing::ValuesIn(Names(TrainingFixtures())),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace gantry
