#include "runtime/gan/session_checkpoint.h"

#include "runtime/gan/session_parts.h"

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

}  // namespace

// A state is always laid out plainly: lowering reorders at its use. One in pieces, or that cannot be borrowed, gets a buffer.
absl::StatusOr<SessionMemory> SessionTensors(GanSession& session) {
  GANTRY_RETURN_IF_ERROR(session.EndTail());
  SessionMemory memory;
  for (const GanSession::SessionState& state : session.states()) {
    std::span<const std::byte> bytes;
    if (state.pieces.size() == 1) bytes = session.executor().Borrow(*state.pieces[0]);
    if (std::ssize(bytes) != state.type.size_bytes()) {
      std::vector<std::byte>& buffer = memory.buffers.emplace_back(state.type.size_bytes());
      GANTRY_RETURN_IF_ERROR(session.CopyStateOut(state.name, buffer));
      bytes = buffer;
    }
    memory.tensors.push_back({state.name, ToHostType(state.type.dtype), state.type.shape.dims(), bytes});
  }
  return memory;
}

SafetensorsMetadata SessionMetadata(const GanSession& session) {
  return {{"steps", absl::StrCat(session.progress().steps)},
          {"images_seen", absl::StrCat(session.progress().images_seen)},
          {"seed", absl::StrCat(session.options().seed)}};
}

absl::Status WriteSessionParts(GanSession& session, const std::string& path, const SafetensorsMetadata& metadata) {
  GANTRY_ASSIGN_OR_RETURN(std::vector<StatePart> mine_of_all, PartsOf(session));
  PartReader reader = PartReader::Create(session, std::move(mine_of_all));
  std::vector<std::byte> bytes(static_cast<size_t>(reader.size_bytes()));
  absl::Status mine = reader.Read(bytes);
  std::vector<CheckpointPart> parts;
  std::span<const std::byte> rest = bytes;
  for (const StatePart& part : reader.parts()) {
    const GanSession::SessionState& state = session.states()[part.state];
    const size_t count = static_cast<size_t>(part.count) * SizeBytes(state.type.dtype);
    parts.push_back({state.name, ToHostType(state.type.dtype), state.type.shape.dims(), part.begin, rest.first(count)});
    rest = rest.subspan(count);
  }
  uint32_t seal = 0;
  if (mine.ok()) {
    absl::StatusOr<uint32_t> written =
        WriteCheckpointPart(path, session.rank(), session.rank_count(), parts, {{"steps", absl::StrCat(session.progress().steps)}});
    if (written.ok()) seal = *written;
    mine = written.status();
  }
  // A seal, or -1 where a part could not be written.
  GANTRY_ASSIGN_OR_RETURN(const std::vector<double> seals, session.GatherNumbers(mine.ok() ? static_cast<double>(seal) : -1.0));
  std::string failed;
  std::vector<uint32_t> all;
  for (size_t rank = 0; rank < seals.size(); ++rank) {
    if (seals[rank] < 0) absl::StrAppend(&failed, failed.empty() ? "" : ", ", rank);
    all.push_back(seals[rank] < 0 ? 0 : static_cast<uint32_t>(seals[rank]));
  }
  if (mine.ok() && failed.empty() && session.rank() == 0) mine = WriteCheckpointOfParts(path, all, metadata);
  GANTRY_ASSIGN_OR_RETURN(const double none, session.AgreeOn(mine.ok() ? 0.0 : 1.0));
  if (!mine.ok()) return mine;
  if (!failed.empty()) return absl::UnavailableError(absl::StrFormat("%s: rank %s could not write its part, and says why", path, failed));
  if (none > 0) return absl::UnavailableError(absl::StrFormat("%s: rank 0 could not write it, and says why", path));
  return absl::OkStatus();
}

absl::Status ReadSession(const Checkpoint& checkpoint, GanSession& session) {
  GanProgress progress;
  GANTRY_ASSIGN_OR_RETURN(progress.steps, checkpoint.Integer("steps"));
  GANTRY_ASSIGN_OR_RETURN(progress.images_seen, checkpoint.Integer("images_seen"));
  if (progress.steps < 0 || progress.images_seen < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: its steps (%d) or images_seen (%d) are negative",
                                                      checkpoint.path(), progress.steps, progress.images_seen));
  }
  std::vector<CheckpointTarget> targets;
  for (const GanSession::SessionState& state : session.states()) targets.push_back({state.name, ToHostType(state.type.dtype), state.type.shape.dims(), {}});
  GANTRY_RETURN_IF_ERROR(checkpoint.CheckFit(targets));
  GANTRY_RETURN_IF_ERROR(FillStates(session, [&](const GanSession::SessionState& state, int64_t begin, std::span<std::byte> to) {
    return checkpoint.ReadElements(*checkpoint.Find(state.name), begin, to);
  }));
  session.SetProgress(progress);
  return absl::OkStatus();
}

absl::Status SaveSession(GanSession& session, const std::string& path, const SafetensorsMetadata& more) {
  SafetensorsMetadata metadata = SessionMetadata(session);
  metadata.insert(more.begin(), more.end());
  GANTRY_ASSIGN_OR_RETURN(const SessionMemory memory, SessionTensors(session));
  return WriteCheckpoint(path, memory.tensors, metadata);
}

absl::Status LoadSession(const std::string& path, GanSession& session) {
  GANTRY_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(path));
  GANTRY_RETURN_IF_ERROR(checkpoint.Verify());
  return ReadSession(checkpoint, session);
}

}  // namespace gantry
