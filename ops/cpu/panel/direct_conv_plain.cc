// The direct form with a row-major image of few channels on the input's side. The taps of all its channels, in the
// order of the weights, are the k (forward), the rows (weight gradient) or the columns (input gradient) of one product
// per output pixel.
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
// Neighbouring pixels of a row whose taps are gathered or scattered together.
constexpr int64_t kBlockPixels = 8;
// Images whose gradients are scattered together.
constexpr int64_t kBlockImages = 64;
// The gathered taps of one pixel of all images.
int64_t TapFloats(const ConvGeometry& g) { return TapPanels(g) * g.batch * 16; }

// The kernel rows of all channels for output row y, as they lie in an image and among the taps.
class KernelRows {
 public:
  KernelRows(const ConvGeometry& g, int64_t y, int64_t panel_floats) : panel_floats_(panel_floats) {
    // Row r is (channel r / kernel_h, ky r % kernel_h). A kernel row of 4 never straddles two tap panels.
    count_ = g.in_channels * g.kernel_h;
    tabled_ = count_ <= kMostRows;
    for (int64_t r = 0; tabled_ && r < count_; ++r) {
      sources_[r] = Source(g, y, r);
      targets_[r] = Target(r * g.kernel_w);
    }
  }
  int64_t count() const { return count_; }
  bool tabled() const { return tabled_; }
  // Offset of the row in an image, -1 where it is outside.
  int64_t source(const ConvGeometry& g, int64_t y, int64_t r) const { return tabled_ ? sources_[r] : Source(g, y, r); }
  // Offset of a row's first tap from the taps of one image.
  int64_t target(int64_t r) const { return targets_[r]; }
  // Offset of any tap.
  int64_t Target(int64_t tap) const { return (tap >> 4) * panel_floats_ + (tap & 15); }

 private:
  static constexpr int64_t kMostRows = 64;

  static int64_t Source(const ConvGeometry& g, int64_t y, int64_t r) {
    const int64_t in_y = y * g.stride_h - g.pad_top + r % g.kernel_h * g.dilation_h;
    return in_y >= 0 && in_y < g.in_h ? (r / g.kernel_h * g.in_h + in_y) * g.in_w : -1;
  }

  int64_t panel_floats_;
  int64_t count_;
  bool tabled_;
  int64_t sources_[kMostRows];
  int64_t targets_[kMostRows];
};

// Whether every tap of output column x is inside and four floats wide.
bool FoursInside(const ConvGeometry& g, const KernelRows& rows, int64_t in_x) {
  return rows.tabled() && g.kernel_w == 4 && g.dilation_w == 1 && in_x >= 0 && in_x + 4 <= g.in_w;
}

// The taps that output pixels (y, x) ... (y, x + count - 1) see, of all images: [pixel][tap panel][batch][16], zero
// outside the image and behind the last tap. Image by image: the rows of all images often share a cache set, so that
// pixel by pixel their lines would be fetched anew each time.
void GatherTaps(const ConvGeometry& g, const float* images, int64_t y, int64_t x, int64_t count, float* taps) {
  const KernelRows rows(g, y, g.batch * 16);
  const int64_t tap_count = TapCount(g);
  for (int64_t n = 0; n < g.batch; ++n) {
    const float* image = images + n * g.in_channels * g.in_h * g.in_w;
    for (int64_t pixel = 0; pixel < count; ++pixel) {
      const int64_t in_x = (x + pixel) * g.stride_w - g.pad_left;
      float* to = taps + pixel * TapFloats(g) + n * 16;
      if (FoursInside(g, rows, in_x)) {
        for (int64_t r = 0; r < rows.count(); ++r) {
          const int64_t source = rows.source(g, y, r);
          *reinterpret_cast<Four*>(to + rows.target(r)) =
              source >= 0 ? *reinterpret_cast<const Four*>(image + source + in_x) : Four{};
        }
      } else {
        for (int64_t r = 0; r < rows.count(); ++r) {
          const int64_t source = rows.source(g, y, r);
          for (int64_t kx = 0; kx < g.kernel_w; ++kx) {
            const int64_t from_x = in_x + kx * g.dilation_w;
            to[rows.Target(r * g.kernel_w + kx)] =
                source >= 0 && from_x >= 0 && from_x < g.in_w ? image[source + from_x] : 0.0f;
          }
        }
      }
      for (int64_t tap = tap_count; tap % 16 != 0; ++tap) to[rows.Target(tap)] = 0.0f;
    }
  }
}

// The adjoint of GatherTaps for images [first, first + count): adds taps[pixel][tap panel][count][16] to the images.
void ScatterTaps(const ConvGeometry& g, const float* taps, int64_t y, int64_t x, int64_t pixels, int64_t first,
                 int64_t count, float* images) {
  const KernelRows rows(g, y, count * 16);
  // Pixels whose taps overlap are kept apart, so that a load does not wait for the store before it.
  const int64_t passes = std::min(pixels, (g.kernel_w + g.stride_w - 1) / g.stride_w);
  for (int64_t n = 0; n < count; ++n) {
    float* image = images + (first + n) * g.in_channels * g.in_h * g.in_w;
    for (int64_t pass = 0; pass < passes; ++pass) {
      for (int64_t pixel = pass; pixel < pixels; pixel += passes) {
        const int64_t in_x = (x + pixel) * g.stride_w - g.pad_left;
        const float* from = taps + pixel * TapPanels(g) * count * 16 + n * 16;
        if (FoursInside(g, rows, in_x)) {
          for (int64_t r = 0; r < rows.count(); ++r) {
            const int64_t target = rows.source(g, y, r);
            if (target < 0) continue;
            *reinterpret_cast<Four*>(image + target + in_x) += *reinterpret_cast<const Four*>(from + rows.target(r));
          }
          continue;
        }
        for (int64_t r = 0; r < rows.count(); ++r) {
          const int64_t target = rows.source(g, y, r);
          if (target < 0) continue;
          for (int64_t kx = 0; kx < g.kernel_w; ++kx) {
            const int64_t to_x = in_x + kx * g.dilation_w;
            if (to_x >= 0 && to_x < g.in_w) image[target + to_x] += from[rows.Target(r * g.kernel_w + kx)];
          }
        }
      }
    }
  }
}

// Calls run(first, count) for the output pixels [begin, end) in runs of one row and at most kBlockPixels.
template <typename Run>
void ForEachRun(const ConvGeometry& g, int64_t begin, int64_t end, const Run& run) {
  while (begin < end) {
    const int64_t count = std::min({kBlockPixels, end - begin, g.out_w - begin % g.out_w});
    run(begin, count);
    begin += count;
  }
}

// Every result panel r < result_panels at c + r * c_step is the product of all `panels` panels at `a`, a_step apart, and of the
// blocks b + (r * panels + i) * 256; then bias[r * 16 ...] and the activation.
void ProductOfPanels(const PanelKernels& kernels, int64_t rows, int64_t panels, int64_t k_count, const float* a, int64_t a_step,
                     const float* b, int64_t result_panels, float* c, int64_t c_step, const float* bias, float slope) {
  for (int64_t first = 0; first < panels; first += kChunkPanels) {
    const int64_t count = std::min(kChunkPanels, panels - first);
    const float* sources[kChunkPanels];
    int64_t offsets[kChunkPanels];
    for (int64_t i = 0; i < count; ++i) {
      sources[i] = a + (first + i) * a_step;
      offsets[i] = (first + i) * 256;
    }
    const bool last = first + count == panels;
    for (int64_t r = 0; r < result_panels;) {
      const int64_t width = kernels.gemm_pair != nullptr && r + 1 < result_panels ? 2 : 1;
      const float* shift = last && bias != nullptr ? bias + r * 16 : nullptr;
      const float* weights = b + r * panels * 256;
      if (width == 2) {
        kernels.gemm_pair(rows, count, sources, weights, panels * 256, offsets, k_count, c + r * c_step, c_step, first > 0, shift,
                          last ? slope : 1.0f, nullptr);
      } else {
        kernels.gemm(rows, count, sources, weights, offsets, k_count, c + r * c_step, first > 0, shift, last ? slope : 1.0f,
                     nullptr);
      }
      r += width;
    }
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
  return std::max(thread_count, 1) * kBlockPixels * TapFloats(g);
}

void PlainForward(const ConvGeometry& g, const PanelKernels& kernels, const float* input_nchw, const float* packed,
                  const Epilogue& epilogue, float* output, float* scratch, int thread_count) {
  const int64_t tap_panels = TapPanels(g), out_panels = PanelCount(g.out_channels), pixels = g.out_h * g.out_w;
  const int64_t k_count = std::min<int64_t>(16, TapCount(g));
  const int64_t shares = std::max(thread_count, 1);
  const int64_t full = g.out_channels / 16;  // panels of 16 channels; there may be one of fewer
  float tail[16] = {};                       // its bias
  if (epilogue.bias != nullptr) std::copy_n(epilogue.bias + full * 16, g.out_channels - full * 16, tail);
  ParallelFor(thread_count, shares, [&](int64_t share) {
    float* taps = scratch + share * kBlockPixels * TapFloats(g);
    ForEachRun(g, pixels * share / shares, pixels * (share + 1) / shares, [&](int64_t first, int64_t count) {
      GatherTaps(g, input_nchw, first / g.out_w, first % g.out_w, count, taps);
      for (int64_t i = 0; i < count; ++i) {
        ProductOfPanels(kernels, g.batch, tap_panels, k_count, taps + i * TapFloats(g), g.batch * 16, packed, full,
                        output + (first + i) * out_panels * g.batch * 16, g.batch * 16, epilogue.bias, epilogue.slope);
        if (full == out_panels) continue;
        ProductOfPanels(kernels, g.batch, tap_panels, k_count, taps + i * TapFloats(g), g.batch * 16,
                        packed + full * tap_panels * 256, 1, output + ((first + i) * out_panels + full) * g.batch * 16, 0,
                        epilogue.bias != nullptr ? tail : nullptr, epilogue.slope);
      }
    });
  });
}

int64_t PlainInputGradientScratchFloats(const ConvGeometry& g, int thread_count) {
  return std::max(thread_count, 1) * kBlockPixels * TapPanels(g) * kBlockImages * 16;
}

void PlainInputGradient(const ConvGeometry& g, const PanelKernels& kernels, const float* output_gradient,
                        const float* packed, const Epilogue& epilogue, float* input_gradient_nchw, float* scratch,
                        int thread_count) {
  const int64_t tap_panels = TapPanels(g), out_panels = PanelCount(g.out_channels);
  const int64_t k_count = out_panels == 1 ? std::min<int64_t>(16, g.out_channels) : 16;
  const int64_t shares = std::max<int64_t>(1, std::min<int64_t>(thread_count, g.batch));
  const int64_t pixels = g.in_h * g.in_w;
  // A share is a run of images, taken 16 at a time: their part of the products of a few pixels stays in the first-level
  // cache.
  ParallelFor(thread_count, shares, [&](int64_t share) {
    float* taps = scratch + share * kBlockPixels * tap_panels * kBlockImages * 16;
    const int64_t last_image = g.batch * (share + 1) / shares;
    for (int64_t first = g.batch * share / shares; first < last_image; first += kBlockImages) {
      const int64_t count = std::min(kBlockImages, last_image - first);
      for (int64_t plane = first * g.in_channels; plane < (first + count) * g.in_channels; ++plane) {
        std::fill_n(input_gradient_nchw + plane * pixels, pixels,
                    epilogue.bias != nullptr ? epilogue.bias[plane % g.in_channels] : 0.0f);
      }
      ForEachRun(g, 0, g.out_h * g.out_w, [&](int64_t pixel, int64_t run) {
        for (int64_t i = 0; i < run; ++i) {
          const float* source = output_gradient + ((pixel + i) * out_panels * g.batch + first) * 16;
          ProductOfPanels(kernels, count, out_panels, k_count, source, g.batch * 16, packed, tap_panels,
                          taps + i * tap_panels * count * 16, count * 16, nullptr, 1.0f);
        }
        ScatterTaps(g, taps, pixel / g.out_w, pixel % g.out_w, run, first, count, input_gradient_nchw);
      });
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
  return kSlices * (PanelCount(g.out_channels) * TapPanels(g) * 256 + kBlockPixels * TapFloats(g));
}

void PlainWeightGradient(const ConvGeometry& g, const GradientOperands& operands, const PanelKernels& kernels,
                         const float* input_nchw, const float* output_gradient, bool accumulate, float* weight_gradient, float* scratch,
                         int thread_count) {
  const int64_t tap_panels = TapPanels(g), out_panels = PanelCount(g.out_channels), pixels = g.out_h * g.out_w;
  const int64_t chunk_pixels = ChunkPixels(g);
  const int64_t sum_floats = out_panels * tap_panels * 256;
  ParallelFor(thread_count, kSlices, [&](int64_t slice) {
    float* sums = scratch + slice * sum_floats;  // [out panel][tap panel][16 out][16 taps]
    float* taps = scratch + kSlices * sum_floats + slice * kBlockPixels * TapFloats(g);
    const int64_t begin = pixels * slice / kSlices;
    const int64_t end = pixels * (slice + 1) / kSlices;
    if (begin == end) std::memset(sums, 0, sum_floats * sizeof(float));
    ForEachRun(g, begin, end, [&](int64_t first, int64_t run) {
      GatherTaps(g, input_nchw, first / g.out_w, first % g.out_w, run, taps);
      for (int64_t chunk = 0; chunk < run; chunk += chunk_pixels) {
        const int64_t count = std::min(chunk_pixels, run - chunk);
        for (int64_t o = 0; o < out_panels; ++o) {
          for (int64_t k = 0; k < tap_panels;) {
            const int64_t width = kernels.gemm_transposed_pair != nullptr && k + 1 < tap_panels ? 2 : 1;
            const float* gradients[kChunkPanels];
            const float* sources[kChunkPanels];
            for (int64_t i = 0; i < count; ++i) {
              gradients[i] = output_gradient + ((first + chunk + i) * operands.output_panels + o) * operands.output_images * 16;
              sources[i] = taps + (chunk + i) * TapFloats(g) + k * g.batch * 16;
            }
            const int64_t rows = std::min<int64_t>(16, g.out_channels - o * 16);
            float* sum = sums + (o * tap_panels + k) * 256;
            const bool more = first > begin || chunk > 0;
            if (width == 2) {
              kernels.gemm_transposed_pair(rows, count, gradients, sources, g.batch * 16, g.batch, sum, 256, more, nullptr);
            } else {
              // The gradients are what comes from afar: the next ones are fetched.
              const float* next[kChunkPanels];
              for (int64_t i = 0; i < count; ++i) {
                next[i] = gradients[i] + (o + 1 < out_panels ? 1 : (count - 1) * operands.output_panels + 1) * operands.output_images * 16;
              }
              kernels.gemm_transposed(rows, count, gradients, sources, g.batch, sum, more, k + 1 == tap_panels ? next : nullptr);
            }
            k += width;
          }
        }
      }
    });
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
