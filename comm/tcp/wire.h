// Frames between two ranks of different nodes: a header of 48 bytes, little-endian, then its payload.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "memory/status.h"

namespace gantry::tcp {

enum class FrameKind : uint32_t {
  kReady = 1,    // the receiver of a parcel: group, sequence, tag, value: its bytes. Payload, with the first: what it calls
  kData,         // a piece of a parcel: group, sequence, tag, offset in it, value: its bytes
  kBreak,        // group, sequence: the operation it failed with, tag: the status code. Payload: the message
  kAsk,          // group: how many operations has this rank started?
  kTell,         // group, sequence: that many
  kPut,          // tag: region, offset
  kSignal,       // tag: region, offset, value: what to add to the word
  kGet,          // tag: region, offset, value: bytes, sequence: the number of the request, which the answer bears
  kGot,          // sequence, offset in what was asked for
  kFetchAdd,     // tag: region, offset, value, sequence
  kCompareSwap,  // tag: region, offset, group: expected, value: desired, sequence
  kWord,         // sequence, value: what the word was
  kCalls,        // the sender of a parcel whose receiver is not ready: group, sequence. Payload: what it calls
  kTaken,        // a frame that came by a carrier is there: its tag, group and sequence, offset: bytes of its payload
  kProbe,        // bytes to be thrown away, of a measurement; only by a carrier. sequence
};
inline constexpr uint32_t kLastFrameKind = static_cast<uint32_t>(FrameKind::kProbe);

struct FrameHeader {
  FrameKind kind = FrameKind::kReady;
  uint32_t tag = 0;
  uint64_t group = 0;
  uint64_t sequence = 0;
  int64_t offset = 0;
  uint64_t value = 0;
  int64_t bytes = 0;  // of the payload
};

inline constexpr size_t kHeaderBytes = 48;
inline constexpr int64_t kMaxPayloadBytes = int64_t{256} << 10;  // what is urgent goes another way
inline constexpr int64_t kMaxTextBytes = 4096;                  // payload of kBreak
inline constexpr int64_t kCallBytes = 128;                      // payload of kReady and kCalls

std::array<std::byte, kHeaderBytes> Encode(const FrameHeader& header);
// kDataLoss where the kind is unknown or a size beyond its bound.
absl::StatusOr<FrameHeader> Decode(std::span<const std::byte, kHeaderBytes> bytes,
                                   int64_t max_payload_bytes = kMaxPayloadBytes);

}  // namespace gantry::tcp
