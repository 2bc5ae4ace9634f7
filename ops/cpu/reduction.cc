// Fast reductions in f32. Sums are in double and in an order that depends on the shape alone, so that the number of
// threads does not change a bit of the result.
#include <algorithm>
#include <limits>

#include "ops/cpu/cpu_kernels.h"
#include "ops/cpu/runs.h"
#include "ops/cpu/vector/vector_kernels.h"

namespace gantry::cpu {
namespace {

// A run of this many elements, or so, is summed at one go; several runs of one result are summed apart and then
// together.
constexpr int64_t kPartElements = 16384;
constexpr int64_t kColumns = 256;

// The kept and the reduced dimensions of a row-major tensor.
struct SplitShape {
  std::vector<StridedDimension> kept, reduced;
  int64_t kept_count = 1, reduced_count = 1;
  bool last_is_kept = false;  // of the dimensions above 1
};

SplitShape Split(const Shape& shape, std::span<const int> axes) {
  SplitShape split;
  const std::vector<int64_t> strides = shape.Strides();
  for (int axis = 0; axis < shape.rank(); ++axis) {
    const bool kept = std::find(axes.begin(), axes.end(), axis) == axes.end();
    (kept ? split.kept : split.reduced).push_back({shape[axis], {strides[axis], strides[axis]}});
    (kept ? split.kept_count : split.reduced_count) *= shape[axis];
    if (shape[axis] != 1) split.last_is_kept = kept;
  }
  return split;
}

// Where the innermost dimension is reduced: each result is a sum of runs. A result of many elements is cut into parts,
// which makes work for all threads even where there is one result.
class RowReduction final : public Kernel {
 public:
  RowReduction(const SplitShape& split, bool maximum, double scale, int thread_count)
      : kept_(split.kept),
        reduced_(split.reduced),
        maximum_(maximum),
        scale_(scale),
        parts_(std::clamp<int64_t>(split.reduced_count / kPartElements, 1,
                                   std::max<int64_t>(1, 256 / std::max<int64_t>(1, split.kept_count)))),
        threads_(UsefulThreads(thread_count, split.kept_count * split.reduced_count)) {}
  size_t scratch_bytes() const override { return parts_ == 1 ? 0 : kept_.count() * parts_ * sizeof(double); }
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* x = static_cast<const float*>(arguments.inputs[0]);
    auto* out = static_cast<float*>(arguments.outputs[0]);
    auto* partial = static_cast<double*>(arguments.scratch);
    ParallelFor(threads_, kept_.count() * parts_, [&](int64_t task) {
      const int64_t result = task / parts_, part = task % parts_;
      const float* first = x;
      kept_.ForEachRun(result, result + 1, [&](int64_t, int64_t offset, int64_t, int64_t) { first += offset; });
      const double value = Reduce(first, reduced_.count() * part / parts_, reduced_.count() * (part + 1) / parts_);
      if (parts_ == 1) {
        out[result] = static_cast<float>(value * scale_);
      } else {
        partial[task] = value;
      }
    });
    for (int64_t result = 0; parts_ > 1 && result < kept_.count(); ++result) {
      double total = partial[result * parts_];
      for (int64_t part = 1; part < parts_; ++part) total = Combine(total, partial[result * parts_ + part]);
      out[result] = static_cast<float>(total * scale_);
    }
    return absl::OkStatus();
  }

 private:
  double Combine(double a, double b) const { return maximum_ ? (a > b || a != a ? a : b) : a + b; }
  double Reduce(const float* first, int64_t begin, int64_t end) const {
    const VectorKernels& kernels = BestVectorKernels();
    double total = maximum_ ? -std::numeric_limits<double>::infinity() : 0.0;
    reduced_.ForEachRun(begin, end, [&](int64_t, int64_t offset, int64_t, int64_t length) {
      total = Combine(total, maximum_ ? kernels.max(first + offset, length) : kernels.sum(first + offset, length));
    });
    return total;
  }

  const RunPlan kept_, reduced_;
  const bool maximum_;
  const double scale_;
  const int64_t parts_;
  const int threads_;
};

// Where the innermost dimension is kept: rows are added up, some columns at a time.
class ColumnReduction final : public Kernel {
 public:
  ColumnReduction(const SplitShape& split, bool maximum, double scale, int thread_count)
      : kept_(split.kept),
        reduced_(split.reduced),
        maximum_(maximum),
        scale_(scale),
        blocks_((kept_.run_length() + kColumns - 1) / kColumns),
        threads_(UsefulThreads(thread_count, split.kept_count * split.reduced_count)) {}
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* x = static_cast<const float*>(arguments.inputs[0]);
    auto* out = static_cast<float*>(arguments.outputs[0]);
    if (kept_.count() == 0) return absl::OkStatus();
    ParallelFor(threads_, kept_.count() / kept_.run_length() * blocks_, [&](int64_t task) {
      const int64_t row = task / blocks_ * kept_.run_length(), column = task % blocks_ * kColumns;
      const int64_t end = std::min(column + kColumns, kept_.run_length());
      kept_.ForEachRun(row + column, row + end, [&](int64_t index, int64_t offset, int64_t, int64_t length) {
        ReduceColumns(x + offset, out + index, length);
      });
    });
    return absl::OkStatus();
  }

 private:
  void ReduceColumns(const float* x, float* out, int64_t columns) const {
    const VectorKernels& kernels = BestVectorKernels();
    double totals[kColumns] = {};
    if (maximum_) std::fill_n(out, columns, -std::numeric_limits<float>::infinity());
    reduced_.ForEachRun(0, reduced_.count(), [&](int64_t, int64_t offset, int64_t, int64_t length) {
      // The run's own stride is the distance of its elements: rows of the tensor.
      for (int64_t i = 0; i < length; ++i) {
        const float* row = x + offset + i * reduced_.run_stride(0);
        if (maximum_) {
          kernels.max_to(row, out, columns);
        } else {
          kernels.add_to(row, totals, columns);
        }
      }
    });
    for (int64_t i = 0; i < columns && !maximum_; ++i) out[i] = static_cast<float>(totals[i] * scale_);
  }

  const RunPlan kept_, reduced_;
  const bool maximum_;
  const double scale_;
  const int64_t blocks_;
  const int threads_;
};

// Sums of a panel tensor over the pixels, and over the batch or the channels unless they are kept. The channel tail is
// zero and adds nothing.
class PanelReduction final : public Kernel {
 public:
  PanelReduction(const Shape& shape, bool keep_batch, bool keep_channels, double scale, int thread_count)
      : panel_(shape),
        keep_batch_(keep_batch),
        keep_channels_(keep_channels),
        scale_(scale),
        blocks_(std::clamp<int64_t>(panel_.floats() / kPartElements, 1, std::max<int64_t>(panel_.pixels, 1))),
        threads_(UsefulThreads(thread_count, panel_.floats())) {}
  size_t scratch_bytes() const override {
    return keep_batch_ ? 0 : panel_.panels * blocks_ * kPanelChannels * sizeof(double);
  }
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* x = static_cast<const float*>(arguments.inputs[0]);
    auto* out = static_cast<float*>(arguments.outputs[0]);
    if (keep_batch_) {
      ParallelFor(threads_, panel_.batch, [&](int64_t n) { ReduceImage(x, n, out); });
    } else {
      ReduceBatch(x, static_cast<double*>(arguments.scratch), out);
    }
    return absl::OkStatus();
  }

 private:
  int64_t LanesOf(int64_t panel) const { return panel + 1 == panel_.panels ? panel_.last_lanes() : kPanelChannels; }

  void ReduceImage(const float* x, int64_t n, float* out) const {
    double total = 0.0;
    for (int64_t panel = 0; panel < panel_.panels; ++panel) {
      double lanes[kPanelChannels] = {};
      BestVectorKernels().sum_lanes(x + panel * panel_.unit_floats() + n * kPanelChannels, panel_.pixels,
                                    panel_.panels * panel_.unit_floats(), lanes);
      for (int64_t lane = 0; lane < LanesOf(panel); ++lane) {
        if (keep_channels_) {
          out[n * panel_.channels + panel * kPanelChannels + lane] = static_cast<float>(lanes[lane] * scale_);
        } else {
          total += lanes[lane];
        }
      }
    }
    if (!keep_channels_) out[n] = static_cast<float>(total * scale_);
  }

  // Each task sums some pixels of one panel into 16 lanes; then the tasks are summed.
  void ReduceBatch(const float* x, double* partial, float* out) const {
    ParallelFor(threads_, blocks_ * panel_.panels, [&](int64_t task) {
      double* lanes = partial + task * kPanelChannels;
      std::fill_n(lanes, kPanelChannels, 0.0);
      const int64_t block = task / panel_.panels, panel = task % panel_.panels;
      for (int64_t pixel = panel_.pixels * block / blocks_; pixel < panel_.pixels * (block + 1) / blocks_; ++pixel) {
        BestVectorKernels().sum_lanes(x + (pixel * panel_.panels + panel) * panel_.unit_floats(), panel_.batch,
                                      kPanelChannels, lanes);
      }
    });
    double total = 0.0;
    for (int64_t channel = 0; channel < panel_.channels; ++channel) {
      double sum = 0.0;
      for (int64_t block = 0; block < blocks_; ++block) {
        sum += partial[(block * panel_.panels + channel / kPanelChannels) * kPanelChannels + channel % kPanelChannels];
      }
      if (keep_channels_) out[channel] = static_cast<float>(sum * scale_);
      total += sum;
    }
    if (!keep_channels_) out[0] = static_cast<float>(total * scale_);
  }

  const PanelUnits panel_;
  const bool keep_batch_, keep_channels_;
  const double scale_;
  const int64_t blocks_;
  const int threads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Kernel>> MakeFastReduction(const KernelRequest& request) {
  const std::string_view name = request.op.name;
  const bool maximum = name == "reduce_max", mean = name == "reduce_mean";
  if ((!maximum && !mean && name != "reduce_sum") || !AllF32(request)) return nullptr;
  const Shape& shape = request.inputs[0].shape;
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int> axes, infer::AxesAttribute(request.attributes, "axes", shape.rank()));
  const SplitShape split = Split(shape, axes);
  const double scale = mean ? 1.0 / static_cast<double>(std::max<int64_t>(split.reduced_count, 1)) : 1.0;
  if (request.outputs[0].layout != TensorLayout::kPlain) return nullptr;
  if (request.inputs[0].layout == TensorLayout::kPanel) {
    const auto Kept = [&](int axis) { return std::find(axes.begin(), axes.end(), axis) == axes.end(); };
    if (maximum || Kept(2) || Kept(3)) return nullptr;
    return std::make_unique<PanelReduction>(shape, Kept(0), Kept(1), scale, request.thread_count);
  }
  if (split.last_is_kept && split.kept_count > 1) {
    return std::make_unique<ColumnReduction>(split, maximum, scale, request.thread_count);
  }
  return std::make_unique<RowReduction>(split, maximum, scale, request.thread_count);
}

}  // namespace gantry::cpu
