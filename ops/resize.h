// Where the elements of a resized axis come from.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/op_definition.h"

namespace gantry {

// A resized element is low_weight * input[low] + high_weight * input[high].
struct ResizeSample {
  int64_t low = 0;
  int64_t high = 0;
  double low_weight = 1;
  double high_weight = 0;
};

// One entry for each of `output` elements of the spatial dimension `dimension`, resized from `input` elements.
// `attributes` have passed inference. Nearest positions are rounded to f32 before they are rounded to an index, so that
// a position that is an integer but for rounding (scale 0.6 as f32) counts as one. Of ops that partitioning emits,
// {part: dimension, input, input_begin, output, output_begin} says that along one spatial dimension both are parts, from those begins on, of so
// many elements; what lies outside of the input's part weighs nothing, so that results from all parts of the input add up.
std::vector<ResizeSample> ResizeSamples(const Attributes& attributes, int dimension, int64_t input, int64_t output);

}  // namespace gantry
