// A checkpoint: one safetensors file with every state of a run, bit by bit, checksums, and what else it takes to go on.
// It is written beside, synced and renamed, so that a kill at any moment leaves the one before it whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
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

// Some elements of a state, [begin, begin + the bytes' count) of the row-major tensor; `bytes` are borrowed.
struct CheckpointPart {
  std::string name;
  HostType type = HostType::kF32;
  std::vector<int64_t> shape;  // of the whole state
  int64_t begin = 0;
  std::span<const std::byte> bytes;
};

// A checkpoint of several ranks is a file a rank, written by all of them at the same time, and `path`, which names them and is written when
// all are synced: without it, or with another one, the parts are nothing. "checkpoint-12.part-1-of-4.safetensors" lies beside
// "checkpoint-12.safetensors".
std::string CheckpointPartPath(const std::string& path, int part, int parts);
// Writes part `part` of `parts`, as WriteCheckpoint does, and returns its seal, which the checkpoint must have: a checksum of its checksums.
// Together the parts must have every element of every state once.
absl::StatusOr<uint32_t> WriteCheckpointPart(const std::string& path, int part, int parts, std::span<const CheckpointPart> states,
                                             const SafetensorsMetadata& metadata);
// Replaces `path`: from here on it is a checkpoint. `seals` are those of the parts, in order.
absl::Status WriteCheckpointOfParts(const std::string& path, std::span<const uint32_t> seals, const SafetensorsMetadata& metadata);

// An opened checkpoint; only the headers are in memory. Reading is thread-safe.
class Checkpoint {
 public:
  // kInvalidArgument where the file is no checkpoint, is cut short, or has a format version that this build does not
  // know; kDataLoss where its metadata do not match their checksum.
  static absl::StatusOr<Checkpoint> Open(const std::string& path);
  static absl::StatusOr<Checkpoint> Open(std::shared_ptr<const ByteSource> source);

  std::string_view path() const { return file_.source().name(); }
  // How many files hold the states beside it; 0: they are in this one.
  int part_count() const { return static_cast<int>(parts_.size()); }
  // Whole ones, also where they are in parts: the offset is then 0.
  std::span<const SafetensorsEntry> tensors() const { return parts_.empty() ? file_.tensors() : std::span<const SafetensorsEntry>(whole_); }
  const SafetensorsEntry* Find(std::string_view name) const;
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
  // kInvalidArgument as Read, without reading: `bytes` of the targets may be empty.
  absl::Status CheckFit(std::span<const CheckpointTarget> targets) const;
  // Fills `to` with elements of a tensor from `begin` on. Compares no checksum: the caller has called Verify.
  absl::Status ReadElements(const SafetensorsEntry& tensor, int64_t begin, std::span<std::byte> to) const;
  // The same for some of the tensors: others in the file are ignored.
  absl::Status ReadSome(std::span<const CheckpointTarget> targets) const;

 private:
  // Elements of a tensor in one of the parts.
  struct Piece {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
    int64_t begin, count;
  };

  explicit Checkpoint(SafetensorsFile file) : file_(std::move(file)) {}
  absl::Status OpenParts();
  absl::Status CheckTargets(std::span<const CheckpointTarget> targets, bool all, bool sizes) const;
  absl::Status Fill(std::span<const CheckpointTarget> targets, bool all) const;

  SafetensorsFile file_;
  std::vector<std::unique_ptr<SafetensorsFile>> parts_;
  std::vector<SafetensorsEntry> whole_;                            // of the states in parts
  std::map<std::string, std::vector<Piece>, std::less<>> pieces_;  // by begin
};

}  // namespace gantry
