// safetensors files: named tensors behind one JSON header. Format: github.com/huggingface/safetensors, README "Format":
// a u64 header length, the header {"name": {"dtype", "shape", "data_offsets"}, "__metadata__": {text: text}}, the data.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/status.h"
#include "runtime/data/file.h"
#include "runtime/data/host_array.h"
#include "runtime/data/npz.h"

namespace gantry {

// The longest header that is read, as in the format's own reader.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct SafetensorsEntry {
  std::string name;
  HostType type = HostType::kF32;
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // of the first byte, from the start of the file
  uint64_t size_bytes = 0;
};

using SafetensorsMetadata = std::map<std::string, std::string, std::less<>>;

// An opened file. Only the header is in memory; tensors are read one by one, whole or in parts. Reading is thread-safe.
class SafetensorsFile {
 public:
  // kInvalidArgument when the header is not what the format says: types and sizes that do not match, tensors that
  // overlap, leave a hole or lie outside the file, a name twice, a type that HostType lacks.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);
  static absl::StatusOr<SafetensorsFile> Open(std::shared_ptr<const ByteSource> source);

  // In the order of their data in the file.
  std::span<const SafetensorsEntry> tensors() const { return tensors_; }
  const SafetensorsMetadata& metadata() const { return metadata_; }
  const ByteSource& source() const { return *source_; }
  // nullptr if there is none.
  const SafetensorsEntry* Find(std::string_view name) const;

  // kNotFound for an unknown name.
  absl::StatusOr<HostArray> Read(std::string_view name) const;
  // Fills `to` from the tensor's bytes, `offset` bytes after its first.
  absl::Status ReadRange(const SafetensorsEntry& entry, uint64_t offset, std::span<std::byte> to) const;

 private:
  std::shared_ptr<const ByteSource> source_;
  std::vector<SafetensorsEntry> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
  SafetensorsMetadata metadata_;
};

// Writes a file whose tensors are declared first and whose bytes then come in pieces of any size, in order: a
// checkpoint needs no second copy of the model. Written beside, synced, renamed by Commit; dropped without it. Used by
// one thread.
class SafetensorsWriter {
 public:
  struct Declaration {
    std::string name;
    HostType type = HostType::kF32;
    std::vector<int64_t> shape;
  };
  // kInvalidArgument for a name that is empty, "__metadata__", comes twice or is not UTF-8, and a bad shape.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(const std::string& path,
                                                                   std::span<const Declaration> tensors,
                                                                   const SafetensorsMetadata& metadata = {});
  // The next bytes of the tensors, one behind the other in the order of their declaration. kInvalidArgument past the
  // end.
  absl::Status Append(std::span<const std::byte> bytes);
  // kFailedPrecondition while bytes are missing.
  absl::Status Commit();

 private:
  SafetensorsWriter(std::unique_ptr<AtomicFile> file, std::string path, uint64_t missing_bytes)
      : file_(std::move(file)), path_(std::move(path)), missing_bytes_(missing_bytes) {}
  std::unique_ptr<AtomicFile> file_;
  std::string path_;
  uint64_t missing_bytes_;
};

// SafetensorsWriter in one call.
absl::Status WriteSafetensors(const std::string& path, std::span<const NamedArray> tensors,
                              const SafetensorsMetadata& metadata = {});

}  // namespace gantry
