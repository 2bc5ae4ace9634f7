// PNG images as 8-bit arrays, through libpng.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/status.h"
#include "runtime/data/host_array.h"

namespace gantry {

struct PngLimits {
  uint64_t max_file_bytes = uint64_t{256} << 20;
  uint64_t max_pixels = uint64_t{1} << 26;  // 8192 x 8192
};

struct PngInfo {
  int64_t height = 0, width = 0;
  int64_t channels = 0;  // 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha
};

// Only the header: the size and colour that DecodePng would give.
absl::StatusOr<PngInfo> DecodePngInfo(std::span<const std::byte> bytes, std::string_view name = "png",
                                      const PngLimits& limits = {});

// The image as u8 [height, width, channels]. Palettes become RGB, transparent colours an alpha channel, fewer than 8
// bits are spread to 0..255, 16 bits are rounded to 8. Gamma and colour profiles are not applied. kInvalidArgument for
// what libpng refuses, kResourceExhausted beyond the limits, before the pixels are allocated.
absl::StatusOr<HostArray> DecodePng(std::span<const std::byte> bytes, std::string_view name = "png",
                                    const PngLimits& limits = {});
absl::StatusOr<HostArray> ReadPng(const std::string& path, const PngLimits& limits = {});

// `pixels` is u8 [height, width, channels] with 1 channel (grey) or 3 (RGB).
absl::StatusOr<std::vector<std::byte>> EncodePng(const HostArray& pixels);
// Written beside, synced, renamed.
absl::Status WritePng(const std::string& path, const HostArray& pixels);

}  // namespace gantry
