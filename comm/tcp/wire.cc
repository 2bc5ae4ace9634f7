#include "comm/tcp/wire.h"

#include <bit>
#include <cstring>

namespace gantry::tcp {
namespace {

static_assert(std::endian::native == std::endian::little, "frames are little-endian, and written as they are");

constexpr int64_t kMaxAddress = int64_t{1} << 47;

int64_t LargestPayload(FrameKind kind, int64_t max_payload_bytes) {
  switch (kind) {
    case FrameKind::kReady:
    case FrameKind::kCalls:
      return kCallBytes;
    case FrameKind::kBreak:
      return kMaxTextBytes;
    case FrameKind::kData:
    case FrameKind::kPut:
    case FrameKind::kGot:
    case FrameKind::kProbe:
      return max_payload_bytes;
    default:
      return 0;
  }
}

}  // namespace

std::array<std::byte, kHeaderBytes> Encode(const FrameHeader& header) {
  static_assert(sizeof(FrameHeader) == kHeaderBytes && std::is_trivially_copyable_v<FrameHeader>);
  return std::bit_cast<std::array<std::byte, kHeaderBytes>>(header);
}

absl::StatusOr<FrameHeader> Decode(std::span<const std::byte, kHeaderBytes> bytes, int64_t max_payload_bytes) {
  uint32_t kind = 0;
  std::memcpy(&kind, bytes.data(), sizeof(kind));
  if (kind == 0 || kind > kLastFrameKind)
    return absl::DataLossError(absl::StrFormat("a frame of the unknown kind %d", kind));
  FrameHeader header;
  std::memcpy(&header, bytes.data(), kHeaderBytes);
  const int64_t most = LargestPayload(header.kind, max_payload_bytes);
  // A call is there as a whole; a ready word may go without it.
  const bool is_whole = header.bytes == most || (header.kind == FrameKind::kReady && header.bytes == 0);
  const bool has_call = header.kind == FrameKind::kReady || header.kind == FrameKind::kCalls;
  if (header.bytes < 0 || header.bytes > most || (has_call && !is_whole)) {
    return absl::DataLossError(absl::StrFormat("a frame of kind %d with %d bytes of content", kind, header.bytes));
  }
  if (header.offset < 0 || header.offset > kMaxAddress)
    return absl::DataLossError(absl::StrFormat("a frame of kind %d at offset %d", kind, header.offset));
  const bool has_size =
      header.kind == FrameKind::kReady || header.kind == FrameKind::kData || header.kind == FrameKind::kGet;
  if (has_size && header.value > static_cast<uint64_t>(kMaxAddress))
    return absl::DataLossError(absl::StrFormat("a frame of kind %d of %d bytes", kind, header.value));
  return header;
}

}  // namespace gantry::tcp
