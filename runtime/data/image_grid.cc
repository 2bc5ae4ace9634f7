#include "runtime/data/image_grid.h"

#include <algorithm>
#include <cmath>

#include "runtime/data/png.h"

namespace gantry {

void ScaleToBytes(std::span<const float> values, uint8_t* to) {
  for (size_t i = 0; i < values.size(); ++i) {
    const float scaled = (values[i] + 1.0f) * 127.5f;
    to[i] =
        scaled > 0.0f ? static_cast<uint8_t>(std::lround(std::min(scaled, 255.0f))) : uint8_t{0};  // NaN > 0 is false
  }
}

absl::StatusOr<HostArray> MakeImageGrid(std::span<const float> images, std::span<const int64_t> shape,
                                        int64_t columns) {
  GANTRY_ASSIGN_OR_RETURN(const int64_t count, CheckedElementCount(HostType::kF32, shape));
  if (shape.size() != 4 || (shape[1] != 1 && shape[1] != 3) || count == 0 || columns < 1 ||
      images.size() != static_cast<size_t>(count)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "an image grid takes [N, 1 or 3, H, W] with N > 0 and at least 1 column; given are %s, %d values "
        "and %d columns",
        ShapeText(shape), images.size(), columns));
  }
  const int64_t channels = shape[1], height = shape[2], width = shape[3];
  columns = std::min(columns, shape[0]);
  const int64_t rows = (shape[0] + columns - 1) / columns;
  int64_t grid_height = 0, grid_width = 0;
  if (__builtin_mul_overflow(rows, height + kGridGapPixels, &grid_height) ||
      __builtin_mul_overflow(columns, width + kGridGapPixels, &grid_width)) {
    return absl::InvalidArgumentError(absl::StrFormat("an image grid of %s is too large", ShapeText(shape)));
  }
  grid_height += kGridGapPixels;
  grid_width += kGridGapPixels;
  GANTRY_ASSIGN_OR_RETURN(HostArray grid, HostArray::Create(HostType::kU8, {grid_height, grid_width, channels}));
  GANTRY_ASSIGN_OR_RETURN(HostArray bytes, HostArray::Create(HostType::kU8, {count}));
  const std::span<uint8_t> values = bytes.mutable_values<uint8_t>();
  ScaleToBytes(images, values.data());
  uint8_t* const to = grid.mutable_values<uint8_t>().data();
  for (int64_t image = 0; image < shape[0]; ++image) {
    const int64_t top = kGridGapPixels + image / columns * (height + kGridGapPixels);
    const int64_t left = kGridGapPixels + image % columns * (width + kGridGapPixels);
    const uint8_t* from = values.data() + image * channels * height * width;
    for (int64_t channel = 0; channel < channels; ++channel) {
      for (int64_t row = 0; row < height; ++row) {
        for (int64_t column = 0; column < width; ++column) {
          to[((top + row) * grid_width + left + column) * channels + channel] = *from++;
        }
      }
    }
  }
  return grid;
}

absl::Status WriteImageGrid(const std::string& path, std::span<const float> images, std::span<const int64_t> shape,
                            int64_t columns) {
  absl::StatusOr<HostArray> grid = MakeImageGrid(images, shape, columns);
  if (!grid.ok()) return Annotate(grid.status(), path);
  return WritePng(path, *grid);
}

}  // namespace gantry
