#include "runtime/data/png.h"

#include <png.h>

#include <csetjmp>
#include <cstring>
#include <new>

#include "runtime/data/file.h"

namespace gantry {
namespace {

// libpng reports errors with longjmp, which must not skip a destructor: the functions between setjmp and libpng hold
// plain values only, and everything with a destructor lives in their callers.
constexpr size_t kMessageBytes = 160;
// Deflate makes at most 1,032 bytes of one (RFC 1951).
constexpr uint64_t kMaxDeflateRatio = 1032;
constexpr png_alloc_size_t kMaxChunkBytes = 8 << 20;

void KeepMessage(png_structp png, png_const_charp message) {
  std::strncpy(static_cast<char*>(png_get_error_ptr(png)), message, kMessageBytes - 1);
  png_longjmp(png, 1);
}
void IgnoreWarning(png_structp, png_const_charp) {}

class Decoder {
 public:
  explicit Decoder(std::span<const std::byte> bytes) : bytes_(bytes) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, message_, KeepMessage, IgnoreWarning);
    if (png_ != nullptr) info_ = png_create_info_struct(png_);
  }
  ~Decoder() { png_destroy_read_struct(&png_, &info_, nullptr); }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  bool usable() const { return png_ != nullptr && info_ != nullptr; }
  const char* message() const { return message_; }

  // Reads up to the pixels and sets the conversions. `packed_bytes` is what the pixels unpack to in the file's own
  // form.
  bool ReadInfo(PngInfo* image, uint64_t* packed_bytes) {
    if (setjmp(png_jmpbuf(png_)) != 0) return false;
    png_set_read_fn(png_, this, &Decoder::ReadBytes);
    png_set_user_limits(png_, 1 << 20, 1 << 20);
    png_set_chunk_malloc_max(png_, kMaxChunkBytes);
    png_set_chunk_cache_max(png_, 64);
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION  // or no mutation would get past the checksums
    png_set_crc_action(png_, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);
#endif
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, 0);
    png_read_info(png_, info_);
    *packed_bytes = (uint64_t{png_get_rowbytes(png_, info_)} + 1) * png_get_image_height(png_, info_);
    png_set_expand(png_);
    png_set_scale_16(png_);
    passes_ = png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    image->height = png_get_image_height(png_, info_);
    image->width = png_get_image_width(png_, info_);
    image->channels = png_get_channels(png_, info_);
    return png_get_bit_depth(png_, info_) == 8;
  }
  // Reads the pixels into rows of `row_bytes`, and what follows them.
  bool ReadRows(png_bytep pixels, size_t row_bytes, int64_t height) {
    if (setjmp(png_jmpbuf(png_)) != 0) return false;
    for (int pass = 0; pass < passes_; ++pass) {
      for (int64_t row = 0; row < height; ++row) png_read_row(png_, pixels + row * row_bytes, nullptr);
    }
    png_read_end(png_, nullptr);
    return true;
  }

 private:
  static void ReadBytes(png_structp png, png_bytep to, size_t count) {
    auto* decoder = static_cast<Decoder*>(png_get_io_ptr(png));
    if (count > decoder->bytes_.size() - decoder->at_) png_error(png, "it is cut short");
    std::memcpy(to, decoder->bytes_.data() + decoder->at_, count);
    decoder->at_ += count;
  }

  const std::span<const std::byte> bytes_;
  size_t at_ = 0;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  int passes_ = 1;
  char message_[kMessageBytes] = "not an 8-bit image after conversion";
};

absl::StatusOr<PngInfo> CheckedInfo(Decoder& decoder, std::span<const std::byte> bytes, std::string_view name,
                                    const PngLimits& limits) {
  if (!decoder.usable()) return absl::ResourceExhaustedError(absl::StrFormat("%s: no memory to decode it", name));
  if (bytes.size() < 8 || png_sig_cmp(reinterpret_cast<png_const_bytep>(bytes.data()), 0, 8) != 0) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: is no PNG file", name));
  }
  PngInfo info;
  uint64_t packed_bytes = 0;
  if (!decoder.ReadInfo(&info, &packed_bytes)) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: libpng cannot read it: %s", name, decoder.message()));
  }
  if (static_cast<uint64_t>(info.height) * static_cast<uint64_t>(info.width) > limits.max_pixels) {
    return absl::ResourceExhaustedError(absl::StrFormat("%s: has %d x %d pixels; at most %d are read", name, info.width,
                                                        info.height, limits.max_pixels));
  }
  if (packed_bytes / kMaxDeflateRatio > bytes.size()) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: says that %d bytes hold %d x %d pixels, which cannot be",
                                                      name, bytes.size(), info.width, info.height));
  }
  return info;
}

class Encoder {
 public:
  Encoder() {
    png_ = png_create_write_struct(PNG_LIBPNG_VER_STRING, message_, KeepMessage, IgnoreWarning);
    if (png_ != nullptr) info_ = png_create_info_struct(png_);
  }
  ~Encoder() { png_destroy_write_struct(&png_, &info_); }
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  bool usable() const { return png_ != nullptr && info_ != nullptr; }
  const char* message() const { return message_; }
  std::vector<std::byte> TakeBytes() { return std::move(bytes_); }

  bool Write(const png_byte* pixels, int64_t height, int64_t width, int64_t channels) {
    if (setjmp(png_jmpbuf(png_)) != 0) return false;
    png_set_write_fn(png_, this, &Encoder::WriteBytes, nullptr);
    png_set_IHDR(png_, info_, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), 8,
                 channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(png_, info_);
    for (int64_t row = 0; row < height; ++row) png_write_row(png_, pixels + row * width * channels);
    png_write_end(png_, info_);
    return true;
  }

 private:
  static void WriteBytes(png_structp png, png_bytep from, size_t count) {
    if (!static_cast<Encoder*>(png_get_io_ptr(png))->Append(from, count)) png_error(png, "no memory");
  }
  bool Append(png_bytep from, size_t count) {
    try {
      const auto* begin = reinterpret_cast<const std::byte*>(from);
      bytes_.insert(bytes_.end(), begin, begin + count);
      return true;
    } catch (const std::bad_alloc&) {
      return false;
    }
  }

  std::vector<std::byte> bytes_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  char message_[kMessageBytes] = "";
};

}  // namespace

absl::StatusOr<PngInfo> DecodePngInfo(std::span<const std::byte> bytes, std::string_view name,
                                      const PngLimits& limits) {
  Decoder decoder(bytes);
  return CheckedInfo(decoder, bytes, name, limits);
}

absl::StatusOr<HostArray> DecodePng(std::span<const std::byte> bytes, std::string_view name, const PngLimits& limits) {
  Decoder decoder(bytes);
  GANTRY_ASSIGN_OR_RETURN(const PngInfo info, CheckedInfo(decoder, bytes, name, limits));
  GANTRY_ASSIGN_OR_RETURN(HostArray pixels, HostArray::Create(HostType::kU8, {info.height, info.width, info.channels}));
  if (!decoder.ReadRows(pixels.mutable_values<uint8_t>().data(), static_cast<size_t>(info.width * info.channels),
                        info.height)) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: libpng cannot read it: %s", name, decoder.message()));
  }
  return pixels;
}

absl::StatusOr<HostArray> ReadPng(const std::string& path, const PngLimits& limits) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadFile(path, limits.max_file_bytes));
  return DecodePng(bytes, path, limits);
}

absl::StatusOr<std::vector<std::byte>> EncodePng(const HostArray& pixels) {
  const std::vector<int64_t>& shape = pixels.shape();
  constexpr int64_t kMaxSide = 1'000'000;  // libpng's own limit
  if (pixels.type() != HostType::kU8 || shape.size() != 3 || (shape[2] != 1 && shape[2] != 3) || shape[0] < 1 ||
      shape[1] < 1 || shape[0] > kMaxSide || shape[1] > kMaxSide) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is no image to write as PNG: it must be u8 [height, width, 1 or 3], sides 1 to %d",
                        pixels.ToString(), kMaxSide));
  }
  Encoder encoder;
  if (!encoder.usable()) return absl::ResourceExhaustedError("no memory to encode a PNG");
  if (!encoder.Write(pixels.values<uint8_t>().data(), shape[0], shape[1], shape[2])) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("libpng cannot write %s: %s", pixels.ToString(), encoder.message()));
  }
  return encoder.TakeBytes();
}

absl::Status WritePng(const std::string& path, const HostArray& pixels) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, EncodePng(pixels));
  return WriteFileAtomically(path, bytes);
}

}  // namespace gantry
