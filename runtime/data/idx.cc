#include "runtime/data/idx.h"

#include <zlib.h>

#include <algorithm>
#include <new>
#include <optional>

namespace gantry {
namespace {

constexpr size_t kMaxIdxRank = 16;

std::optional<HostType> TypeOfCode(std::byte code) {
  switch (std::to_integer<int>(code)) {
    case 0x08:
      return HostType::kU8;
    case 0x09:
      return HostType::kI8;
    case 0x0b:
      return HostType::kI16;
    case 0x0c:
      return HostType::kI32;
    case 0x0d:
      return HostType::kF32;
    case 0x0e:
      return HostType::kF64;
    default:
      return std::nullopt;
  }
}

}  // namespace

bool LooksLikeIdx(const ByteSource& source) {
  std::byte magic[4];
  if (source.size_bytes() < 4 || !source.ReadAt(0, magic).ok()) return false;
  return magic[0] == std::byte{0} && magic[1] == std::byte{0} && TypeOfCode(magic[2]) && magic[3] != std::byte{0};
}

bool LooksLikeGzip(const ByteSource& source) {
  std::byte magic[2];
  if (source.size_bytes() < 2 || !source.ReadAt(0, magic).ok()) return false;
  return magic[0] == std::byte{0x1f} && magic[1] == std::byte{0x8b};
}

absl::StatusOr<IdxHeader> ReadIdxHeader(const ByteSource& source) {
  const auto error = [&](std::string_view what) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s", source.name(), what));
  };
  if (source.size_bytes() < 4) return error("is too short for an IDX file");
  std::byte magic[4];
  GANTRY_RETURN_IF_ERROR(source.ReadAt(0, magic));
  const std::optional<HostType> type = TypeOfCode(magic[2]);
  if (magic[0] != std::byte{0} || magic[1] != std::byte{0} || !type) {
    return error("is no IDX file: it does not begin with two zero bytes and a known type");
  }
  const size_t rank = std::to_integer<size_t>(magic[3]);
  if (rank == 0 || rank > kMaxIdxRank) {
    return error(absl::StrFormat("has %d dimensions; 1 to %d are read", rank, kMaxIdxRank));
  }
  IdxHeader header{.type = *type, .data_offset = 4 + 4 * rank};
  if (source.size_bytes() < header.data_offset) return error("is cut short within its IDX header");
  std::byte dims[4 * kMaxIdxRank];
  GANTRY_RETURN_IF_ERROR(source.ReadAt(4, std::span(dims, 4 * rank)));
  for (size_t axis = 0; axis < rank; ++axis) {
    uint32_t dim = 0;
    for (size_t i = 0; i < 4; ++i) dim = dim << 8 | std::to_integer<uint32_t>(dims[4 * axis + i]);
    header.shape.push_back(dim);
  }
  const absl::StatusOr<int64_t> count = CheckedElementCount(header.type, header.shape);
  if (!count.ok()) return Annotate(count.status(), source.name());
  const uint64_t wanted = static_cast<uint64_t>(*count) * SizeBytes(header.type);
  const uint64_t present = source.size_bytes() - header.data_offset;
  if (wanted != present) {
    return error(absl::StrFormat("%s%s needs %d bytes after the IDX header, the file has %d; it is %s",
                                 Name(header.type), ShapeText(header.shape), wanted, present,
                                 present < wanted ? "cut short" : "too long"));
  }
  return header;
}

absl::StatusOr<HostArray> ReadIdx(const ByteSource& source, uint64_t max_unpacked_bytes) {
  if (LooksLikeGzip(source)) {
    GANTRY_ASSIGN_OR_RETURN(const std::vector<std::byte> unpacked, Gunzip(source, max_unpacked_bytes));
    return ReadIdx(*MemorySource(unpacked, std::string(source.name())), max_unpacked_bytes);
  }
  GANTRY_ASSIGN_OR_RETURN(IdxHeader header, ReadIdxHeader(source));
  GANTRY_ASSIGN_OR_RETURN(HostArray array, HostArray::Create(header.type, std::move(header.shape)));
  GANTRY_RETURN_IF_ERROR(source.ReadAt(header.data_offset, array.mutable_bytes()));
  ReverseByteOrder(array.type(), array.mutable_bytes());
  return array;
}

absl::StatusOr<HostArray> ReadIdx(const std::string& path, uint64_t max_unpacked_bytes) {
  GANTRY_ASSIGN_OR_RETURN(const auto source, OpenFile(path));
  return ReadIdx(*source, max_unpacked_bytes);
}

absl::StatusOr<HostArray> DecodeIdx(std::span<const std::byte> bytes, std::string_view name,
                                    uint64_t max_unpacked_bytes) {
  return ReadIdx(*MemorySource(bytes, std::string(name)), max_unpacked_bytes);
}

absl::StatusOr<std::vector<std::byte>> Gunzip(const ByteSource& source, uint64_t max_bytes) {
  constexpr size_t kPartBytes = 64 << 10;
  z_stream stream = {};
  if (inflateInit2(&stream, MAX_WBITS + 16) != Z_OK) {
    return absl::ResourceExhaustedError(absl::StrFormat("%s: no memory to unpack it", source.name()));
  }
  struct End {
    z_stream* stream;
    ~End() { inflateEnd(stream); }
  } end{&stream};
  std::vector<std::byte> from(std::min<uint64_t>(source.size_bytes(), kPartBytes)), part(kPartBytes), to;
  uint64_t at = 0;
  int result = Z_OK;
  while (true) {
    if (stream.avail_in == 0 && at < source.size_bytes()) {
      const size_t bytes = std::min<uint64_t>(from.size(), source.size_bytes() - at);
      GANTRY_RETURN_IF_ERROR(source.ReadAt(at, std::span(from.data(), bytes)));
      at += bytes;
      stream.next_in = reinterpret_cast<Bytef*>(from.data());
      stream.avail_in = static_cast<uInt>(bytes);
    }
    if (result == Z_STREAM_END) {
      if (stream.avail_in == 0) return to;
      inflateReset(&stream);  // another member follows
    }
    stream.next_out = reinterpret_cast<Bytef*>(part.data());
    stream.avail_out = static_cast<uInt>(part.size());
    result = inflate(&stream, Z_NO_FLUSH);
    const size_t made = part.size() - stream.avail_out;
    if (made > max_bytes - to.size()) {
      return absl::ResourceExhaustedError(absl::StrFormat(
          "%s: unpacks to more than %d bytes; unpack it with gunzip, then it is read from the disk piece by piece",
          source.name(), max_bytes));
    }
    try {
      to.insert(to.end(), part.begin(), part.begin() + static_cast<ptrdiff_t>(made));
    } catch (const std::bad_alloc&) {
      return absl::ResourceExhaustedError(
          absl::StrFormat("%s: no memory to unpack it beyond %d bytes", source.name(), to.size()));
    }
    if (result == Z_BUF_ERROR) {  // no input is left and no output was held back
      return absl::DataLossError(absl::StrFormat("%s: its gzip data is cut short", source.name()));
    }
    if (result != Z_OK && result != Z_STREAM_END) {
      return absl::DataLossError(
          absl::StrFormat("%s: its gzip data is damaged after %d bytes", source.name(), to.size()));
    }
  }
}

}  // namespace gantry
