// Scaling images to the size a model wants.
#pragma once

#include <cstdint>

#include "memory/status.h"

namespace gantry {

// `pixels` u8 [rows, columns, channels] to `to` f32 [channels, height, width], values 0..255 unrounded: scaled, keeping
// its shape, so that it just covers height x width, and cropped in the middle. The filter is the triangle whose width
// grows with the reduction (as Pillow's BILINEAR), so that scaling down averages instead of skipping. All sizes are >
// 0. kResourceExhausted where memory is short.
absl::Status ResizeAndCrop(const uint8_t* pixels, int64_t rows, int64_t columns, int64_t channels, int64_t height,
                           int64_t width, float* to);

}  // namespace gantry
