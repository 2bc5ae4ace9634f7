#include "memory/tier/copy_encoding.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace gantry {
namespace {

constexpr int kWordBits = 64;
constexpr int64_t kWordBytes = 8;  // of the bitmap; the first word says which zero

// The bits of the zero that occurs more often.
uint32_t CommonZero(std::span<const float> values) {
  int64_t plus = 0, minus = 0;
  for (const float value : values) {
    const auto bits = std::bit_cast<uint32_t>(value);
    plus += bits == 0;
    minus += bits == 0x80000000u;
  }
  return minus > plus ? 0x80000000u : 0u;
}

// Without a branch on the content, which half of the time is guessed wrongly.
int64_t EncodeZeros(std::span<const float> from, std::byte* to) {
  const auto count = static_cast<int64_t>(from.size());
  const int64_t words = (count + kWordBits - 1) / kWordBits;
  const uint64_t zero = CommonZero(from);
  std::memcpy(to, &zero, sizeof(zero));
  auto* packed = reinterpret_cast<uint32_t*>(to + (1 + words) * kWordBytes);
  int64_t kept = 0;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t begin = word * kWordBits, end = std::min<int64_t>(begin + kWordBits, count);
    uint64_t bits = 0;
    for (int64_t i = begin; i < end; ++i) {
      const auto value = std::bit_cast<uint32_t>(from[i]);
      const bool keep = value != zero;
      packed[kept] = value;
      kept += keep;
      bits |= static_cast<uint64_t>(keep) << (i - begin);
    }
    std::memcpy(to + (1 + word) * kWordBytes, &bits, sizeof(bits));
  }
  const int64_t bytes = (1 + words) * kWordBytes + kept * static_cast<int64_t>(sizeof(uint32_t));
  if (bytes < static_cast<int64_t>(from.size_bytes())) return bytes;
  std::memcpy(to, from.data(), from.size_bytes());
  return static_cast<int64_t>(from.size_bytes());
}

bool DecodeZeros(const std::byte* from, int64_t bytes, std::span<float> to) {
  const auto count = static_cast<int64_t>(to.size());
  if (bytes == static_cast<int64_t>(to.size_bytes())) {
    std::memcpy(to.data(), from, to.size_bytes());
    return true;
  }
  const int64_t words = (count + kWordBits - 1) / kWordBits, header = (1 + words) * kWordBytes;
  if (bytes < header || bytes > static_cast<int64_t>(to.size_bytes())) return false;
  uint64_t zero = 0;
  std::memcpy(&zero, from, sizeof(zero));
  if (zero != 0 && zero != 0x80000000u) return false;
  // Counted first: a damaged bitmap must not lead outside.
  int64_t kept = 0;
  for (int64_t word = 0; word < words; ++word) {
    uint64_t bits;
    std::memcpy(&bits, from + (1 + word) * kWordBytes, sizeof(bits));
    if (const int64_t used = count - word * kWordBits; used < kWordBits && bits >> used != 0) return false;
    kept += std::popcount(bits);
  }
  if (header + kept * static_cast<int64_t>(sizeof(uint32_t)) != bytes) return false;
  const auto* packed = reinterpret_cast<const uint32_t*>(from + header);
  for (int64_t word = 0; word < words; ++word) {
    uint64_t bits;
    std::memcpy(&bits, from + (1 + word) * kWordBytes, sizeof(bits));
    const int64_t begin = word * kWordBits, end = std::min<int64_t>(begin + kWordBits, count);
    for (int64_t i = begin; i < end; ++i, bits >>= 1) {
      const uint32_t keep = static_cast<uint32_t>(bits & 1);
      // One past the last is read where nothing is kept any more: it lies within the chunk's buffer.
      to[i] = std::bit_cast<float>(keep != 0 ? *packed : static_cast<uint32_t>(zero));
      packed += keep;
    }
  }
  return true;
}

int64_t EncodeBf16(std::span<const float> from, std::byte* to) {
  auto* out = reinterpret_cast<uint16_t*>(to);
  for (size_t i = 0; i < from.size(); ++i) {
    const auto value = std::bit_cast<uint32_t>(from[i]);
    const bool is_nan = (value & 0x7fffffff) > 0x7f800000;
    const uint32_t rounded = (value + 0x7fff + (value >> 16 & 1)) >> 16;
    out[i] = static_cast<uint16_t>(is_nan ? value >> 16 | 0x40 : rounded);  // a NaN stays one
  }
  return static_cast<int64_t>(from.size() * sizeof(uint16_t));
}

bool DecodeBf16(const std::byte* from, int64_t bytes, std::span<float> to) {
  if (bytes != static_cast<int64_t>(to.size() * sizeof(uint16_t))) return false;
  const auto* in = reinterpret_cast<const uint16_t*>(from);
  for (size_t i = 0; i < to.size(); ++i) to[i] = std::bit_cast<float>(static_cast<uint32_t>(in[i]) << 16);
  return true;
}

}  // namespace

int64_t EncodeChunk(CopyEncoding encoding, std::span<const float> from, std::byte* to) {
  switch (encoding) {
    case CopyEncoding::kZeros:
      return EncodeZeros(from, to);
    case CopyEncoding::kBf16:
      return EncodeBf16(from, to);
    case CopyEncoding::kNone:
      break;
  }
  std::memcpy(to, from.data(), from.size_bytes());
  return static_cast<int64_t>(from.size_bytes());
}

bool DecodeChunk(CopyEncoding encoding, const std::byte* from, int64_t bytes, std::span<float> to) {
  switch (encoding) {
    case CopyEncoding::kZeros:
      return DecodeZeros(from, bytes, to);
    case CopyEncoding::kBf16:
      return DecodeBf16(from, bytes, to);
    case CopyEncoding::kNone:
      break;
  }
  if (bytes != static_cast<int64_t>(to.size_bytes())) return false;
  std::memcpy(to.data(), from, to.size_bytes());
  return true;
}

}  // namespace gantry
