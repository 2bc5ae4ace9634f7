// The geometry that conv, conv_transpose and conv_weight_grad share. With x [N, C, spatial], w [O, C/groups, kernel]
// and y [N, O, spatial'], each of the three ops computes one of them from the other two, over the same pairs of places:
//   conv              y[n,o,q] = sum over c, t of x[n,c,p(q,t)] w[o,c,t]
//   conv_transpose    x[n,c,p] = sum over o, t, q with p(q,t) = p of y[n,o,q] w[o,c,t]
//   conv_weight_grad  w[o,c,t] = sum over n, q of x[n,c,p(q,t)] y[n,o,q]
// where p(q, t) = q * stride - pad + t * dilation, and places outside of x count as zero.
#pragma once

#include <array>
#include <span>
#include <string_view>

#include "ops/window.h"

namespace gantry {

struct ConvGeometry {
  int64_t batch = 0;            // N
  int64_t input_channels = 0;   // C
  int64_t output_channels = 0;  // O
  int64_t groups = 1;
  Window window;
  std::array<int64_t, 3> input = {1, 1, 1};   // spatial, of x
  std::array<int64_t, 3> output = {1, 1, 1};  // spatial', of y

  int64_t group_input_channels() const { return input_channels / groups; }
  int64_t group_output_channels() const { return output_channels / groups; }
  int64_t input_places() const { return input[0] * input[1] * input[2]; }
  int64_t output_places() const { return output[0] * output[1] * output[2]; }
};

// The geometry of `op`, one of the three, whose types have passed its inference.
ConvGeometry GeometryOf(std::string_view op, std::span<const TensorType> inputs, std::span<const TensorType> outputs,
                        const Attributes& attributes);

}  // namespace gantry
