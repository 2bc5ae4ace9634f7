// normalize and normalize_grad of plain tensors, where statistics, scale and bias stay the same over rows of at least 16 elements:
// batch, instance and group norm of images of any rank, layer norm with a scale per channel. The panel kernels' inner loops serve, with
// one channel in all 16 lanes. A block of at most 128 x 16 elements is summed in f32 about nearly its own mean, blocks are merged in
// double (T F Chan, G H Golub, R J LeVeque, Algorithms for Computing the Sample Variance, The American Statistician 37, 1983). A
// statistic is summed by one thread in a fixed order, so that the number of threads does not change a bit.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "ops/cpu/cpu_kernels.h"
#include "ops/cpu/panel/panel_kernels.h"
#include "ops/cpu/runs.h"

namespace gantry::cpu {
namespace {

constexpr int64_t kBlockRows = 128;  // of 16 elements

// Where the rows of each statistic lie. Row r of statistic s begins at x[statistic_offsets[s] + row_offsets[r]]; its scale and bias
// are found likewise.
struct Rows {
  int64_t length = 1;
  struct Place {
    int64_t x = 0, scale = 0, bias = 0;
  };
  std::vector<Place> statistics, rows;
  int64_t elements() const { return length * static_cast<int64_t>(rows.size()); }  // of one statistic
};

// Steps of `part` along the axes of `x`, to which it broadcasts; 0 where it repeats.
std::vector<int64_t> Steps(const Shape& part, const Shape& x) {
  std::vector<int64_t> steps(x.rank(), 0);
  int64_t step = 1;
  for (int axis = part.rank() - 1; axis >= 0; --axis) {
    if (part[axis] != 1) steps[axis + x.rank() - part.rank()] = step;
    step *= part[axis];
  }
  return steps;
}

Rows RowsOf(const Shape& x, const Shape& statistics, const Shape& scale, const Shape& bias) {
  const std::vector<int64_t> x_steps = Steps(x, x), scale_steps = Steps(scale, x), bias_steps = Steps(bias, x);
  Rows rows;
  int outer = x.rank();
  while (outer > 0 && statistics[outer - 1] == 1 && scale_steps[outer - 1] == 0 && bias_steps[outer - 1] == 0) rows.length *= x[--outer];
  rows.statistics = rows.rows = {Rows::Place{}};
  for (int axis = 0; axis < outer; ++axis) {
    std::vector<Rows::Place>& places = statistics[axis] == 1 ? rows.rows : rows.statistics;
    std::vector<Rows::Place> grown;
    for (const Rows::Place& place : places) {
      for (int64_t i = 0; i < x[axis]; ++i) {
        grown.push_back({place.x + i * x_steps[axis], place.scale + i * scale_steps[axis], place.bias + i * bias_steps[axis]});
      }
    }
    places = std::move(grown);
  }
  return rows;
}

struct Moments {
  double count = 0, mean = 0, squares = 0;  // squares: of deviations from the mean

  void Merge(double other_count, double other_mean, double other_squares) {
    const double delta = other_mean - mean;
    const double total = count + other_count;
    mean += delta * other_count / total;
    squares += other_squares + delta * delta * count * other_count / total;
    count = total;
  }
};

void AddRow(const PanelKernels& kernels, const float* x, int64_t length, Moments& moments) {
  for (int64_t first = 0; first < length;) {
    const int64_t rows = std::min(kBlockRows, (length - first) / 16);
    double means[16], mean = 0, squares = 0;
    if (rows == 0) {
      const int64_t rest = length - first;
      for (int64_t i = 0; i < rest; ++i) mean += static_cast<double>(x[first + i]) / static_cast<double>(rest);
      for (int64_t i = 0; i < rest; ++i) {
        const double deviation = static_cast<double>(x[first + i]) - mean;
        squares += deviation * deviation;
      }
      moments.Merge(static_cast<double>(rest), mean, squares);
      return;
    }
    alignas(64) float center[16], sum[16], products[16];
    kernels.moments(rows, x + first, center, sum, products);
    const double count = static_cast<double>(rows);
    for (int lane = 0; lane < 16; ++lane) {
      const double offset = static_cast<double>(sum[lane]) / count;
      means[lane] = static_cast<double>(center[lane]) + offset;
      squares += static_cast<double>(products[lane]) - static_cast<double>(sum[lane]) * offset;
      mean += means[lane] / 16;
    }
    for (double lane_mean : means) squares += count * (lane_mean - mean) * (lane_mean - mean);
    moments.Merge(count * 16, mean, squares);
    first += rows * 16;
  }
}

struct Lanes {
  explicit Lanes(float value) { std::fill_n(values, 16, value); }
  alignas(64) float values[16];
};

class PlainKernel : public Kernel {
 public:
  PlainKernel(const KernelRequest& request, Rows rows)
      : rows_(std::move(rows)),
        threads_(UsefulThreads(request.thread_count, rows_.elements() * static_cast<int64_t>(rows_.statistics.size()))),
        epsilon_(request.attributes.Float("eps")),
        slope_(static_cast<float>(request.attributes.Float("slope", 1.0))) {}
  std::string_view implementation() const override { return VectorImplementation(); }

 protected:
  static const float* In(const KernelArguments& arguments, int i) { return static_cast<const float*>(arguments.inputs[i]); }
  static float* Out(const KernelArguments& arguments, int i) { return static_cast<float*>(arguments.outputs[i]); }
  int64_t statistic_count() const { return static_cast<int64_t>(rows_.statistics.size()); }

  Moments MomentsOf(const float* x, const Rows::Place& at) const {
    Moments moments;
    for (const Rows::Place& row : rows_.rows) AddRow(kernels_, x + at.x + row.x, rows_.length, moments);
    return moments;
  }

  // y = (x - mean) * inverse * scale + bias, and the activation.
  void Apply(const KernelArguments& arguments, const Rows::Place& at, float mean, double inverse) const {
    const float *const x = In(arguments, 0), *const scales = In(arguments, 1), *const biases = In(arguments, 2);
    float* const y = Out(arguments, 0);
    const int64_t whole = rows_.length / 16;
    const Lanes mean_lanes(mean);
    for (const Rows::Place& row : rows_.rows) {
      const float scale = static_cast<float>(static_cast<double>(scales[at.scale + row.scale]) * inverse);
      const float shift = biases[at.bias + row.bias];
      const Lanes scale_lanes(scale), shift_lanes(shift);
      const float* const from = x + at.x + row.x;
      float* const to = y + at.x + row.x;
      kernels_.normalize(whole, from, mean_lanes.values, scale_lanes.values, shift_lanes.values, slope_, to);
      for (int64_t i = whole * 16; i < rows_.length; ++i) {
        const float value = (from[i] - mean) * scale + shift;
        to[i] = value > 0.0f ? value : value * slope_;
      }
    }
  }

  struct Sums {
    double gradient = 0, product = 0;  // of g before the activation, and of it times x - mean
  };

  Sums SumRow(const float* g, const float* x, const float* y, float mean) const {
    Sums sums;
    const Lanes center(mean);
    int64_t first = 0;
    while (rows_.length - first >= 16) {
      const int64_t rows = std::min(kBlockRows, (rows_.length - first) / 16);
      alignas(64) float sum[16], products[16];
      kernels_.gradient_sums(rows, g + first, x + first, y != nullptr ? y + first : nullptr, slope_, center.values, sum, products);
      for (int lane = 0; lane < 16; ++lane) {
        sums.gradient += static_cast<double>(sum[lane]);
        sums.product += static_cast<double>(products[lane]);
      }
      first += rows * 16;
    }
    for (int64_t i = first; i < rows_.length; ++i) {
      const float gradient = BeforeActivation(g, y, i);
      sums.gradient += static_cast<double>(gradient);
      sums.product += static_cast<double>(gradient) * static_cast<double>(x[i] - mean);
    }
    return sums;
  }

  float BeforeActivation(const float* g, const float* y, int64_t i) const {
    return y == nullptr || y[i] > 0.0f ? g[i] : g[i] * slope_;
  }

  // dx = inverse * scale * g + (x - mean) * x_scale + shift, with g before the activation.
  void ApplyGradient(const float* g, const float* x, const float* y, const float* scales, const Rows::Place& at, float mean, double inverse,
                     float x_scale, float shift, float* dx) const {
    const Lanes mean_lanes(mean), x_lanes(x_scale), shift_lanes(shift);
    const int64_t whole = rows_.length / 16;
    for (const Rows::Place& row : rows_.rows) {
      const int64_t offset = at.x + row.x;
      const float scale = static_cast<float>(static_cast<double>(scales[at.scale + row.scale]) * inverse);
      const Lanes scale_lanes(scale);
      const float* const row_y = y != nullptr ? y + offset : nullptr;
      kernels_.normalize_gradient(whole, g + offset, x + offset, row_y, slope_, mean_lanes.values, scale_lanes.values, x_lanes.values,
                                  shift_lanes.values, dx + offset);
      for (int64_t i = whole * 16; i < rows_.length; ++i) {
        dx[offset + i] = BeforeActivation(g + offset, row_y, i) * scale + ((x[offset + i] - mean) * x_scale + shift);
      }
    }
  }

  const Rows rows_;
  const int threads_;
  const double epsilon_;
  const float slope_;
  const PanelKernels& kernels_ = KernelsFor(BestIsa());
};

class PlainNormalize final : public PlainKernel {
 public:
  using PlainKernel::PlainKernel;
  absl::Status Run(const KernelArguments& arguments) override {
    float *const means = Out(arguments, 1), *const variances = Out(arguments, 2);
    ParallelFor(threads_, statistic_count(), [&](int64_t statistic) {
      const Rows::Place& at = rows_.statistics[statistic];
      const Moments moments = MomentsOf(In(arguments, 0), at);
      const double variance = moments.squares / moments.count;
      const float mean = static_cast<float>(moments.mean);
      means[statistic] = mean;
      variances[statistic] = static_cast<float>(variance);
      Apply(arguments, at, mean, 1.0 / std::sqrt(variance + epsilon_));
    });
    return absl::OkStatus();
  }
};

// Inputs g, x, scale, mean, variance and, with a fused activation, y.
class PlainNormalizeGrad final : public PlainKernel {
 public:
  PlainNormalizeGrad(const KernelRequest& request, Rows rows)
      : PlainKernel(request, std::move(rows)),
        fused_(request.inputs.size() > 5),
        parameter_count_(request.outputs[1].element_count()) {}
  // Sums of every row, [statistic][row], then of every parameter.
  size_t scratch_bytes() const override { return sizeof(Sums) * (rows_.statistics.size() * rows_.rows.size() + parameter_count_); }

  absl::Status Run(const KernelArguments& arguments) override {
    Sums* const row_sums = static_cast<Sums*>(arguments.scratch);
    Sums* const parameters = row_sums + rows_.statistics.size() * rows_.rows.size();
    ParallelFor(threads_, statistic_count(), [&](int64_t statistic) {
      RunStatistic(arguments, statistic, row_sums + statistic * static_cast<int64_t>(rows_.rows.size()));
    });
    std::fill_n(parameters, parameter_count_, Sums{});
    const Sums* sums = row_sums;
    for (const Rows::Place& statistic : rows_.statistics) {
      for (const Rows::Place& row : rows_.rows) {
        Sums& total = parameters[statistic.scale + row.scale];
        total.gradient += sums->gradient;
        total.product += sums->product;
        ++sums;
      }
    }
    for (int64_t i = 0; i < parameter_count_; ++i) {
      Out(arguments, 1)[i] = static_cast<float>(parameters[i].product);
      Out(arguments, 2)[i] = static_cast<float>(parameters[i].gradient);
    }
    return absl::OkStatus();
  }

 private:
  void RunStatistic(const KernelArguments& arguments, int64_t statistic, Sums* row_sums) const {
    const float *const g = In(arguments, 0), *const x = In(arguments, 1), *const scales = In(arguments, 2);
    const float* const y = fused_ ? In(arguments, 5) : nullptr;
    float* const dx = Out(arguments, 0);
    const Rows::Place& at = rows_.statistics[statistic];
    const float mean = In(arguments, 3)[statistic];
    const double inverse = 1.0 / std::sqrt(static_cast<double>(In(arguments, 4)[statistic]) + epsilon_);
    double scaled = 0, product = 0;
    for (size_t r = 0; r < rows_.rows.size(); ++r) {
      const int64_t offset = at.x + rows_.rows[r].x;
      row_sums[r] = SumRow(g + offset, x + offset, y != nullptr ? y + offset : nullptr, mean);
      row_sums[r].product *= inverse;
      const double scale = static_cast<double>(scales[at.scale + rows_.rows[r].scale]);
      scaled += scale * row_sums[r].gradient;
      product += scale * row_sums[r].product;
    }
    // dx = inverse * (scale * g - mean of scale * g - normal * mean of scale * g * normal).
    const double count = static_cast<double>(rows_.elements());
    const float x_scale = static_cast<float>(-inverse * inverse * product / count);
    const float shift = static_cast<float>(-inverse * scaled / count);
    ApplyGradient(g, x, y, scales, at, mean, inverse, x_scale, shift, dx);
  }

  const bool fused_;
  const int64_t parameter_count_;
};

// The halves of both, for statistics that several ranks make together.

class PlainMoments final : public PlainKernel {
 public:
  using PlainKernel::PlainKernel;
  absl::Status Run(const KernelArguments& arguments) override {
    ParallelFor(threads_, statistic_count(), [&](int64_t statistic) {
      const Moments moments = MomentsOf(In(arguments, 0), rows_.statistics[statistic]);
      Out(arguments, 0)[statistic] = static_cast<float>(moments.mean);
      Out(arguments, 1)[statistic] = static_cast<float>(moments.squares / moments.count);
    });
    return absl::OkStatus();
  }
};

class PlainNormalizeApply final : public PlainKernel {
 public:
  using PlainKernel::PlainKernel;
  absl::Status Run(const KernelArguments& arguments) override {
    ParallelFor(threads_, statistic_count(), [&](int64_t statistic) {
      const double variance = static_cast<double>(In(arguments, 4)[statistic]);
      Apply(arguments, rows_.statistics[statistic], In(arguments, 3)[statistic], 1.0 / std::sqrt(variance + epsilon_));
    });
    return absl::OkStatus();
  }
};

// Inputs g, x, mean, variance and, with a fused activation, y.
class PlainNormalizeGradSums final : public PlainKernel {
 public:
  using PlainKernel::PlainKernel;
  absl::Status Run(const KernelArguments& arguments) override {
    const float* const y = arguments.inputs.size() > 4 ? In(arguments, 4) : nullptr;
    ParallelFor(threads_, statistic_count(), [&](int64_t statistic) {
      Sums total;
      for (const Rows::Place& row : rows_.rows) {
        const int64_t offset = rows_.statistics[statistic].x + row.x;
        const Sums sums = SumRow(In(arguments, 0) + offset, In(arguments, 1) + offset, y != nullptr ? y + offset : nullptr,
                                 In(arguments, 2)[statistic]);
        total.gradient += sums.gradient;
        total.product += sums.product;
      }
      const double inverse = 1.0 / std::sqrt(static_cast<double>(In(arguments, 3)[statistic]) + epsilon_);
      Out(arguments, 0)[statistic] = static_cast<float>(total.gradient);
      Out(arguments, 1)[statistic] = static_cast<float>(total.product * inverse);
    });
    return absl::OkStatus();
  }
};

// Inputs g, x, scale, mean, variance, sums of g and of g * normal and, with a fused activation, y. The scale is the same for all that
// share a mean.
class PlainNormalizeGradApply final : public PlainKernel {
 public:
  PlainNormalizeGradApply(const KernelRequest& request, Rows rows)
      : PlainKernel(request, std::move(rows)), count_(request.attributes.Float("count")) {}
  absl::Status Run(const KernelArguments& arguments) override {
    const float* const y = arguments.inputs.size() > 7 ? In(arguments, 7) : nullptr;
    ParallelFor(threads_, statistic_count(), [&](int64_t statistic) {
      const Rows::Place& at = rows_.statistics[statistic];
      const double inverse = 1.0 / std::sqrt(static_cast<double>(In(arguments, 4)[statistic]) + epsilon_);
      const double factor = -inverse * static_cast<double>(In(arguments, 2)[at.scale]) / count_;
      ApplyGradient(In(arguments, 0), In(arguments, 1), y, In(arguments, 2), at, In(arguments, 3)[statistic], inverse,
                    static_cast<float>(factor * inverse * static_cast<double>(In(arguments, 6)[statistic])),
                    static_cast<float>(factor * static_cast<double>(In(arguments, 5)[statistic])), Out(arguments, 0));
    });
    return absl::OkStatus();
  }

 private:
  const double count_;
};

// Which inputs an op's rows follow from; -1: none such.
struct Operands {
  int x = 0, statistics = 0, scale = -1, bias = -1;
};

std::optional<Operands> OperandsOf(std::string_view op) {
  if (op == "normalize") return Operands{.statistics = -1, .scale = 1, .bias = 2};
  if (op == "normalize_grad") return Operands{.x = 1, .statistics = 3, .scale = 2, .bias = 2};
  if (op == "moments") return Operands{.statistics = -1};
  if (op == "normalize_apply") return Operands{.statistics = 3, .scale = 1, .bias = 2};
  if (op == "normalize_grad_sums") return Operands{.x = 1, .statistics = 2};
  if (op == "normalize_grad_apply") return Operands{.x = 1, .statistics = 3, .scale = 2, .bias = 2};
  return std::nullopt;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Kernel>> MakePlainNormalization(const KernelRequest& request) {
  const std::string_view op = request.op.name;
  const std::optional<Operands> operands = OperandsOf(op);
  if (!operands.has_value() || !AllF32(request)) return nullptr;
  for (std::span<const TensorType> types : {request.inputs, request.outputs}) {
    for (const TensorType& type : types) {
      if (type.layout != TensorLayout::kPlain || type.element_count() == 0) return nullptr;
    }
  }
  const Shape statistics = operands->statistics >= 0 ? request.inputs[operands->statistics].shape
                                                     : request.outputs[op == "moments" ? 0 : 1].shape;
  const Shape scale = operands->scale >= 0 ? request.inputs[operands->scale].shape : statistics;
  const Shape bias = operands->bias >= 0 ? request.inputs[operands->bias].shape : statistics;
  Rows rows = RowsOf(request.inputs[operands->x].shape, statistics, scale, bias);
  if (rows.length < 16) return nullptr;
  if (op == "normalize_grad") return std::make_unique<PlainNormalizeGrad>(request, std::move(rows));
  if (op == "moments") return std::make_unique<PlainMoments>(request, std::move(rows));
  if (op == "normalize_apply") return std::make_unique<PlainNormalizeApply>(request, std::move(rows));
  if (op == "normalize_grad_sums") return std::make_unique<PlainNormalizeGradSums>(request, std::move(rows));
  if (op == "normalize_grad_apply") return std::make_unique<PlainNormalizeGradApply>(request, std::move(rows));
  return std::make_unique<PlainNormalize>(request, std::move(rows));
}

}  // namespace gantry::cpu
