#include "tests/support/torch_ops.h"

#include <gtest/gtest.h>

#include <charconv>
#include <fstream>
#include <map>
#include <sstream>

#include "absl/strings/str_split.h"
#include "tests/support/run_op.h"

namespace gantry::test {
namespace {

struct TorchRun {
  std::string name;  // of the case
  std::string op;
  Attributes attributes;
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
};

double Number(std::string_view text) {
  double value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc() || result.ptr != text.data() + text.size()) ADD_FAILURE() << "no number: " << text;
  return value;
}

// [1,2] is a list of integers, [1.0,2.0] one of doubles, "x" a string, 1 an integer, 1.0 and 1e-05 are doubles.
AttributeValue ParseAttribute(const std::string& text) {
  const bool is_double = text.find_first_of(".e") != std::string::npos;
  if (text[0] == '"') return text.substr(1, text.size() - 2);
  if (text[0] != '[')
    return is_double ? AttributeValue(Number(text)) : AttributeValue(static_cast<int64_t>(Number(text)));
  std::vector<int64_t> integers;
  std::vector<double> doubles;
  for (const std::string& part : std::vector<std::string>(absl::StrSplit(text.substr(1, text.size() - 2), ','))) {
    doubles.push_back(Number(part));
    integers.push_back(static_cast<int64_t>(doubles.back()));
  }
  return is_double ? AttributeValue(doubles) : AttributeValue(integers);
}

Tensor ParseTensor(std::istringstream& line) {
  std::string dims, equals, word;
  line >> dims >> equals;
  std::vector<int64_t> shape;
  if (dims != "-") {
    for (const std::string& dim : std::vector<std::string>(absl::StrSplit(dims, ',')))
      shape.push_back(static_cast<int64_t>(Number(dim)));
  }
  std::vector<double> values;
  while (line >> word) values.push_back(Number(word));
  EXPECT_EQ(static_cast<int64_t>(values.size()), Shape(shape).element_count());
  return MakeTensor(Shape(shape), std::move(values));
}

std::vector<TorchRun> ReadRuns() {
  std::ifstream file(GANTRY_TEST_DATA "/data/torch_ops.txt");
  EXPECT_TRUE(file.good()) << "tests/data/torch_ops.txt is missing";
  std::vector<TorchRun> runs;
  std::map<std::string, Tensor> tensors;
  std::string text, name;
  while (std::getline(file, text)) {
    std::istringstream line(text);
    std::string kind, word;
    line >> kind;
    if (kind == "case") {
      line >> name;
      tensors.clear();
    } else if (kind == "tensor") {
      line >> word;
      tensors[word] = ParseTensor(line);
    } else if (kind == "run") {
      TorchRun run{.name = name};
      line >> run.op;
      while (line >> word && word != ">") run.inputs.push_back(tensors.at(word));
      while (line >> word && word != ";") run.outputs.push_back(tensors.at(word));
      while (line >> word) {
        const size_t equals = word.find('=');
        run.attributes.Set(word.substr(0, equals), ParseAttribute(word.substr(equals + 1)));
      }
      runs.push_back(std::move(run));
    }
  }
  return runs;
}

}  // namespace

int CheckTorchOps(DataType dtype, const KernelLibrary& library, double tolerance, bool all) {
  int checked = 0;
  for (const TorchRun& run : ReadRuns()) {
    std::vector<Tensor> inputs;
    for (const Tensor& input : run.inputs) inputs.push_back(Cast(input, dtype));
    const auto outputs = RunOp(run.op, inputs, run.attributes, {.library = &library, .thread_count = 2});
    if (!all && outputs.status().code() == absl::StatusCode::kUnimplemented) continue;
    if (!outputs.ok() || outputs->size() != run.outputs.size()) {
      ADD_FAILURE() << run.name << " " << run.op << " " << outputs.status();
      continue;
    }
    ++checked;
    for (size_t i = 0; i < run.outputs.size(); ++i) {
      Tensor expected = run.outputs[i];
      if ((*outputs)[i].type.shape.element_count() == expected.type.shape.element_count()) {
        expected.type.shape = (*outputs)[i].type.shape;  // parameters have fewer dimensions in PyTorch
      }
      EXPECT_LT(RelativeDifference((*outputs)[i], expected), tolerance)
          << run.name << ": output " << i << " of " << run.op << " " << run.attributes.ToString();
    }
  }
  return checked;
}

}  // namespace gantry::test
