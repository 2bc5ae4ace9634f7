#include "ops/cpu/runs.h"

namespace gantry::cpu {
namespace {

// Row-major strides of `shape` when broadcast to `rank` dimensions: 0 where one element serves many.
std::vector<int64_t> BroadcastStrides(const Shape& shape, int rank) {
  const std::vector<int64_t> own = shape.Strides();
  std::vector<int64_t> strides(rank, 0);
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (shape[axis] != 1) strides[rank - shape.rank() + axis] = own[axis];
  }
  return strides;
}

}  // namespace

RunPlan BroadcastRuns(const Shape& out, const Shape& x, const Shape& y) {
  const std::vector<int64_t> x_strides = BroadcastStrides(x, out.rank()), y_strides = BroadcastStrides(y, out.rank());
  std::vector<StridedDimension> dimensions;
  for (int axis = 0; axis < out.rank(); ++axis) {
    dimensions.push_back({out[axis], {x_strides[axis], y_strides[axis]}});
  }
  return RunPlan(dimensions);
}

void PanelUnits::ZeroTail(float* data, int64_t begin, int64_t end) const {
  const int64_t lanes = last_lanes();
  if (lanes == kPanelChannels || panels == 0) return;
  // The last panel of each pixel.
  for (int64_t unit = begin / panels * panels + panels - 1; unit < end; unit += panels) {
    if (unit < begin) continue;
    float* first = data + unit * unit_floats();
    for (int64_t n = 0; n < batch; ++n)
      std::fill(first + n * kPanelChannels + lanes, first + (n + 1) * kPanelChannels, 0.0f);
  }
}

}  // namespace gantry::cpu
