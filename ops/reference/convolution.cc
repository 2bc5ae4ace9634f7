// The three convolutions as sums over taps. Operands are first copied to double with their channels innermost, so that
// the inner loops run over channels without bounds checks and vectorise for any kernel, stride and padding, and f32
// accumulates in double. Each output element is summed by one thread in a fixed order: the result does not depend on
// the thread count.
#include "ops/convolution.h"

#include <algorithm>

#include "memory/cpu/parallel.h"
#include "ops/reference/reference_kernel.h"

namespace gantry::reference {
namespace {

// The pairs of places that one tap joins: for every window q whose tap lies inside the input, runs along the innermost
// dimension. body(p, q, count): x places p, p + stride, ... meet y places q, q + 1, ..., `count` of them.
template <typename Body>
void ForEachRun(const ConvGeometry& geometry, const std::array<int64_t, 3>& tap, Body body) {
  std::array<WindowRange, 3> range;
  for (int axis = 0; axis < 3; ++axis) {
    range[axis] = WindowsInside(geometry.window.axes[axis], tap[axis], geometry.input[axis], geometry.output[axis]);
  }
  if (range[2].first >= range[2].last) return;
  const auto place = [&](int axis, int64_t index) {
    const WindowAxis& window = geometry.window.axes[axis];
    return index * window.stride - window.pad_begin + tap[axis] * window.dilation;
  };
  for (int64_t d = range[0].first; d < range[0].last; ++d) {
    for (int64_t h = range[1].first; h < range[1].last; ++h) {
      const int64_t p = (place(0, d) * geometry.input[1] + place(1, h)) * geometry.input[2] + place(2, range[2].first);
      const int64_t q = (d * geometry.output[1] + h) * geometry.output[2] + range[2].first;
      body(p, q, range[2].last - range[2].first);
    }
  }
}

template <typename Body>
void ForEachTap(const ConvGeometry& geometry, int64_t first, int64_t last, Body body) {
  const std::array<WindowAxis, 3>& axes = geometry.window.axes;
  for (int64_t tap = first; tap < last; ++tap) {
    body(tap, std::array<int64_t, 3>{tap / axes[2].kernel / axes[1].kernel, tap / axes[2].kernel % axes[1].kernel,
                                     tap % axes[2].kernel});
  }
}

// to[place][channel] = from[channel][place], and back.
template <typename T>
void ToChannelsLast(const T* from, int64_t channels, int64_t places, double* to) {
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int64_t place = 0; place < places; ++place) {
      to[place * channels + channel] = static_cast<double>(from[channel * places + place]);
    }
  }
}
template <typename T>
void FromChannelsLast(const double* from, int64_t channels, int64_t places, double slope, T* to) {
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int64_t place = 0; place < places; ++place) {
      const T rounded = static_cast<T>(from[place * channels + channel]);  // as a leaky_relu of its own would see it
      to[channel * places + place] = rounded > T{0} ? rounded : static_cast<T>(slope) * rounded;
    }
  }
}

// to[j] += sum over i of from[i] * matrix[i][j].
void MultiplyAdd(const double* from, int64_t rows, const double* __restrict matrix, int64_t columns,
                 double* __restrict to) {
  int64_t i = 0;
  if (columns == 1) {
    double sums[4] = {0, 0, 0, 0};
    for (; i + 4 <= rows; i += 4) {
      for (int k = 0; k < 4; ++k) sums[k] += from[i + k] * matrix[i + k];
    }
    to[0] += (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  for (; i + 4 <= rows; i += 4) {
    const double a = from[i], b = from[i + 1], c = from[i + 2], d = from[i + 3];
    const double* row = matrix + i * columns;
    for (int64_t j = 0; j < columns; ++j) {
      to[j] += (a * row[j] + b * row[columns + j]) + (c * row[2 * columns + j] + d * row[3 * columns + j]);
    }
  }
  for (; i < rows; ++i) {
    const double a = from[i];
    for (int64_t j = 0; j < columns; ++j) to[j] += a * matrix[i * columns + j];
  }
}

// to[i][j] += sum over `count` places of left[place][i] * right[place][j], places `left_step` and `right_step` apart.
void OuterAdd(const double* left, int64_t left_step, int64_t rows, const double* __restrict right, int64_t right_step,
              int64_t columns, int64_t count, double* __restrict to) {
  int64_t place = 0;
  for (; place + 4 <= count; place += 4) {
    const double* l = left + place * left_step;
    const double* r = right + place * right_step;
    for (int64_t i = 0; i < rows; ++i) {
      const double a = l[i], b = l[left_step + i], c = l[2 * left_step + i], d = l[3 * left_step + i];
      double* row = to + i * columns;
      for (int64_t j = 0; j < columns; ++j) {
        row[j] += (a * r[j] + b * r[right_step + j]) + (c * r[2 * right_step + j] + d * r[3 * right_step + j]);
      }
    }
  }
  for (; place < count; ++place) {
    for (int64_t i = 0; i < rows; ++i) {
      const double a = left[place * left_step + i];
      for (int64_t j = 0; j < columns; ++j) to[i * columns + j] += a * right[place * right_step + j];
    }
  }
}

// Where the copies lie in scratch, in doubles: the weights of all groups, then for each thread one group of one image
// of x and of y.
struct ScratchPlan {
  ScratchPlan(const ConvGeometry& geometry, int thread_count)
      : threads(std::max(thread_count, 1)),
        weights(geometry.output_channels * geometry.group_input_channels() * geometry.window.taps()),
        x(geometry.group_input_channels() * geometry.input_places()),
        y(geometry.group_output_channels() * geometry.output_places()) {}

  int threads;
  int64_t weights, x, y;

  size_t bytes() const { return sizeof(double) * static_cast<size_t>(weights + threads * (x + y)); }
  double* ThreadX(void* scratch, int64_t thread) const {
    return static_cast<double*>(scratch) + weights + thread * (x + y);
  }
  double* ThreadY(void* scratch, int64_t thread) const { return ThreadX(scratch, thread) + x; }
};

// conv (kTransposed false: from is x, to is y) and conv_transpose (from is y, to is x).
template <bool kTransposed>
std::unique_ptr<Kernel> MakeConv(const KernelRequest& request) {
  const ConvGeometry geometry = GeometryOf(request.op.name, request.inputs, request.outputs, request.attributes);
  const double slope = request.attributes.Float("slope", 1.0);
  const ScratchPlan plan(geometry, request.thread_count);
  const auto loop = [geometry, slope, plan](auto zero, const OpInstance& op, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* const from = Input<T>(arguments, 0);
    const T* const weights = Input<T>(arguments, 1);
    const T* const bias = op.inputs.size() > 2 ? Input<T>(arguments, 2) : nullptr;
    T* const to = Output<T>(arguments, 0);
    const int64_t taps = geometry.window.taps();
    const int64_t from_channels = kTransposed ? geometry.group_output_channels() : geometry.group_input_channels();
    const int64_t to_channels = kTransposed ? geometry.group_input_channels() : geometry.group_output_channels();
    const int64_t from_places = kTransposed ? geometry.output_places() : geometry.input_places();
    const int64_t to_places = kTransposed ? geometry.input_places() : geometry.output_places();
    // Weights as [group][tap][channel of from][channel of to].
    double* const matrices = static_cast<double*>(arguments.scratch);
    const int64_t matrix_size = from_channels * to_channels;
    for (int64_t o = 0; o < geometry.output_channels; ++o) {
      const int64_t group = o / geometry.group_output_channels(), group_o = o % geometry.group_output_channels();
      for (int64_t c = 0; c < geometry.group_input_channels(); ++c) {
        double* column = matrices + group * taps * matrix_size +
                         (kTransposed ? group_o * to_channels + c : c * to_channels + group_o);
        const T* taps_of_pair = weights + (o * geometry.group_input_channels() + c) * taps;
        for (int64_t tap = 0; tap < taps; ++tap) column[tap * matrix_size] = static_cast<double>(taps_of_pair[tap]);
      }
    }
    const int64_t step = geometry.window.axes[2].stride;
    ParallelFor(plan.threads, plan.threads, [&](int64_t thread) {
      double* const x = plan.ThreadX(arguments.scratch, thread);
      double* const y = plan.ThreadY(arguments.scratch, thread);
      double* const copy = kTransposed ? y : x;
      double* const sums = kTransposed ? x : y;
      const int64_t first = geometry.batch * thread / plan.threads, last = geometry.batch * (thread + 1) / plan.threads;
      for (int64_t item = first * geometry.groups; item < last * geometry.groups; ++item) {
        const int64_t group = item % geometry.groups;
        ToChannelsLast(from + item * from_channels * from_places, from_channels, from_places, copy);
        for (int64_t index = 0; index < to_channels * to_places; ++index) {
          sums[index] = bias == nullptr ? 0.0 : static_cast<double>(bias[group * to_channels + index % to_channels]);
        }
        ForEachTap(geometry, 0, taps, [&](int64_t tap, const std::array<int64_t, 3>& position) {
          const double* matrix = matrices + (group * taps + tap) * matrix_size;
          ForEachRun(geometry, position, [&](int64_t p, int64_t q, int64_t count) {
            for (int64_t index = 0; index < count; ++index) {
              const int64_t x_place = p + index * step, y_place = q + index;
              MultiplyAdd(copy + (kTransposed ? y_place : x_place) * from_channels, from_channels, matrix, to_channels,
                          sums + (kTransposed ? x_place : y_place) * to_channels);
            }
          });
        });
        FromChannelsLast(sums, to_channels, to_places, slope, to + item * to_channels * to_places);
      }
    });
    return absl::OkStatus();
  };
  return MakeFloatKernel(request, loop, plan.bytes());
}

std::unique_ptr<Kernel> MakeConvWeightGrad(const KernelRequest& request) {
  const ConvGeometry geometry = GeometryOf(request.op.name, request.inputs, request.outputs, request.attributes);
  const ScratchPlan plan(geometry, request.thread_count);
  const auto loop = [geometry, plan](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* const x_images = Input<T>(arguments, 0);
    const T* const y_images = Input<T>(arguments, 1);
    T* const to = Output<T>(arguments, 0);
    const int64_t taps = geometry.window.taps();
    const int64_t inputs = geometry.group_input_channels(), outputs = geometry.group_output_channels();
    const bool outputs_inner = outputs >= inputs;  // the longer of the two is the inner loop
    const int64_t matrix_size = inputs * outputs;
    const int64_t step = geometry.window.axes[2].stride;
    double* const matrices =
        static_cast<double*>(arguments.scratch);  // [group][tap][inputs][outputs], or the last two swapped
    ParallelFor(plan.threads, plan.threads, [&](int64_t thread) {
      double* const x = plan.ThreadX(arguments.scratch, thread);
      double* const y = plan.ThreadY(arguments.scratch, thread);
      const int64_t first = taps * thread / plan.threads, last = taps * (thread + 1) / plan.threads;
      for (int64_t group = 0; group < geometry.groups; ++group) {
        double* const group_matrices = matrices + group * taps * matrix_size;
        std::fill(group_matrices + first * matrix_size, group_matrices + last * matrix_size, 0.0);
      }
      if (first == last) return;
      for (int64_t item = 0; item < geometry.batch * geometry.groups; ++item) {
        ToChannelsLast(x_images + item * inputs * geometry.input_places(), inputs, geometry.input_places(), x);
        ToChannelsLast(y_images + item * outputs * geometry.output_places(), outputs, geometry.output_places(), y);
        ForEachTap(geometry, first, last, [&](int64_t tap, const std::array<int64_t, 3>& position) {
          double* matrix = matrices + (item % geometry.groups * taps + tap) * matrix_size;
          ForEachRun(geometry, position, [&](int64_t p, int64_t q, int64_t count) {
            if (outputs_inner) {
              OuterAdd(x + p * inputs, step * inputs, inputs, y + q * outputs, outputs, outputs, count, matrix);
            } else {
              OuterAdd(y + q * outputs, outputs, outputs, x + p * inputs, step * inputs, inputs, count, matrix);
            }
          });
        });
      }
    });
    for (int64_t o = 0; o < geometry.output_channels; ++o) {
      const int64_t group = o / outputs, group_o = o % outputs;
      for (int64_t c = 0; c < inputs; ++c) {
        const double* pair =
            matrices + group * taps * matrix_size + (outputs_inner ? c * outputs + group_o : group_o * inputs + c);
        for (int64_t tap = 0; tap < taps; ++tap)
          to[(o * inputs + c) * taps + tap] = static_cast<T>(pair[tap * matrix_size]);
      }
    }
    return absl::OkStatus();
  };
  return MakeFloatKernel(request, loop, plan.bytes());
}

}  // namespace

KernelTable ConvolutionKernels() {
  return {{"conv", MakeConv<false>}, {"conv_transpose", MakeConv<true>}, {"conv_weight_grad", MakeConvWeightGrad}};
}

}  // namespace gantry::reference
