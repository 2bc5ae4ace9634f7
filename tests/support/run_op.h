// Runs one op on plain vectors, for tests.
#pragma once

#include <random>
#include <span>
#include <string_view>
#include <vector>

#include "ops/kernel.h"

namespace gantry::test {

// Values of any element type, held as doubles, row-major.
struct Tensor {
  TensorType type;
  std::vector<double> values;
};

Tensor MakeTensor(const Shape& shape, std::vector<double> values, DataType dtype = DataType::kF64);
// Uniform in [-1, 1).
Tensor RandomTensor(const Shape& shape, std::mt19937_64& random, DataType dtype = DataType::kF64);
// `tensor` with its values rounded to `dtype`.
Tensor Cast(const Tensor& tensor, DataType dtype);

// The types of the outputs, or the error that the caller of an op gets.
absl::StatusOr<std::vector<TensorType>> InferOp(std::string_view op, std::span<const TensorType> inputs,
                                                const Attributes& attributes);

struct RunOptions {
  const KernelLibrary* library = nullptr;  // null: the reference
  int thread_count = 1;
};
// Infers, makes the kernel and runs it. Outputs and scratch hold NaN before the run, so what a kernel leaves out shows.
absl::StatusOr<std::vector<Tensor>> RunOp(std::string_view op, const std::vector<Tensor>& inputs,
                                          const Attributes& attributes, const RunOptions& options = {});
// The same with a kernel that is already made.
absl::StatusOr<std::vector<Tensor>> RunKernel(Kernel& kernel, const std::vector<Tensor>& inputs,
                                              std::span<const TensorType> outputs);

double Dot(const Tensor& a, const Tensor& b);
// The largest |a - b| over the largest |b| (or 1, if that is larger); infinite where shapes differ or a value is NaN.
double RelativeDifference(const Tensor& a, const Tensor& b);

}  // namespace gantry::test
