// The header alone and the whole image agree; an image that PNG can hold is written and read again.
#include "runtime/data/png.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantry;
  constexpr PngLimits kLimits{.max_file_bytes = 1 << 20, .max_pixels = 1 << 16};
  const std::span<const std::byte> input = FuzzInput(data, size);
  const absl::StatusOr<HostArray> image = DecodePng(input, "png", kLimits);
  if (!image.ok()) return 0;
  const absl::StatusOr<PngInfo> info = DecodePngInfo(input, "png", kLimits);
  GANTRY_FUZZ_CHECK(info.ok());
  GANTRY_FUZZ_CHECK((image->shape() == std::vector<int64_t>{info->height, info->width, info->channels}));
  if (info->channels != 1 && info->channels != 3) return 0;
  const absl::StatusOr<std::vector<std::byte>> again = EncodePng(*image);
  GANTRY_FUZZ_CHECK(again.ok());
  const absl::StatusOr<HostArray> reread = DecodePng(*again, "png", kLimits);
  GANTRY_FUZZ_CHECK(reread.ok() && *reread == *image);
  return 0;
}
