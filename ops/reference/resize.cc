// Resizing as a weighted sum of the two neighbours along each axis, and its adjoint.
#include "ops/resize.h"

#include <algorithm>
#include <array>

#include "ops/reference/reference_kernel.h"
#include "ops/window.h"

namespace gantry::reference {
namespace {

struct ResizeGeometry {
  int64_t images = 0;                        // N * C
  std::array<int64_t, 3> input = {1, 1, 1};  // of resize
  std::array<int64_t, 3> output = {1, 1, 1};
  std::array<std::vector<ResizeSample>, 3> samples;  // one for each output place along each axis

  int64_t input_places() const { return input[0] * input[1] * input[2]; }
  int64_t output_places() const { return output[0] * output[1] * output[2]; }
};

ResizeGeometry MakeGeometry(const Shape& x, const Shape& resized, const Attributes& attributes) {
  ResizeGeometry geometry{.images = x[0] * x[1], .input = SpatialDims3(x), .output = SpatialDims3(resized)};
  if (geometry.images == 0) return geometry;
  const int spatial_rank = x.rank() - 2;
  for (int axis = 0; axis < 3; ++axis) {
    const int dimension = axis - (3 - spatial_rank);
    geometry.samples[axis] = dimension < 0
                                 ? std::vector<ResizeSample>(1)
                                 : ResizeSamples(attributes, dimension, geometry.input[axis], geometry.output[axis]);
  }
  return geometry;
}

// body(p, q, weight): output place q takes `weight` of input place p; in order of q.
template <typename Body>
void ForEachWeight(const ResizeGeometry& geometry, Body body) {
  struct Corner {
    int64_t place;
    double weight;
  };
  const auto corners = [&](int axis, int64_t index) {
    const ResizeSample& sample = geometry.samples[axis][index];
    return std::array<Corner, 2>{Corner{sample.low, sample.low_weight}, Corner{sample.high, sample.high_weight}};
  };
  int64_t q = 0;
  for (int64_t d = 0; d < geometry.output[0]; ++d) {
    const std::array<Corner, 2> d_corners = corners(0, d);
    for (int64_t h = 0; h < geometry.output[1]; ++h) {
      const std::array<Corner, 2> h_corners = corners(1, h);
      for (int64_t w = 0; w < geometry.output[2]; ++w, ++q) {
        const std::array<Corner, 2> w_corners = corners(2, w);
        for (const Corner& a : d_corners) {
          if (a.weight == 0) continue;
          for (const Corner& b : h_corners) {
            if (b.weight == 0) continue;
            for (const Corner& c : w_corners) {
              if (c.weight == 0) continue;
              body((a.place * geometry.input[1] + b.place) * geometry.input[2] + c.place, q,
                   a.weight * b.weight * c.weight);
            }
          }
        }
      }
    }
  }
}

// resize gathers from x into y; resize_grad scatters from y into x.
template <bool kGrad>
std::unique_ptr<Kernel> MakeResize(const KernelRequest& request) {
  ResizeGeometry geometry =
      MakeGeometry(kGrad ? request.outputs[0].shape : request.inputs[0].shape,
                   kGrad ? request.inputs[0].shape : request.outputs[0].shape, request.attributes);
  const int64_t from_places = kGrad ? geometry.output_places() : geometry.input_places();
  const int64_t to_places = kGrad ? geometry.input_places() : geometry.output_places();
  const int64_t sum_count = geometry.images == 0 ? 0 : to_places;  // an empty tensor may have huge images
  const auto loop = [geometry = std::move(geometry), from_places, to_places](auto zero, const OpInstance&,
                                                                             const KernelArguments& arguments) {
    using T = decltype(zero);
    double* const sums = static_cast<double*>(arguments.scratch);
    for (int64_t image = 0; image < geometry.images; ++image) {
      const T* const from = Input<T>(arguments, 0) + image * from_places;
      T* const to = Output<T>(arguments, 0) + image * to_places;
      std::fill_n(sums, to_places, 0.0);
      ForEachWeight(geometry, [&](int64_t p, int64_t q, double weight) {
        sums[kGrad ? p : q] += weight * static_cast<double>(from[kGrad ? q : p]);
      });
      for (int64_t place = 0; place < to_places; ++place) to[place] = static_cast<T>(sums[place]);
    }
    return absl::OkStatus();
  };
  return MakeFloatKernel(request, loop, sizeof(double) * static_cast<size_t>(sum_count));
}

}  // namespace

KernelTable ResizeKernels() { return {{"resize", MakeResize<false>}, {"resize_grad", MakeResize<true>}}; }

}  // namespace gantry::reference
