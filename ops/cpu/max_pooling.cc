// Fast max pooling of plain f32 tensors, its gradient, and max_pool_select: tap by tap over rows of windows, with the place
// of each window's maximum kept beside it.
#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "ops/cpu/cpu_kernels.h"
#include "ops/cpu/runs.h"
#include "ops/cpu/vector/vector_kernels.h"
#include "ops/pooling.h"

namespace gantry::cpu {
namespace {

enum class MaxPoolResult : uint8_t { kMaximum, kSelected, kGradient };

class MaxPooling final : public Kernel {
 public:
  // Inputs: x; values and x; g and x.
  MaxPooling(const KernelRequest& request, const PoolGeometry& geometry, MaxPoolResult result)
      : geometry_(geometry),
        result_(result),
        threads_(static_cast<int>(std::min<int64_t>(
            UsefulThreads(request.thread_count, geometry.images * geometry.input_places()), geometry.images))) {
    const WindowAxis& columns = geometry.window.axes[2];
    for (int64_t tap = 0; tap < columns.kernel; ++tap) {
      inside_.push_back(WindowsInside(columns, tap, geometry.input[2], geometry.output[2]));
    }
  }
  size_t scratch_bytes() const override { return threads_ * piece_bytes(); }
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* first = static_cast<const float*>(arguments.inputs.front());
    const auto* compared = static_cast<const float*>(arguments.inputs.back());
    auto* out = static_cast<float*>(arguments.outputs[0]);
    ParallelFor(threads_, threads_, [&](int64_t piece) {
      auto* const largest = reinterpret_cast<float*>(static_cast<char*>(arguments.scratch) + piece * piece_bytes());
      auto* const places = reinterpret_cast<int32_t*>(largest + row_elements());
      for (int64_t image = geometry_.images * piece / threads_; image < geometry_.images * (piece + 1) / threads_;
           ++image) {
        const float* const x = compared + image * geometry_.input_places();
        switch (result_) {
          case MaxPoolResult::kMaximum:
            Maxima(x, out + image * geometry_.output_places(), places);
            break;
          case MaxPoolResult::kSelected:
            Selected(first + image * geometry_.input_places(), x, out + image * geometry_.output_places(), largest,
                     places);
            break;
          case MaxPoolResult::kGradient:
            Gradient(first + image * geometry_.output_places(), x, out + image * geometry_.input_places(), largest,
                     places);
            break;
        }
      }
    });
    return absl::OkStatus();
  }

 private:
  int64_t rows() const { return geometry_.output[0] * geometry_.output[1]; }
  int64_t row_length() const { return geometry_.output[2]; }
  int64_t row_elements() const { return (row_length() + 15) / 16 * 16; }
  int64_t piece_bytes() const { return row_elements() * static_cast<int64_t>(sizeof(float) + sizeof(int32_t)); }

  // The maximum of each window of row `row`, and its place in the image: the first of equals, and a NaN is larger than all.
  void FindRow(const float* x, int64_t row, float* largest, int32_t* places) const {
    const std::array<WindowAxis, 3>& axes = geometry_.window.axes;
    std::fill_n(largest, row_length(), -std::numeric_limits<float>::infinity());
    std::fill_n(places, row_length(), -1);
    const int64_t at[2] = {row / geometry_.output[1], row % geometry_.output[1]};
    const TapRange planes = TapsInside(axes[0], at[0], geometry_.input[0]);
    const TapRange lines = TapsInside(axes[1], at[1], geometry_.input[1]);
    for (int64_t i = planes.first; i < planes.last; ++i) {
      const int64_t plane = at[0] * axes[0].stride - axes[0].pad_begin + i * axes[0].dilation;
      for (int64_t j = lines.first; j < lines.last; ++j) {
        const int64_t line = at[1] * axes[1].stride - axes[1].pad_begin + j * axes[1].dilation;
        for (int64_t k = 0; k < axes[2].kernel; ++k) {
          const WindowRange& windows = inside_[k];
          if (windows.first >= windows.last) continue;
          const int64_t place = (plane * geometry_.input[1] + line) * geometry_.input[2] - axes[2].pad_begin +
                                k * axes[2].dilation + windows.first * axes[2].stride;
          BestVectorKernels().take_larger(x + place, axes[2].stride, static_cast<int32_t>(place),
                                          largest + windows.first, places + windows.first,
                                          windows.last - windows.first);
        }
      }
    }
  }

  void Maxima(const float* x, float* out, int32_t* places) const {
    for (int64_t row = 0; row < rows(); ++row) FindRow(x, row, out + row * row_length(), places);
  }
  void Selected(const float* values, const float* x, float* out, float* largest, int32_t* places) const {
    for (int64_t row = 0; row < rows(); ++row) {
      FindRow(x, row, largest, places);
      for (int64_t i = 0; i < row_length(); ++i) out[row * row_length() + i] = values[places[i]];
    }
  }
  void Gradient(const float* g, const float* x, float* dx, float* largest, int32_t* places) const {
    std::fill_n(dx, geometry_.input_places(), 0.0f);
    for (int64_t row = 0; row < rows(); ++row) {
      FindRow(x, row, largest, places);
      for (int64_t i = 0; i < row_length(); ++i) dx[places[i]] += g[row * row_length() + i];
    }
  }

  const PoolGeometry geometry_;
  const MaxPoolResult result_;
  const int threads_;
  std::vector<WindowRange> inside_;  // for each tap along the innermost axis
};

}  // namespace

absl::StatusOr<std::unique_ptr<Kernel>> MakeFastMaxPooling(const KernelRequest& request) {
  const std::string_view name = request.op.name;
  const bool gradient = name == "max_pool_grad", select = name == "max_pool_select";
  if ((name != "max_pool" && !gradient && !select) || !AllF32(request)) return nullptr;
  for (const TensorType& type : request.inputs) {
    if (type.layout != TensorLayout::kPlain || type.element_count() == 0) return nullptr;
  }
  if (request.outputs[0].layout != TensorLayout::kPlain) return nullptr;
  const Shape& x = request.inputs.back().shape;
  const Shape& pooled = gradient ? request.inputs[0].shape : request.outputs[0].shape;
  const PoolGeometry geometry = PoolGeometryOf(x, pooled, request.attributes);
  constexpr int64_t kMostTaps = 1 << 20;
  if (geometry.input_places() > INT32_MAX || geometry.window.axes[2].kernel > kMostTaps) return nullptr;
  return std::make_unique<MaxPooling>(request, geometry,
                                      gradient ? MaxPoolResult::kGradient
                                      : select ? MaxPoolResult::kSelected
                                               : MaxPoolResult::kMaximum);
}

}  // namespace gantry::cpu
