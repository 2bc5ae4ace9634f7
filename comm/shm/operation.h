// An operation of a group: what was called, and how far it has come. Groups keep a fixed number of them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "comm/communicator.h"
#include "comm/recorder.h"
#include "comm/shm/group_block.h"
#include "comm/wait.h"

namespace gantry::shm {

class ShmCommunicator;

// What an entry says, as a value.
struct Call {
  Collective kind = Collective::kNone;
  ElementType type = ElementType::kU8;
  ReduceOp reduce = ReduceOp::kSum;
  int root = 0, to = 0;  // kSendReceive: from root to `to`
  int64_t count = 0;     // elements (kAllReduce, kReduce), else bytes
  uint64_t parts = 0;    // a hash of the parts that all ranks give alike
  int64_t largest_part = 0;
  char name[8 * kNameWords] = {};

  MemoryKind memory = MemoryKind::kStaged;
  uint64_t place = 0;

  // All but the last, with which the entry becomes valid.
  void WriteTo(Entry& entry) const;
  static Call ReadFrom(const Entry& entry);
  // Whether both are the same collective with the same sizes. Reads the words alone, which is quick.
  bool Matches(const Entry& entry) const;
  RecordedKind kind_for_recorder() const;
  // `all_reduce sum of 1024 f32 "generator.0.weight gradient"`
  std::string Describe() const;

 private:
  uint64_t What(bool with_memory) const;
};

// One message of an operation that only neighbours take part in, at this rank.
struct Message {
  int peer = 0;
  int tag = 0;  // the receiver's number of it
  bool out = false;
  std::byte* data = nullptr;  // only read if `out`
  int64_t bytes = 0;
  const std::byte* local = nullptr;         // of a message to itself: where it comes from
  MemoryKind memory = MemoryKind::kStaged;  // of the sender's data
  int place = 0;                            // among the sender's MessageOut
  int64_t moved_bytes = 0;
  uint64_t pieces = 0;  // made ready, or taken
  bool done = false;
};

struct Operation final : Pending::Work {
  enum State : uint32_t { kFree, kQueued, kDone };

  bool done() const override { return state.load(std::memory_order_acquire) == kDone; }
  absl::Status Wait(absl::Duration timeout) override;
  void Release() override;

  ShmCommunicator* group = nullptr;
  std::atomic<uint32_t> state{kFree};
  absl::Status status;  // once done

  Call call;
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  int64_t from_bytes = 0;
  int64_t parts[kMaxRanks] = {};     // bytes of each rank's part, of `from` where `to` has its own
  int64_t to_parts[kMaxRanks] = {};  // kAllToAll
  Message messages[2 * kMaxMessages];
  int message_count = 0;
  bool is_partial = false;  // not every rank takes part
  std::atomic<int> priority{0};
  bool is_inline = false;  // its memory travels with the entries
  bool in_background = false;
  bool waits_asleep = false;
  absl::Duration timeout = absl::ZeroDuration();

  // How far it has come.
  uint64_t sequence = 0;
  uint64_t ticket = 0;                  // the recorder's
  int recorded_peer = -1;               // whom the recorder says it waits for
  WaitClock::time_point deadline = {};  // set with the first wait
  bool is_published = false, is_entered = false, is_staged = false, has_process_memory = false;
  int parity = 0;
  int round = 0, last_round = 0;
  uint64_t first_arrival = 0;  // arrivals of the group before it
  int synced = 0;              // ranks found to have come to this round
  int peer_step = 0;           // within a round: which peer, and how far
  int64_t cursor = 0;
  int64_t piece_bytes = 0;  // staged: of each part at a time
  MemoryKind memory[kMaxRanks] = {};
  const std::byte* base[kMaxRanks] = {};  // of each rank's memory as this process sees it; kProcess: as the other does
};

}  // namespace gantry::shm
