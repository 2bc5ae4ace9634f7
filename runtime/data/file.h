// Bytes of files: random-access reading with checked bounds, and writing that replaces a file only when it is complete.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/status.h"

namespace gantry {

// Bytes that can be read at any offset: a file or memory. Thread-safe.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual uint64_t size_bytes() const = 0;
  // The file's path, or a word for memory; error messages begin with it.
  virtual std::string_view name() const = 0;
  // Fills `to` from `offset`. kOutOfRange when that runs past the end, kUnavailable when the system cannot read. A file
  // is read with pread, not mapped: one that shrinks or a disk that fails gives an error instead of SIGBUS.
  virtual absl::Status ReadAt(uint64_t offset, std::span<std::byte> to) const = 0;
};

// kNotFound, kPermissionDenied or kUnavailable; kInvalidArgument when `path` is not a regular file.
absl::StatusOr<std::shared_ptr<const ByteSource>> OpenFile(const std::string& path);
// Borrows `bytes`, which outlive the source.
std::shared_ptr<const ByteSource> MemorySource(std::span<const std::byte> bytes, std::string name = "memory");
// Owns `bytes`.
std::shared_ptr<const ByteSource> OwnedMemorySource(std::vector<std::byte> bytes, std::string name);

// All of `source`. kResourceExhausted when it has more than `max_bytes`, before anything is allocated.
absl::StatusOr<std::vector<std::byte>> ReadAll(const ByteSource& source, uint64_t max_bytes);
absl::StatusOr<std::vector<std::byte>> ReadFile(const std::string& path, uint64_t max_bytes);

// Writes a file beside `path` under a temporary name; Commit syncs it, renames it to `path` and syncs the folder.
// Before that, or if anything fails, `path` keeps its old content and the temporary file is removed. Used by one
// thread.
class AtomicFile {
 public:
  static absl::StatusOr<std::unique_ptr<AtomicFile>> Create(const std::string& path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  // kResourceExhausted when the disk is full, else kUnavailable. After an error Commit fails too.
  absl::Status Write(std::span<const std::byte> bytes);
  absl::Status Write(std::string_view text) { return Write(std::as_bytes(std::span(text.data(), text.size()))); }
  absl::Status Commit();
  uint64_t bytes_written() const { return bytes_written_; }

 private:
  AtomicFile(std::string path, std::string temporary_path, int descriptor)
      : path_(std::move(path)), temporary_path_(std::move(temporary_path)), descriptor_(descriptor) {}
  absl::Status Fail(std::string_view action, int error);

  std::string path_, temporary_path_;
  int descriptor_;  // -1 once closed
  uint64_t bytes_written_ = 0;
  absl::Status status_;
};

// AtomicFile in one call.
absl::Status WriteFileAtomically(const std::string& path, std::span<const std::byte> bytes);

// The status for the system's `error` (an errno value): "`context`: No such file or directory".
absl::Status ErrnoStatus(int error, std::string_view context);

}  // namespace gantry
