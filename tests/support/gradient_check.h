// Checks of first and second gradients against central differences, in f64 on the reference kernels.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ops/op_definition.h"

namespace gantry::test {

// One input of a case. Float inputs are f64, drawn evenly from [low, high] and differentiated by; integer ones are
// given.
struct GradientInput {
  Shape shape;
  double low = -1.0;
  double high = 1.0;
  // Values are kept at least kKinkMargin away from these places, where the op has no derivative.
  std::vector<double> kinks = {};
  // All values differ by at least kKinkMargin (for maxima): they are an even spread over [low, high] in random order.
  // Inputs of one case that are all `distinct` share one spread.
  bool distinct = false;
  // Not empty: an i64 input with this content.
  std::vector<int64_t> integers = {};
};

inline constexpr double kKinkMargin = 0.01;

struct GradientCase {
  std::string name;  // letters and digits, unique
  // The op that is emitted, with these attributes. One case may do for more ops through its gradients, but an op counts
  // as checked only where it is named here.
  std::string op;
  std::vector<GradientInput> inputs;
  Attributes attributes = {};
  // Instead of emitting `op` alone: emits anything and returns the outputs.
  std::function<std::vector<ValueId>(Builder&, std::span<const ValueId>)> build = {};
  // The inputs by which nothing is differentiated (for ops whose gradient in an input is defined as zero), by index.
  std::vector<int> constant_inputs = {};
};

// Draws inputs x, projections r and p, and checks against central differences, by every element of every x and r:
//   first    the gradients g of f = sum over outputs of <r, output>,
//   second   the gradients of <p, g>.
// The error says which gradient of which input is wrong and by how much. The greatest error may be 1e-6 of the greatest
// gradient (of 0.01 where all are smaller).
absl::Status CheckGradients(const GradientCase& one);

}  // namespace gantry::test
