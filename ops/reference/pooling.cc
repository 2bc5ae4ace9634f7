// Pooling by its definition: each window of each image in turn.
#include "ops/pooling.h"

#include <algorithm>
#include <cmath>

#include "ops/reference/reference_kernel.h"

namespace gantry::reference {
namespace {

struct WindowTaps {
  std::array<TapRange, 3> taps;
  std::array<int64_t, 3> start;  // the place of tap 0, perhaps before the input
};

// body(q, window) for every window of an image, in order.
template <typename Body>
void ForEachWindow(const PoolGeometry& geometry, Body body) {
  const std::array<WindowAxis, 3>& axes = geometry.window.axes;
  WindowTaps window;
  const auto enter = [&](int axis, int64_t index) {
    window.taps[axis] = TapsInside(axes[axis], index, geometry.input[axis]);
    window.start[axis] = index * axes[axis].stride - axes[axis].pad_begin;
  };
  int64_t q = 0;
  for (int64_t d = 0; d < geometry.output[0]; ++d) {
    enter(0, d);
    for (int64_t h = 0; h < geometry.output[1]; ++h) {
      enter(1, h);
      for (int64_t w = 0; w < geometry.output[2]; ++w) {
        enter(2, w);
        body(q++, window);
      }
    }
  }
}

// body(p) for every place of the input under `window`, in order.
template <typename Body>
void ForEachPlace(const PoolGeometry& geometry, const WindowTaps& window, Body body) {
  const std::array<WindowAxis, 3>& axes = geometry.window.axes;
  for (int64_t i = window.taps[0].first; i < window.taps[0].last; ++i) {
    const int64_t d = window.start[0] + i * axes[0].dilation;
    for (int64_t j = window.taps[1].first; j < window.taps[1].last; ++j) {
      const int64_t h = window.start[1] + j * axes[1].dilation;
      for (int64_t k = window.taps[2].first; k < window.taps[2].last; ++k) {
        body((d * geometry.input[1] + h) * geometry.input[2] + window.start[2] + k * axes[2].dilation);
      }
    }
  }
}

double Divisor(const PoolGeometry& geometry, const WindowTaps& window) {
  int64_t count = 1;
  for (const TapRange& taps : window.taps) count *= geometry.count_include_pad ? taps.padded : taps.last - taps.first;
  return static_cast<double>(count);
}

// The first place of the largest value; a NaN is larger than all else.
template <typename T>
int64_t FirstMaximum(const PoolGeometry& geometry, const WindowTaps& window, const T* x) {
  int64_t best = -1;
  ForEachPlace(geometry, window, [&](int64_t p) {
    if (best < 0 || x[p] > x[best] || (std::isnan(x[p]) && !std::isnan(x[best]))) best = p;
  });
  return best;
}

std::unique_ptr<Kernel> MakeAvgPool(const KernelRequest& request) {
  const PoolGeometry geometry = PoolGeometryOf(request.inputs[0].shape, request.outputs[0].shape, request.attributes);
  return MakeFloatKernel(request, [geometry](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    for (int64_t image = 0; image < geometry.images; ++image) {
      const T* const x = Input<T>(arguments, 0) + image * geometry.input_places();
      T* const y = Output<T>(arguments, 0) + image * geometry.output_places();
      ForEachWindow(geometry, [&](int64_t q, const WindowTaps& window) {
        double sum = 0;
        ForEachPlace(geometry, window, [&](int64_t p) { sum += static_cast<double>(x[p]); });
        y[q] = static_cast<T>(sum / Divisor(geometry, window));
      });
    }
    return absl::OkStatus();
  });
}

std::unique_ptr<Kernel> MakeAvgPoolGrad(const KernelRequest& request) {
  const PoolGeometry geometry = PoolGeometryOf(request.outputs[0].shape, request.inputs[0].shape, request.attributes);
  const auto loop = [geometry](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    double* const sums = static_cast<double*>(arguments.scratch);
    for (int64_t image = 0; image < geometry.images; ++image) {
      const T* const g = Input<T>(arguments, 0) + image * geometry.output_places();
      std::fill_n(sums, geometry.input_places(), 0.0);
      ForEachWindow(geometry, [&](int64_t q, const WindowTaps& window) {
        const double share = static_cast<double>(g[q]) / Divisor(geometry, window);
        ForEachPlace(geometry, window, [&](int64_t p) { sums[p] += share; });
      });
      T* const dx = Output<T>(arguments, 0) + image * geometry.input_places();
      for (int64_t p = 0; p < geometry.input_places(); ++p) dx[p] = static_cast<T>(sums[p]);
    }
    return absl::OkStatus();
  };
  return MakeFloatKernel(request, loop, sizeof(double) * static_cast<size_t>(geometry.input_places()));
}

// max_pool (the values compared are the values taken) and max_pool_select (values, then what is compared).
std::unique_ptr<Kernel> MakeMaxPoolSelect(const KernelRequest& request) {
  const PoolGeometry geometry = PoolGeometryOf(request.inputs[0].shape, request.outputs[0].shape, request.attributes);
  const int compared = static_cast<int>(request.inputs.size()) - 1;
  return MakeFloatKernel(request, [geometry, compared](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    for (int64_t image = 0; image < geometry.images; ++image) {
      const T* const values = Input<T>(arguments, 0) + image * geometry.input_places();
      const T* const x = Input<T>(arguments, compared) + image * geometry.input_places();
      T* const y = Output<T>(arguments, 0) + image * geometry.output_places();
      ForEachWindow(geometry,
                    [&](int64_t q, const WindowTaps& window) { y[q] = values[FirstMaximum(geometry, window, x)]; });
    }
    return absl::OkStatus();
  });
}

std::unique_ptr<Kernel> MakeMaxPoolGrad(const KernelRequest& request) {
  const PoolGeometry geometry = PoolGeometryOf(request.inputs[1].shape, request.inputs[0].shape, request.attributes);
  const auto loop = [geometry](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    double* const sums = static_cast<double*>(arguments.scratch);
    for (int64_t image = 0; image < geometry.images; ++image) {
      const T* const g = Input<T>(arguments, 0) + image * geometry.output_places();
      const T* const x = Input<T>(arguments, 1) + image * geometry.input_places();
      std::fill_n(sums, geometry.input_places(), 0.0);
      ForEachWindow(geometry, [&](int64_t q, const WindowTaps& window) {
        sums[FirstMaximum(geometry, window, x)] += static_cast<double>(g[q]);
      });
      T* const dx = Output<T>(arguments, 0) + image * geometry.input_places();
      for (int64_t p = 0; p < geometry.input_places(); ++p) dx[p] = static_cast<T>(sums[p]);
    }
    return absl::OkStatus();
  };
  return MakeFloatKernel(request, loop, sizeof(double) * static_cast<size_t>(geometry.input_places()));
}

}  // namespace

KernelTable PoolingKernels() {
  return {{"avg_pool", MakeAvgPool},
          {"avg_pool_grad", MakeAvgPoolGrad},
          {"max_pool", MakeMaxPoolSelect},
          {"max_pool_grad", MakeMaxPoolGrad},
          {"max_pool_select", MakeMaxPoolSelect}};
}

}  // namespace gantry::reference
