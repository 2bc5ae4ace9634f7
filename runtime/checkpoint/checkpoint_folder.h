// The folder of a run: its checkpoints by step, the newest good one, and no leftovers.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"

namespace gantry {

struct StoredCheckpoint {
  int64_t step = 0;
  std::string path;
};

// "checkpoint-000000001200.safetensors".
std::string CheckpointFileName(int64_t step);
// Those in `folder`, oldest step first, by name only. Empty where the folder does not exist.
absl::StatusOr<std::vector<StoredCheckpoint>> ListCheckpoints(const std::string& folder);

struct LatestCheckpoint {
  StoredCheckpoint checkpoint;
  // Newer ones that are damaged, and how.
  std::vector<std::pair<StoredCheckpoint, absl::Status>> damaged;
};
// The newest checkpoint in `folder` that is whole: each is verified, from the newest on. kNotFound where there is none,
// with what is wrong with those that there are.
absl::StatusOr<LatestCheckpoint> FindLatestCheckpoint(const std::string& folder);

// The folder while a run writes into it. Used by one thread at a time.
class CheckpointFolder {
 public:
  // Makes the folder where it is missing, locks it against other writers until the object or the process ends (flock on
  // the folder itself: nothing is left behind), and removes what a killed writer left: temporary files
  // "*.tmp-<pid>-<n>", and parts of checkpoints that never became one. kFailedPrecondition where another process writes here, kPermissionDenied where this one may not.
  static absl::StatusOr<std::unique_ptr<CheckpointFolder>> Open(const std::string& folder);
  ~CheckpointFolder();
  CheckpointFolder(const CheckpointFolder&) = delete;
  CheckpointFolder& operator=(const CheckpointFolder&) = delete;

  const std::string& path() const { return path_; }
  // Writes the checkpoint of `step`, then removes the oldest until `keep` are left (0: all stay). Returns its path.
  // Errors as WriteCheckpoint; they name the last checkpoint that is still there.
  absl::StatusOr<std::string> Save(int64_t step, std::span<const CheckpointTensor> tensors,
                                   const SafetensorsMetadata& metadata, int64_t keep);
  // Removes the oldest checkpoints, with their parts, until `keep` are left (0: all stay), but never that of `step`, which was just written.
  absl::Status Prune(int64_t step, int64_t keep);
  // Renames checkpoints of later steps than `step` to "set-aside-<n>-<name>": a run that goes on from an earlier one
  // must not find them as its own. Returns the new paths.
  absl::StatusOr<std::vector<std::string>> SetAsideAfter(int64_t step);

 private:
  CheckpointFolder(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}
  absl::Status RemoveLeftovers();

  std::string path_;
  int descriptor_;  // of the folder
  bool locked_ = false;
};

}  // namespace gantry
