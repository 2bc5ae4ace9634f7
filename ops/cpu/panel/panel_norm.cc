#include "ops/cpu/panel/panel_norm.h"

#include <algorithm>
#include <cmath>

#include "memory/cpu/parallel.h"
#include "ops/cpu/panel/panel_kernels.h"

namespace gantry::cpu {
namespace {

// A panel's pixels are summed in this many parts (or one per pixel), whatever the number of threads.
constexpr int64_t kSlices = 16;
constexpr int64_t kBlockRows = 128;

struct Panels {
  const PanelShape& shape;
  int64_t images = shape.batch;  // in memory; the shape's may be a part of them
  int64_t pixels = shape.height * shape.width;
  int64_t panels = PanelCount(shape.channels);
  int64_t panel_floats = images * 16;
  int64_t slices = std::min(kSlices, pixels);
};

// Two doubles per channel, slice and panel.
struct Sums {
  double first[16];
  double second[16];
};

// The scratch: sums of slices, three arrays of 16 floats per panel, two doubles per channel.
Sums* SliceSums(float* scratch) { return reinterpret_cast<Sums*>(scratch); }
int64_t SliceFloats(const Panels& p) { return p.panels * p.slices * static_cast<int64_t>(sizeof(Sums) / sizeof(float)); }
double* TotalsIn(const PanelShape& shape, float* scratch) {
  const Panels p{shape};
  return reinterpret_cast<double*>(scratch + SliceFloats(p) + 3 * p.panels * 16);
}

// Calls run(shape of a part, images before it) for `part` images at a time; 0: all.
template <typename Run>
void ForEachPart(const PanelShape& shape, int64_t part, const Run& run) {
  if (part == 0) part = shape.batch;
  for (int64_t before = 0; before < shape.batch; before += part) {
    PanelShape images = shape;
    images.batch = std::min(part, shape.batch - before);
    run(images, before);
  }
}

// Calls block(panel index, offset of the first row, rows, sums of the slice, rows summed before) for every block of
// every slice; blocks of one slice come in order.
template <typename Block>
void ForEachBlock(const Panels& p, Sums* sums, int thread_count, const Block& block) {
  ParallelFor(thread_count, p.panels * p.slices, [&](int64_t task) {
    const int64_t panel = task / p.slices;
    const int64_t slice = task % p.slices;
    Sums& slice_sums = sums[task];
    std::fill_n(slice_sums.first, 16, 0.0);
    std::fill_n(slice_sums.second, 16, 0.0);
    int64_t before = 0;
    for (int64_t pixel = p.pixels * slice / p.slices; pixel < p.pixels * (slice + 1) / p.slices; ++pixel) {
      for (int64_t row = 0; row < p.shape.batch; row += kBlockRows) {
        const int64_t rows = std::min(kBlockRows, p.shape.batch - row);
        block(panel, (pixel * p.panels + panel) * p.panel_floats + row * 16, rows, slice_sums, before);
        before += rows;
      }
    }
  });
}

// Calls range(panel, offset) for every pixel of every panel.
template <typename Range>
void ForEachPanel(const Panels& p, int thread_count, const Range& range) {
  ParallelFor(thread_count, p.pixels * p.panels, [&](int64_t task) { range(task % p.panels, task * p.panel_floats); });
}

// 16 channels of a per-channel array; zero behind its end.
void CopyChannels(const float* from, int64_t panel, int64_t channels, float* to) {
  for (int64_t c = 0; c < 16; ++c) to[c] = panel * 16 + c < channels ? from[panel * 16 + c] : 0.0f;
}

}  // namespace

int64_t NormScratchFloats(const PanelShape& shape) {
  const Panels p{shape};
  return SliceFloats(p) + 3 * p.panels * 16 + 4 * p.panels * 16;
}

namespace {

// AddMoments of one part; x has `images` images in memory.
void AddMomentsOfPart(const PanelShape& shape, const float* x, int64_t images, int64_t before, double* moments, float* scratch,
                      int thread_count, Isa isa) {
  const Panels p{shape, images};
  const PanelKernels& kernels = KernelsFor(isa);
  Sums* sums = SliceSums(scratch);  // mean and sum of squared deviations so far
  ForEachBlock(p, sums, thread_count, [&](int64_t, int64_t offset, int64_t rows, Sums& slice, int64_t rows_before) {
    alignas(64) float center[16], sum[16], squares[16];
    kernels.moments(rows, x + offset, center, sum, squares);
    const double count = static_cast<double>(rows);
    const double fraction = count / static_cast<double>(rows_before + rows);
    const double weight = static_cast<double>(rows_before) * fraction;
    for (int64_t c = 0; c < 16; ++c) {
      const double offset_from_center = sum[c] / count;
      const double delta = center[c] + offset_from_center - slice.first[c];
      slice.first[c] += delta * fraction;
      slice.second[c] += (squares[c] - sum[c] * offset_from_center) + delta * delta * weight;
    }
  });
  double* const means = moments;
  double* const squares = moments + shape.channels;
  for (int64_t channel = 0; channel < shape.channels; ++channel) {
    double total = static_cast<double>(before * p.pixels);
    double center = before > 0 ? means[channel] : 0.0, deviations = before > 0 ? squares[channel] : 0.0;
    for (int64_t slice = 0; slice < p.slices; ++slice) {
      const Sums& part = sums[channel / 16 * p.slices + slice];
      const double rows =
          static_cast<double>((p.pixels * (slice + 1) / p.slices - p.pixels * slice / p.slices) * shape.batch);
      const double delta = part.first[channel % 16] - center;
      total += rows;
      center += delta * rows / total;
      deviations += part.second[channel % 16] + delta * delta * rows * (total - rows) / total;
    }
    means[channel] = center;
    squares[channel] = deviations;
  }
}

}  // namespace

void AddMoments(const PanelShape& shape, const float* x, int64_t before, double* moments, float* scratch, int thread_count, Isa isa,
                int64_t part) {
  ForEachPart(shape, part, [&](const PanelShape& images, int64_t first) {
    AddMomentsOfPart(images, x + first * 16, shape.batch, before + first, moments, scratch, thread_count, isa);
  });
}

void FinishMoments(int64_t channels, int64_t count, const double* moments, float* mean, float* variance) {
  for (int64_t channel = 0; channel < channels; ++channel) {
    mean[channel] = static_cast<float>(moments[channel]);
    variance[channel] = static_cast<float>(moments[channels + channel] / static_cast<double>(count));
  }
}

void BatchStatistics(const PanelShape& shape, const float* x, float* mean, float* variance, float* scratch,
                     int thread_count, Isa isa, int64_t part) {
  double* const moments = TotalsIn(shape, scratch);
  AddMoments(shape, x, 0, moments, scratch, thread_count, isa, part);
  FinishMoments(shape.channels, shape.batch * shape.height * shape.width, moments, mean, variance);
}

void BatchNormalize(const PanelShape& shape, const float* x, const float* mean, const float* variance,
                    const float* gamma, const float* beta, float epsilon, float slope, float* y, int thread_count,
                    Isa isa) {
  const Panels p{shape};
  const PanelKernels& kernels = KernelsFor(isa);
  ForEachPanel(p, thread_count, [&](int64_t panel, int64_t offset) {
    alignas(64) float means[16], scales[16], shifts[16];
    CopyChannels(mean, panel, shape.channels, means);
    CopyChannels(beta, panel, shape.channels, shifts);
    for (int64_t c = 0; c < 16; ++c) {
      const int64_t channel = panel * 16 + c;
      scales[c] = channel < shape.channels ? gamma[channel] / std::sqrt(variance[channel] + epsilon) : 0.0f;
    }
    kernels.normalize(p.shape.batch, x + offset, means, scales, shifts, slope, y + offset);
  });
}

namespace {

// AddGradientSums of one part; the operands have `images` images in memory.
void AddGradientSumsOfPart(const PanelShape& shape, const BatchNormGradient& a, int64_t images, int64_t before, double* sums,
                           float* scratch, int thread_count, Isa isa) {
  const Panels p{shape, images};
  const PanelKernels& kernels = KernelsFor(isa);
  Sums* slices = SliceSums(scratch);  // of g and of g * (x - mean)
  ForEachBlock(p, slices, thread_count, [&](int64_t panel, int64_t offset, int64_t rows, Sums& slice, int64_t) {
    alignas(64) float means[16], sum[16], products[16];
    CopyChannels(a.mean, panel, shape.channels, means);
    kernels.gradient_sums(rows, a.dy + offset, a.x + offset, a.y != nullptr ? a.y + offset : nullptr, a.slope, means,
                          sum, products);
    for (int64_t c = 0; c < 16; ++c) {
      slice.first[c] += sum[c];
      slice.second[c] += products[c];
    }
  });
  for (int64_t channel = 0; channel < shape.channels; ++channel) {
    double& sum = sums[channel];
    double& products = sums[shape.channels + channel];
    if (before == 0) sum = products = 0.0;
    for (int64_t slice = 0; slice < p.slices; ++slice) {
      sum += slices[channel / 16 * p.slices + slice].first[channel % 16];
      products += slices[channel / 16 * p.slices + slice].second[channel % 16];
    }
  }
}

}  // namespace

void AddGradientSums(const PanelShape& shape, const BatchNormGradient& a, int64_t before, double* sums, float* scratch, int thread_count,
                     Isa isa, int64_t part) {
  ForEachPart(shape, part, [&](const PanelShape& images, int64_t first) {
    BatchNormGradient from = a;
    from.dy += first * 16;
    from.x += first * 16;
    if (from.y != nullptr) from.y += first * 16;
    AddGradientSumsOfPart(images, from, shape.batch, before + first, sums, scratch, thread_count, isa);
  });
}

void FinishGradientSums(int64_t channels, const double* sums, const float* variance, float epsilon, float* dgamma, float* dbeta) {
  for (int64_t channel = 0; channel < channels; ++channel) {
    const double inverse = 1.0 / std::sqrt(static_cast<double>(variance[channel]) + epsilon);
    dbeta[channel] = static_cast<float>(sums[channel]);
    dgamma[channel] = static_cast<float>(sums[channels + channel] * inverse);
  }
}

void BatchNormInputGradient(const PanelShape& shape, const BatchNormGradient& a, double count, const double* sums,
                            float* scratch, int thread_count, Isa isa) {
  const Panels p{shape};
  const PanelKernels& kernels = KernelsFor(isa);
  float* scales = scratch + SliceFloats(p);
  float* x_scales = scales + p.panels * 16;
  float* shifts = x_scales + p.panels * 16;
  for (int64_t channel = 0; channel < p.panels * 16; ++channel) {
    scales[channel] = x_scales[channel] = shifts[channel] = 0.0f;
    if (channel >= shape.channels) continue;
    const double sum = sums[channel], products = sums[shape.channels + channel];
    const double inverse = 1.0 / std::sqrt(static_cast<double>(a.variance[channel]) + a.epsilon);
    const double scale = a.gamma[channel] * inverse;
    scales[channel] = static_cast<float>(scale);
    x_scales[channel] = static_cast<float>(-scale * inverse * inverse * products / count);
    shifts[channel] = static_cast<float>(-scale * sum / count);
  }
  ForEachPanel(p, thread_count, [&](int64_t panel, int64_t offset) {
    alignas(64) float means[16];
    CopyChannels(a.mean, panel, shape.channels, means);
    kernels.normalize_gradient(shape.batch, a.dy + offset, a.x + offset, a.y != nullptr ? a.y + offset : nullptr,
                               a.slope, means, scales + panel * 16, x_scales + panel * 16, shifts + panel * 16,
                               a.dx + offset);
  });
}

void BatchNormParameterGradients(const PanelShape& shape, const BatchNormGradient& a, float* scratch, int thread_count, Isa isa,
                                 int64_t part) {
  double* const sums = TotalsIn(shape, scratch);
  AddGradientSums(shape, a, 0, sums, scratch, thread_count, isa, part);
  FinishGradientSums(shape.channels, sums, a.variance, a.epsilon, a.dgamma, a.dbeta);
}

void BatchNormInputGradient(const PanelShape& shape, const BatchNormGradient& a, double count, const float* dgamma, const float* dbeta,
                            float* scratch, int thread_count, Isa isa) {
  double* const sums = TotalsIn(shape, scratch);
  for (int64_t channel = 0; channel < shape.channels; ++channel) {
    sums[channel] = dbeta[channel];
    sums[shape.channels + channel] = dgamma[channel] * std::sqrt(static_cast<double>(a.variance[channel]) + a.epsilon);
  }
  BatchNormInputGradient(shape, a, count, sums, scratch, thread_count, isa);
}

void BatchNormBackward(const PanelShape& shape, const BatchNormGradient& a, float* scratch, int thread_count, Isa isa,
                       int64_t part) {
  BatchNormParameterGradients(shape, a, scratch, thread_count, isa, part);
  const auto count = static_cast<double>(shape.batch * shape.height * shape.width);
  BatchNormInputGradient(shape, a, count, TotalsIn(shape, scratch), scratch, thread_count, isa);
}

void ChannelSums(const PanelShape& shape, const float* x, float* sums, float* scratch, int thread_count, Isa isa) {
  const Panels p{shape};
  const PanelKernels& kernels = KernelsFor(isa);
  Sums* parts = SliceSums(scratch);
  ForEachBlock(p, parts, thread_count, [&](int64_t, int64_t offset, int64_t rows, Sums& slice, int64_t) {
    alignas(64) float sum[16];
    kernels.row_sums(rows, x + offset, sum);
    for (int64_t c = 0; c < 16; ++c) slice.first[c] += sum[c];
  });
  for (int64_t channel = 0; channel < shape.channels; ++channel) {
    double sum = 0.0;
    for (int64_t slice = 0; slice < p.slices; ++slice)
      sum += parts[channel / 16 * p.slices + slice].first[channel % 16];
    sums[channel] = static_cast<float>(sum);
  }
}

}  // namespace gantry::cpu
