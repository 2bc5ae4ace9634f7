// What a process holds of its node: the doorbells of all its ranks, how it waits, and the groups that it moves on.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "comm/links.h"
#include "comm/liveness.h"
#include "comm/pool.h"
#include "comm/recorder.h"
#include "comm/shared_region.h"
#include "comm/wait.h"

namespace gantry::shm {

struct NodeOptions {
  bool cross_memory =
      false;  // process_vm_readv for large memory outside the pool, where a probe shows that it works between all ranks
  Recorder* recorder = nullptr;
};

// Something with operations that go on in small steps. Its methods are called from any thread.
class Mover {
 public:
  enum class Result : uint8_t { kIdle, kWaits, kMoved };
  // One step of the first operation, if nobody else is at it.
  virtual Result MoveOnce(bool rested) = 0;
  // Of the operation that MoveOnce would move.
  virtual int priority() const = 0;

 protected:
  ~Mover() = default;
};

// Thread-safe.
class ShmNode {
 public:
  // All ranks of the node call it. The arguments outlive the node, and the node outlives what is made with it.
  static absl::StatusOr<std::unique_ptr<ShmNode>> Open(Links& links, Liveness& liveness, const Pool& pool,
                                                       const NodeOptions& options, absl::Duration timeout);
  ~ShmNode();

  Links& links() { return links_; }
  Liveness& liveness() { return liveness_; }
  const Pool& pool() const { return pool_; }
  std::span<const int> ranks() const { return ranks_; }  // of the job, on this node, ascending
  int core_count() const { return core_count_; }         // that these ranks may run on
  Recorder* recorder() { return recorder_; }             // or null
  const WaitPolicy& policy() const { return policy_; }
  bool cross_memory() const { return cross_memory_; }
  int64_t process_id(int rank) const { return process_ids_[rank]; }  // for cross-memory calls
  int64_t stream_bytes() const { return stream_bytes_; }             // half of the last cache: larger copies go past it

  Doorbell& bell(int rank) { return bells_[index_[rank]]; }
  Doorbell& own_bell() { return *own_bell_; }

  void Add(Mover& mover);
  void Remove(Mover& mover);
  // Steps of every mover but `but`, the highest priority first, until all of them wait.
  void MoveOthers(const Mover* but);
  // Of a thread that has found something done that operations wait for: in place of ringing the own bell.
  void GoOn();

  // The lane: a thread that moves everything on while some operation is in the background. Made with the first.
  void BackgroundBegun();
  void BackgroundDone() { in_background_.fetch_sub(1, std::memory_order_seq_cst); }

 private:
  ShmNode(Links& links, Liveness& liveness, const Pool& pool) : links_(links), liveness_(liveness), pool_(pool) {}
  absl::Status Join(const NodeOptions& options, absl::Duration timeout);
  void RunLane();

  Links& links_;
  Liveness& liveness_;
  const Pool& pool_;
  std::vector<int> ranks_;
  std::vector<int> index_;  // by rank of the job: its place in ranks_
  std::vector<int64_t> process_ids_;
  int core_count_ = 1;
  int64_t stream_bytes_ = 16 << 20;
  bool cross_memory_ = false;
  WaitPolicy policy_;
  Recorder* recorder_ = nullptr;
  SharedRegion region_;
  Doorbell* bells_ = nullptr;
  Doorbell* own_bell_ = nullptr;
  int on_loss_ = -1;
  uint64_t probe_ = 0;  // what peers read to see that they can

  std::shared_mutex movers_mutex_;  // not absl::Mutex: see memory/cpu/cpu_device.cc
  std::vector<Mover*> movers_ ABSL_GUARDED_BY(movers_mutex_);

  std::atomic<int> in_background_{0};
  std::mutex lane_mutex_;
  std::condition_variable lane_wake_;
  bool lane_stops_ ABSL_GUARDED_BY(lane_mutex_) = false;
  std::thread lane_ ABSL_GUARDED_BY(lane_mutex_);
};

}  // namespace gantry::shm
