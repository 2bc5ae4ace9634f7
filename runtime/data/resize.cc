#include "runtime/data/resize.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <stdexcept>
#include <vector>

namespace gantry {
namespace {

// What each output position takes from the input along one axis: weights of `first`, `first` + 1, ...
struct Axis {
  std::vector<int64_t> first;
  std::vector<int64_t> begin;  // of each position's weights; one more than positions
  std::vector<double> weights;
};

// `to` positions over the input interval [offset, offset + to * step) of an axis of `from` pixels.
Axis MakeAxis(int64_t from, int64_t to, double offset, double step) {
  Axis axis;
  const double support = std::max(step, 1.0);
  axis.begin.push_back(0);
  for (int64_t position = 0; position < to; ++position) {
    const double centre = offset + (static_cast<double>(position) + 0.5) * step;
    const auto first = std::clamp(static_cast<int64_t>(centre - support + 0.5), int64_t{0}, from - 1);
    const auto last = std::clamp(static_cast<int64_t>(centre + support + 0.5), first + 1, from);
    double sum = 0.0;
    for (int64_t at = first; at < last; ++at) {
      axis.weights.push_back(std::max(0.0, 1.0 - std::abs((static_cast<double>(at) + 0.5 - centre) / support)));
      sum += axis.weights.back();
    }
    for (auto weight = axis.weights.begin() + axis.begin.back(); weight != axis.weights.end(); ++weight) *weight /= sum;
    axis.first.push_back(first);
    axis.begin.push_back(static_cast<int64_t>(axis.weights.size()));
  }
  return axis;
}

void Resize(const uint8_t* pixels, int64_t rows, int64_t columns, int64_t channels, int64_t height, int64_t width,
            float* to) {
  const double step = std::min(static_cast<double>(rows) / static_cast<double>(height),
                               static_cast<double>(columns) / static_cast<double>(width));
  const Axis vertical =
      MakeAxis(rows, height, (static_cast<double>(rows) - static_cast<double>(height) * step) / 2, step);
  const Axis horizontal =
      MakeAxis(columns, width, (static_cast<double>(columns) - static_cast<double>(width) * step) / 2, step);
  std::vector<double> line(static_cast<size_t>(width * channels));  // one output row before the vertical sum
  std::vector<double> sum(line.size());
  for (int64_t y = 0; y < height; ++y) {
    std::ranges::fill(sum, 0.0);
    for (int64_t tap = vertical.begin[y]; tap < vertical.begin[y + 1]; ++tap) {
      const uint8_t* row = pixels + (vertical.first[y] + tap - vertical.begin[y]) * columns * channels;
      std::ranges::fill(line, 0.0);
      for (int64_t x = 0; x < width; ++x) {
        const uint8_t* pixel = row + horizontal.first[x] * channels;
        for (int64_t side = horizontal.begin[x]; side < horizontal.begin[x + 1]; ++side) {
          for (int64_t c = 0; c < channels; ++c) line[x * channels + c] += horizontal.weights[side] * *pixel++;
        }
      }
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += vertical.weights[tap] * line[i];
    }
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < channels; ++c)
        to[(c * height + y) * width + x] = static_cast<float>(sum[x * channels + c]);
    }
  }
}

}  // namespace

absl::Status ResizeAndCrop(const uint8_t* pixels, int64_t rows, int64_t columns, int64_t channels, int64_t height,
                           int64_t width, float* to) {
  if (rows == height && columns == width) {
    for (int64_t pixel = 0; pixel < rows * columns; ++pixel) {
      for (int64_t c = 0; c < channels; ++c) to[c * rows * columns + pixel] = pixels[pixel * channels + c];
    }
    return absl::OkStatus();
  }
  try {
    Resize(pixels, rows, columns, channels, height, width, to);
    return absl::OkStatus();
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {
  }
  return absl::ResourceExhaustedError(absl::StrFormat("no memory to scale an image to %d x %d", width, height));
}

}  // namespace gantry
