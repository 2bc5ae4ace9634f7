// NumPy's .npz files: a ZIP archive of .npy files, one an array. Format: PKWARE APPNOTE 6.3 (stored and deflated
// entries, zip64 records, no encryption, one disk).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/status.h"
#include "runtime/data/file.h"
#include "runtime/data/host_array.h"

namespace gantry {

struct NamedArray {
  std::string name;
  HostArray array;
};

// An opened archive; arrays are read one by one. Reading is thread-safe.
class NpzFile {
 public:
  // Reads the archive's list of entries and checks it: sizes inside the file, no two entries of one name, no overlap.
  static absl::StatusOr<NpzFile> Open(const std::string& path);
  static absl::StatusOr<NpzFile> Open(std::shared_ptr<const ByteSource> source);

  // In the archive's order, without ".npy".
  const std::vector<std::string>& names() const { return names_; }
  // kNotFound lists the names there are; kDataLoss when the checksum does not match.
  absl::StatusOr<HostArray> Read(std::string_view name) const;
  // The entry as it is, a .npy file, and how many bytes that will be.
  absl::StatusOr<std::vector<std::byte>> ReadBytes(std::string_view name) const;
  absl::StatusOr<uint64_t> UnpackedBytes(std::string_view name) const;

 private:
  struct Entry {
    uint16_t method = 0;
    uint32_t checksum = 0;
    uint64_t stored_bytes = 0, array_bytes = 0, header_offset = 0;
  };
  absl::StatusOr<const Entry*> Find(std::string_view name) const;

  std::shared_ptr<const ByteSource> source_;
  std::vector<std::string> names_;
  std::map<std::string, Entry, std::less<>> entries_;
};

// All arrays of a file.
absl::StatusOr<std::vector<NamedArray>> ReadNpz(const std::string& path);

// Writes `arrays` stored (not compressed), beside, synced, renamed. kInvalidArgument for names that are empty or come
// twice, and for 4 GiB and more, which is what ZIP holds without zip64: safetensors is the format for those.
absl::Status WriteNpz(const std::string& path, std::span<const NamedArray> arrays);

}  // namespace gantry
