// Random convolution geometries, for tests.
#pragma once

#include <random>

#include "ops/attributes.h"
#include "ops/tensor_type.h"

namespace gantry::test {

// A convolution from x to y with weights w, and the attributes of the three ops on it.
struct ConvCase {
  Shape x, w, y;
  Attributes conv, transpose, weight_grad;
  std::string ToString() const {
    return x.ToString() + " * " + w.ToString() + " -> " + y.ToString() + " " + conv.ToString();
  }
};

// One to three spatial dimensions, strides to 3, pads 0 to 2 on each side, dilations to 3, 1 to 3 groups; small.
ConvCase RandomConvCase(std::mt19937_64& random);
// The case of the given numbers, the same along every spatial dimension.
ConvCase MakeConvCase(int spatial_rank, int64_t batch, int64_t input_channels, int64_t input, int64_t output_channels,
                      int64_t kernel, int64_t stride, int64_t pad, int64_t dilation = 1, int64_t groups = 1);

}  // namespace gantry::test
