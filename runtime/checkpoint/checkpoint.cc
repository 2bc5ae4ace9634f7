#include "runtime/checkpoint/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <tuple>

#include "absl/strings/str_join.h"
#include "memory/crc32.h"

namespace gantry {
namespace {

constexpr std::string_view kFormatFamily = "gantry-checkpoint-", kFormat = "gantry-checkpoint-1";
constexpr std::string_view kPartsFormat = "gantry-checkpoint-parts-1", kPartFormat = "gantry-checkpoint-part-1", kPartsKey = "parts", kPartKey = "part",
                           kSeals = "part_crc32.", kPlaces = "elements.";
constexpr int64_t kMostParts = 1 << 16;
constexpr std::string_view kFormatKey = "format", kVersionKey = "gantry_version", kChecksumKey = "crc32",
                           kTensorChecksums = "crc32.";
constexpr size_t kReadBytes = 1 << 20;
constexpr size_t kMostNamed = 10;

uint32_t TextCrc(std::string_view text, uint32_t before = 0) {
  return Crc32(std::as_bytes(std::span(text.data(), text.size())), before);
}
std::string Hex(uint32_t value) { return absl::StrFormat("%08x", value); }

// What a tensor's checksum begins with: moved, renamed or reshaped bytes are damage too.
uint32_t HeadCrc(std::string_view name, HostType type, std::span<const int64_t> shape) {
  return TextCrc(absl::StrFormat("%s %s %s\n", name, Name(type), ShapeText(shape)));
}

// Of all metadata but its own entry, each with its length so that no two sets look alike.
uint32_t MetadataCrc(const SafetensorsMetadata& metadata) {
  uint32_t crc = 0;
  for (const auto& [key, value] : metadata) {
    if (key == kChecksumKey) continue;
    crc = TextCrc(value, TextCrc(key, TextCrc(absl::StrFormat("%d %d ", key.size(), value.size()), crc)));
  }
  return crc;
}

bool IsOurs(std::string_view key) {
  return key == kFormatKey || key == kVersionKey || key == kChecksumKey || key == kPartsKey || key == kPartKey || key.starts_with(kTensorChecksums) ||
         key.starts_with(kSeals) || key.starts_with(kPlaces);
}

// "a, b, c and 4 more".
std::string Listed(const std::vector<std::string>& names) {
  const size_t shown = std::min(names.size(), kMostNamed);
  const std::string text = absl::StrJoin(names.begin(), names.begin() + shown, ", ");
  return shown == names.size() ? text : absl::StrFormat("%s and %d more", text, names.size() - shown);
}

absl::Status CheckMetadata(const std::string& path, const SafetensorsMetadata& metadata) {
  for (const auto& [key, value] : metadata) {
    if (!IsOurs(key)) continue;
    return absl::InvalidArgumentError(absl::StrFormat("%s: the metadata '%s' is written by the checkpoint itself", path, key));
  }
  return absl::OkStatus();
}

// Writes tensors with their checksums under `metadata`, which gets "format" and what all files have. Returns the metadata's checksum.
absl::StatusOr<uint32_t> WriteFile(const std::string& path, std::span<const CheckpointTensor> tensors, std::string_view format,
                                   SafetensorsMetadata metadata) {
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
    metadata[absl::StrCat(ToAbsl(kTensorChecksums), tensor.name)] =
        Hex(Crc32(tensor.bytes, HeadCrc(tensor.name, tensor.type, tensor.shape)));
  }
  metadata[std::string(kFormatKey)] = format;
  metadata[std::string(kVersionKey)] = GANTRY_VERSION;
  const uint32_t checksum = MetadataCrc(metadata);
  metadata[std::string(kChecksumKey)] = Hex(checksum);
  GANTRY_ASSIGN_OR_RETURN(const auto writer, SafetensorsWriter::Create(path, declarations, metadata));
  for (const CheckpointTensor& tensor : tensors) GANTRY_RETURN_IF_ERROR(writer->Append(tensor.bytes));
  GANTRY_RETURN_IF_ERROR(writer->Commit());
  return checksum;
}

// "12 [3,4]": where a part's elements begin, and the whole state's shape.
struct Place {
  int64_t begin = 0;
  std::vector<int64_t> shape;
};
absl::StatusOr<Place> ParsePlace(std::string_view path, std::string_view name, std::string_view text) {
  Place place;
  const absl::Status wrong = absl::InvalidArgumentError(absl::StrFormat("%s: says of '%s' that it is '%s'", path, name, text));
  const auto Take = [&](int64_t& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || value < 0) return false;
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    return true;
  };
  if (!Take(place.begin) || !text.starts_with(" [") || !text.ends_with("]")) return wrong;
  text.remove_prefix(2);
  while (text != "]") {
    place.shape.emplace_back();
    if (!Take(place.shape.back())) return wrong;
    if (text.starts_with(",")) text.remove_prefix(1);
  }
  return place;
}

absl::Status CompareChecksum(const SafetensorsFile& file, const SafetensorsEntry& entry, uint32_t checksum) {
  const auto stored = file.metadata().find(absl::StrCat(ToAbsl(kTensorChecksums), entry.name));
  if (stored != file.metadata().end() && stored->second == Hex(checksum)) return absl::OkStatus();
  return absl::DataLossError(absl::StrFormat("%s: is damaged: '%s' (%d bytes at offset %d) does not match its checksum",
                                             file.source().name(), entry.name, entry.size_bytes, entry.offset));
}

absl::Status VerifyFile(const SafetensorsFile& file, std::vector<std::byte>& buffer) {
  for (const SafetensorsEntry& entry : file.tensors()) {
    uint32_t crc = HeadCrc(entry.name, entry.type, entry.shape);
    buffer.resize(std::min<uint64_t>(kReadBytes, std::max<uint64_t>(buffer.size(), entry.size_bytes)));
    for (uint64_t offset = 0; offset < entry.size_bytes;) {
      const auto part = std::span(buffer).first(std::min<uint64_t>(buffer.size(), entry.size_bytes - offset));
      GANTRY_RETURN_IF_ERROR(file.ReadRange(entry, offset, part));
      crc = Crc32(part, crc);
      offset += part.size();
    }
    GANTRY_RETURN_IF_ERROR(CompareChecksum(file, entry, crc));
  }
  return absl::OkStatus();
}

int64_t ElementCount(const SafetensorsEntry& entry) { return static_cast<int64_t>(entry.size_bytes / SizeBytes(entry.type)); }

}  // namespace

absl::Status WriteCheckpoint(const std::string& path, std::span<const CheckpointTensor> tensors,
                             const SafetensorsMetadata& metadata) {
  GANTRY_RETURN_IF_ERROR(CheckMetadata(path, metadata));
  return WriteFile(path, tensors, kFormat, metadata).status();
}

std::string CheckpointPartPath(const std::string& path, int part, int parts) {
  constexpr std::string_view kEnding = ".safetensors";
  const std::string_view stem = std::string_view(path).ends_with(kEnding) ? std::string_view(path).substr(0, path.size() - kEnding.size()) : path;
  return absl::StrFormat("%s.part-%d-of-%d%s", stem, part, parts, kEnding);
}

absl::StatusOr<uint32_t> WriteCheckpointPart(const std::string& path, int part, int parts, std::span<const CheckpointPart> states,
                                             const SafetensorsMetadata& given) {
  const std::string part_path = CheckpointPartPath(path, part, parts);
  GANTRY_RETURN_IF_ERROR(CheckMetadata(part_path, given));
  SafetensorsMetadata metadata = given;
  std::vector<CheckpointTensor> tensors;
  for (const CheckpointPart& state : states) {
    const auto count = static_cast<int64_t>(state.bytes.size() / SizeBytes(state.type));
    GANTRY_ASSIGN_OR_RETURN(const int64_t whole, CheckedElementCount(state.type, state.shape));
    if (state.begin < 0 || state.begin + count > whole) {
      return absl::InvalidArgumentError(absl::StrFormat("%s: '%s' has %d elements, not [%d, %d)", part_path, state.name, whole, state.begin, state.begin + count));
    }
    tensors.push_back({state.name, state.type, {count}, state.bytes});
    metadata[absl::StrCat(ToAbsl(kPlaces), state.name)] = absl::StrCat(state.begin, " ", ShapeText(state.shape));
  }
  metadata[std::string(kPartKey)] = absl::StrCat(part, " of ", parts);
  return WriteFile(part_path, tensors, kPartFormat, std::move(metadata));
}

absl::Status WriteCheckpointOfParts(const std::string& path, std::span<const uint32_t> seals, const SafetensorsMetadata& given) {
  GANTRY_RETURN_IF_ERROR(CheckMetadata(path, given));
  SafetensorsMetadata metadata = given;
  metadata[std::string(kPartsKey)] = absl::StrCat(seals.size());
  for (size_t part = 0; part < seals.size(); ++part) metadata[absl::StrCat(ToAbsl(kSeals), part)] = Hex(seals[part]);
  return WriteFile(path, {}, kPartsFormat, std::move(metadata)).status();
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
  if (format->second == kPartFormat) {
    const auto part = metadata.find(kPartKey);
    return absl::InvalidArgumentError(absl::StrFormat("%s: is part %s of a checkpoint; give the checkpoint itself, whose name is without .part-",
                                                      checkpoint.path(), part == metadata.end() ? "?" : part->second));
  }
  if (format->second != kFormat && format->second != kPartsFormat) {
    const auto version = metadata.find(kVersionKey);
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: has the format '%s', written by Gantry %s; this build knows %s and %s only", checkpoint.path(),
                        format->second, version == metadata.end() ? "?" : version->second, kFormat, kPartsFormat));
  }
  const auto checksum = metadata.find(kChecksumKey);
  if (checksum == metadata.end() || checksum->second != Hex(MetadataCrc(metadata))) {
    return absl::DataLossError(
        absl::StrFormat("%s: is damaged: its metadata do not match their checksum", checkpoint.path()));
  }
  if (format->second == kPartsFormat) GANTRY_RETURN_IF_ERROR(checkpoint.OpenParts());
  return checkpoint;
}

absl::Status Checkpoint::OpenParts() {
  GANTRY_ASSIGN_OR_RETURN(const int64_t count, Integer(kPartsKey));
  if (count < 1 || count > kMostParts) return absl::InvalidArgumentError(absl::StrFormat("%s: has %d parts", path(), count));
  std::map<std::string, std::vector<int64_t>, std::less<>> shapes;
  for (int64_t part = 0; part < count; ++part) {
    const std::string part_path = CheckpointPartPath(std::string(path()), static_cast<int>(part), static_cast<int>(count));
    absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(part_path);
    if (absl::IsNotFound(file.status())) {
      return absl::DataLossError(absl::StrFormat("%s: its part %d of %d is missing: %s", path(), part, count, part_path));
    }
    if (!file.ok()) return absl::DataLossError(absl::StrFormat("%s: its part %d of %d is damaged: %s", path(), part, count, Message(file.status())));
    parts_.push_back(std::make_unique<SafetensorsFile>(*std::move(file)));
    const SafetensorsFile& opened = *parts_.back();
    GANTRY_ASSIGN_OR_RETURN(const std::string seal, Text(absl::StrCat(ToAbsl(kSeals), part)));
    const auto stored = opened.metadata().find(kChecksumKey);
    if (stored == opened.metadata().end() || stored->second != Hex(MetadataCrc(opened.metadata()))) {
      return absl::DataLossError(absl::StrFormat("%s: is damaged: its metadata do not match their checksum", part_path));
    }
    if (stored->second != seal) {
      return absl::DataLossError(absl::StrFormat("%s: does not belong to %s: its checksum is %s, the checkpoint was written with a part of %s", part_path, path(),
                                                 stored->second, seal));
    }
    for (const SafetensorsEntry& entry : opened.tensors()) {
      const auto place_text = opened.metadata().find(absl::StrCat(ToAbsl(kPlaces), entry.name));
      if (place_text == opened.metadata().end()) return absl::InvalidArgumentError(absl::StrFormat("%s: does not say where '%s' belongs", part_path, entry.name));
      GANTRY_ASSIGN_OR_RETURN(const Place place, ParsePlace(part_path, entry.name, place_text->second));
      pieces_[entry.name].push_back({&opened, &entry, place.begin, ElementCount(entry)});
      const auto [known, added] = shapes.emplace(entry.name, place.shape);
      const std::vector<Piece>& pieces = pieces_[entry.name];
      if (known->second != place.shape || pieces.front().entry->type != entry.type) {
        return absl::InvalidArgumentError(absl::StrFormat("%s: its parts have '%s' as %s%s and as %s%s", path(), entry.name, Name(pieces.front().entry->type),
                                                          ShapeText(known->second), Name(entry.type), ShapeText(place.shape)));
      }
      if (added) whole_.push_back({.name = entry.name, .type = entry.type, .shape = place.shape});
    }
  }
  for (SafetensorsEntry& whole : whole_) {
    std::vector<Piece>& pieces = pieces_[whole.name];
    std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return std::tie(a.begin, a.count) < std::tie(b.begin, b.count); });
    GANTRY_ASSIGN_OR_RETURN(const int64_t elements, CheckedElementCount(whole.type, whole.shape));
    whole.size_bytes = static_cast<uint64_t>(elements) * SizeBytes(whole.type);
    int64_t end = 0;
    for (const Piece& piece : pieces) {
      if (piece.begin != end) break;
      end += piece.count;
    }
    if (end != elements) {
      return absl::InvalidArgumentError(absl::StrFormat("%s: its parts do not have every element of '%s' once: there is a gap or a double at %d of %d", path(),
                                                        whole.name, end, elements));
    }
  }
  return absl::OkStatus();
}

const SafetensorsEntry* Checkpoint::Find(std::string_view name) const {
  if (parts_.empty()) return file_.Find(name);
  const auto found = std::find_if(whole_.begin(), whole_.end(), [&](const SafetensorsEntry& entry) { return entry.name == name; });
  return found == whole_.end() ? nullptr : &*found;
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

absl::Status Checkpoint::Verify() const {
  std::vector<std::byte> buffer;
  GANTRY_RETURN_IF_ERROR(VerifyFile(file_, buffer));
  for (const auto& part : parts_) GANTRY_RETURN_IF_ERROR(VerifyFile(*part, buffer));
  return absl::OkStatus();
}

absl::Status Checkpoint::ReadElements(const SafetensorsEntry& tensor, int64_t begin, std::span<std::byte> to) const {
  const size_t element_bytes = SizeBytes(tensor.type);
  if (parts_.empty()) return file_.ReadRange(tensor, static_cast<uint64_t>(begin) * element_bytes, to);
  const int64_t end = begin + static_cast<int64_t>(to.size() / element_bytes);
  for (const Piece& piece : pieces_.find(tensor.name)->second) {
    const int64_t first = std::max(begin, piece.begin), last = std::min(end, piece.begin + piece.count);
    if (first >= last) continue;
    GANTRY_RETURN_IF_ERROR(piece.file->ReadRange(*piece.entry, static_cast<uint64_t>(first - piece.begin) * element_bytes,
                                                 to.subspan(static_cast<size_t>(first - begin) * element_bytes, static_cast<size_t>(last - first) * element_bytes)));
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::CheckFit(std::span<const CheckpointTarget> targets) const { return CheckTargets(targets, true, false); }
absl::Status Checkpoint::Read(std::span<const CheckpointTarget> targets) const { return Fill(targets, true); }
absl::Status Checkpoint::ReadSome(std::span<const CheckpointTarget> targets) const { return Fill(targets, false); }

absl::Status Checkpoint::CheckTargets(std::span<const CheckpointTarget> targets, bool all, bool sizes) const {
  std::vector<std::string> missing, different, extra;
  std::set<std::string_view> wanted;
  for (const CheckpointTarget& target : targets) {
    wanted.insert(target.name);
    const SafetensorsEntry* entry = Find(target.name);
    if (entry == nullptr) {
      missing.push_back(target.name);
    } else if (entry->type != target.type || entry->shape != target.shape || (sizes && entry->size_bytes != target.bytes.size())) {
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
  return absl::OkStatus();
}

absl::Status Checkpoint::Fill(std::span<const CheckpointTarget> targets, bool all) const {
  GANTRY_RETURN_IF_ERROR(CheckTargets(targets, all, true));
  const auto ReadOne = [](const SafetensorsFile& file, const SafetensorsEntry& entry, std::span<std::byte> to) -> absl::Status {
    GANTRY_RETURN_IF_ERROR(file.ReadRange(entry, 0, to));
    return CompareChecksum(file, entry, Crc32(to, HeadCrc(entry.name, entry.type, entry.shape)));
  };
  for (const CheckpointTarget& target : targets) {
    if (parts_.empty()) {
      GANTRY_RETURN_IF_ERROR(ReadOne(file_, *Find(target.name), target.bytes));
      continue;
    }
    for (const Piece& piece : pieces_.find(target.name)->second) {
      const size_t element_bytes = SizeBytes(piece.entry->type);
      GANTRY_RETURN_IF_ERROR(ReadOne(*piece.file, *piece.entry, target.bytes.subspan(static_cast<size_t>(piece.begin) * element_bytes, piece.entry->size_bytes)));
    }
  }
  return absl::OkStatus();
}

}  // namespace gantry
