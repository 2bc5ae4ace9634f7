// Sliding windows over one to three spatial dimensions: the geometry that convolution and pooling share.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "ops/op_definition.h"

namespace gantry {

// The window along one dimension. Place `tap` of window `index` is input place index * stride - pad_begin + tap *
// dilation.
struct WindowAxis {
  int64_t kernel = 1;
  int64_t stride = 1;
  int64_t pad_begin = 0;
  int64_t pad_end = 0;
  int64_t dilation = 1;

  // Places from the first tap to the last, both included.
  int64_t extent() const { return (kernel - 1) * dilation + 1; }
};

// Always three dimensions: where there are fewer, the outer ones are windows of one place over one place, so that one
// loop nest serves all.
struct Window {
  int rank = 0;  // spatial dimensions given, 1 to 3
  std::array<WindowAxis, 3> axes;

  WindowAxis& spatial(int index) { return axes[3 - rank + index]; }
  const WindowAxis& spatial(int index) const { return axes[3 - rank + index]; }
  int64_t taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
};

// The attributes strides, pads and dilations (absent or empty: 1, 0, 1) around `kernel`. Errors: kernel of no or more
// than three dimensions, wrong lengths, kernel, stride or dilation < 1, pads < 0, anything above 2^31 - 1.
absl::StatusOr<Window> ParseWindow(const Attributes& attributes, std::span<const int64_t> kernel);

// How many windows fit on `spatial` (window.rank entries). With `ceil_mode` a last window may reach beyond the end pad
// if it starts inside the input or its begin pad (PyTorch's rule). An error where none fits.
absl::StatusOr<std::vector<int64_t>> WindowCounts(const Window& window, std::span<const int64_t> spatial,
                                                  bool ceil_mode = false);

// The spatial dimensions of [N, C, spatial...].
std::span<const int64_t> SpatialDims(const Shape& shape);
// The same as three dimensions, the missing outer ones 1.
std::array<int64_t, 3> SpatialDims3(const Shape& shape);

// The windows [first, last) whose place `tap` lies inside an input of `input` places.
struct WindowRange {
  int64_t first = 0;
  int64_t last = 0;
};
WindowRange WindowsInside(const WindowAxis& axis, int64_t tap, int64_t input, int64_t windows);

}  // namespace gantry
