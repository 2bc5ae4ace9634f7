// Ranks as threads of one process: links and liveness of plain queues, so that what stands on them runs under
// ThreadSanitizer, and a loss can be had without ending a process. run_ranks.h has ranks that are processes.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "comm/fabric.h"
#include "comm/links.h"
#include "comm/liveness.h"
#include "memory/device.h"

namespace gantry {

// What the threads of one job share.
class ThreadJob {
 public:
  // `node_of`: which ranks are taken to be on one node.
  explicit ThreadJob(std::vector<int> node_of);
  int size() const { return static_cast<int>(node_of_.size()); }
  int node_of(int rank) const { return node_of_[static_cast<size_t>(rank)]; }
  Links& links(int rank) { return *links_[rank]; }
  Liveness& liveness(int rank) { return *liveness_[rank]; }
  // Every rank but `rank` learns that it is lost.
  void Lose(int rank);

 private:
  friend class ThreadLinks;
  friend class ThreadLiveness;

  const std::vector<int> node_of_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::map<std::tuple<int, int, uint32_t>, std::deque<LinkMessage>> queues_;  // by from, to, channel
  std::vector<std::unique_ptr<Links>> links_;
  std::vector<std::unique_ptr<Liveness>> liveness_;
};

// One rank with its fabric and an arena of `arena_bytes` in the pool (region 0).
struct Rank {
  int rank = 0;
  Links* links = nullptr;
  Liveness* liveness = nullptr;
  std::byte* arena = nullptr;
  int64_t arena_bytes = 0;
  std::unique_ptr<Slab> slab;
  std::unique_ptr<Fabric> fabric;
};

// `body` on a thread a rank, on nodes as ThreadJob has them.
void RunThreadRanks(const std::vector<int>& node_of, int64_t arena_bytes, const FabricOptions& options,
                    const std::function<void(Rank&, ThreadJob&)>& body);

// Rank `rank` over any links: its arena made and shared.
absl::StatusOr<Rank> OpenRank(Links& links, Liveness& liveness, Device& device, int64_t arena_bytes,
                              const FabricOptions& options);

}  // namespace gantry
