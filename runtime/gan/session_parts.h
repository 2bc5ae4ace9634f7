// The states of a session over several ranks in parts: what each rank answers for when they are written, and what it
// needs when they are read.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "comm/keeping.h"
#include "runtime/gan/gan_session.h"

namespace gantry {

// Elements [begin, begin + count) of session.states()[state].
struct StatePart {
  int state = 0;
  int64_t begin = 0, count = 0;
};

// What this rank answers for: a share of what it and others hold alike, and all of what it holds alone. The parts of
// all ranks are every element of every state once. A call of all ranks.
absl::StatusOr<std::vector<StatePart>> PartsOf(GanSession& session);
int64_t BytesOf(const GanSession& session, std::span<const StatePart> parts);

// Copies the parts out, one behind the other. Allocates in Create only.
class PartReader {
 public:
  static PartReader Create(GanSession& session, std::vector<StatePart> parts);
  std::span<const StatePart> parts() const { return parts_; }
  int64_t size_bytes() const { return bytes_; }
  absl::Status Read(std::span<std::byte> to);

 private:
  explicit PartReader(GanSession& session) : session_(&session) {}
  GanSession* session_;
  std::vector<StatePart> parts_;
  int64_t bytes_ = 0;
  std::vector<std::byte> piece_;  // of the largest piece of a state that only a part of is read
};

// Fills `to` with elements of a state from `begin` on.
using ReadElements =
    std::function<absl::Status(const GanSession::SessionState& state, int64_t begin, std::span<std::byte> to)>;
// All that this rank holds of every state. On an error some states are written.
absl::Status FillStates(GanSession& session, const ReadElements& read);

// Counts that go with the states.
struct KeptCounts {
  int64_t steps = 0, images_seen = 0, samples_drawn = 0, low_diversity_steps = 0;
};

// States in memory that outlives the ranks: each keeps its parts, and after a start anew every rank reads those of all.
class MemoryCheckpoint {
 public:
  // Reserves the memory. kResourceExhausted where it is short. A call of all ranks.
  static absl::StatusOr<std::unique_ptr<MemoryCheckpoint>> Create(GanSession& session, Keeping& keeping);
  int64_t size_bytes() const { return bytes_; }  // of one copy of this rank's parts
  // Copies what the states are now. A kill at any moment leaves this copy or the one before whole. Allocates nothing.
  absl::Status Keep(const KeptCounts& counts);

  // A call of all ranks: the newest step that every rank has kept whole, -1 where there is none.
  static absl::StatusOr<int64_t> Newest(GanSession& session, Keeping& keeping);
  // Fills the states with what was kept of that step.
  static absl::StatusOr<KeptCounts> Restore(GanSession& session, Keeping& keeping, int64_t step);

 private:
  MemoryCheckpoint(Keeping& keeping, PartReader reader) : keeping_(&keeping), reader_(std::move(reader)) {}
  Keeping* keeping_;
  PartReader reader_;
  int64_t bytes_ = 0;
  uint64_t fingerprint_ = 0;
};

}  // namespace gantry
