// Fast resize, average pooling and their gradients in f32. Each is a weighted sum along every spatial axis by itself:
// an axis is a sparse matrix, and a gradient has the transposed ones. Rows (plain tensors) or pixels (panel tensors)
// are summed as wholes first; the innermost axis of plain tensors follows, by a pattern where it repeats. Small images
// are laid beside each other.
#include <algorithm>
#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "ops/cpu/cpu_kernels.h"
#include "ops/cpu/runs.h"
#include "ops/cpu/vector/vector_kernels.h"
#include "ops/pooling.h"
#include "ops/resize.h"

namespace gantry::cpu {
namespace {

// Larger tables are left to other kernels.
constexpr int64_t kMostTaps = 1 << 20;

// A sparse matrix by rows: result `row` is the sum of weights[i] * x[sources[i]] for i from first[row] to first[row +
// 1].
struct Taps {
  std::vector<int64_t> first = {0};
  std::vector<int64_t> sources;
  std::vector<float> weights;

  int64_t rows() const { return static_cast<int64_t>(first.size()) - 1; }
  int64_t count(int64_t row) const { return first[row + 1] - first[row]; }
  void Add(int64_t source, double weight) {
    if (weight == 0.0) return;
    sources.push_back(source);
    weights.push_back(static_cast<float>(weight));
  }
  bool SameRows(int64_t a, int64_t b) const {
    return std::equal(sources.begin() + first[a], sources.begin() + first[a + 1], sources.begin() + first[b],
                      sources.begin() + first[b + 1]) &&
           std::equal(weights.begin() + first[a], weights.begin() + first[a + 1], weights.begin() + first[b],
                      weights.begin() + first[b + 1]);
  }
  void EndRow() { first.push_back(static_cast<int64_t>(sources.size())); }
};

Taps Transposed(const Taps& taps, int64_t columns) {
  Taps result;
  result.first.assign(columns + 1, 0);
  for (const int64_t source : taps.sources) ++result.first[source + 1];
  for (int64_t column = 0; column < columns; ++column) result.first[column + 1] += result.first[column];
  result.sources.resize(taps.sources.size());
  result.weights.resize(taps.weights.size());
  std::vector<int64_t> next = result.first;
  for (int64_t row = 0; row < taps.rows(); ++row) {
    for (int64_t i = taps.first[row]; i < taps.first[row + 1]; ++i) {
      const int64_t place = next[taps.sources[i]]++;
      result.sources[place] = row;
      result.weights[place] = taps.weights[i];
    }
  }
  return result;
}

Taps ResizeTaps(const std::vector<ResizeSample>& samples) {
  Taps taps;
  for (const ResizeSample& sample : samples) {
    taps.Add(sample.low, sample.low_weight);
    taps.Add(sample.high, sample.high_weight);
    taps.EndRow();
  }
  return taps;
}

Taps AverageTaps(const WindowAxis& axis, int64_t input, int64_t windows, bool count_pads) {
  Taps taps;
  for (int64_t index = 0; index < windows; ++index) {
    const TapRange range = TapsInside(axis, index, input);
    const auto count = static_cast<double>(count_pads ? range.padded : range.last - range.first);
    for (int64_t tap = range.first; tap < range.last; ++tap) {
      taps.Add(index * axis.stride - axis.pad_begin + tap * axis.dilation, 1.0 / count);
    }
    taps.EndRow();
  }
  return taps;
}

// The matrices of the three spatial axes, and the extents that they lead from and to.
struct Resampling {
  std::array<Taps, 3> axes;
  std::array<int64_t, 3> from, to;
};

std::optional<Resampling> ResamplingOf(const KernelRequest& request) {
  const std::string_view name = request.op.name;
  const bool resize = name == "resize" || name == "resize_grad", gradient = name.ends_with("_grad");
  if (!resize && name != "avg_pool" && name != "avg_pool_grad") return std::nullopt;
  const Shape& in = request.inputs[0].shape;
  const Shape& out = request.outputs[0].shape;
  Resampling resampling{{}, SpatialDims3(in), SpatialDims3(out)};
  const Shape& x = gradient ? out : in;
  const Shape& y = gradient ? in : out;
  const std::array<int64_t, 3> x_extents = SpatialDims3(x), y_extents = SpatialDims3(y);
  const PoolGeometry pool = resize ? PoolGeometry{} : PoolGeometryOf(x, y, request.attributes);
  for (int axis = 0; axis < 3; ++axis) {
    Taps& taps = resampling.axes[axis];
    const int dimension = axis - (3 - (x.rank() - 2));
    if (y_extents[axis] > kMostTaps / (resize ? 2 : pool.window.axes[axis].kernel)) return std::nullopt;
    if (!resize) {
      taps = AverageTaps(pool.window.axes[axis], x_extents[axis], y_extents[axis], pool.count_include_pad);
    } else if (dimension >= 0) {
      taps = ResizeTaps(ResizeSamples(request.attributes, dimension, x_extents[axis], y_extents[axis]));
    } else {
      taps = ResizeTaps({ResizeSample{}});
    }
    if (gradient) taps = Transposed(taps, x_extents[axis]);
  }
  return resampling;
}

// Both axes at once: row a * inner.rows() + b, source a' * inner_extent + b'. None if the table would be too large.
std::optional<Taps> Combined(const Taps& outer, const Taps& inner, int64_t inner_extent) {
  const auto inner_count = static_cast<int64_t>(inner.sources.size());
  if (static_cast<int64_t>(outer.sources.size()) > kMostTaps / std::max<int64_t>(inner_count, 1)) return std::nullopt;
  if (outer.rows() > kMostTaps / std::max<int64_t>(inner.rows(), 1)) return std::nullopt;
  Taps both;
  for (int64_t a = 0; a < outer.rows(); ++a) {
    for (int64_t b = 0; b < inner.rows(); ++b) {
      for (int64_t i = outer.first[a]; i < outer.first[a + 1]; ++i) {
        for (int64_t j = inner.first[b]; j < inner.first[b + 1]; ++j) {
          both.Add(outer.sources[i] * inner_extent + inner.sources[j],
                   static_cast<double>(outer.weights[i]) * static_cast<double>(inner.weights[j]));
        }
      }
      both.EndRow();
    }
  }
  return both;
}

// The sum of whole rows of `length` elements that row `row` of `taps` asks for; the rows lie `pitch` elements apart.
void SumRows(const Taps& taps, int64_t row, const float* x, int64_t pitch, float* out, int64_t length) {
  const int64_t first = taps.first[row];
  BestVectorKernels().weighted_rows(x, pitch, taps.sources.data() + first, taps.weights.data() + first, taps.count(row),
                                    out, length);
}

// The innermost axis. Where `up` results at a time come from places that move on by `down`, with the same weights, a
// pattern serves; the ends, and axes without a pattern, go tap by tap.
class InnerAxis {
 public:
  explicit InnerAxis(Taps taps) : taps_(std::move(taps)) {
    for (const auto& [up, down] : {std::pair{1, 1}, std::pair{1, 2}, std::pair{2, 1}}) {
      if (FindPattern(up, down)) break;
    }
  }

  // Whether it takes the first elements of a row as they are.
  bool is_identity() const {
    for (int64_t row = 0; row < taps_.rows(); ++row) {
      if (taps_.count(row) != 1 || taps_.sources[row] != row || taps_.weights[row] != 1.0f) return false;
    }
    return true;
  }

  void Apply(const float* x, float* out) const {
    TapByTap(x, out, 0, begin_);
    if (begin_ < end_) {
      const int64_t group = begin_ / up_;
      BestVectorKernels().repeat_pattern(x + group * down_, out + begin_, (end_ - begin_) / up_, up_, down_, pattern_);
    }
    TapByTap(x, out, end_, taps_.rows());
  }

 private:
  void TapByTap(const float* x, float* out, int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      float sum = 0.0f;
      for (int64_t i = taps_.first[row]; i < taps_.first[row + 1]; ++i) sum += taps_.weights[i] * x[taps_.sources[i]];
      out[row] = sum;
    }
  }

  // Takes the groups around the middle one that are like it. False where they are too few.
  bool FindPattern(int up, int down) {
    constexpr int64_t kFewestGroups = 4;
    const int64_t groups = taps_.rows() / up;
    if (groups < kFewestGroups) return false;
    const int64_t middle = groups / 2;
    TapPattern pattern;
    for (int phase = 0; phase < up; ++phase) {
      const int64_t row = middle * up + phase;
      if (taps_.count(row) > kMostPatternTaps) return false;
      pattern.count[phase] = static_cast<int>(taps_.count(row));
      for (int k = 0; k < pattern.count[phase]; ++k) {
        pattern.offsets[phase][k] = taps_.sources[taps_.first[row] + k] - middle * down;
        pattern.weights[phase][k] = taps_.weights[taps_.first[row] + k];
      }
    }
    const auto Alike = [&](int64_t group) {
      for (int phase = 0; phase < up; ++phase) {
        const int64_t row = group * up + phase;
        if (taps_.count(row) != pattern.count[phase]) return false;
        for (int k = 0; k < pattern.count[phase]; ++k) {
          const int64_t tap = taps_.first[row] + k;
          if (taps_.sources[tap] != group * down + pattern.offsets[phase][k]) return false;
          if (taps_.weights[tap] != pattern.weights[phase][k]) return false;
        }
      }
      return true;
    };
    int64_t begin = middle, end = middle + 1;
    while (begin > 0 && Alike(begin - 1)) --begin;
    while (end < groups && Alike(end)) ++end;
    if (end - begin < kFewestGroups) return false;
    up_ = up, down_ = down, begin_ = begin * up, end_ = end * up, pattern_ = pattern;
    return true;
  }

  Taps taps_;
  int up_ = 1, down_ = 1;
  int64_t begin_ = 0, end_ = 0;  // results that the pattern makes
  TapPattern pattern_ = {};
};

// [N, C, spatial] row-major.
class PlainResampling final : public Kernel {
 public:
  PlainResampling(const KernelRequest& request, const Resampling& resampling, Taps outer)
      : images_(request.inputs[0].shape[0] * request.inputs[0].shape[1]),
        from_rows_(resampling.from[0] * resampling.from[1]),
        from_length_(resampling.from[2]),
        to_length_(resampling.to[2]),
        outer_(std::move(outer)),
        inner_(resampling.axes[2]),
        sums_only_(inner_.is_identity()),
        threads_(UsefulThreads(request.thread_count,
                               std::max(request.inputs[0].element_count(), request.outputs[0].element_count()))) {
    for (int64_t row = 0; row < outer_.rows(); ++row)
      same_as_before_.push_back(row > 0 && outer_.SameRows(row - 1, row));
  }
  size_t scratch_bytes() const override { return sums_only_ ? 0 : threads_ * row_floats() * sizeof(float); }
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* x = static_cast<const float*>(arguments.inputs[0]);
    auto* out = static_cast<float*>(arguments.outputs[0]);
    auto* scratch = static_cast<float*>(arguments.scratch);
    const int64_t rows = images_ * outer_.rows();
    ParallelFor(threads_, threads_, [&](int64_t piece) {
      float* const sums = scratch + piece * row_floats();
      for (int64_t row = rows * piece / threads_; row < rows * (piece + 1) / threads_; ++row) {
        const int64_t place = row % outer_.rows();
        const float* const image = x + row / outer_.rows() * from_rows_ * from_length_;
        float* const to = out + row * to_length_;
        if (same_as_before_[place] && row > rows * piece / threads_) {
          std::copy_n(to - to_length_, to_length_, to);
        } else if (sums_only_) {
          SumRows(outer_, place, image, from_length_, to, to_length_);
        } else if (outer_.count(place) == 1 && outer_.weights[outer_.first[place]] == 1.0f) {
          inner_.Apply(image + outer_.sources[outer_.first[place]] * from_length_, to);
        } else {
          SumRows(outer_, place, image, from_length_, sums, from_length_);
          inner_.Apply(sums, to);
        }
      }
    });
    return absl::OkStatus();
  }

 private:
  int64_t row_floats() const { return (from_length_ + 15) / 16 * 16; }

  const int64_t images_, from_rows_, from_length_, to_length_;
  const Taps outer_;
  const InnerAxis inner_;
  const bool sums_only_;
  std::vector<bool> same_as_before_;  // rows of an image that are copies of the one before
  const int threads_;
};

// [H][W][C/16][N][16]: a pixel is a row.
class PanelResampling final : public Kernel {
 public:
  PanelResampling(const KernelRequest& request, Taps pixels)
      : to_(request.outputs[0].shape),
        pixels_(std::move(pixels)),
        threads_(UsefulThreads(request.thread_count,
                               std::max(request.inputs[0].element_count(), request.outputs[0].element_count()))) {}
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* x = static_cast<const float*>(arguments.inputs[0]);
    auto* out = static_cast<float*>(arguments.outputs[0]);
    ParallelFor(threads_, to_.units(), [&](int64_t unit) {
      SumRows(pixels_, unit / to_.panels, x + unit % to_.panels * to_.unit_floats(), to_.panels * to_.unit_floats(),
              out + unit * to_.unit_floats(), to_.unit_floats());
    });
    return absl::OkStatus();
  }

 private:
  const PanelUnits to_;
  const Taps pixels_;
  const int threads_;
};

// [N, C, spatial] row-major with small images: some images at a time are put beside each other, [places][images], which
// makes rows of their places.
class SmallImageResampling final : public Kernel {
 public:
  SmallImageResampling(const KernelRequest& request, const Resampling& resampling, Taps places)
      : images_(request.inputs[0].shape[0] * request.inputs[0].shape[1]),
        from_places_(PlacesOf(resampling.from)),
        to_places_(PlacesOf(resampling.to)),
        places_(std::move(places)),
        threads_(UsefulThreads(request.thread_count,
                               std::max(request.inputs[0].element_count(), request.outputs[0].element_count()))) {}
  static int64_t PlacesOf(const std::array<int64_t, 3>& extents) { return extents[0] * extents[1] * extents[2]; }
  // Rows so short cost more to call for than to sum: measured at 8x8 and 16x16.
  static bool Suits(const Resampling& resampling) {
    return PlacesOf(resampling.from) + PlacesOf(resampling.to) <= kMostPlaces;
  }
  size_t scratch_bytes() const override { return threads_ * block_floats() * sizeof(float); }
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* x = static_cast<const float*>(arguments.inputs[0]);
    auto* out = static_cast<float*>(arguments.outputs[0]);
    const int64_t blocks = (images_ + kBlockImages - 1) / kBlockImages;
    ParallelFor(threads_, threads_, [&](int64_t piece) {
      float* const from = static_cast<float*>(arguments.scratch) + piece * block_floats();
      float* const to = from + from_places_ * kBlockImages;
      for (int64_t block = blocks * piece / threads_; block < blocks * (piece + 1) / threads_; ++block) {
        const int64_t first = block * kBlockImages, count = std::min(kBlockImages, images_ - first);
        const int64_t pitch = PanelCount(count) * kPanelChannels;
        // Panels of a batch of one, whose channels are the images. On one thread, which makes ParallelFor a loop.
        PlainToPanel(x + first * from_places_, 1, count, 1, from_places_, from, 1);
        for (int64_t place = 0; place < to_places_; ++place)
          SumRows(places_, place, from, pitch, to + place * pitch, pitch);
        PanelToPlain(to, 1, count, 1, to_places_, out + first * to_places_, 1);
      }
    });
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kBlockImages = 32;
  static constexpr int64_t kMostPlaces = 128;

  int64_t block_floats() const { return (from_places_ + to_places_) * kBlockImages; }

  const int64_t images_, from_places_, to_places_;
  const Taps places_;
  const int threads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Kernel>> MakeFastResampling(const KernelRequest& request) {
  if (!AllF32(request) || request.inputs[0].layout != request.outputs[0].layout) return nullptr;
  if (request.inputs[0].element_count() == 0 || request.outputs[0].element_count() == 0) return nullptr;
  const std::optional<Resampling> resampling = ResamplingOf(request);
  if (!resampling.has_value()) return nullptr;
  const auto& axes = resampling->axes;
  if (request.inputs[0].layout == TensorLayout::kPanel) {
    std::optional<Taps> pixels = Combined(axes[1], axes[2], resampling->from[2]);
    if (!pixels.has_value()) return nullptr;
    return std::make_unique<PanelResampling>(request, *std::move(pixels));
  }
  std::optional<Taps> outer = Combined(axes[0], axes[1], resampling->from[1]);
  if (!outer.has_value()) return nullptr;
  if (SmallImageResampling::Suits(*resampling)) {
    std::optional<Taps> places = Combined(*outer, axes[2], resampling->from[2]);
    if (places.has_value()) return std::make_unique<SmallImageResampling>(request, *resampling, *std::move(places));
  }
  return std::make_unique<PlainResampling>(request, *resampling, *std::move(outer));
}

}  // namespace gantry::cpu
