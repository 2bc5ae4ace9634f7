// An operation of a group: what was called, and how far it has come. Groups keep a fixed number of them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "comm/shm/group_block.h"
#include "comm/shm/queued_communicator.h"

namespace gantry::shm {

// One message of an operation that only neighbours take part in, at this rank.
struct Message {
  int peer = 0;
  int receiver = 0;  // or kToAll
  int tag = 0;       // the receiver's number of it
  bool out = false;
  std::byte* data = nullptr;  // only read if `out`
  int64_t bytes = 0;
  const std::byte* local = nullptr;         // of a message to itself: where it comes from
  MemoryKind memory = MemoryKind::kStaged;  // of the sender's data
  int place = 0;                            // among the sender's messages
  int64_t posted_at = -1;                   // among the sender's copied messages; -1: it is not copied
  int64_t moved_bytes = 0;
  uint64_t pieces = 0;  // made ready, or taken
  bool done = false;
};

struct Operation final : QueuedOperation {
  Message messages[2 * kMaxMessages];
  int message_count = 0;
  bool is_partial = false;    // not every rank takes part
  bool is_inline = false;     // its memory travels with the entries
  bool is_announced = false;  // ranks compare their calls, and that is all
  bool is_fold = false;       // a reduce whose result is the root's alone, from `before` and to `to`
  const std::byte* before = nullptr;
  bool keeps_partial = false;

  // How far it has come.
  bool sums_whole = false;  // through the slots, and each rank sums all of it to its own memory
  bool is_published = false, is_entered = false, is_staged = false, has_process_memory = false;
  int parity = 0;  // its turn
  int64_t posted_bytes = 0;
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
