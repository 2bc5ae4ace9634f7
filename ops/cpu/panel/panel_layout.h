// The panel layout: a tensor [N, C, H, W] of f32 stored as [H][W][ceil(C / 16)][N][16], the channel tail zero. Every
// pixel is an N x C matrix in panels of 16 channels, so that a convolution is a sum of matrix products over the taps
// that fall inside the image: nothing is unrolled and padding costs nothing.
#pragma once

#include <cstdint>

namespace gantry::cpu {

inline constexpr int64_t kPanelChannels = 16;

// The number of panels that hold `channels`.
constexpr int64_t PanelCount(int64_t channels) { return (channels + kPanelChannels - 1) / kPanelChannels; }

// Floats that a panel tensor takes, padding included.
constexpr int64_t PanelFloats(int64_t batch, int64_t channels, int64_t height, int64_t width) {
  return height * width * PanelCount(channels) * batch * kPanelChannels;
}

// Between row-major [N, C, H, W] and the panel layout. The buffers do not overlap. Writes the whole result, the zero
// tail of the channels included.
void PlainToPanel(const float* plain, int64_t batch, int64_t channels, int64_t height, int64_t width, float* panel,
                  int thread_count);
void PanelToPlain(const float* panel, int64_t batch, int64_t channels, int64_t height, int64_t width, float* plain,
                  int thread_count);

}  // namespace gantry::cpu
