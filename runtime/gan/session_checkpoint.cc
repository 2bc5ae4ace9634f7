#include "runtime/gan/session_checkpoint.h"

namespace gantry {
namespace {

HostType ToHostType(DataType type) {
  switch (type) {
    case DataType::kF32:
      return HostType::kF32;
    case DataType::kF64:
      return HostType::kF64;
    case DataType::kI32:
      return HostType::kI32;
    case DataType::kI64:
      return HostType::kI64;
    case DataType::kU8:
      return HostType::kU8;
  }
  return HostType::kU8;
}

// A state is always laid out plainly: lowering reorders at its use. States without addresses (in a file), or in pieces, get a buffer.
template <typename Tensor>
SessionMemory<Tensor> Collect(GanSession& session) {
  SessionMemory<Tensor> memory;
  for (const std::string& name : session.StateNames()) {
    const TensorType type = *session.StateType(name);
    std::span<std::byte> bytes = session.executor().Data(name);
    if (static_cast<int64_t>(bytes.size()) != type.size_bytes()) {
      memory.buffers.emplace_back(name, std::vector<std::byte>(type.size_bytes()));
      bytes = memory.buffers.back().second;
    }
    memory.tensors.push_back({name, ToHostType(type.dtype), type.shape.dims(), bytes});
  }
  return memory;
}

}  // namespace

absl::StatusOr<SessionMemory<CheckpointTensor>> SessionTensors(GanSession& session) {
  SessionMemory<CheckpointTensor> memory = Collect<CheckpointTensor>(session);
  for (auto& [name, buffer] : memory.buffers) GANTRY_RETURN_IF_ERROR(session.CopyStateOut(name, buffer));
  return memory;
}

SafetensorsMetadata SessionMetadata(const GanSession& session) {
  return {{"steps", absl::StrCat(session.progress().steps)},
          {"images_seen", absl::StrCat(session.progress().images_seen)},
          {"seed", absl::StrCat(session.options().seed)}};
}

absl::Status ReadSession(const Checkpoint& checkpoint, GanSession& session) {
  GanProgress progress;
  GANTRY_ASSIGN_OR_RETURN(progress.steps, checkpoint.Integer("steps"));
  GANTRY_ASSIGN_OR_RETURN(progress.images_seen, checkpoint.Integer("images_seen"));
  if (progress.steps < 0 || progress.images_seen < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: its steps (%d) or images_seen (%d) are negative",
                                                      checkpoint.path(), progress.steps, progress.images_seen));
  }
  const SessionMemory<CheckpointTarget> memory = Collect<CheckpointTarget>(session);
  GANTRY_RETURN_IF_ERROR(checkpoint.Read(memory.tensors));
  for (const auto& [name, buffer] : memory.buffers) GANTRY_RETURN_IF_ERROR(session.CopyStateIn(name, buffer));
  session.SetProgress(progress);
  return absl::OkStatus();
}

absl::Status SaveSession(GanSession& session, const std::string& path, const SafetensorsMetadata& more) {
  SafetensorsMetadata metadata = SessionMetadata(session);
  metadata.insert(more.begin(), more.end());
  GANTRY_ASSIGN_OR_RETURN(const SessionMemory<CheckpointTensor> memory, SessionTensors(session));
  return WriteCheckpoint(path, memory.tensors, metadata);
}

absl::Status LoadSession(const std::string& path, GanSession& session) {
  GANTRY_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(path));
  GANTRY_RETURN_IF_ERROR(checkpoint.Verify());
  return ReadSession(checkpoint, session);
}

}  // namespace gantry
