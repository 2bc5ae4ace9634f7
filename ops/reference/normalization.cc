// Normalization in three passes (mean, variance, result) over x as it lies in memory, statistics in double.
#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "ops/infer.h"
#include "ops/reference/reference_kernel.h"

namespace gantry::reference {
namespace {

// How x is walked: rows along the last axis, and where mean and parameter elements lie for each. Extents of adjoining
// axes are not merged: plain first.
struct Walk {
  int rank = 0;
  std::array<int64_t, infer::kMaxRank> extents, statistics_strides, scale_strides, bias_strides;  // stride 0: repeated
  int64_t statistics_count = 1, scale_count = 1, elements = 1;
  double shared = 1;  // elements that share one mean
};

std::array<int64_t, infer::kMaxRank> BroadcastStrides(const Shape& part, int rank) {
  std::array<int64_t, infer::kMaxRank> strides = {};
  int64_t stride = 1;
  for (int axis = part.rank() - 1; axis >= 0; --axis) {
    strides[axis + rank - part.rank()] = part[axis] == 1 ? 0 : stride;
    stride *= part[axis];
  }
  return strides;
}

Walk MakeWalk(const Shape& x, const Shape& statistics, const Shape& scale, const Shape& bias) {
  Walk walk;
  walk.rank = x.rank();
  std::copy(x.dims().begin(), x.dims().end(), walk.extents.begin());
  walk.statistics_strides = BroadcastStrides(statistics, x.rank());
  walk.scale_strides = BroadcastStrides(scale, x.rank());
  walk.bias_strides = BroadcastStrides(bias, x.rank());
  walk.statistics_count = statistics.element_count();
  walk.scale_count = scale.element_count();
  walk.elements = x.element_count();
  walk.shared = static_cast<double>(walk.elements) / static_cast<double>(std::max<int64_t>(walk.statistics_count, 1));
  return walk;
}

// body(element, statistic, scale, bias): the index of a row's first element in x and of what belongs to it elsewhere.
template <typename Body>
void ForEachRow(const Walk& walk, Body body) {
  const int64_t row = walk.extents[walk.rank - 1];
  std::array<int64_t, infer::kMaxRank> index = {};
  for (int64_t element = 0; element < walk.elements; element += row) {
    int64_t statistic = 0, scale = 0, bias = 0;
    for (int axis = 0; axis + 1 < walk.rank; ++axis) {
      statistic += index[axis] * walk.statistics_strides[axis];
      scale += index[axis] * walk.scale_strides[axis];
      bias += index[axis] * walk.bias_strides[axis];
    }
    body(element, statistic, scale, bias);
    for (int axis = walk.rank - 2; axis >= 0 && ++index[axis] == walk.extents[axis]; --axis) index[axis] = 0;
  }
}

// sums[i * stride] += term(i) for i < count; one sum first where they all go to one place.
template <typename Term>
void AddRow(double* sums, int64_t stride, int64_t count, Term term) {
  if (stride != 0) {
    for (int64_t i = 0; i < count; ++i) sums[i * stride] += term(i);
    return;
  }
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += term(i);
  *sums += sum;
}

std::unique_ptr<Kernel> MakeNormalize(const KernelRequest& request) {
  const Walk walk =
      MakeWalk(request.inputs[0].shape, request.outputs[1].shape, request.inputs[1].shape, request.inputs[2].shape);
  const double eps = request.attributes.Float("eps");
  const double slope = request.attributes.Float("slope", 1.0);
  const auto loop = [walk, eps, slope](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* const x = Input<T>(arguments, 0);
    const T* const scale = Input<T>(arguments, 1);
    const T* const bias = Input<T>(arguments, 2);
    T* const y = Output<T>(arguments, 0);
    double* const mean = static_cast<double*>(arguments.scratch);
    double* const variance = mean + walk.statistics_count;
    double* const inverse = variance + walk.statistics_count;
    std::fill_n(mean, 2 * walk.statistics_count, 0.0);
    const int64_t row = walk.extents[walk.rank - 1];
    const int64_t statistics_step = walk.statistics_strides[walk.rank - 1];
    const int64_t scale_step = walk.scale_strides[walk.rank - 1];
    const int64_t bias_step = walk.bias_strides[walk.rank - 1];
    ForEachRow(walk, [&](int64_t element, int64_t statistic, int64_t, int64_t) {
      AddRow(mean + statistic, statistics_step, row, [&](int64_t i) { return static_cast<double>(x[element + i]); });
    });
    for (int64_t index = 0; index < walk.statistics_count; ++index) mean[index] /= walk.shared;
    ForEachRow(walk, [&](int64_t element, int64_t statistic, int64_t, int64_t) {
      AddRow(variance + statistic, statistics_step, row, [&](int64_t i) {
        const double difference = static_cast<double>(x[element + i]) - mean[statistic + i * statistics_step];
        return difference * difference;
      });
    });
    for (int64_t index = 0; index < walk.statistics_count; ++index) {
      variance[index] /= walk.shared;
      inverse[index] = 1.0 / std::sqrt(variance[index] + eps);
      Output<T>(arguments, 1)[index] = static_cast<T>(mean[index]);
      Output<T>(arguments, 2)[index] = static_cast<T>(variance[index]);
    }
    ForEachRow(walk, [&](int64_t element, int64_t statistic, int64_t scale_index, int64_t bias_index) {
      for (int64_t i = 0; i < row; ++i) {
        const int64_t place = statistic + i * statistics_step;
        const double normal = (static_cast<double>(x[element + i]) - mean[place]) * inverse[place];
        const double value = normal * static_cast<double>(scale[scale_index + i * scale_step]) +
                             static_cast<double>(bias[bias_index + i * bias_step]);
        const T rounded = static_cast<T>(value);  // as a leaky_relu of its own would see it
        y[element + i] = rounded > T{0} ? rounded : static_cast<T>(slope) * rounded;
      }
    });
    return absl::OkStatus();
  };
  return MakeFloatKernel(request, loop, sizeof(double) * 3 * static_cast<size_t>(walk.statistics_count));
}

std::unique_ptr<Kernel> MakeNormalizeGrad(const KernelRequest& request) {
  const Shape& parameter = request.inputs[2].shape;
  const Walk walk = MakeWalk(request.inputs[1].shape, request.inputs[3].shape, parameter, parameter);
  const double eps = request.attributes.Float("eps");
  const bool fused = request.inputs.size() > 5;  // g is the gradient of an activation's result y
  const double slope = request.attributes.Float("slope", 1.0);
  const auto loop = [walk, eps, fused, slope](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* const y = fused ? Input<T>(arguments, 5) : nullptr;
    const T* const g = Input<T>(arguments, 0);
    const T* const x = Input<T>(arguments, 1);
    const T* const scale = Input<T>(arguments, 2);
    const T* const mean = Input<T>(arguments, 3);
    const T* const variance = Input<T>(arguments, 4);
    T* const dx = Output<T>(arguments, 0);
    double* const inverse = static_cast<double*>(arguments.scratch);
    double* const mean_scaled = inverse + walk.statistics_count;       // of g * scale
    double* const mean_product = mean_scaled + walk.statistics_count;  // of g * scale * normal
    double* const dscale = mean_product + walk.statistics_count;
    double* const dbias = dscale + walk.scale_count;
    std::fill_n(mean_scaled, 2 * walk.statistics_count + 2 * walk.scale_count, 0.0);
    for (int64_t index = 0; index < walk.statistics_count; ++index) {
      inverse[index] = 1.0 / std::sqrt(static_cast<double>(variance[index]) + eps);
    }
    const int64_t row = walk.extents[walk.rank - 1];
    const int64_t statistics_step = walk.statistics_strides[walk.rank - 1];
    const int64_t scale_step = walk.scale_strides[walk.rank - 1];
    const auto before_activation = [&](int64_t index) {
      return static_cast<double>(fused && !(y[index] > T{0}) ? static_cast<T>(slope) * g[index] : g[index]);
    };
    ForEachRow(walk, [&](int64_t element, int64_t statistic, int64_t scale_index, int64_t) {
      const auto gradient = [&](int64_t i) { return before_activation(element + i); };
      const auto normal = [&](int64_t i) {
        const int64_t place = statistic + i * statistics_step;
        return (static_cast<double>(x[element + i]) - static_cast<double>(mean[place])) * inverse[place];
      };
      const auto scaled = [&](int64_t i) {
        return gradient(i) * static_cast<double>(scale[scale_index + i * scale_step]);
      };
      AddRow(mean_scaled + statistic, statistics_step, row, scaled);
      AddRow(mean_product + statistic, statistics_step, row, [&](int64_t i) { return scaled(i) * normal(i); });
      AddRow(dscale + scale_index, scale_step, row, [&](int64_t i) { return gradient(i) * normal(i); });
      AddRow(dbias + scale_index, scale_step, row, gradient);
    });
    for (int64_t index = 0; index < walk.statistics_count; ++index) {
      mean_scaled[index] /= walk.shared;
      mean_product[index] /= walk.shared;
    }
    ForEachRow(walk, [&](int64_t element, int64_t statistic, int64_t scale_index, int64_t) {
      for (int64_t i = 0; i < row; ++i) {
        const int64_t place = statistic + i * statistics_step;
        const double normal = (static_cast<double>(x[element + i]) - static_cast<double>(mean[place])) * inverse[place];
        const double scaled = before_activation(element + i) * static_cast<double>(scale[scale_index + i * scale_step]);
        dx[element + i] = static_cast<T>(inverse[place] * (scaled - mean_scaled[place] - normal * mean_product[place]));
      }
    });
    for (int64_t index = 0; index < walk.scale_count; ++index) {
      Output<T>(arguments, 1)[index] = static_cast<T>(dscale[index]);
      Output<T>(arguments, 2)[index] = static_cast<T>(dbias[index]);
    }
    return absl::OkStatus();
  };
  return MakeFloatKernel(request, loop,
                         sizeof(double) * static_cast<size_t>(3 * walk.statistics_count + 2 * walk.scale_count));
}

// The halves of the two above, for statistics that several ranks make together.

std::unique_ptr<Kernel> MakeMoments(const KernelRequest& request) {
  const Shape& statistics = request.outputs[0].shape;
  const Walk walk = MakeWalk(request.inputs[0].shape, statistics, statistics, statistics);
  const auto loop = [walk](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* const x = Input<T>(arguments, 0);
    double* const mean = static_cast<double*>(arguments.scratch);
    double* const variance = mean + walk.statistics_count;
    std::fill_n(mean, 2 * walk.statistics_count, 0.0);
    const int64_t row = walk.extents[walk.rank - 1], step = walk.statistics_strides[walk.rank - 1];
    ForEachRow(walk, [&](int64_t element, int64_t statistic, int64_t, int64_t) {
      AddRow(mean + statistic, step, row, [&](int64_t i) { return static_cast<double>(x[element + i]); });
    });
    for (int64_t index = 0; index < walk.statistics_count; ++index) mean[index] /= walk.shared;
    ForEachRow(walk, [&](int64_t element, int64_t statistic, int64_t, int64_t) {
      AddRow(variance + statistic, step, row, [&](int64_t i) {
        const double difference = static_cast<double>(x[element + i]) - mean[statistic + i * step];
        return difference * difference;
      });
    });
    for (int64_t index = 0; index < walk.statistics_count; ++index) {
      Output<T>(arguments, 0)[index] = static_cast<T>(mean[index]);
      Output<T>(arguments, 1)[index] = static_cast<T>(variance[index] / walk.shared);
    }
    return absl::OkStatus();
  };
  return MakeFloatKernel(request, loop, sizeof(double) * 2 * static_cast<size_t>(walk.statistics_count));
}

std::unique_ptr<Kernel> MakeNormalizeApply(const KernelRequest& request) {
  const Walk walk =
      MakeWalk(request.inputs[0].shape, request.inputs[3].shape, request.inputs[1].shape, request.inputs[2].shape);
  const double eps = request.attributes.Float("eps"), slope = request.attributes.Float("slope", 1.0);
  const auto loop = [walk, eps, slope](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* const x = Input<T>(arguments, 0);
    const T* const scale = Input<T>(arguments, 1);
    const T* const bias = Input<T>(arguments, 2);
    const T* const mean = Input<T>(arguments, 3);
    const T* const variance = Input<T>(arguments, 4);
    T* const y = Output<T>(arguments, 0);
    double* const inverse = static_cast<double*>(arguments.scratch);
    for (int64_t index = 0; index < walk.statistics_count; ++index) {
      inverse[index] = 1.0 / std::sqrt(static_cast<double>(variance[index]) + eps);
    }
    const int64_t row = walk.extents[walk.rank - 1];
    const int64_t statistics_step = walk.statistics_strides[walk.rank - 1];
    const int64_t scale_step = walk.scale_strides[walk.rank - 1], bias_step = walk.bias_strides[walk.rank - 1];
    ForEachRow(walk, [&](int64_t element, int64_t statistic, int64_t scale_index, int64_t bias_index) {
      for (int64_t i = 0; i < row; ++i) {
        const int64_t place = statistic + i * statistics_step;
        const double normal = (static_cast<double>(x[element + i]) - static_cast<double>(mean[place])) * inverse[place];
        const T rounded = static_cast<T>(normal * static_cast<double>(scale[scale_index + i * scale_step]) +
                                         static_cast<double>(bias[bias_index + i * bias_step]));
        y[element + i] = rounded > T{0} ? rounded : static_cast<T>(slope) * rounded;
      }
    });
    return absl::OkStatus();
  };
  return MakeFloatKernel(request, loop, sizeof(double) * static_cast<size_t>(walk.statistics_count));
}

std::unique_ptr<Kernel> MakeNormalizeGradSums(const KernelRequest& request) {
  const Shape& statistics = request.inputs[2].shape;
  const Walk walk = MakeWalk(request.inputs[1].shape, statistics, statistics, statistics);
  const double eps = request.attributes.Float("eps"), slope = request.attributes.Float("slope", 1.0);
  const bool fused = request.inputs.size() > 4;
  const auto loop = [walk, eps, fused, slope](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* const g = Input<T>(arguments, 0);
    const T* const x = Input<T>(arguments, 1);
    const T* const mean = Input<T>(arguments, 2);
    const T* const variance = Input<T>(arguments, 3);
    const T* const y = fused ? Input<T>(arguments, 4) : nullptr;
    double* const inverse = static_cast<double*>(arguments.scratch);
    double* const sums = inverse + walk.statistics_count;
    double* const products = sums + walk.statistics_count;
    std::fill_n(sums, 2 * walk.statistics_count, 0.0);
    for (int64_t index = 0; index < walk.statistics_count; ++index) {
      inverse[index] = 1.0 / std::sqrt(static_cast<double>(variance[index]) + eps);
    }
    const int64_t row = walk.extents[walk.rank - 1], step = walk.statistics_strides[walk.rank - 1];
    ForEachRow(walk, [&](int64_t element, int64_t statistic, int64_t, int64_t) {
      const auto gradient = [&](int64_t i) {
        const int64_t index = element + i;
        return static_cast<double>(fused && !(y[index] > T{0}) ? static_cast<T>(slope) * g[index] : g[index]);
      };
      AddRow(sums + statistic, step, row, gradient);
      AddRow(products + statistic, step, row, [&](int64_t i) {
        const int64_t place = statistic + i * step;
        return gradient(i) * (static_cast<double>(x[element + i]) - static_cast<double>(mean[place])) * inverse[place];
      });
    });
    for (int64_t index = 0; index < walk.statistics_count; ++index) {
      Output<T>(arguments, 0)[index] = static_cast<T>(sums[index]);
      Output<T>(arguments, 1)[index] = static_cast<T>(products[index]);
    }
    return absl::OkStatus();
  };
  return MakeFloatKernel(request, loop, sizeof(double) * 3 * static_cast<size_t>(walk.statistics_count));
}

std::unique_ptr<Kernel> MakeNormalizeGradApply(const KernelRequest& request) {
  const Shape& scale_shape = request.inputs[2].shape;
  const Walk walk = MakeWalk(request.inputs[1].shape, request.inputs[3].shape, scale_shape, scale_shape);
  const double eps = request.attributes.Float("eps"), slope = request.attributes.Float("slope", 1.0);
  const double count = request.attributes.Float("count");
  const bool fused = request.inputs.size() > 7;
  const auto loop = [walk, eps, count, fused, slope](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* const g = Input<T>(arguments, 0);
    const T* const x = Input<T>(arguments, 1);
    const T* const scale = Input<T>(arguments, 2);
    const T* const mean = Input<T>(arguments, 3);
    const T* const variance = Input<T>(arguments, 4);
    const T* const sums = Input<T>(arguments, 5);
    const T* const products = Input<T>(arguments, 6);
    const T* const y = fused ? Input<T>(arguments, 7) : nullptr;
    T* const dx = Output<T>(arguments, 0);
    double* const inverse = static_cast<double*>(arguments.scratch);
    for (int64_t index = 0; index < walk.statistics_count; ++index) {
      inverse[index] = 1.0 / std::sqrt(static_cast<double>(variance[index]) + eps);
    }
    const int64_t row = walk.extents[walk.rank - 1];
    const int64_t step = walk.statistics_strides[walk.rank - 1], scale_step = walk.scale_strides[walk.rank - 1];
    ForEachRow(walk, [&](int64_t element, int64_t statistic, int64_t scale_index, int64_t) {
      for (int64_t i = 0; i < row; ++i) {
        const int64_t place = statistic + i * step, index = element + i;
        const double gradient = static_cast<double>(fused && !(y[index] > T{0}) ? static_cast<T>(slope) * g[index] : g[index]);
        const double normal = (static_cast<double>(x[index]) - static_cast<double>(mean[place])) * inverse[place];
        const double centered = gradient - (static_cast<double>(sums[place]) + normal * static_cast<double>(products[place])) / count;
        dx[index] = static_cast<T>(inverse[place] * static_cast<double>(scale[scale_index + i * scale_step]) * centered);
      }
    });
    return absl::OkStatus();
  };
  return MakeFloatKernel(request, loop, sizeof(double) * static_cast<size_t>(walk.statistics_count));
}

}  // namespace

KernelTable NormalizationKernels() {
  return {{"normalize", MakeNormalize},
          {"normalize_grad", MakeNormalizeGrad},
          {"moments", MakeMoments},
          {"normalize_apply", MakeNormalizeApply},
          {"normalize_grad_sums", MakeNormalizeGradSums},
          {"normalize_grad_apply", MakeNormalizeGradApply}};
}

}  // namespace gantry::reference
