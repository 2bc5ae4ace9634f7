// Sample sheets: many small images in one PNG.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "memory/status.h"
#include "runtime/data/host_array.h"

namespace gantry {

// Black pixels around and between the images of a sheet.
inline constexpr int64_t kGridGapPixels = 2;

// `values` in [-1, 1] as 0..255: clamped, rounded to nearest; NaN becomes 0.
void ScaleToBytes(std::span<const float> values, uint8_t* to);

// The sheet as u8 [height, width, C]: `images` f32 of `shape` [N, C, H, W] in [-1, 1], C 1 or 3, row by row from the
// upper left, `columns` a row; cells without an image are black. kInvalidArgument for other shapes, columns < 1 or N =
// 0.
absl::StatusOr<HostArray> MakeImageGrid(std::span<const float> images, std::span<const int64_t> shape, int64_t columns);

// MakeImageGrid as a PNG file, written beside, synced, renamed.
absl::Status WriteImageGrid(const std::string& path, std::span<const float> images, std::span<const int64_t> shape,
                            int64_t columns);

}  // namespace gantry
