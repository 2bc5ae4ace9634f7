#include "runtime/checkpoint/checkpoint.h"

#include <zlib.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "absl/strings/str_join.h"

namespace gantry {
namespace {

constexpr std::string_view kFormatFamily = "gantry-checkpoint-", kFormat = "gantry-checkpoint-1";
constexpr std::string_view kFormatKey = "format", kVersionKey = "gantry_version", kChecksumKey = "crc32",
                           kTensorChecksums = "crc32.";
constexpr size_t kReadBytes = 1 << 20;
constexpr size_t kMostNamed = 10;

uint32_t Crc(uint32_t before, std::span<const std::byte> bytes) {
  if (bytes.empty()) return before;  // zlib starts anew where the pointer is null
  return static_cast<uint32_t>(crc32_z(before, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}
uint32_t Crc(uint32_t before, std::string_view text) {
  return Crc(before, std::as_bytes(std::span(text.data(), text.size())));
}
std::string Hex(uint32_t value) { return absl::StrFormat("%08x", value); }

// What a tensor's checksum begins with: moved, renamed or reshaped bytes are damage too.
uint32_t HeadCrc(std::string_view name, HostType type, std::span<const int64_t> shape) {
  return Crc(0, absl::StrFormat("%s %s %s\n", name, Name(type), ShapeText(shape)));
}

// Of all metadata but its own entry, each with its length so that no two sets look alike.
uint32_t MetadataCrc(const SafetensorsMetadata& metadata) {
  uint32_t crc = 0;
  for (const auto& [key, value] : metadata) {
    if (key == kChecksumKey) continue;
    crc = Crc(Crc(Crc(crc, absl::StrFormat("%d %d ", key.size(), value.size())), key), value);
  }
  return crc;
}

bool IsOurs(std::string_view key) {
  return key == kFormatKey || key == kVersionKey || key == kChecksumKey || key.starts_with(kTensorChecksums);
}

// "a, b, c and 4 more".
std::string Listed(const std::vector<std::string>& names) {
  const size_t shown = std::min(names.size(), kMostNamed);
  const std::string text = absl::StrJoin(names.begin(), names.begin() + shown, ", ");
  return shown == names.size() ? text : absl::StrFormat("%s and %d more", text, names.size() - shown);
}

}  // namespace

absl::Status WriteCheckpoint(const std::string& path, std::span<const CheckpointTensor> tensors,
                             const SafetensorsMetadata& metadata) {
  SafetensorsMetadata all = metadata;
  for (const auto& [key, value] : metadata) {
    if (IsOurs(key))
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: the metadata '%s' is written by the checkpoint itself", path, key));
  }
  std::vector<SafetensorsWriter::Declaration> declarations;
  declarations.reserve(tensors.size());
  for (const CheckpointTensor& tensor : tensors) {
    GANTRY_ASSIGN_OR_RETURN(const int64_t count, CheckedElementCount(tensor.type, tensor.shape));
    if (static_cast<uint64_t>(count) * SizeBytes(tensor.type) != tensor.bytes.size()) {
      return absl::InvalidArgumentError(absl::StrFormat("%s: '%s' is %s%s, but %d bytes were given", path, tensor.name,
                                                        Name(tensor.type), ShapeText(tensor.shape),
                                                        tensor.bytes.size()));
    }
    declarations.push_back({tensor.name, tensor.type, tensor.shape});
    all[absl::StrCat(ToAbsl(kTensorChecksums), tensor.name)] =
        Hex(Crc(HeadCrc(tensor.name, tensor.type, tensor.shape), tensor.bytes));
  }
  all[std::string(kFormatKey)] = kFormat;
  all[std::string(kVersionKey)] = GANTRY_VERSION;
  all[std::string(kChecksumKey)] = Hex(MetadataCrc(all));
  GANTRY_ASSIGN_OR_RETURN(const auto writer, SafetensorsWriter::Create(path, declarations, all));
  for (const CheckpointTensor& tensor : tensors) GANTRY_RETURN_IF_ERROR(writer->Append(tensor.bytes));
  return writer->Commit();
}

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& path) {
  GANTRY_ASSIGN_OR_RETURN(auto source, OpenFile(path));
  return Open(std::move(source));
}

absl::StatusOr<Checkpoint> Checkpoint::Open(std::shared_ptr<const ByteSource> source) {
  GANTRY_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(std::move(source)));
  Checkpoint checkpoint(std::move(file));
  const SafetensorsMetadata& metadata = checkpoint.metadata();
  const auto format = metadata.find(kFormatKey);
  if (format == metadata.end() || !std::string_view(format->second).starts_with(kFormatFamily)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: is a safetensors file, but not a checkpoint: its metadata have no format %s", checkpoint.path(), kFormat));
  }
  if (format->second != kFormat) {
    const auto version = metadata.find(kVersionKey);
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: has the format '%s', written by Gantry %s; this build knows %s only", checkpoint.path(),
                        format->second, version == metadata.end() ? "?" : version->second, kFormat));
  }
  const auto checksum = metadata.find(kChecksumKey);
  if (checksum == metadata.end() || checksum->second != Hex(MetadataCrc(metadata))) {
    return absl::DataLossError(
        absl::StrFormat("%s: is damaged: its metadata do not match their checksum", checkpoint.path()));
  }
  return checkpoint;
}

absl::StatusOr<std::string> Checkpoint::Text(std::string_view key) const {
  const auto found = metadata().find(key);
  if (found == metadata().end())
    return absl::InvalidArgumentError(absl::StrFormat("%s: has no metadata '%s'", path(), key));
  return found->second;
}

absl::StatusOr<int64_t> Checkpoint::Integer(std::string_view key) const {
  GANTRY_ASSIGN_OR_RETURN(const std::string text, Text(key));
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: metadata '%s' is '%s', not a whole number", path(), key, text));
  }
  return value;
}

absl::Status Checkpoint::CompareChecksum(const SafetensorsEntry& entry, uint32_t checksum) const {
  const auto stored = metadata().find(absl::StrCat(ToAbsl(kTensorChecksums), entry.name));
  if (stored != metadata().end() && stored->second == Hex(checksum)) return absl::OkStatus();
  return absl::DataLossError(absl::StrFormat("%s: is damaged: '%s' (%d bytes at offset %d) does not match its checksum",
                                             path(), entry.name, entry.size_bytes, entry.offset));
}

absl::Status Checkpoint::Verify() const {
  std::vector<std::byte> buffer;
  for (const SafetensorsEntry& entry : tensors()) {
    uint32_t crc = HeadCrc(entry.name, entry.type, entry.shape);
    buffer.resize(std::min<uint64_t>(kReadBytes, std::max<uint64_t>(buffer.size(), entry.size_bytes)));
    for (uint64_t offset = 0; offset < entry.size_bytes;) {
      const auto part = std::span(buffer).first(std::min<uint64_t>(buffer.size(), entry.size_bytes - offset));
      GANTRY_RETURN_IF_ERROR(file_.ReadRange(entry, offset, part));
      crc = Crc(crc, part);
      offset += part.size();
    }
    GANTRY_RETURN_IF_ERROR(CompareChecksum(entry, crc));
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::Read(std::span<const CheckpointTarget> targets) const { return Fill(targets, true); }
absl::Status Checkpoint::ReadSome(std::span<const CheckpointTarget> targets) const { return Fill(targets, false); }

absl::Status Checkpoint::Fill(std::span<const CheckpointTarget> targets, bool all) const {
  std::vector<std::string> missing, different, extra;
  std::set<std::string_view> wanted;
  for (const CheckpointTarget& target : targets) {
    wanted.insert(target.name);
    const SafetensorsEntry* entry = Find(target.name);
    if (entry == nullptr) {
      missing.push_back(target.name);
    } else if (entry->type != target.type || entry->shape != target.shape || entry->size_bytes != target.bytes.size()) {
      different.push_back(absl::StrFormat("'%s' is %s%s, expected %s%s", entry->name, Name(entry->type),
                                          ShapeText(entry->shape), Name(target.type), ShapeText(target.shape)));
    }
  }
  for (const SafetensorsEntry& entry : tensors()) {
    if (all && !wanted.contains(entry.name)) extra.push_back(entry.name);
  }
  std::string problems;
  if (!missing.empty()) absl::StrAppend(&problems, "; it lacks ", Listed(missing));
  if (!extra.empty()) absl::StrAppend(&problems, "; it has ", Listed(extra), ", which this run has not");
  if (!different.empty()) absl::StrAppend(&problems, "; ", Listed(different));
  if (!problems.empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: does not fit this run's networks and optimizers%s", path(), problems));
  }
  for (const CheckpointTarget& target : targets) {
    const SafetensorsEntry& entry = *Find(target.name);
    GANTRY_RETURN_IF_ERROR(file_.ReadRange(entry, 0, target.bytes));
    GANTRY_RETURN_IF_ERROR(CompareChecksum(entry, Crc(HeadCrc(entry.name, entry.type, entry.shape), target.bytes)));
  }
  return absl::OkStatus();
}

}  // namespace gantry
