// Groups of ranks and their collectives. Sums are taken in the order of ranks, each element once, whatever the algorithm, the chunk
// size or the transport: the result is the same bits on every rank and in every run with the same number of ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/transport.h"
#include "memory/status.h"

namespace gantry {

enum class ElementType : uint8_t { kF32, kF64, kBf16, kF16, kI8, kU8, kI32, kI64 };
enum class ReduceOp : uint8_t { kSum, kMin, kMax };
int64_t SizeBytes(ElementType type);

struct CollectiveOptions {
  std::string_view name = {};  // of what is exchanged, for errors and the recorder: "discriminator.3.weight gradient"
  int priority = 0;            // higher goes first where several wait for a link; results do not depend on it
  absl::Duration timeout = Pending::kDefaultTimeout;
};

// A halo exchange in one dimension of a mesh: what goes to, and comes from, the neighbour before and behind. Empty: none.
struct HaloExchange {
  int before = -1, behind = -1;  // ranks of the group; -1: the edge
  std::span<const std::byte> to_before, to_behind;
  std::span<std::byte> from_before, from_behind;
};

// Every rank of the group calls the same collectives in the same order, which is checked: a mismatch (another collective, type, count) is
// kFailedPrecondition on all ranks and names both. Memory in a shared region moves without a copy beyond the algorithm's; other memory is
// staged. Memory must stay as it is until the Pending is done. Starting is thread-safe.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;  // in the group
  virtual int size() const = 0;
  virtual std::string_view name() const = 0;
  virtual std::span<const int> ranks() const = 0;  // of the job, by rank in the group

  virtual Pending AllReduce(void* data, int64_t count, ElementType type, ReduceOp op, const CollectiveOptions& options = {}) = 0;
  // `counts`: elements of each rank's part, which lie one behind the other in `from`; this rank's part is written to `to`.
  virtual Pending ReduceScatter(const void* from, void* to, std::span<const int64_t> counts, ElementType type, ReduceOp op,
                                const CollectiveOptions& options = {}) = 0;
  // Each rank's part at its place in `to`; `from` may be that place.
  virtual Pending AllGather(const void* from, void* to, std::span<const int64_t> bytes, const CollectiveOptions& options = {}) = 0;
  virtual Pending Broadcast(void* data, int64_t bytes, int root, const CollectiveOptions& options = {}) = 0;
  virtual Pending Reduce(void* data, int64_t count, ElementType type, ReduceOp op, int root, const CollectiveOptions& options = {}) = 0;
  // Bytes to and from each rank, one behind the other.
  virtual Pending AllToAll(const void* from, std::span<const int64_t> from_bytes, void* to, std::span<const int64_t> to_bytes,
                           const CollectiveOptions& options = {}) = 0;
  virtual Pending ExchangeHalo(std::span<const HaloExchange> dimensions, const CollectiveOptions& options = {}) = 0;
  // Point to point within the order of the group's collectives: `from` sends, `to` receives, the others do nothing.
  virtual Pending SendReceive(void* data, int64_t bytes, int from, int to, const CollectiveOptions& options = {}) = 0;
  virtual absl::Status Barrier(absl::Duration timeout = Pending::kDefaultTimeout) = 0;

  // Ranks with the same `color` (>= 0) form a group, ordered by `key`, then rank. Null for color -1. All ranks of this group call it.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key, std::string_view name) = 0;
  // After a loss: the group of those that are left. All of them call it.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Shrink(absl::Duration timeout) = 0;
};

}  // namespace gantry
