#include "runtime/data/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <tuple>

#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

namespace gantry {
namespace {

constexpr std::string_view kMetadataKey = "__metadata__";
constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kDataAlignmentBytes = 64;

struct DtypeName {
  HostType type;
  std::string_view name;
};
constexpr DtypeName kDtypeNames[] = {
    {HostType::kBool, "BOOL"}, {HostType::kU8, "U8"},          {HostType::kI8, "I8"},          {HostType::kU16, "U16"},
    {HostType::kI16, "I16"},   {HostType::kU32, "U32"},        {HostType::kI32, "I32"},        {HostType::kU64, "U64"},
    {HostType::kI64, "I64"},   {HostType::kF8E4M3, "F8_E4M3"}, {HostType::kF8E5M2, "F8_E5M2"}, {HostType::kF16, "F16"},
    {HostType::kBF16, "BF16"}, {HostType::kF32, "F32"},        {HostType::kF64, "F64"},
};

// Takes the JSON header piece by piece, so that a hostile one costs no more memory than its tensors' entries. Each
// function returns false to stop; `error` then says why.
class HeaderHandler {
 public:
  std::string error;
  std::vector<SafetensorsEntry> tensors;  // offset relative to the data
  SafetensorsMetadata metadata;

  bool start_object(std::size_t) {
    if (depth_ == 2 || in_array_) return Fail("is nested deeper than the format allows");
    ++depth_;
    if (depth_ == 2 && key_ != kMetadataKey) {
      tensors.emplace_back().name = key_;
      has_dtype_ = has_shape_ = has_offsets_ = false;
    }
    in_metadata_ = depth_ == 2 && key_ == kMetadataKey;
    return true;
  }
  bool end_object() {
    if (depth_ == 2 && !in_metadata_) {
      if (!has_dtype_ || !has_shape_ || !has_offsets_) return Fail("lacks dtype, shape or data_offsets");
      if (!CheckTensor()) return false;
    }
    --depth_;
    return true;
  }
  bool key(std::string& name) {
    key_ = name;
    if (depth_ == 1 && !names_.insert(name).second) return Fail(absl::StrFormat("has '%s' twice", name));
    if (depth_ == 2 && in_metadata_ && metadata.contains(name))
      return Fail(absl::StrFormat("has the metadata '%s' twice", name));
    return true;
  }
  bool string(std::string& value) {
    if (depth_ == 2 && in_metadata_) {
      metadata[key_] = value;
      return true;
    }
    if (depth_ != 2 || in_array_ || key_ != "dtype" || has_dtype_)
      return Fail(absl::StrFormat("has a text as '%s'", key_));
    has_dtype_ = true;
    const auto found = std::ranges::find(kDtypeNames, std::string_view(value), &DtypeName::name);
    if (found == std::end(kDtypeNames))
      return Fail(absl::StrFormat("has the element type '%s', which is not read", value));
    tensors.back().type = found->type;
    return true;
  }
  bool start_array(std::size_t) {
    if (depth_ != 2 || in_metadata_ || in_array_) return Fail("has a list where none belongs");
    bool& seen = key_ == "shape" ? has_shape_ : has_offsets_;
    if ((key_ != "shape" && key_ != "data_offsets") || seen) return Fail(absl::StrFormat("has a list as '%s'", key_));
    seen = in_array_ = true;
    values_.clear();
    return true;
  }
  bool end_array() {
    in_array_ = false;
    if (key_ == "shape") {
      tensors.back().shape.assign(values_.begin(), values_.end());
      return true;
    }
    if (values_.size() != 2 || values_[0] > values_[1]) return Fail("has data_offsets that are no begin and end");
    tensors.back().offset = static_cast<uint64_t>(values_[0]);
    tensors.back().size_bytes = static_cast<uint64_t>(values_[1] - values_[0]);
    return true;
  }
  bool number_unsigned(uint64_t value) {
    if (!in_array_) return Fail(absl::StrFormat("has a number as '%s'", key_));
    if (value > static_cast<uint64_t>(INT64_MAX))
      return Fail(absl::StrFormat("has %d, which is beyond 63 bits", value));
    if (values_.size() == kMaxArrayRank) return Fail("has more than 32 dimensions");
    values_.push_back(static_cast<int64_t>(value));
    return true;
  }
  bool number_integer(int64_t value) { return Fail(absl::StrFormat("has the negative number %d", value)); }
  bool number_float(double, const std::string& text) {
    return Fail(absl::StrFormat("has '%s', which is no integer", text.substr(0, 40)));
  }
  bool null() { return Fail(absl::StrFormat("has null as '%s'", key_)); }
  bool boolean(bool) { return Fail(absl::StrFormat("has a truth value as '%s'", key_)); }
  bool binary(std::vector<uint8_t>&) { return Fail("has binary data"); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) {
    return Fail(absl::StrFormat("is no valid JSON at character %d", position));
  }

 private:
  bool Fail(const std::string& what) {
    const bool in_tensor = depth_ == 2 && !in_metadata_ && !tensors.empty();
    error = in_tensor ? absl::StrFormat("tensor '%s' %s", tensors.back().name.substr(0, 200), what)
                      : absl::StrCat("its header ", what);
    return false;
  }
  bool CheckTensor() {
    const SafetensorsEntry& tensor = tensors.back();
    const absl::StatusOr<int64_t> count = CheckedElementCount(tensor.type, tensor.shape);
    if (!count.ok()) return Fail(absl::StrCat("cannot be: ", count.status().message()));
    const uint64_t wanted = static_cast<uint64_t>(*count) * SizeBytes(tensor.type);
    if (wanted == tensor.size_bytes) return true;
    return Fail(absl::StrFormat("is %s%s, which is %d bytes, but its data_offsets span %d", Name(tensor.type),
                                ShapeText(tensor.shape), wanted, tensor.size_bytes));
  }

  int depth_ = 0;  // 1: in the header, 2: in a tensor or the metadata
  bool in_metadata_ = false, in_array_ = false;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  std::string key_;
  std::vector<int64_t> values_;
  std::set<std::string, std::less<>> names_;
};

}  // namespace

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  GANTRY_ASSIGN_OR_RETURN(auto source, OpenFile(path));
  return Open(std::move(source));
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(std::shared_ptr<const ByteSource> source) {
  const auto error = [&source](std::string_view what) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s", source->name(), what));
  };
  const uint64_t file_bytes = source->size_bytes();
  if (file_bytes < kLengthBytes) return error("is too short for a safetensors file");
  uint64_t header_bytes = 0;
  GANTRY_RETURN_IF_ERROR(source->ReadAt(0, std::as_writable_bytes(std::span(&header_bytes, 1))));
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    return error(
        absl::StrFormat("says that its header has %d bytes, more than the %d allowed; is it a safetensors file?",
                        header_bytes, kMaxSafetensorsHeaderBytes));
  }
  if (header_bytes > file_bytes - kLengthBytes) {
    return error(absl::StrFormat("is cut short: its header has %d bytes, the file %d", header_bytes, file_bytes));
  }
  GANTRY_ASSIGN_OR_RETURN(std::vector<std::byte> text, AllocateBytes(header_bytes, source->name()));
  GANTRY_RETURN_IF_ERROR(source->ReadAt(kLengthBytes, text));
  const char* begin = reinterpret_cast<const char*>(text.data());
  if (header_bytes == 0 || *begin != '{')
    return error("has a header that does not begin with '{'; is it a safetensors file?");
  HeaderHandler handler;
  if (!nlohmann::json::sax_parse(begin, begin + header_bytes, &handler)) return error(handler.error);

  SafetensorsFile file;
  file.tensors_ = std::move(handler.tensors);
  file.metadata_ = std::move(handler.metadata);
  std::ranges::sort(file.tensors_, {}, [](const SafetensorsEntry& tensor) {
    return std::tuple(tensor.offset, tensor.size_bytes, std::string_view(tensor.name));
  });
  const uint64_t data_begin = kLengthBytes + header_bytes, data_bytes = file_bytes - data_begin;
  uint64_t end = 0;
  for (size_t i = 0; i < file.tensors_.size(); ++i) {
    SafetensorsEntry& tensor = file.tensors_[i];
    if (tensor.offset != end) {
      return error(absl::StrFormat("tensor '%s' begins at data byte %d, the one before it ends at %d: they %s",
                                   tensor.name, tensor.offset, end, tensor.offset < end ? "overlap" : "leave a hole"));
    }
    if (tensor.size_bytes > data_bytes - end) {
      return error(absl::StrFormat("is cut short: tensor '%s' ends at data byte %d, the file has %d", tensor.name,
                                   end + tensor.size_bytes, data_bytes));
    }
    end += tensor.size_bytes;
    tensor.offset += data_begin;
    file.index_.emplace(tensor.name, i);
  }
  if (end != data_bytes) return error(absl::StrFormat("has %d bytes of data, its tensors only %d", data_bytes, end));
  file.source_ = std::move(source);
  return file;
}

const SafetensorsEntry* SafetensorsFile::Find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

absl::StatusOr<HostArray> SafetensorsFile::Read(std::string_view name) const {
  const SafetensorsEntry* entry = Find(name);
  if (entry == nullptr) {
    const auto shown = std::span(tensors_).subspan(0, std::min<size_t>(tensors_.size(), 20));
    return absl::NotFoundError(absl::StrFormat(
        "%s: has no tensor '%s'; its %d tensors are: %s%s", source_->name(), name, tensors_.size(),
        absl::StrJoin(shown, ", ", [](std::string* out, const auto& tensor) { out->append(tensor.name); }),
        shown.size() < tensors_.size() ? ", ..." : ""));
  }
  GANTRY_ASSIGN_OR_RETURN(HostArray array, HostArray::Create(entry->type, entry->shape));
  GANTRY_RETURN_IF_ERROR(source_->ReadAt(entry->offset, array.mutable_bytes()));
  return array;
}

absl::Status SafetensorsFile::ReadRange(const SafetensorsEntry& entry, uint64_t offset, std::span<std::byte> to) const {
  if (offset > entry.size_bytes || to.size() > entry.size_bytes - offset) {
    return absl::OutOfRangeError(absl::StrFormat("%s: %d bytes at %d lie outside tensor '%s' of %d bytes",
                                                 source_->name(), to.size(), offset, entry.name, entry.size_bytes));
  }
  return source_->ReadAt(entry.offset + offset, to);
}

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(const std::string& path,
                                                                             std::span<const Declaration> tensors,
                                                                             const SafetensorsMetadata& metadata) {
  // The text is put together by hand: the header keeps the order of the declarations, and strict quoting of names is
  // the only part of JSON it needs from the library.
  const auto quoted = [&path](const std::string& text) -> absl::StatusOr<std::string> {
    try {
      return nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception&) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": a tensor name or metadata text is not valid UTF-8"));
    }
  };
  std::vector<std::string> parts;
  if (!metadata.empty()) {
    std::vector<std::string> pairs;
    for (const auto& [key, value] : metadata) {
      GANTRY_ASSIGN_OR_RETURN(const std::string quoted_key, quoted(key));
      GANTRY_ASSIGN_OR_RETURN(const std::string quoted_value, quoted(value));
      pairs.push_back(absl::StrCat(quoted_key, ":", quoted_value));
    }
    parts.push_back(absl::StrCat("\"", ToAbsl(kMetadataKey), "\":{", absl::StrJoin(pairs, ","), "}"));
  }
  std::set<std::string_view> names;
  uint64_t end = 0;
  for (const Declaration& tensor : tensors) {
    if (tensor.name.empty() || tensor.name == kMetadataKey || !names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: the tensor name '%s' is empty, reserved or comes twice", path, tensor.name));
    }
    const absl::StatusOr<int64_t> count = CheckedElementCount(tensor.type, tensor.shape);
    if (!count.ok()) return Annotate(count.status(), absl::StrFormat("%s: tensor '%s'", path, tensor.name));
    const uint64_t begin = end;
    if (__builtin_add_overflow(end, static_cast<uint64_t>(*count) * SizeBytes(tensor.type), &end) || end > INT64_MAX) {
      return absl::InvalidArgumentError(absl::StrFormat("%s: its tensors together exceed 63 bits of size", path));
    }
    GANTRY_ASSIGN_OR_RETURN(const std::string quoted_name, quoted(tensor.name));
    const auto dtype = std::ranges::find(kDtypeNames, tensor.type, &DtypeName::type);
    parts.push_back(absl::StrFormat("%s:{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%d,%d]}", quoted_name,
                                    dtype->name, absl::StrJoin(tensor.shape, ","), begin, end));
  }
  std::string header = absl::StrCat("{", absl::StrJoin(parts, ","), "}");
  header.resize((kLengthBytes + header.size() + kDataAlignmentBytes - 1) / kDataAlignmentBytes * kDataAlignmentBytes -
                    kLengthBytes,
                ' ');
  if (header.size() > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: its header would have %d bytes, more than the %d allowed",
                                                      path, header.size(), kMaxSafetensorsHeaderBytes));
  }
  const uint64_t header_bytes = header.size();
  GANTRY_ASSIGN_OR_RETURN(auto file, AtomicFile::Create(path));
  GANTRY_RETURN_IF_ERROR(file->Write(std::as_bytes(std::span(&header_bytes, 1))));
  GANTRY_RETURN_IF_ERROR(file->Write(header));
  return std::unique_ptr<SafetensorsWriter>(new SafetensorsWriter(std::move(file), path, end));
}

absl::Status SafetensorsWriter::Append(std::span<const std::byte> bytes) {
  if (bytes.size() > missing_bytes_) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %d bytes given, but the declared tensors lack only %d",
                                                      path_, bytes.size(), missing_bytes_));
  }
  GANTRY_RETURN_IF_ERROR(file_->Write(bytes));
  missing_bytes_ -= bytes.size();
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Commit() {
  if (missing_bytes_ > 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("%s: the declared tensors still lack %d bytes", path_, missing_bytes_));
  }
  return file_->Commit();
}

absl::Status WriteSafetensors(const std::string& path, std::span<const NamedArray> tensors,
                              const SafetensorsMetadata& metadata) {
  std::vector<SafetensorsWriter::Declaration> declarations;
  declarations.reserve(tensors.size());
  for (const auto& [name, array] : tensors) declarations.push_back({name, array.type(), array.shape()});
  GANTRY_ASSIGN_OR_RETURN(const auto writer, SafetensorsWriter::Create(path, declarations, metadata));
  for (const auto& [name, array] : tensors) GANTRY_RETURN_IF_ERROR(writer->Append(array.bytes()));
  return writer->Commit();
}

}  // namespace gantry
