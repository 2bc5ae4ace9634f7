// The direct form with a row-major image of few channels on the input's side. The taps of all its channels, in the order of the
// weights, are the k (forward), the rows (weight gradient) or the columns (input gradient) of one product per output pixel.
#include <algorithm>
#include <cstring>

#include "memory/cpu/parallel.h"
#include "ops/cpu/panel/direct_conv.h"

namespace gantry::cpu::direct {
namespace {

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));

// Weight-gradient partial sums: a fixed number, so that the result does not depend on the threads.
constexpr int64_t kSlices = 16;

int64_t TapCount(const ConvGeometry& g) { return g.in_channels * g.taps(); }
int64_t TapPanels(const ConvGeometry& g) { return PanelCount(TapCount(g)); }
int64_t ChunkPixels(const ConvGeometry& g) { return std::clamp<int64_t>(256 / g.batch, 1, kChunkPanels); }
// The gathered taps of one pixel of all images.
int64_t TapFloats(const ConvGeometry& g) { return TapPanels(g) * g.batch * 16; }

// The taps that one output pixel sees, of all images: [tap panel][batch][16], zero outside the image and behind the last tap.
void GatherTaps(const ConvGeometry& g, const float* image, int64_t y, int64_t x, float* taps) {
  const int64_t in_x = x * g.stride_w - g.pad_left;
  const int64_t in_y = y * g.stride_h - g.pad_top;
  const int64_t tap_count = TapCount(g);
  const bool whole_rows = in_x >= 0 && in_x + (g.kernel_w - 1) * g.dilation_w < g.in_w;
  const bool fours = whole_rows && g.kernel_w == 4 && g.dilation_w == 1;
  for (int64_t n = 0; n < g.batch; ++n) {
    float* row = taps + n * 16;
    int64_t tap = 0;
    for (int64_t c = 0; c < g.in_channels; ++c) {
      const float* channel = image + (n * g.in_channels + c) * g.in_h * g.in_w;
      for (int64_t ky = 0; ky < g.kernel_h; ++ky) {
        const int64_t from_y = in_y + ky * g.dilation_h;
        const bool inside = from_y >= 0 && from_y < g.in_h;
        if (fours) {
          *reinterpret_cast<Four*>(row + tap / 16 * g.batch * 16 + tap % 16) =
              inside ? *reinterpret_cast<const Four*>(channel + from_y * g.in_w + in_x) : Four{};
          tap += 4;
          continue;
        }
        for (int64_t kx = 0; kx < g.kernel_w; ++kx, ++tap) {
          const int64_t from_x = in_x + kx * g.dilation_w;
          row[tap / 16 * g.batch * 16 + tap % 16] =
              inside && from_x >= 0 && from_x < g.in_w ? channel[from_y * g.in_w + from_x] : 0.0f;
        }
      }
    }
    for (tap = tap_count; tap % 16 != 0; ++tap) row[tap / 16 * g.batch * 16 + tap % 16] = 0.0f;
  }
}

// The adjoint of GatherTaps for images [first, first + count): taps is [tap panel][count][16].
void ScatterTaps(const ConvGeometry& g, const float* taps, int64_t y, int64_t x, int64_t first, int64_t count, float* image) {
  const int64_t in_x = x * g.stride_w - g.pad_left;
  const int64_t in_y = y * g.stride_h - g.pad_top;
  const bool whole_rows = in_x >= 0 && in_x + (g.kernel_w - 1) * g.dilation_w < g.in_w;
  const bool fours = whole_rows && g.kernel_w == 4 && g.dilation_w == 1;
  for (int64_t n = 0; n < count; ++n) {
    const float* row = taps + n * 16;
    int64_t tap = 0;
    for (int64_t c = 0; c < g.in_channels; ++c) {
      float* channel = image + ((first + n) * g.in_channels + c) * g.in_h * g.in_w;
      for (int64_t ky = 0; ky < g.kernel_h; ++ky) {
        const int64_t to_y = in_y + ky * g.dilation_h;
        if (to_y < 0 || to_y >= g.in_h) {
          tap += g.kernel_w;
          continue;
        }
        if (fours) {
          *reinterpret_cast<Four*>(channel + to_y * g.in_w + in_x) +=
              *reinterpret_cast<const Four*>(row + tap / 16 * count * 16 + tap % 16);
          tap += 4;
          continue;
        }
        for (int64_t kx = 0; kx < g.kernel_w; ++kx, ++tap) {
          const int64_t to_x = in_x + kx * g.dilation_w;
          if (to_x >= 0 && to_x < g.in_w) channel[to_y * g.in_w + to_x] += row[tap / 16 * count * 16 + tap % 16];
        }
      }
    }
  }
}

// gemm over any number of panels: `a` and `b` give the operands of panel i.
template <typename A, typename B>
void ChunkedGemm(const PanelKernels& kernels, int64_t rows, int64_t panels, int64_t k_count, const A& a, const B& b,
                 float* c, const float* bias, float slope) {
  for (int64_t first = 0; first < panels; first += kChunkPanels) {
    const int64_t count = std::min(kChunkPanels, panels - first);
    const float* sources[kChunkPanels];
    int64_t offsets[kChunkPanels];
    for (int64_t i = 0; i < count; ++i) {
      sources[i] = a(first + i);
      offsets[i] = b(first + i) - b(0);
    }
    const bool last = first + count == panels;
    kernels.gemm(rows, count, sources, b(0), offsets, k_count, c, first > 0, last ? bias : nullptr, last ? slope : 1.0f,
                 nullptr);
  }
}

}  // namespace

int64_t PlainForwardWeightFloats(const ConvGeometry& g) { return PanelCount(g.out_channels) * TapPanels(g) * 256; }
int64_t PlainInputGradientWeightFloats(const ConvGeometry& g) { return PlainForwardWeightFloats(g); }

void PackPlainForward(const ConvGeometry& g, const float* weights, float* packed, int thread_count) {
  const int64_t tap_panels = TapPanels(g), tap_count = TapCount(g);
  ParallelFor(thread_count, PanelCount(g.out_channels), [&](int64_t out_panel) {
    for (int64_t k = 0; k < tap_panels * 16; ++k) {
      for (int64_t o = 0; o < 16; ++o) {
        const int64_t out = out_panel * 16 + o;
        packed[(out_panel * tap_panels * 16 + k) * 16 + o] =
            k < tap_count && out < g.out_channels ? weights[out * tap_count + k] : 0.0f;
      }
    }
  });
}

void PackPlainInputGradient(const ConvGeometry& g, const float* weights, float* packed, int thread_count) {
  const int64_t out_panels = PanelCount(g.out_channels), tap_count = TapCount(g);
  ParallelFor(thread_count, TapPanels(g), [&](int64_t tap_panel) {
    for (int64_t out = 0; out < out_panels * 16; ++out) {
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t k = tap_panel * 16 + i;
        packed[(tap_panel * out_panels * 16 + out) * 16 + i] =
            k < tap_count && out < g.out_channels ? weights[out * tap_count + k] : 0.0f;
      }
    }
  });
}

int64_t PlainForwardScratchFloats(const ConvGeometry& g, int thread_count) {
  return std::max(thread_count, 1) * TapFloats(g);
}

void PlainForward(const ConvGeometry& g, const PanelKernels& kernels, const float* input_nchw, const float* packed,
                  const Epilogue& epilogue, float* output, float* scratch, int thread_count) {
  const int64_t tap_panels = TapPanels(g), out_panels = PanelCount(g.out_channels), pixels = g.out_h * g.out_w;
  const int64_t k_count = std::min<int64_t>(16, TapCount(g));
  const int64_t shares = std::max(thread_count, 1);
  ParallelFor(thread_count, shares, [&](int64_t share) {
    float* taps = scratch + share * TapFloats(g);
    for (int64_t pixel = pixels * share / shares; pixel < pixels * (share + 1) / shares; ++pixel) {
      GatherTaps(g, input_nchw, pixel / g.out_w, pixel % g.out_w, taps);
      for (int64_t o = 0; o < out_panels; ++o) {
        float bias[16] = {};
        const int64_t channels = std::min<int64_t>(16, g.out_channels - o * 16);
        if (epilogue.bias != nullptr) std::copy_n(epilogue.bias + o * 16, channels, bias);
        ChunkedGemm(
            kernels, g.batch, tap_panels, k_count, [&](int64_t k) { return taps + k * g.batch * 16; },
            [&](int64_t k) { return packed + (o * tap_panels + k) * 256; },
            output + (pixel * out_panels + o) * g.batch * 16, epilogue.bias != nullptr ? bias : nullptr, epilogue.slope);
      }
    }
  });
}

int64_t PlainInputGradientScratchFloats(const ConvGeometry& g, int thread_count) {
  return std::max(thread_count, 1) * TapPanels(g) * 256;
}

void PlainInputGradient(const ConvGeometry& g, const PanelKernels& kernels, const float* output_gradient,
                        const float* packed, const Epilogue& epilogue, float* input_gradient_nchw, float* scratch,
                        int thread_count) {
  const int64_t tap_panels = TapPanels(g), out_panels = PanelCount(g.out_channels);
  const int64_t k_count = out_panels == 1 ? std::min<int64_t>(16, g.out_channels) : 16;
  const int64_t shares = std::max<int64_t>(1, std::min<int64_t>(thread_count, g.batch));
  const int64_t pixels = g.in_h * g.in_w;
  // A share is a run of images, taken 16 at a time: their part of the product of one pixel stays in the first-level cache.
  ParallelFor(thread_count, shares, [&](int64_t share) {
    float* taps = scratch + share * tap_panels * 256;
    const int64_t last_image = g.batch * (share + 1) / shares;
    for (int64_t first = g.batch * share / shares; first < last_image; first += 16) {
      const int64_t count = std::min<int64_t>(16, last_image - first);
      for (int64_t plane = first * g.in_channels; plane < (first + count) * g.in_channels; ++plane) {
        std::fill_n(input_gradient_nchw + plane * pixels, pixels,
                    epilogue.bias != nullptr ? epilogue.bias[plane % g.in_channels] : 0.0f);
      }
      for (int64_t y = 0; y < g.out_h; ++y) {
        for (int64_t x = 0; x < g.out_w; ++x) {
          const float* source = output_gradient + ((y * g.out_w + x) * out_panels * g.batch + first) * 16;
          for (int64_t k = 0; k < tap_panels; ++k) {
            ChunkedGemm(
                kernels, count, out_panels, k_count, [&](int64_t o) { return source + o * g.batch * 16; },
                [&](int64_t o) { return packed + (k * out_panels + o) * 256; }, taps + k * count * 16, nullptr, 1.0f);
          }
          ScatterTaps(g, taps, y, x, first, count, input_gradient_nchw);
        }
      }
      if (epilogue.slope != 1.0f) {
        float* values = input_gradient_nchw + first * g.in_channels * pixels;
        for (int64_t i = 0; i < count * g.in_channels * pixels; ++i) {
          values[i] = values[i] > 0.0f ? values[i] : values[i] * epilogue.slope;
        }
      }
    }
  });
}

int64_t PlainWeightGradientScratchFloats(const ConvGeometry& g) {
  return kSlices * (PanelCount(g.out_channels) * TapPanels(g) * 256 + ChunkPixels(g) * TapFloats(g));
}

void PlainWeightGradient(const ConvGeometry& g, const PanelKernels& kernels, const float* input_nchw,
                         const float* output_gradient, bool accumulate, float* weight_gradient, float* scratch,
                         int thread_count) {
  const int64_t tap_panels = TapPanels(g), out_panels = PanelCount(g.out_channels), pixels = g.out_h * g.out_w;
  const int64_t chunk_pixels = ChunkPixels(g);
  const int64_t sum_floats = out_panels * tap_panels * 256;
  ParallelFor(thread_count, kSlices, [&](int64_t slice) {
    float* sums = scratch + slice * sum_floats;  // [out panel][tap panel][16 out][16 taps]
    float* taps = scratch + kSlices * sum_floats + slice * chunk_pixels * TapFloats(g);
    const int64_t first_pixel = pixels * slice / kSlices;
    const int64_t last_pixel = pixels * (slice + 1) / kSlices;
    if (first_pixel == last_pixel) std::memset(sums, 0, sum_floats * sizeof(float));
    for (int64_t first = first_pixel; first < last_pixel; first += chunk_pixels) {
      const int64_t count = std::min(chunk_pixels, last_pixel - first);
      for (int64_t i = 0; i < count; ++i) {
        GatherTaps(g, input_nchw, (first + i) / g.out_w, (first + i) % g.out_w, taps + i * TapFloats(g));
      }
      for (int64_t o = 0; o < out_panels; ++o) {
        for (int64_t k = 0; k < tap_panels; ++k) {
          const float* gradients[kChunkPanels];
          const float* sources[kChunkPanels];
          for (int64_t i = 0; i < count; ++i) {
            gradients[i] = output_gradient + ((first + i) * out_panels + o) * g.batch * 16;
            sources[i] = taps + i * TapFloats(g) + k * g.batch * 16;
          }
          kernels.gemm_transposed(std::min<int64_t>(16, g.out_channels - o * 16), count, gradients, sources, g.batch,
                                  sums + (o * tap_panels + k) * 256, first > first_pixel, nullptr);
        }
      }
    }
  });
  ParallelFor(thread_count, g.out_channels, [&](int64_t out) {
    for (int64_t tap = 0; tap < TapCount(g); ++tap) {
      float sum = 0.0f;
      for (int64_t slice = 0; slice < kSlices; ++slice) {
        sum += scratch[slice * sum_floats + (out / 16 * tap_panels + tap / 16) * 256 + out % 16 * 16 + tap % 16];
      }
      float& to = weight_gradient[out * TapCount(g) + tap];
      to = accumulate ? to + sum : sum;
    }
  });
}

}  // namespace gantry::cpu::direct
