// How messages lie on a link: a header of 16 bytes (channel u32, descriptors u32, length u64, little-endian), then the content.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "comm/socket.h"
#include "memory/status.h"

namespace gantry {

constexpr int64_t kMaxFrameBytes = int64_t{64} << 20;
constexpr uint32_t kMaxFrameDescriptors = 64;
constexpr size_t kFrameHeaderBytes = 16;

struct FrameHeader {
  uint32_t channel = 0;
  uint32_t descriptor_count = 0;
  uint64_t bytes = 0;
};

std::array<std::byte, kFrameHeaderBytes> EncodeFrameHeader(const FrameHeader& header);
// kDataLoss where a count is beyond its bound.
absl::StatusOr<FrameHeader> DecodeFrameHeader(std::span<const std::byte, kFrameHeaderBytes> bytes);

struct Frame {
  uint32_t channel = 0;
  std::vector<std::byte> bytes;
  std::vector<Descriptor> descriptors;
};

// Frames out of a stream that comes in pieces of any size. A header's promise takes address space, memory comes with the content.
class FrameReader {
 public:
  // kDataLoss where the stream is not one of frames; it takes nothing after that.
  absl::Status Append(std::span<const std::byte> bytes, std::vector<Descriptor> descriptors);
  std::optional<Frame> Next();

 private:
  std::array<std::byte, kFrameHeaderBytes> header_bytes_;
  size_t header_filled_ = 0;
  FrameHeader header_;
  std::vector<std::byte> content_;
  std::deque<Descriptor> descriptors_;
  std::deque<Frame> frames_;
  bool broken_ = false;
};

// Fixed-size integers in a byte string, little-endian. Reading past the end sets `ok` to false and gives zeros.
class WireWriter {
 public:
  void U32(uint32_t value);
  void U64(uint64_t value);
  void Text(std::string_view text);  // length u32, bytes
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};
class WireReader {
 public:
  explicit WireReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  uint32_t U32();
  uint64_t U64();
  std::string Text(size_t max_bytes);
  bool ok() const { return ok_; }
  bool at_end() const { return bytes_.empty(); }

 private:
  std::span<const std::byte> Take(size_t count);
  std::span<const std::byte> bytes_;
  bool ok_ = true;
};

}  // namespace gantry
