#include "runtime/data/npz.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "absl/strings/str_join.h"
#include "memory/crc32.h"
#include "runtime/data/npy.h"

namespace gantry {
namespace {

constexpr uint32_t kLocalSignature = 0x04034b50, kCentralSignature = 0x02014b50, kEndSignature = 0x06054b50;
constexpr uint32_t kZip64EndSignature = 0x06064b50, kZip64LocatorSignature = 0x07064b50;
constexpr uint64_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22, kZip64EndBytes = 56, kZip64LocatorBytes = 20;
constexpr uint16_t kStored = 0, kDeflated = 8;
constexpr uint64_t kMaxCommentBytes = 65535;
constexpr uint64_t kMaxDirectoryBytes = 64 << 20;
// Deflate makes at most 1,032 bytes of one (RFC 1951: a match of 258 bytes takes two bits).
constexpr uint64_t kMaxDeflateRatio = 1032;
constexpr std::string_view kSuffix = ".npy";

// Little-endian fields of a record in memory; the caller has checked the bounds.
uint64_t Field(std::span<const std::byte> record, size_t at, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value |= std::to_integer<uint64_t>(record[at + i]) << (8 * i);
  return value;
}

void AppendField(std::string& record, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) record.push_back(static_cast<char>(value >> (8 * i)));
}

absl::Status ZipError(const ByteSource& source, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrFormat("%s: %s", source.name(), what));
}

struct Directory {
  uint64_t offset = 0, bytes = 0, count = 0;
  uint64_t end = 0;  // of what entries may occupy
};

// Finds the end record, the last in the file but for a comment, and from it the central directory.
absl::StatusOr<Directory> FindDirectory(const ByteSource& source) {
  const uint64_t size = source.size_bytes();
  if (size < kEndBytes) return ZipError(source, "is too short for a .npz file");
  const uint64_t tail_bytes = std::min(size, kEndBytes + kMaxCommentBytes);
  std::vector<std::byte> tail(tail_bytes);
  GANTRY_RETURN_IF_ERROR(source.ReadAt(size - tail_bytes, tail));
  uint64_t at = tail_bytes - kEndBytes + 1;
  while (true) {
    if (at == 0) return ZipError(source, "is no .npz file, or is cut short: it has no ZIP end record");
    --at;
    if (Field(tail, at, 4) == kEndSignature && at + kEndBytes + Field(tail, at + 20, 2) == tail_bytes) break;
  }
  const uint64_t end_offset = size - tail_bytes + at;
  const std::span<const std::byte> record = std::span(tail).subspan(at);
  if (Field(record, 4, 2) != Field(record, 6, 2)) return ZipError(source, "is part of a ZIP archive of several files");
  Directory directory{
      .offset = Field(record, 16, 4), .bytes = Field(record, 12, 4), .count = Field(record, 10, 2), .end = end_offset};
  if (end_offset >= kZip64LocatorBytes) {
    std::byte locator[kZip64LocatorBytes];
    GANTRY_RETURN_IF_ERROR(source.ReadAt(end_offset - kZip64LocatorBytes, locator));
    if (Field(locator, 0, 4) == kZip64LocatorSignature) {
      const uint64_t zip64_offset = Field(locator, 8, 8);
      const uint64_t limit = end_offset - kZip64LocatorBytes;
      if (zip64_offset > limit || limit - zip64_offset < kZip64EndBytes) {
        return ZipError(source, "has a zip64 record that points outside the file");
      }
      std::byte zip64[kZip64EndBytes];
      GANTRY_RETURN_IF_ERROR(source.ReadAt(zip64_offset, zip64));
      if (Field(zip64, 0, 4) != kZip64EndSignature) return ZipError(source, "has a broken zip64 end record");
      directory = {.offset = Field(zip64, 48, 8),
                   .bytes = Field(zip64, 40, 8),
                   .count = Field(zip64, 32, 8),
                   .end = zip64_offset};
    }
  }
  if (directory.offset > directory.end || directory.bytes > directory.end - directory.offset) {
    return ZipError(source, absl::StrFormat("has a ZIP directory of %d bytes at offset %d, outside the file",
                                            directory.bytes, directory.offset));
  }
  if (directory.bytes > kMaxDirectoryBytes || directory.count > directory.bytes / kCentralBytes) {
    return ZipError(source, absl::StrFormat("has a ZIP directory of %d entries in %d bytes, which cannot be",
                                            directory.count, directory.bytes));
  }
  directory.end = directory.offset;
  return directory;
}

// Replaces the fields that are all ones by the 64-bit ones of the zip64 extra field, in the order the format fixes.
absl::Status ApplyZip64(const ByteSource& source, std::span<const std::byte> extra, uint64_t* plain_bytes,
                        uint64_t* stored_bytes, uint64_t* header_offset) {
  while (extra.size() >= 4) {
    const uint64_t id = Field(extra, 0, 2), bytes = Field(extra, 2, 2);
    extra = extra.subspan(4);
    if (bytes > extra.size()) break;  // some writers leave padding that is no field
    if (id == 1) {
      std::span<const std::byte> values = extra.subspan(0, bytes);
      for (uint64_t* field : {plain_bytes, stored_bytes, header_offset}) {
        if (*field != 0xffffffff) continue;
        if (values.size() < 8) return ZipError(source, "has a zip64 field that is too short");
        *field = Field(values, 0, 8);
        values = values.subspan(8);
      }
      return absl::OkStatus();
    }
    extra = extra.subspan(bytes);
  }
  return absl::OkStatus();
}

absl::Status Inflate(std::span<const std::byte> from, std::span<std::byte> to, std::string_view what) {
  z_stream stream = {};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK)
    return absl::ResourceExhaustedError(absl::StrCat(ToAbsl(what), ": no memory to inflate it"));
  int result = Z_OK;
  std::byte beyond[1];  // room for output past the stated size, so that too much is noticed
  while (result == Z_OK) {
    if (stream.avail_in == 0) {
      const size_t part = std::min(from.size(), size_t{1} << 30);
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(from.data()));
      stream.avail_in = static_cast<uInt>(part);
      from = from.subspan(part);
    }
    const bool full = to.empty();
    const std::span<std::byte> room =
        full ? std::span<std::byte>(beyond) : to.subspan(0, std::min(to.size(), size_t{1} << 30));
    stream.next_out = reinterpret_cast<Bytef*>(room.data());
    stream.avail_out = static_cast<uInt>(room.size());
    result = inflate(&stream, Z_NO_FLUSH);
    const size_t made = room.size() - stream.avail_out;
    if (full && made > 0) result = Z_DATA_ERROR;
    if (!full) to = to.subspan(made);
  }
  inflateEnd(&stream);
  if (result == Z_STREAM_END && to.empty() && from.empty() && stream.avail_in == 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrFormat("%s: its compressed data is damaged", what));
}

}  // namespace

absl::StatusOr<NpzFile> NpzFile::Open(const std::string& path) {
  GANTRY_ASSIGN_OR_RETURN(auto source, OpenFile(path));
  return Open(std::move(source));
}

absl::StatusOr<NpzFile> NpzFile::Open(std::shared_ptr<const ByteSource> source) {
  GANTRY_ASSIGN_OR_RETURN(const Directory directory, FindDirectory(*source));
  GANTRY_ASSIGN_OR_RETURN(std::vector<std::byte> records, AllocateBytes(directory.bytes, source->name()));
  GANTRY_RETURN_IF_ERROR(source->ReadAt(directory.offset, records));
  NpzFile file;
  file.source_ = std::move(source);
  const ByteSource& input = *file.source_;
  std::vector<std::pair<uint64_t, uint64_t>> extents;  // the least each entry occupies: begin, end
  std::span<const std::byte> rest = records;
  for (uint64_t i = 0; i < directory.count; ++i) {
    if (rest.size() < kCentralBytes || Field(rest, 0, 4) != kCentralSignature) {
      return ZipError(input, absl::StrFormat("has a broken ZIP directory at entry %d of %d", i, directory.count));
    }
    Entry entry{.method = static_cast<uint16_t>(Field(rest, 10, 2)),
                .checksum = static_cast<uint32_t>(Field(rest, 16, 4)),
                .stored_bytes = Field(rest, 20, 4),
                .array_bytes = Field(rest, 24, 4),
                .header_offset = Field(rest, 42, 4)};
    const uint64_t flags = Field(rest, 8, 2), name_bytes = Field(rest, 28, 2), extra_bytes = Field(rest, 30, 2);
    const uint64_t variable_bytes = name_bytes + extra_bytes + Field(rest, 32, 2);
    if (variable_bytes > rest.size() - kCentralBytes) {
      return ZipError(input, absl::StrFormat("has a broken ZIP directory at entry %d of %d", i, directory.count));
    }
    std::string name(reinterpret_cast<const char*>(rest.data()) + kCentralBytes, name_bytes);
    GANTRY_RETURN_IF_ERROR(ApplyZip64(input, rest.subspan(kCentralBytes + name_bytes, extra_bytes), &entry.array_bytes,
                                      &entry.stored_bytes, &entry.header_offset));
    rest = rest.subspan(kCentralBytes + variable_bytes);

    if (name.ends_with(kSuffix)) name.resize(name.size() - kSuffix.size());
    if (flags & 1) return ZipError(input, absl::StrFormat("its entry '%s' is encrypted", name));
    if (entry.method != kStored && entry.method != kDeflated) {
      return ZipError(input, absl::StrFormat("its entry '%s' is compressed with ZIP method %d; stored (0) and deflated "
                                             "(8) are read",
                                             name, entry.method));
    }
    if (entry.header_offset > directory.end || directory.end - entry.header_offset < kLocalBytes + name_bytes ||
        directory.end - entry.header_offset - kLocalBytes - name_bytes < entry.stored_bytes) {
      return ZipError(input, absl::StrFormat("its entry '%s' of %d bytes at offset %d lies outside the file; it is cut "
                                             "short",
                                             name, entry.stored_bytes, entry.header_offset));
    }
    const bool possible = entry.method == kStored ? entry.array_bytes == entry.stored_bytes
                                                  : entry.array_bytes / kMaxDeflateRatio <= entry.stored_bytes;
    if (!possible) {
      return ZipError(input, absl::StrFormat("its entry '%s' says that %d bytes hold %d, which cannot be", name,
                                             entry.stored_bytes, entry.array_bytes));
    }
    extents.emplace_back(entry.header_offset, entry.header_offset + kLocalBytes + name_bytes + entry.stored_bytes);
    if (!file.entries_.emplace(name, entry).second)
      return ZipError(input, absl::StrFormat("has two entries named '%s'", name));
    file.names_.push_back(std::move(name));
  }
  std::ranges::sort(extents);
  for (size_t i = 1; i < extents.size(); ++i) {
    if (extents[i].first < extents[i - 1].second) return ZipError(input, "has entries that overlap");
  }
  return file;
}

absl::StatusOr<const NpzFile::Entry*> NpzFile::Find(std::string_view name) const {
  const auto found = entries_.find(name);
  if (found != entries_.end()) return &found->second;
  const auto shown = std::span(names_).subspan(0, std::min<size_t>(names_.size(), 20));
  return absl::NotFoundError(absl::StrFormat("%s: has no array '%s'; its %d arrays are: %s%s", source_->name(), name,
                                             names_.size(), absl::StrJoin(shown, ", "),
                                             shown.size() < names_.size() ? ", ..." : ""));
}

absl::StatusOr<uint64_t> NpzFile::UnpackedBytes(std::string_view name) const {
  GANTRY_ASSIGN_OR_RETURN(const Entry* entry, Find(name));
  return entry->array_bytes;
}

absl::StatusOr<std::vector<std::byte>> NpzFile::ReadBytes(std::string_view name) const {
  GANTRY_ASSIGN_OR_RETURN(const Entry* found, Find(name));
  const Entry& entry = *found;
  std::byte local[kLocalBytes];
  GANTRY_RETURN_IF_ERROR(source_->ReadAt(entry.header_offset, local));
  if (Field(local, 0, 4) != kLocalSignature)
    return ZipError(*source_, absl::StrFormat("its entry '%s' has no ZIP header", name));
  const uint64_t data_offset = entry.header_offset + kLocalBytes + Field(local, 26, 2) + Field(local, 28, 2);
  const std::string what = absl::StrFormat("%s: array '%s'", source_->name(), name);
  GANTRY_ASSIGN_OR_RETURN(std::vector<std::byte> stored, AllocateBytes(entry.stored_bytes, what));
  GANTRY_RETURN_IF_ERROR(source_->ReadAt(data_offset, stored));
  if (entry.method == kDeflated) {
    GANTRY_ASSIGN_OR_RETURN(std::vector<std::byte> plain, AllocateBytes(entry.array_bytes, what));
    GANTRY_RETURN_IF_ERROR(Inflate(stored, plain, what));
    stored = std::move(plain);
  }
  if (Crc32(stored) != entry.checksum) {
    return absl::DataLossError(absl::StrFormat("%s: its checksum does not match; the file is damaged", what));
  }
  return stored;
}

absl::StatusOr<HostArray> NpzFile::Read(std::string_view name) const {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadBytes(name));
  return DecodeNpy(bytes, absl::StrFormat("%s: array '%s'", source_->name(), name));
}

absl::StatusOr<std::vector<NamedArray>> ReadNpz(const std::string& path) {
  GANTRY_ASSIGN_OR_RETURN(const NpzFile file, NpzFile::Open(path));
  std::vector<NamedArray> arrays;
  for (const std::string& name : file.names()) {
    GANTRY_ASSIGN_OR_RETURN(HostArray array, file.Read(name));
    arrays.push_back({name, std::move(array)});
  }
  return arrays;
}

absl::Status WriteNpz(const std::string& path, std::span<const NamedArray> arrays) {
  constexpr uint64_t kLimit = 0xffffffff;
  if (arrays.size() >= 0xffff) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d arrays are more than a .npz file holds", path, arrays.size()));
  }
  GANTRY_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(path));
  std::set<std::string_view> names;
  std::string directory;
  for (const auto& [name, array] : arrays) {
    if (name.empty() || name.size() > 4096 || !names.insert(name).second) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: the array name '%s' is empty, too long or comes twice", path, name.substr(0, 100)));
    }
    GANTRY_ASSIGN_OR_RETURN(const std::string header, EncodeNpyHeader(array.type(), array.shape()));
    const uint64_t entry_bytes = header.size() + array.size_bytes(), offset = file->bytes_written();
    if (offset + directory.size() + entry_bytes + (64 << 10) >= kLimit) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s: with array '%s' it would reach 4 GiB, more than a .npz file holds; write safetensors", path, name));
    }
    const uint32_t checksum = Crc32(array.bytes(), Crc32(std::as_bytes(std::span(header.data(), header.size()))));
    const std::string entry_name = name + std::string(kSuffix);
    std::string common;             // the fields that both headers share
    AppendField(common, 20, 2);     // version needed: 2.0
    AppendField(common, 0x800, 2);  // names are UTF-8
    AppendField(common, kStored, 2);
    AppendField(common, 0, 2);  // time and date: 1980-01-01, so that equal arrays make equal files
    AppendField(common, 0x21, 2);
    AppendField(common, checksum, 4);
    AppendField(common, entry_bytes, 4);
    AppendField(common, entry_bytes, 4);
    AppendField(common, entry_name.size(), 2);
    AppendField(common, 0, 2);  // no extra field
    std::string local;
    AppendField(local, kLocalSignature, 4);
    GANTRY_RETURN_IF_ERROR(file->Write(local + common + entry_name + header));
    GANTRY_RETURN_IF_ERROR(file->Write(array.bytes()));
    AppendField(directory, kCentralSignature, 4);
    AppendField(directory, 20, 2);  // version made by
    directory += common;
    directory.append(2 + 2 + 2 + 4, '\0');  // comment, disk, attributes
    AppendField(directory, offset, 4);
    directory += entry_name;
  }
  const uint64_t directory_offset = file->bytes_written();
  std::string end;
  AppendField(end, kEndSignature, 4);
  AppendField(end, 0, 4);  // this disk and the directory's
  AppendField(end, arrays.size(), 2);
  AppendField(end, arrays.size(), 2);
  AppendField(end, directory.size(), 4);
  AppendField(end, directory_offset, 4);
  AppendField(end, 0, 2);  // no comment
  GANTRY_RETURN_IF_ERROR(file->Write(directory + end));
  return file->Commit();
}

}  // namespace gantry
