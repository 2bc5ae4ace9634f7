// Fast max pooling of plain f32 tensors, its gradient, and max_pool_select: tap by tap over rows of windows, with the
// place of each window's maximum kept beside it. Small images are laid beside each other, as [places][images]: a row is
// one window of all of them then.
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

// The geometry of what is pooled at a time: an image, or a block of small images side by side.
class MaxRows {
 public:
  MaxRows(const PoolGeometry& geometry, bool side_by_side)
      : axes_(geometry.window.axes), input_(geometry.input), output_(geometry.output), side_by_side_(side_by_side) {
    for (int axis = 0; axis < 3; ++axis) {
      for (int64_t i = 0; i < output_[axis]; ++i) taps_[axis].push_back(TapsInside(axes_[axis], i, input_[axis]));
    }
    for (int64_t tap = 0; tap < axes_[2].kernel; ++tap) {
      inside_.push_back(WindowsInside(axes_[2], tap, input_[2], output_[2]));
    }
  }

  int64_t rows() const { return output_[0] * output_[1] * (side_by_side_ ? output_[2] : 1); }
  int64_t row_length(int64_t images) const { return side_by_side_ ? images : output_[2]; }

  // The maximum of each window of row `row`, and its place in x: the first of equals, and a NaN is larger than all.
  void Find(const float* x, int64_t row, int64_t images, float* largest, int32_t* places) const {
    std::fill_n(largest, row_length(images), -std::numeric_limits<float>::infinity());
    std::fill_n(places, row_length(images), -1);
    const int64_t line = side_by_side_ ? row / output_[2] : row;
    const int64_t at[3] = {line / output_[1], line % output_[1], side_by_side_ ? row % output_[2] : 0};
    const TapRange &planes = taps_[0][at[0]], &lines = taps_[1][at[1]];
    for (int64_t i = planes.first; i < planes.last; ++i) {
      for (int64_t j = lines.first; j < lines.last; ++j) {
        const int64_t first = (Place(0, at[0], i) * input_[1] + Place(1, at[1], j)) * input_[2];
        if (side_by_side_) {
          const TapRange& columns = taps_[2][at[2]];
          for (int64_t k = columns.first; k < columns.last; ++k) {
            TakeLarger(x, (first + Place(2, at[2], k)) * images, 1, largest, places, images);
          }
        } else {
          for (int64_t k = 0; k < axes_[2].kernel; ++k) {
            const WindowRange& windows = inside_[k];
            if (windows.first >= windows.last) continue;
            TakeLarger(x, first + Place(2, windows.first, k), axes_[2].stride, largest + windows.first,
                       places + windows.first, windows.last - windows.first);
          }
        }
      }
    }
  }

 private:
  int64_t Place(int axis, int64_t window, int64_t tap) const {
    return window * axes_[axis].stride - axes_[axis].pad_begin + tap * axes_[axis].dilation;
  }
  static void TakeLarger(const float* x, int64_t place, int64_t stride, float* largest, int32_t* places,
                         int64_t count) {
    BestVectorKernels().take_larger(x + place, stride, static_cast<int32_t>(place), largest, places, count);
  }

  const std::array<WindowAxis, 3> axes_;
  const std::array<int64_t, 3> input_, output_;
  const bool side_by_side_;
  std::array<std::vector<TapRange>, 3> taps_;  // for each window
  std::vector<WindowRange> inside_;            // for each tap along the innermost axis
};

class MaxPooling final : public Kernel {
 public:
  // Inputs: x; values and x; g and x.
  MaxPooling(const KernelRequest& request, const PoolGeometry& geometry, MaxPoolResult result)
      : images_(geometry.images),
        from_places_(geometry.input_places()),
        to_places_(geometry.output_places()),
        side_by_side_(from_places_ + to_places_ <= kMostPlaces && images_ >= kPanelChannels),
        rows_(geometry, side_by_side_),
        result_(result),
        threads_(static_cast<int>(
            std::min(static_cast<int64_t>(UsefulThreads(request.thread_count, images_ * from_places_)), blocks()))) {}
  size_t scratch_bytes() const override { return threads_ * piece_floats() * sizeof(float); }
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* first = static_cast<const float*>(arguments.inputs.front());
    const auto* compared = static_cast<const float*>(arguments.inputs.back());
    auto* out = static_cast<float*>(arguments.outputs[0]);
    const int64_t first_places = result_ == MaxPoolResult::kGradient ? to_places_ : from_places_;
    const int64_t out_places = result_ == MaxPoolResult::kGradient ? from_places_ : to_places_;
    ParallelFor(threads_, threads_, [&](int64_t piece) {
      Scratch scratch = ScratchOf(static_cast<float*>(arguments.scratch) + piece * piece_floats());
      for (int64_t block = blocks() * piece / threads_; block < blocks() * (piece + 1) / threads_; ++block) {
        const int64_t image = block * block_images(), count = std::min(block_images(), images_ - image);
        const float* const x = compared + image * from_places_;
        const float* const other = first + image * first_places;
        float* const to = out + image * out_places;
        if (!side_by_side_) {
          Pool(x, other, to, 1, scratch);
          continue;
        }
        // Panels of a batch of one, whose channels are the images. On one thread, which makes ParallelFor a loop.
        PlainToPanel(x, 1, count, 1, from_places_, scratch.x, 1);
        if (result_ != MaxPoolResult::kMaximum) PlainToPanel(other, 1, count, 1, first_places, scratch.other, 1);
        Pool(scratch.x, scratch.other, scratch.out, PanelCount(count) * kPanelChannels, scratch);
        PanelToPlain(scratch.out, 1, count, 1, out_places, to, 1);
      }
    });
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kBlockImages = 32;
  static constexpr int64_t kMostPlaces = 128;  // where rows cost more to call for than to compare

  struct Scratch {
    float* largest;
    int32_t* places;
    float *x, *other, *out;  // of a block of images side by side
  };

  int64_t block_images() const { return side_by_side_ ? kBlockImages : 1; }
  int64_t blocks() const { return (images_ + block_images() - 1) / block_images(); }
  int64_t row_floats() const { return (rows_.row_length(kBlockImages) + 15) / 16 * 16; }
  int64_t block_floats() const { return side_by_side_ ? std::max(from_places_, to_places_) * kBlockImages : 0; }
  int64_t piece_floats() const { return 2 * row_floats() + 3 * block_floats(); }
  Scratch ScratchOf(float* begin) const {
    float* const blocks = begin + 2 * row_floats();
    return {begin, reinterpret_cast<int32_t*>(begin + row_floats()), blocks, blocks + block_floats(),
            blocks + 2 * block_floats()};
  }

  // `other`: values of x's shape, or a gradient of the windows' shape.
  void Pool(const float* x, const float* other, float* out, int64_t images, const Scratch& scratch) const {
    const int64_t length = rows_.row_length(images);
    if (result_ == MaxPoolResult::kGradient) std::fill_n(out, from_places_ * images, 0.0f);
    for (int64_t row = 0; row < rows_.rows(); ++row) {
      switch (result_) {
        case MaxPoolResult::kMaximum:
          rows_.Find(x, row, images, out + row * length, scratch.places);
          break;
        case MaxPoolResult::kSelected:
          rows_.Find(x, row, images, scratch.largest, scratch.places);
          for (int64_t i = 0; i < length; ++i) out[row * length + i] = other[scratch.places[i]];
          break;
        case MaxPoolResult::kGradient:
          rows_.Find(x, row, images, scratch.largest, scratch.places);
          for (int64_t i = 0; i < length; ++i) out[scratch.places[i]] += other[row * length + i];
          break;
      }
    }
  }

  const int64_t images_, from_places_, to_places_;
  const bool side_by_side_;
  const MaxRows rows_;
  const MaxPoolResult result_;
  const int threads_;
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
