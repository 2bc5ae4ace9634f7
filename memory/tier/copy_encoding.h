// How a copy's bytes are written in a tier. Chunk by chunk, so that a lane needs one small buffer, and every chunk has
// a place of its own whatever its content: sizes are known before the first step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace gantry {

enum class CopyEncoding : uint8_t {
  kNone,
  // f32: which zero is left out, +0.0 or -0.0 (a relu that multiplies makes the latter), a bit for every element that
  // is something else, then those elements: the same bits when read back. A chunk that would not become smaller is
  // stored as it is. The tier has room for the worst case; what is copied depends on the content. (Rhu et al.,
  // Compressing DMA Engine, HPCA 2018: zero-value compression.)
  kZeros,
  // f32 rounded to bfloat16, to nearest, ties to even: half the bytes, and lossy.
  kBf16,
};

inline constexpr int64_t kEncodedChunkBytes = 256 << 10;  // of the device's bytes
inline constexpr int64_t kEncodedChunkFloats = kEncodedChunkBytes / static_cast<int64_t>(sizeof(float));
// What EncodeChunk may write beyond kEncodedChunkBytes.
inline constexpr int64_t kEncodedSlackBytes = kEncodedChunkFloats / 8 + 64;

// Chunks of a copy of `bytes` of the device.
constexpr int64_t EncodedChunks(int64_t bytes) { return (bytes + kEncodedChunkBytes - 1) / kEncodedChunkBytes; }
// What the tier must have for them.
constexpr int64_t EncodedTierBytes(CopyEncoding encoding, int64_t bytes) {
  return encoding == CopyEncoding::kBf16 ? bytes / 2 : bytes;
}

// Writes `from` (at most a chunk of floats) to `to`, which has kEncodedChunkBytes + kEncodedSlackBytes: bytes written,
// never more than `from` has; as many mean that they are stored as they are (kZeros).
int64_t EncodeChunk(CopyEncoding encoding, std::span<const float> from, std::byte* to);

// The reverse: `bytes` that EncodeChunk returned for so many floats. False where they cannot be what it wrote.
bool DecodeChunk(CopyEncoding encoding, const std::byte* from, int64_t bytes, std::span<float> to);

}  // namespace gantry
