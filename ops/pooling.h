// The geometry that the pooling ops share: x [N, C, spatial] under windows, one for each place of [N, C, spatial'].
#pragma once

#include <array>

#include "ops/window.h"

namespace gantry {

struct PoolGeometry {
  int64_t images = 0;  // N * C: each is pooled by itself
  Window window;
  std::array<int64_t, 3> input = {1, 1, 1};   // spatial, of x
  std::array<int64_t, 3> output = {1, 1, 1};  // spatial'
  bool count_include_pad = false;

  int64_t input_places() const { return input[0] * input[1] * input[2]; }
  int64_t output_places() const { return output[0] * output[1] * output[2]; }
};

// From the types of x and of the pooled tensor, once they have passed inference.
PoolGeometry PoolGeometryOf(const Shape& x, const Shape& pooled, const Attributes& attributes);

// Along one dimension: the taps [first, last) of window `index` that lie inside the input, and how many lie inside the
// input or its pads (a last window of ceil_mode may reach further).
struct TapRange {
  int64_t first = 0;
  int64_t last = 0;
  int64_t padded = 0;
};
TapRange TapsInside(const WindowAxis& axis, int64_t index, int64_t input);

}  // namespace gantry
