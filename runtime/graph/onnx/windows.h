// Window attributes that convolution and pooling share.
#pragma once

#include <vector>

#include "runtime/graph/onnx/node.h"

namespace gantry::onnx {

struct Window {
  std::vector<int64_t> kernel, strides, dilations;
  std::vector<int64_t> pads;  // begin, then end; set by auto_pad VALID, empty where auto_pad is SAME_*
  std::string auto_pad;       // NOTSET, VALID, SAME_UPPER or SAME_LOWER
  int rank() const { return static_cast<int>(kernel.size()); }
  bool same() const { return auto_pad == "SAME_UPPER" || auto_pad == "SAME_LOWER"; }
};

// Attributes kernel_shape, strides, pads, dilations and auto_pad for an input [N, C, spatial], with every entry checked
// to be in a range in which no sum or product overflows. `weight_kernel`: what the weight's shape says, empty for
// pooling.
absl::StatusOr<Window> ReadWindow(Node& node, const Shape& input, std::vector<int64_t> weight_kernel);

// Pads so that the output has ceil(in / stride) elements: those of auto_pad SAME_*.
std::vector<int64_t> SamePads(const Window& window, const Shape& input);

// `total` pads of one axis shared out to its begin and end.
std::pair<int64_t, int64_t> ShareOut(int64_t total, bool more_at_end);

}  // namespace gantry::onnx
