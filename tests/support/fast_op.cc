#include "tests/support/fast_op.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>

#include "ops/cpu/panel/panel_layout.h"
#include "ops/kernel.h"

namespace gantry::test {
namespace {

TensorType FastType(const Tensor& tensor, bool panel) {
  return {DataType::kF32, tensor.type.shape, panel ? TensorLayout::kPanel : TensorLayout::kPlain};
}

std::vector<float> ToFloats(const Tensor& tensor, bool panel) {
  const std::vector<float> plain(tensor.values.begin(), tensor.values.end());
  if (!panel) return plain;
  const Shape& s = tensor.type.shape;
  std::vector<float> floats(cpu::PanelFloats(s[0], s[1], s[2], s[3]));
  cpu::PlainToPanel(plain.data(), s[0], s[1], s[2], s[3], floats.data(), 1);
  return floats;
}

// Back to plain values. Fails where the channel tail of a panel tensor is not zero.
Tensor FromFloats(const std::vector<float>& floats, const TensorType& type) {
  std::vector<float> plain = floats;
  if (type.layout == TensorLayout::kPanel) {
    const Shape& s = type.shape;
    plain.assign(s.element_count(), 0.0f);
    cpu::PanelToPlain(floats.data(), s[0], s[1], s[2], s[3], plain.data(), 1);
    std::vector<float> again(floats.size());
    cpu::PlainToPanel(plain.data(), s[0], s[1], s[2], s[3], again.data(), 1);
    for (size_t i = 0; i < again.size(); ++i) {
      if (again[i] == 0.0f) {
        EXPECT_EQ(floats[i], 0.0f) << "tail of " << type.ToString();
      }
    }
  }
  return MakeTensor(type.shape, {plain.begin(), plain.end()}, DataType::kF32);
}

// |found - expected| <= tolerance * (|expected| + floor), element by element.
void ExpectClose(const Tensor& found, const Tensor& expected, double tolerance, double floor, const std::string& what) {
  ASSERT_EQ(found.type.shape, expected.type.shape) << what;
  for (size_t i = 0; i < found.values.size(); ++i) {
    const double error = std::abs(found.values[i] - expected.values[i]);
    ASSERT_LE(error, tolerance * (std::abs(expected.values[i]) + floor))
        << what << ", element " << i << ": " << found.values[i] << " instead of " << expected.values[i];
  }
}

}  // namespace

absl::StatusOr<std::vector<Tensor>> RunFast(std::string_view op, const std::vector<Tensor>& inputs,
                                            const Attributes& attributes, const FastRun& run) {
  std::vector<TensorType> types;
  std::vector<std::vector<float>> memory;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool panel = i < run.panels.size() && run.panels[i];
    types.push_back(FastType(inputs[i], panel));
    memory.push_back(ToFloats(inputs[i], panel));
  }
  GANTRY_ASSIGN_OR_RETURN(std::vector<TensorType> outputs, InferOp(op, types, attributes));
  if (run.panel_output) outputs[0].layout = TensorLayout::kPanel;
  GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<Kernel> kernel, CpuKernels().Make({.op = *FindOp(op),
                                                                                   .attributes = attributes,
                                                                                   .inputs = types,
                                                                                   .outputs = outputs,
                                                                                   .thread_count = run.thread_count}));
  if (kernel == nullptr) return absl::UnimplementedError(absl::StrCat("no fast kernel for ", ToAbsl(op)));
  std::vector<const void*> in;
  std::vector<void*> out;
  for (const auto& one : memory) in.push_back(one.data());
  std::vector<std::vector<float>> results(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (i < run.in_place.size()) {
      out.push_back(memory[run.in_place[i]].data());
    } else {
      results[i].assign(outputs[i].size_bytes() / sizeof(float), std::numeric_limits<float>::quiet_NaN());
      out.push_back(results[i].data());
    }
  }
  std::vector<double> scratch(kernel->scratch_bytes() / sizeof(double) + 1, std::nan(""));
  GANTRY_RETURN_IF_ERROR(kernel->Run({.inputs = in, .outputs = out, .scratch = scratch.data()}));
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < outputs.size(); ++i) {
    tensors.push_back(FromFloats(i < run.in_place.size() ? memory[run.in_place[i]] : results[i], outputs[i]));
  }
  return tensors;
}

std::vector<Tensor> RunTruth(std::string_view op, const std::vector<Tensor>& inputs, const Attributes& attributes) {
  std::vector<Tensor> doubles;
  for (const Tensor& input : inputs) doubles.push_back(MakeTensor(input.type.shape, input.values));
  absl::StatusOr<std::vector<Tensor>> outputs = RunOp(op, doubles, attributes);
  EXPECT_TRUE(outputs.ok()) << op << ": " << outputs.status();
  return outputs.ok() ? *outputs : std::vector<Tensor>{};
}

void ExpectFast(std::string_view op, const std::vector<Tensor>& inputs, const Attributes& attributes, FastRun run,
                double tolerance, double floor) {
  const std::vector<Tensor> expected = RunTruth(op, inputs, attributes);
  for (int threads : {1, 3}) {
    run.thread_count = threads;
    std::string what = absl::StrCat(ToAbsl(op), attributes.ToString(), " on ", threads, " threads:");
    for (const Tensor& input : inputs) absl::StrAppend(&what, " ", input.type.shape.ToString());
    const auto found = RunFast(op, inputs, attributes, run);
    ASSERT_TRUE(found.ok()) << what << ": " << found.status();
    for (size_t i = 0; i < expected.size(); ++i) ExpectClose((*found)[i], expected[i], tolerance, floor, what);
  }
}

Tensor Drawn(const Shape& shape, std::mt19937_64& random, double low, double high) {
  Tensor tensor = RandomTensor(shape, random, DataType::kF32);
  for (double& value : tensor.values) value = static_cast<float>((low + high) / 2 + value * (high - low) / 2);
  return tensor;
}

int64_t Draw(std::mt19937_64& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

}  // namespace gantry::test
