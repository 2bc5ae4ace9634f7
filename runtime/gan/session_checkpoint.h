// The states of a session as a checkpoint.
#pragma once

#include <string>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/gan/gan_session.h"

namespace gantry {

// Tensors borrowed from a session, and buffers for those of its states that cannot be (Executor::Borrow).
struct SessionMemory {
  std::vector<CheckpointTensor> tensors;
  std::vector<std::vector<std::byte>> buffers;
};
// Every state of the session, for writing, as the last step leaves it: GanSession::EndTail, a call of all ranks, goes before.
absl::StatusOr<SessionMemory> SessionTensors(GanSession& session);
// "steps", "images_seen" and "seed".
SafetensorsMetadata SessionMetadata(const GanSession& session);

// Where all ranks write, each its parts, in files beside `path`: a call of all of them. Rank 0 makes it a checkpoint when all are synced, with
// `metadata`. On an error there is no checkpoint, on any rank; kUnavailable names the ranks that failed to those that did not.
absl::Status WriteSessionParts(GanSession& session, const std::string& path, const SafetensorsMetadata& metadata);

// Reads states and progress. kInvalidArgument where they do not fit: the session is then as it was. The caller has
// called Verify.
absl::Status ReadSession(const Checkpoint& checkpoint, GanSession& session);

// A session without a Trainer: all of it but the position in the data, in one file at `path`. Errors as
// WriteCheckpoint.
absl::Status SaveSession(GanSession& session, const std::string& path, const SafetensorsMetadata& more = {});
// Verifies the file, then ReadSession. Warns of nothing: noise and dropout go on as before only where the seed is the
// same.
absl::Status LoadSession(const std::string& path, GanSession& session);

}  // namespace gantry
