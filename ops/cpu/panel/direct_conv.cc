#include "ops/cpu/panel/direct_conv.h"

#include <algorithm>

#include "memory/cpu/parallel.h"

namespace gantry::cpu::direct {
namespace {

// How one spatial dimension of a convolution maps an output position and a tap to an input position.
struct Axis {
  int64_t in, out, kernel, stride, pad, dilation;

  // The input position, or -1 outside.
  int64_t Input(int64_t output, int64_t tap) const {
    const int64_t position = output * stride - pad + tap * dilation;
    return position >= 0 && position < in ? position : -1;
  }
  // The output position whose `tap` sees `input`, or -1.
  int64_t Output(int64_t input, int64_t tap) const {
    const int64_t scaled = input + pad - tap * dilation;
    if (scaled < 0 || scaled % stride != 0) return -1;
    return scaled / stride < out ? scaled / stride : -1;
  }
};

Axis Vertical(const ConvGeometry& g) { return {g.in_h, g.out_h, g.kernel_h, g.stride_h, g.pad_top, g.dilation_h}; }
Axis Horizontal(const ConvGeometry& g) { return {g.in_w, g.out_w, g.kernel_w, g.stride_w, g.pad_left, g.dilation_w}; }

// Pixel-by-pixel products shared by the two image directions: result(p) = sum over taps t of source(q(p, t)) *
// weights(t).
struct ImageProduct {
  int64_t batch;
  int64_t source_panels, source_width, source_channels;
  int64_t result_panels, result_height, result_width, result_channels;
  int64_t kernel_h, kernel_w;
  const float* source;
  const float* packed;  // [result panel][tap][source panel][256]
  const Epilogue* epilogue;
  float* result;
};

// The bias of `panels` panels (1 or 2): the caller's where all channels exist, else a copy with a zero tail.
const float* PanelBias(const Epilogue& epilogue, int64_t panel, int64_t panels, int64_t channels, float (&tail)[32]) {
  if (epilogue.bias == nullptr) return nullptr;
  const int64_t count = channels - panel * 16;
  if (count >= panels * 16) return epilogue.bias + panel * 16;
  for (int64_t c = 0; c < panels * 16; ++c) tail[c] = c < count ? epilogue.bias[panel * 16 + c] : 0.0f;
  return tail;
}

// One chunk of the sum of one result pixel for result panels [first, last).
struct Chunk {
  const float* sources[kChunkPanels];
  int64_t weight_offsets[kChunkPanels];
  int64_t count = 0;
};

// `source_row(y, ky)` and `source_column(x, kx)` give the source position that a tap reads, or -1.
template <typename SourceRow, typename SourceColumn>
void RunImageProduct(const ImageProduct& p, const PanelKernels& kernels, const SourceRow& source_row,
                     const SourceColumn& source_column, int thread_count) {
  const int64_t pixels = p.result_height * p.result_width;
  const int64_t panel_floats = p.batch * 16;
  const int64_t result_panel_stride = p.kernel_h * p.kernel_w * p.source_panels * 256;
  // A pixel is one task, or several by result panels where the pixels are too few to share out evenly.
  const int64_t wanted = std::max<int64_t>(1, (8 * thread_count + pixels - 1) / pixels);
  const int64_t groups = thread_count <= 1 ? 1 : std::min(p.result_panels, wanted);
  const int64_t k_count = p.source_panels == 1 ? std::min<int64_t>(16, p.source_channels) : 16;

  ParallelFor(thread_count, pixels * groups, [&](int64_t task) {
    const int64_t pixel = task / groups;
    const int64_t first_panel = p.result_panels * (task % groups) / groups;
    const int64_t last_panel = p.result_panels * (task % groups + 1) / groups;
    const int64_t y = pixel / p.result_width;
    const int64_t x = pixel % p.result_width;

    int64_t rows_inside = 0, columns_inside = 0;
    for (int64_t ky = 0; ky < p.kernel_h; ++ky) rows_inside += source_row(y, ky) >= 0;
    for (int64_t kx = 0; kx < p.kernel_w; ++kx) columns_inside += source_column(x, kx) >= 0;
    const int64_t total = rows_inside * columns_inside * p.source_panels;
    const int64_t chunk_count = std::max<int64_t>(1, (total + kChunkPanels - 1) / kChunkPanels);

    Chunk chunk;
    int64_t chunk_index = 0, seen = 0;
    const auto flush = [&] {
      const bool last = chunk_index == chunk_count - 1;
      for (int64_t panel = first_panel; panel < last_panel;) {
        const int64_t width = kernels.gemm_pair != nullptr && panel + 1 < last_panel ? 2 : 1;
        float tail[32];
        const float* bias = last ? PanelBias(*p.epilogue, panel, width, p.result_channels, tail) : nullptr;
        const float slope = last ? p.epilogue->slope : 1.0f;
        const float* b = p.packed + panel * result_panel_stride;
        const float* next_b =
            panel + width < last_panel && chunk.count > 0 ? b + width * result_panel_stride + chunk.weight_offsets[0] : nullptr;
        float* c = p.result + (pixel * p.result_panels + panel) * panel_floats;
        if (width == 2) {
          kernels.gemm_pair(p.batch, chunk.count, chunk.sources, b, result_panel_stride, chunk.weight_offsets, k_count, c,
                            panel_floats, chunk_index > 0, bias, slope, next_b);
        } else {
          kernels.gemm(p.batch, chunk.count, chunk.sources, b, chunk.weight_offsets, k_count, c, chunk_index > 0, bias, slope,
                       next_b);
        }
        panel += width;
      }
      chunk.count = 0;
      ++chunk_index;
    };
    for (int64_t ky = 0; ky < p.kernel_h; ++ky) {
      const int64_t source_y = source_row(y, ky);
      if (source_y < 0) continue;
      for (int64_t kx = 0; kx < p.kernel_w; ++kx) {
        const int64_t source_x = source_column(x, kx);
        if (source_x < 0) continue;
        const float* source = p.source + (source_y * p.source_width + source_x) * p.source_panels * panel_floats;
        const int64_t offset = (ky * p.kernel_w + kx) * p.source_panels * 256;
        for (int64_t s = 0; s < p.source_panels; ++s) {
          chunk.sources[chunk.count] = source + s * panel_floats;
          chunk.weight_offsets[chunk.count] = offset + s * 256;
          ++chunk.count;
          ++seen;
          if (seen == total * (chunk_index + 1) / chunk_count) flush();
        }
      }
    }
    if (total == 0) flush();  // no tap falls inside: zero, then the epilogue
  });
}

// Cuts `count` tasks of equal work into groups: as few as keep all threads equally busy.
int64_t Groups(int64_t tasks, int64_t most, int thread_count) {
  if (thread_count <= 1) return 1;
  for (int64_t groups = 1; groups < most; ++groups) {
    if (tasks * groups % thread_count == 0 || tasks * groups >= 8 * thread_count) return groups;
  }
  return most;
}

}  // namespace

int64_t ForwardWeightFloats(const ConvGeometry& g) {
  return PanelCount(g.out_channels) * PanelCount(g.in_channels) * g.taps() * 256;
}

int64_t InputGradientWeightFloats(const ConvGeometry& g) { return ForwardWeightFloats(g); }

void GatherWeights(const ConvGeometry& g, const PanelKernels& kernels, const float* weights, int64_t out_panel,
                   int64_t in_panel, bool rows_are_inputs, float* blocks, int64_t tap_stride) {
  const int64_t taps = g.taps();
  const int64_t out_count = std::min<int64_t>(16, g.out_channels - out_panel * 16);
  const int64_t in_count = std::min<int64_t>(16, g.in_channels - in_panel * 16);
  const float* first = weights + (out_panel * 16 * g.in_channels + in_panel * 16) * taps;
  if (taps == 16 && out_count == 16 && in_count == 16) {
    const int64_t in_stride = 16, out_stride = g.in_channels * 16;
    for (int64_t row = 0; row < 16; ++row) {
      kernels.transpose(first + row * (rows_are_inputs ? in_stride : out_stride),
                        rows_are_inputs ? out_stride : in_stride, blocks + row * 16, tap_stride, false);
    }
    return;
  }
  if (out_count < 16 || in_count < 16) {
    for (int64_t tap = 0; tap < taps; ++tap) std::fill_n(blocks + tap * tap_stride, 256, 0.0f);
  }
  for (int64_t o = 0; o < out_count; ++o) {
    const float* from = first + o * g.in_channels * taps;
    for (int64_t i = 0; i < in_count; ++i) {
      float* to = blocks + (rows_are_inputs ? i * 16 + o : o * 16 + i);
      for (int64_t tap = 0; tap < taps; ++tap) to[tap * tap_stride] = from[i * taps + tap];
    }
  }
}

void PackForward(const ConvGeometry& g, const PanelKernels& kernels, const float* weights, float* packed,
                 int thread_count) {
  const int64_t in_panels = PanelCount(g.in_channels);
  ParallelFor(thread_count, PanelCount(g.out_channels) * in_panels, [&](int64_t task) {
    const int64_t out_panel = task / in_panels;
    const int64_t in_panel = task % in_panels;
    GatherWeights(g, kernels, weights, out_panel, in_panel, true,
                  packed + (out_panel * g.taps() * in_panels + in_panel) * 256, in_panels * 256);
  });
}

void PackInputGradient(const ConvGeometry& g, const PanelKernels& kernels, const float* weights, float* packed,
                       int thread_count) {
  const int64_t out_panels = PanelCount(g.out_channels);
  ParallelFor(thread_count, PanelCount(g.in_channels) * out_panels, [&](int64_t task) {
    const int64_t in_panel = task / out_panels;
    const int64_t out_panel = task % out_panels;
    GatherWeights(g, kernels, weights, out_panel, in_panel, false,
                  packed + (in_panel * g.taps() * out_panels + out_panel) * 256, out_panels * 256);
  });
}

void Forward(const ConvGeometry& g, const PanelKernels& kernels, const float* input, const float* packed,
             const Epilogue& epilogue, float* output, int thread_count) {
  const Axis vertical = Vertical(g), horizontal = Horizontal(g);
  const ImageProduct product{.batch = g.batch,
                             .source_panels = PanelCount(g.in_channels),
                             .source_width = g.in_w,
                             .source_channels = g.in_channels,
                             .result_panels = PanelCount(g.out_channels),
                             .result_height = g.out_h,
                             .result_width = g.out_w,
                             .result_channels = g.out_channels,
                             .kernel_h = g.kernel_h,
                             .kernel_w = g.kernel_w,
                             .source = input,
                             .packed = packed,
                             .epilogue = &epilogue,
                             .result = output};
  RunImageProduct(
      product, kernels, [&](int64_t y, int64_t ky) { return vertical.Input(y, ky); },
      [&](int64_t x, int64_t kx) { return horizontal.Input(x, kx); }, thread_count);
}

void InputGradient(const ConvGeometry& g, const PanelKernels& kernels, const float* output_gradient,
                   const float* packed, const Epilogue& epilogue, float* input_gradient, int thread_count) {
  const Axis vertical = Vertical(g), horizontal = Horizontal(g);
  const ImageProduct product{.batch = g.batch,
                             .source_panels = PanelCount(g.out_channels),
                             .source_width = g.out_w,
                             .source_channels = g.out_channels,
                             .result_panels = PanelCount(g.in_channels),
                             .result_height = g.in_h,
                             .result_width = g.in_w,
                             .result_channels = g.in_channels,
                             .kernel_h = g.kernel_h,
                             .kernel_w = g.kernel_w,
                             .source = output_gradient,
                             .packed = packed,
                             .epilogue = &epilogue,
                             .result = input_gradient};
  RunImageProduct(
      product, kernels, [&](int64_t y, int64_t ky) { return vertical.Output(y, ky); },
      [&](int64_t x, int64_t kx) { return horizontal.Output(x, kx); }, thread_count);
}

void StoreWeightGradient(const ConvGeometry& g, const PanelKernels& kernels, const float* sums, bool accumulate,
                         float* weight_gradient, int thread_count) {
  const int64_t in_panels = PanelCount(g.in_channels);
  const int64_t out_panels = PanelCount(g.out_channels);
  const int64_t taps = g.taps();
  ParallelFor(thread_count, out_panels * in_panels, [&](int64_t task) {
    const int64_t first_out = task / in_panels * 16;
    const int64_t first_in = task % in_panels * 16;
    const int64_t out_count = std::min<int64_t>(16, g.out_channels - first_out);
    const int64_t in_count = std::min<int64_t>(16, g.in_channels - first_in);
    const float* from = sums + task * 256;
    const int64_t tap_stride = out_panels * in_panels * 256;
    if (taps == 16 && out_count == 16 && in_count == 16) {
      for (int64_t i = 0; i < 16; ++i) {
        kernels.transpose(from + i * 16, tap_stride, weight_gradient + (first_out * g.in_channels + first_in + i) * 16,
                          g.in_channels * 16, accumulate);
      }
      return;
    }
    for (int64_t o = 0; o < out_count; ++o) {
      float* to = weight_gradient + ((first_out + o) * g.in_channels + first_in) * taps;
      for (int64_t i = 0; i < in_count; ++i) {
        const float* column = from + i * 16 + o;
        if (accumulate) {
          for (int64_t t = 0; t < taps; ++t) to[i * taps + t] += column[t * tap_stride];
        } else {
          for (int64_t t = 0; t < taps; ++t) to[i * taps + t] = column[t * tap_stride];
        }
      }
    }
  });
}

int64_t WeightGradientScratchFloats(const ConvGeometry& g) { return ForwardWeightFloats(g); }

void WeightGradient(const ConvGeometry& g, const GradientOperands& operands, const PanelKernels& kernels, const float* input,
                    const float* output_gradient, bool accumulate, float* weight_gradient, float* scratch,
                    int thread_count) {
  const Axis vertical = Vertical(g), horizontal = Horizontal(g);
  const int64_t in_panels = PanelCount(g.in_channels);
  const int64_t out_panels = PanelCount(g.out_channels);
  const int64_t input_floats = operands.input_images * 16, output_floats = operands.output_images * 16;  // of a panel
  const int64_t chunk_pixels = std::clamp<int64_t>(256 / g.batch, 1, kChunkPanels);
  const int64_t groups = Groups(g.taps(), out_panels, thread_count);

  // A task is one tap and a group of output panels: chunks of pixels outermost, so that a chunk of the input stays in
  // the second-level cache and 256 rows of one output panel in the first.
  ParallelFor(thread_count, g.taps() * groups, [&](int64_t task) {
    const int64_t tap = task / groups;
    const int64_t ky = tap / g.kernel_w;
    const int64_t kx = tap % g.kernel_w;
    const int64_t first_out = out_panels * (task % groups) / groups;
    const int64_t last_out = out_panels * (task % groups + 1) / groups;
    float* sums = scratch + tap * out_panels * in_panels * 256;

    const float* inputs[kChunkPanels];
    const float* outputs[kChunkPanels];
    int64_t count = 0;
    bool first = true;
    const auto flush = [&] {
      for (int64_t o = first_out; o < last_out;) {
        const int64_t width = kernels.gemm_transposed_pair != nullptr && o + 1 < last_out ? 2 : 1;
        const float* gradients[kChunkPanels];
        const float* next[kChunkPanels];
        for (int64_t i = 0; i < count; ++i) gradients[i] = outputs[i] + o * output_floats;
        for (int64_t i = 0; i < count; ++i) next[i] = gradients[i] + width * output_floats;
        for (int64_t c = 0; c < in_panels; ++c) {
          const float* sources[kChunkPanels];
          for (int64_t i = 0; i < count; ++i) sources[i] = inputs[i] + c * input_floats;
          const int64_t rows = std::min<int64_t>(16, g.in_channels - c * 16);
          float* sum = sums + (o * in_panels + c) * 256;
          const float* const* fetched = c == 0 && o + width < last_out ? next : nullptr;
          if (width == 2) {
            kernels.gemm_transposed_pair(rows, count, sources, gradients, output_floats, g.batch, sum, in_panels * 256, !first,
                                         fetched);
          } else {
            kernels.gemm_transposed(rows, count, sources, gradients, g.batch, sum, !first, fetched);
          }
        }
        o += width;
      }
      first = false;
      count = 0;
    };
    for (int64_t y = 0; y < g.out_h; ++y) {
      const int64_t in_y = vertical.Input(y, ky);
      if (in_y < 0) continue;
      for (int64_t x = 0; x < g.out_w; ++x) {
        const int64_t in_x = horizontal.Input(x, kx);
        if (in_x < 0) continue;
        inputs[count] = input + (in_y * g.in_w + in_x) * in_panels * input_floats;
        outputs[count] = output_gradient + (y * g.out_w + x) * operands.output_panels * output_floats;
        if (++count == chunk_pixels) flush();
      }
    }
    if (count > 0 || first) flush();
  });
  StoreWeightGradient(g, kernels, scratch, accumulate, weight_gradient, thread_count);
}

}  // namespace gantry::cpu::direct
