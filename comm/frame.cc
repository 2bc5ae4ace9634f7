#include "comm/frame.h"

#include <algorithm>
#include <cstring>

namespace gantry {
namespace {

void PutLittleEndian(std::byte* to, uint64_t value, size_t width) {
  for (size_t i = 0; i < width; ++i) to[i] = static_cast<std::byte>(value >> (8 * i));
}

uint64_t GetLittleEndian(const std::byte* from, size_t width) {
  uint64_t value = 0;
  for (size_t i = 0; i < width; ++i) value |= static_cast<uint64_t>(from[i]) << (8 * i);
  return value;
}

}  // namespace

std::array<std::byte, kFrameHeaderBytes> EncodeFrameHeader(const FrameHeader& header) {
  std::array<std::byte, kFrameHeaderBytes> bytes;
  PutLittleEndian(bytes.data(), header.channel, 4);
  PutLittleEndian(bytes.data() + 4, header.descriptor_count, 4);
  PutLittleEndian(bytes.data() + 8, header.bytes, 8);
  return bytes;
}

absl::StatusOr<FrameHeader> DecodeFrameHeader(std::span<const std::byte, kFrameHeaderBytes> bytes) {
  const FrameHeader header{.channel = static_cast<uint32_t>(GetLittleEndian(bytes.data(), 4)),
                           .descriptor_count = static_cast<uint32_t>(GetLittleEndian(bytes.data() + 4, 4)),
                           .bytes = GetLittleEndian(bytes.data() + 8, 8)};
  if (header.bytes > static_cast<uint64_t>(kMaxFrameBytes)) {
    return absl::DataLossError(absl::StrFormat("a message says that it has %d bytes; %d are possible", header.bytes, kMaxFrameBytes));
  }
  if (header.descriptor_count > kMaxFrameDescriptors) {
    return absl::DataLossError(
        absl::StrFormat("a message says that it has %d descriptors; %d are possible", header.descriptor_count, kMaxFrameDescriptors));
  }
  return header;
}

absl::Status FrameReader::Append(std::span<const std::byte> bytes, std::vector<Descriptor> descriptors) {
  if (broken_) return absl::DataLossError("the stream was damaged before");
  for (Descriptor& descriptor : descriptors) descriptors_.push_back(std::move(descriptor));
  while (!bytes.empty() || (header_filled_ == kFrameHeaderBytes && content_.size() == header_.bytes)) {
    if (header_filled_ < kFrameHeaderBytes) {
      const size_t count = std::min(kFrameHeaderBytes - header_filled_, bytes.size());
      std::memcpy(header_bytes_.data() + header_filled_, bytes.data(), count);
      header_filled_ += count;
      bytes = bytes.subspan(count);
      if (header_filled_ < kFrameHeaderBytes) break;
      absl::StatusOr<FrameHeader> header = DecodeFrameHeader(header_bytes_);
      if (!header.ok()) {
        broken_ = true;
        return header.status();
      }
      header_ = *header;
      content_.reserve(header_.bytes);  // address space: pages come as they are written
    }
    const size_t count = std::min<size_t>(header_.bytes - content_.size(), bytes.size());
    content_.insert(content_.end(), bytes.begin(), bytes.begin() + count);
    bytes = bytes.subspan(count);
    if (content_.size() < header_.bytes) break;
    if (descriptors_.size() < header_.descriptor_count) {
      broken_ = true;
      return absl::DataLossError(
          absl::StrFormat("a message came with %d descriptors and says %d", descriptors_.size(), header_.descriptor_count));
    }
    Frame& frame = frames_.emplace_back(Frame{.channel = header_.channel, .bytes = std::move(content_)});
    for (uint32_t i = 0; i < header_.descriptor_count; ++i) {
      frame.descriptors.push_back(std::move(descriptors_.front()));
      descriptors_.pop_front();
    }
    content_.clear();
    header_filled_ = 0;
  }
  if (descriptors_.size() > kMaxFrameDescriptors) {  // of a message whose end is still to come
    broken_ = true;
    return absl::DataLossError("more descriptors came than one message may carry");
  }
  return absl::OkStatus();
}

std::optional<Frame> FrameReader::Next() {
  if (frames_.empty()) return std::nullopt;
  Frame frame = std::move(frames_.front());
  frames_.pop_front();
  return frame;
}

void WireWriter::U32(uint32_t value) {
  bytes_.resize(bytes_.size() + 4);
  PutLittleEndian(bytes_.data() + bytes_.size() - 4, value, 4);
}

void WireWriter::U64(uint64_t value) {
  bytes_.resize(bytes_.size() + 8);
  PutLittleEndian(bytes_.data() + bytes_.size() - 8, value, 8);
}

void WireWriter::Text(std::string_view text) {
  U32(static_cast<uint32_t>(text.size()));
  const auto* start = reinterpret_cast<const std::byte*>(text.data());
  bytes_.insert(bytes_.end(), start, start + text.size());
}

std::span<const std::byte> WireReader::Take(size_t count) {
  if (!ok_ || bytes_.size() < count) {
    ok_ = false;
    return {};
  }
  const std::span<const std::byte> taken = bytes_.first(count);
  bytes_ = bytes_.subspan(count);
  return taken;
}

uint32_t WireReader::U32() {
  const std::span<const std::byte> bytes = Take(4);
  return ok_ ? static_cast<uint32_t>(GetLittleEndian(bytes.data(), 4)) : 0;
}

uint64_t WireReader::U64() {
  const std::span<const std::byte> bytes = Take(8);
  return ok_ ? GetLittleEndian(bytes.data(), 8) : 0;
}

std::string WireReader::Text(size_t max_bytes) {
  const uint32_t size = U32();
  if (size > max_bytes) ok_ = false;
  const std::span<const std::byte> bytes = Take(size);
  return ok_ ? std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()) : std::string();
}

}  // namespace gantry
