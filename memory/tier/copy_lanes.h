// Copies between device memory and tiers, beside compute: one lane (a thread with a queue) per tier and direction.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "memory/status.h"
#include "memory/tier/copy_encoding.h"
#include "memory/tier/tier.h"

namespace gantry {

struct LaneCopy {
  int tier = 0;     // index into the slabs given to Create
  bool out = true;  // device -> tier
  std::byte* device = nullptr;
  int64_t tier_offset = 0, bytes = 0;  // bytes 0: nothing to do, still counts
  // With CopyLanesOptions::checksums: an out copy stores the CRC of its bytes in this slot, an in copy compares its own
  // with it. -1: neither. A slot that no out copy has filled is not compared.
  int checksum_slot = -1;
  // Not kNone: `bytes` are floats, and the tier holds EncodedTierBytes of them in a place of which no file block is shared. How long
  // each chunk became is kept from `first_chunk` on, in EncodedChunks(bytes) places: an in copy must follow an out copy of the same.
  CopyEncoding encoding = CopyEncoding::kNone;
  int64_t first_chunk = 0;
};

struct CopyLanesOptions {
  int max_pending = 0;     // copies that a lane can hold, the one in work included; > 0
  int checksum_slots = 0;  // 0: no checksums, whatever the copies say
  int64_t encoded_chunks = 0;  // of all encoded copies together; 0: there are none
};

// A lane makes its copies one after another, in the order of Start. Lanes do not wait for each other: whoever reads
// what another lane wrote waits for that lane in between. After a copy has failed, its lane makes no further one: they
// count as finished and Wait says why. A throttled copy takes at least latency + bytes / bytes_per_second + jitter from
// its start on, and its lane's next one begins no earlier than it ends; the thread sleeps meanwhile. Thread-safe. The
// slabs and the memory of the copies must outlive it.
class CopyLanes {
 public:
  // `out` and `in` have one throttle per slab, or are empty for none. kInvalidArgument where that is not so, a slab is
  // null, or an option is out of range; kResourceExhausted where the machine has no threads for it (two per slab).
  static absl::StatusOr<std::unique_ptr<CopyLanes>> Create(std::vector<TierSlab*> slabs, std::vector<Throttle> out,
                                                           std::vector<Throttle> in, CopyLanesOptions options);
  // Ends the copies in work, abandons the ones behind them.
  ~CopyLanes();
  CopyLanes(const CopyLanes&) = delete;
  CopyLanes& operator=(const CopyLanes&) = delete;

  int lane_count() const { return static_cast<int>(lanes_.size()); }
  int lane(int tier, bool out) const { return 2 * tier + (out ? 0 : 1); }

  // Queues the copy on its lane. How many copies the lane has been given so far, this one included: what Wait takes;
  // -1, and nothing is queued, where there is no such tier. Blocks only while the lane holds max_pending copies.
  // Allocates nothing. A copy that makes no sense otherwise (a range outside the slab, no memory) is an error of the
  // lane.
  int64_t Start(const LaneCopy& copy);

  // Until the lane has finished its first `count` copies. The first error of any copy of that lane; every later Wait
  // returns it too. kInvalidArgument where there is no such lane or it has not been given so many. Allocates nothing
  // unless it fails.
  //   kDataLoss  what came back is not what was written (checksums), or could not be read
  //   kUnavailable, kInvalidArgument  as TierSlab::Write and Read
  absl::Status Wait(int lane, int64_t count);

  // Until all lanes have finished all that they have been given; the first error in the order of lanes.
  absl::Status Drain();

  // For who reads and writes a tier past the lanes. No copy of that slot may be under way; all do nothing without checksums.
  // Whether `content`, read from `tier_offset` of the tier, is what went there last with that slot. kDataLoss as Wait.
  absl::Status CheckRead(int tier, int64_t tier_offset, int slot, std::span<const std::byte> content);
  // `content` has been written: that is what has to come back.
  void NoteWrite(int slot, std::span<const std::byte> content);
  // Something unknown has been written: copies in are not compared until the next copy out.
  void ForgetChecksum(int slot);
  bool has_checksums() const { return checksum_slots_ > 0; }

  // Sums since Create. Any thread, any time.
  double waited_seconds() const;      // spent in Wait and Drain, and in Start for room in a queue
  int64_t bytes_out(int tier) const;  // of copies that succeeded, as the tier got them: encoded
  int64_t bytes_in(int tier) const;
  double busy_seconds(int lane) const;  // the lane had a copy to make, a throttle's time included

 private:
  class Lane;

  CopyLanes();

  bool HasSlot(int slot) const { return slot >= 0 && slot < checksum_slots_; }

  // Of each slot the CRC-32 that an out copy stored, above which a bit says that it did; null without checksums.
  std::unique_ptr<std::atomic<uint64_t>[]> checksums_;
  int checksum_slots_ = 0;
  // Bytes of each encoded chunk in its tier; 0: nothing has been written there.
  std::unique_ptr<std::atomic<uint32_t>[]> chunk_bytes_;
  std::vector<std::unique_ptr<Lane>> lanes_;  // in the order of lane()
  std::atomic<int64_t> waited_ns_{0};
};

}  // namespace gantry
