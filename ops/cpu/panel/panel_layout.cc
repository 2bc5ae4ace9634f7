#include "ops/cpu/panel/panel_layout.h"

#include <algorithm>

#include "memory/cpu/parallel.h"
#include "ops/cpu/panel/panel_kernels.h"

namespace gantry::cpu {
namespace {

// A task is one channel panel of up to 16 neighbouring pixels of all images: each touched cache line is used whole.
struct Blocks {
  int64_t batch, channels, pixels;
  int64_t panels = PanelCount(channels);
  int64_t pixel_blocks = (pixels + 15) / 16;

  int64_t count() const { return panels * pixel_blocks; }
};

}  // namespace

void PlainToPanel(const float* plain, int64_t batch, int64_t channels, int64_t height, int64_t width, float* panel,
                  int thread_count) {
  const Blocks blocks{batch, channels, height * width};
  const PanelKernels& kernels = KernelsFor(BestIsa());
  ParallelFor(thread_count, blocks.count(), [&](int64_t task) {
    const int64_t panel_index = task % blocks.panels;
    const int64_t first_pixel = task / blocks.panels * 16;
    const int64_t pixel_count = std::min<int64_t>(16, blocks.pixels - first_pixel);
    const int64_t channel_count = std::min<int64_t>(16, channels - panel_index * 16);
    for (int64_t n = 0; n < batch; ++n) {
      const float* from = plain + (n * channels + panel_index * 16) * blocks.pixels + first_pixel;
      if (pixel_count == 16 && channel_count == 16) {
        kernels.transpose(from, blocks.pixels, panel + ((first_pixel * blocks.panels + panel_index) * batch + n) * 16,
                          blocks.panels * batch * 16, false);
        continue;
      }
      for (int64_t p = 0; p < pixel_count; ++p) {
        float* to = panel + (((first_pixel + p) * blocks.panels + panel_index) * batch + n) * 16;
        for (int64_t c = 0; c < channel_count; ++c) to[c] = from[c * blocks.pixels + p];
        for (int64_t c = channel_count; c < 16; ++c) to[c] = 0.0f;
      }
    }
  });
}

void PanelToPlain(const float* panel, int64_t batch, int64_t channels, int64_t height, int64_t width, float* plain,
                  int thread_count) {
  const Blocks blocks{batch, channels, height * width};
  const PanelKernels& kernels = KernelsFor(BestIsa());
  ParallelFor(thread_count, blocks.count(), [&](int64_t task) {
    const int64_t panel_index = task % blocks.panels;
    const int64_t first_pixel = task / blocks.panels * 16;
    const int64_t pixel_count = std::min<int64_t>(16, blocks.pixels - first_pixel);
    const int64_t channel_count = std::min<int64_t>(16, channels - panel_index * 16);
    for (int64_t n = 0; n < batch; ++n) {
      const float* from = panel + ((first_pixel * blocks.panels + panel_index) * batch + n) * 16;
      float* to = plain + (n * channels + panel_index * 16) * blocks.pixels + first_pixel;
      if (pixel_count == 16 && channel_count == 16) {
        kernels.transpose(from, blocks.panels * batch * 16, to, blocks.pixels, false);
        continue;
      }
      for (int64_t c = 0; c < channel_count; ++c) {
        for (int64_t p = 0; p < pixel_count; ++p) to[c * blocks.pixels + p] = from[p * blocks.panels * batch * 16 + c];
      }
    }
  });
}

}  // namespace gantry::cpu
