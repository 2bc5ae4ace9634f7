// Runs one op on the fast f32 kernels, on plain or panel tensors, and holds it against the reference in f64.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/run_op.h"

namespace gantry::test {

// `panels` marks the inputs that are in panels; `panel_output` output 0. All buffers stand alone, but for output i over
// input in_place[i] where that is given.
struct FastRun {
  std::vector<bool> panels = {};
  bool panel_output = false;
  int thread_count = 1;
  std::vector<int> in_place = {};
};

// kUnimplemented where there is no fast kernel. Outputs and scratch hold NaN before the run; a panel output whose
// channel tail is not zero fails the test.
absl::StatusOr<std::vector<Tensor>> RunFast(std::string_view op, const std::vector<Tensor>& inputs,
                                            const Attributes& attributes, const FastRun& run = {});

// The reference in f64, on the same (f32) values.
std::vector<Tensor> RunTruth(std::string_view op, const std::vector<Tensor>& inputs, const Attributes& attributes);

// The fast kernel on one thread and on three: |found - expected| <= tolerance * (|expected| + floor), element by
// element.
void ExpectFast(std::string_view op, const std::vector<Tensor>& inputs, const Attributes& attributes, FastRun run,
                double tolerance = 1e-6, double floor = 0.01);

// Uniform in [low, high), rounded to f32.
Tensor Drawn(const Shape& shape, std::mt19937_64& random, double low = -1.0, double high = 1.0);
// Uniform in [low, high].
int64_t Draw(std::mt19937_64& random, int64_t low, int64_t high);

}  // namespace gantry::test
