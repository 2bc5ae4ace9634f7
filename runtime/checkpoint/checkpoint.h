// A checkpoint: one safetensors file with every state of a run, bit by bit, checksums, and what else it takes to go on.
// It is written beside, synced and renamed, so that a kill at any moment leaves the one before it whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/status.h"
#include "runtime/data/host_array.h"
#include "runtime/data/safetensors.h"

namespace gantry {

// A state to write; `bytes` are borrowed.
struct CheckpointTensor {
  std::string name;
  HostType type = HostType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

// A state to read into `bytes`, which have the size of the shape.
struct CheckpointTarget {
  std::string name;
  HostType type = HostType::kF32;
  std::vector<int64_t> shape;
  std::span<std::byte> bytes;
};

// Replaces `path`. The file's metadata are `metadata` and the keys "format" ("gantry-checkpoint-1"), "gantry_version",
// "crc32" (of all metadata) and "crc32.<tensor>" for each tensor (of its name, type, shape and bytes), which `metadata`
// must not have. Takes no second copy of the tensors. kInvalidArgument for what safetensors does not allow;
// kResourceExhausted where the disk is full, kPermissionDenied where the folder cannot be written: `path` is then as it
// was and nothing is left beside it.
absl::Status WriteCheckpoint(const std::string& path, std::span<const CheckpointTensor> tensors,
                             const SafetensorsMetadata& metadata);

// An opened checkpoint; only the header is in memory. Reading is thread-safe.
class Checkpoint {
 public:
  // kInvalidArgument where the file is no checkpoint, is cut short, or has a format version that this build does not
  // know; kDataLoss where its metadata do not match their checksum.
  static absl::StatusOr<Checkpoint> Open(const std::string& path);
  static absl::StatusOr<Checkpoint> Open(std::shared_ptr<const ByteSource> source);

  std::string_view path() const { return file_.source().name(); }
  std::span<const SafetensorsEntry> tensors() const { return file_.tensors(); }
  const SafetensorsEntry* Find(std::string_view name) const { return file_.Find(name); }
  const SafetensorsMetadata& metadata() const { return file_.metadata(); }
  // The metadata `key` as text or as a whole number. kInvalidArgument where it is missing or no number.
  absl::StatusOr<std::string> Text(std::string_view key) const;
  absl::StatusOr<int64_t> Integer(std::string_view key) const;

  // Reads every tensor and compares checksums: kDataLoss names the first that is damaged.
  absl::Status Verify() const;
  // Fills all targets. kInvalidArgument names the tensors that are missing in the file, that no target is for, and
  // those of another type or shape; nothing has been written then. kDataLoss names a damaged tensor; targets before it
  // have been written, so call Verify first where they matter.
  absl::Status Read(std::span<const CheckpointTarget> targets) const;
  // The same for some of the tensors: others in the file are ignored.
  absl::Status ReadSome(std::span<const CheckpointTarget> targets) const;

 private:
  explicit Checkpoint(SafetensorsFile file) : file_(std::move(file)) {}
  absl::Status Fill(std::span<const CheckpointTarget> targets, bool all) const;
  absl::Status CompareChecksum(const SafetensorsEntry& entry, uint32_t checksum) const;

  SafetensorsFile file_;
};

}  // namespace gantry
