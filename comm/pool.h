// The memory of all ranks as one: each rank shares some regions (its arena, its tiers' slabs), and every rank of its
// node maps them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "comm/links.h"
#include "comm/shared_region.h"
#include "comm/transport.h"
#include "memory/status.h"

namespace gantry {

// Memory of this process that is to be shared, e.g. a Slab's: data(), size_bytes() and descriptor(). It outlives the
// pool.
struct PoolRegion {
  std::string name;  // "arena", "tier host": in errors
  std::byte* data = nullptr;
  int64_t bytes = 0;
  int descriptor = -1;
  Access others = Access::kReadWrite;  // kRead: other ranks cannot write to it, and the kernel sees to it
};

// Does not change once made. Thread-safe.
class Pool {
 public:
  // All ranks of the job call it, each with its own regions (any number, none too). Ranks of other nodes are known by
  // their regions' sizes.
  static absl::StatusOr<std::unique_ptr<Pool>> Share(Links& links, std::span<const PoolRegion> mine,
                                                     absl::Duration timeout);

  int region_count(int rank) const { return static_cast<int>(ranks_[rank].size()); }
  int64_t region_bytes(int rank, int region) const { return ranks_[rank][region].bytes; }
  // Where this process sees the region of a rank of its node; null for ranks of other nodes, and for a region of 0
  // bytes.
  std::byte* data(int rank, int region) const { return ranks_[rank][region].data; }
  bool writable(int rank, int region) const { return ranks_[rank][region].access == Access::kReadWrite; }

  // kInvalidArgument unless [address, address + bytes) lies in a region of the pool.
  absl::Status Check(const GlobalAddress& address, int64_t bytes) const;
  // Where memory of this rank lies in its regions; nothing if it does not, or where others may not write to it.
  std::optional<GlobalAddress> Find(const void* data, int64_t bytes) const;

 private:
  struct Mapped {
    std::byte* data = nullptr;
    int64_t bytes = 0;
    Access access = Access::kReadWrite;
    SharedRegion mapping;  // of other ranks
  };

  Pool() = default;

  int rank_ = 0;
  std::vector<std::vector<Mapped>> ranks_;
};

}  // namespace gantry
