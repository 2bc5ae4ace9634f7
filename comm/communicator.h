// Groups of ranks and their collectives. Sums are taken in the order of ranks, each element once, whatever the
// algorithm, the chunk size or the transport: the result is the same bits on every rank and in every run with the same
// number of ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "comm/element_type.h"
#include "comm/transport.h"
#include "memory/status.h"

namespace gantry {

struct CollectiveOptions {
  std::string_view name = {};  // of what is exchanged, for errors and the recorder: "discriminator.3.weight gradient"
  int priority = 0;  // higher goes first among groups whose operations wait for the lane; results do not depend on it
  // Whether the operation is carried on while the caller computes. True: the lane, a thread of this process, moves it,
  // at the price of being woken. False: it moves in the calls that start it and wait for it, or for any other
  // operation, without a hand-over.
  bool in_background = false;
  // Whoever waits for it sleeps at once, without being busy first: the core belongs to what is computed beside it.
  bool waits_asleep = false;
  // Since the start. When it is over the operation fails on all ranks of the group, naming those that have not come,
  // and the group is of no more use: what was awaited may still come at some ranks.
  absl::Duration timeout = Pending::kDefaultTimeout;
};

// A halo exchange in one dimension of a mesh: what goes to, and comes from, the neighbour before and behind. What a
// rank sends to the one before it arrives there as `from_behind` of the same dimension. All dimensions move at once, so
// that corners do not travel; where they should, each dimension is a call of its own. A rank may be its own neighbour
// (a ring of one).
struct HaloExchange {
  int before = -1, behind = -1;  // ranks of the group; -1: the edge, where nothing is sent
  std::span<const std::byte> to_before, to_behind;
  std::span<std::byte> from_before, from_behind;
};

// Every rank of the group calls the same collectives in the same order, which is checked: a mismatch (another
// collective, type, count) is kFailedPrecondition on all ranks and names both. Operations of one group take effect in
// the order of their starts; different groups do not wait for each other, in whatever order their operations are
// started. Memory in a shared region moves without a copy beyond the algorithm's; other memory is staged, or read by
// the kernel's cross-memory calls where those work. Memory must stay as it is until the Pending is done; after a
// failure, until Shrink returns, for other ranks may still be writing to it. Once it is done, this rank has what it
// receives, and its memory is its own again; of the others it says nothing (Barrier does): a sender of little does not
// wait for its receivers. Once an operation failed on all ranks (a
// loss, a mismatch, a timeout) every later one fails with the same status. Starting is thread-safe and allocates
// nothing.
class Communicator {
 public:
  static constexpr int kMaxInFlight =
      64;  // operations that are started and whose Pending is there; more are kResourceExhausted

  virtual ~Communicator() = default;
  virtual int rank() const = 0;  // in the group
  virtual int size() const = 0;
  virtual std::string_view name() const = 0;
  virtual std::span<const int> ranks() const = 0;  // of the job, by rank in the group

  virtual Pending AllReduce(void* data, int64_t count, ElementType type, ReduceOp op,
                            const CollectiveOptions& options = {}) = 0;
  // `counts`: elements of each rank's part, which lie one behind the other in `from`; this rank's part is written to
  // `to`.
  virtual Pending ReduceScatter(const void* from, void* to, std::span<const int64_t> counts, ElementType type,
                                ReduceOp op, const CollectiveOptions& options = {}) = 0;
  // Each rank's part at its place in `to`; `from` may be that place.
  virtual Pending AllGather(const void* from, void* to, std::span<const int64_t> bytes,
                            const CollectiveOptions& options = {}) = 0;
  virtual Pending Broadcast(void* data, int64_t bytes, int root, const CollectiveOptions& options = {}) = 0;
  virtual Pending Reduce(void* data, int64_t count, ElementType type, ReduceOp op, int root,
                         const CollectiveOptions& options = {}) = 0;
  // Bytes to and from each rank, one behind the other. `from` and `to` do not overlap.
  virtual Pending AllToAll(const void* from, std::span<const int64_t> from_bytes, void* to,
                           std::span<const int64_t> to_bytes, const CollectiveOptions& options = {}) = 0;
  virtual Pending ExchangeHalo(std::span<const HaloExchange> dimensions, const CollectiveOptions& options = {}) = 0;
  // Point to point within the order of the group's collectives: `from` sends, `to` receives, the others do nothing.
  virtual Pending SendReceive(void* data, int64_t bytes, int from, int to, const CollectiveOptions& options = {}) = 0;
  virtual absl::Status Barrier(absl::Duration timeout = Pending::kDefaultTimeout) = 0;

  // Ranks with the same `color` (>= 0) form a group, ordered by `key`, then rank. Null for color -1. All ranks of this
  // group call it.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key, std::string_view name) = 0;
  // After a loss: the group of those that are left. All of them call it.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Shrink(absl::Duration timeout) = 0;
};

}  // namespace gantry
