// What groups have in common, whatever moves their bytes: operations wait in a ring and go on one after the other, in
// steps that any thread of the rank may carry out, one at a time.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "comm/communicator.h"
#include "comm/shm/call.h"
#include "comm/shm/shm_node.h"
#include "comm/wait.h"

namespace gantry::shm {

class QueuedCommunicator;

// An operation of a group: what was called, and with what. Groups keep a fixed number of them.
struct QueuedOperation : Pending::Work {
  enum State : uint32_t { kFree, kQueued, kDone };

  bool done() const override { return state.load(std::memory_order_acquire) == kDone; }
  absl::Status Wait(absl::Duration timeout) override;
  void Release() override;

  QueuedCommunicator* group = nullptr;
  std::atomic<uint32_t> state{kFree};
  absl::Status status;  // once done

  Call call;
  const std::byte* from = nullptr;
  std::byte* to = nullptr;  // `from` again, where the result takes its place
  int64_t from_bytes = 0;
  std::vector<int64_t> parts;     // bytes of each rank's part, of `from` where `to` has its own
  std::vector<int64_t> to_parts;  // kAllToAll
  std::array<HaloExchange, kMaxMessages / 2> halos;
  int halo_count = 0;
  std::atomic<int> priority{0};
  bool in_background = false;
  bool waits_asleep = false;
  absl::Duration timeout = absl::ZeroDuration();

  uint64_t sequence = 0;                // in the group, from 1
  uint64_t ticket = 0;                  // the recorder's
  int recorded_peer = -1;               // whom the recorder says it waits for
  WaitClock::time_point deadline = {};  // set with the first wait

 protected:
  ~QueuedOperation() = default;
};

class QueuedCommunicator : public Communicator, protected Mover {
 public:
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(ranks_.size()); }
  std::string_view name() const override { return name_; }
  std::span<const int> ranks() const override { return ranks_; }

  // start.cc
  Pending AllReduce(void* data, int64_t count, ElementType type, ReduceOp op,
                    const CollectiveOptions& options) override;
  Pending ReduceScatter(const void* from, void* to, std::span<const int64_t> counts, ElementType type, ReduceOp op,
                        const CollectiveOptions& options) override;
  Pending AllGather(const void* from, void* to, std::span<const int64_t> bytes,
                    const CollectiveOptions& options) override;
  Pending Broadcast(void* data, int64_t bytes, int root, const CollectiveOptions& options) override;
  Pending Reduce(void* data, int64_t count, ElementType type, ReduceOp op, int root,
                 const CollectiveOptions& options) override;
  Pending AllToAll(const void* from, std::span<const int64_t> from_bytes, void* to, std::span<const int64_t> to_bytes,
                   const CollectiveOptions& options) override;
  Pending ExchangeHalo(std::span<const HaloExchange> dimensions, const CollectiveOptions& options) override;
  Pending SendReceive(void* data, int64_t bytes, int from, int to, const CollectiveOptions& options) override;
  absl::Status Barrier(absl::Duration timeout) override;

  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key, std::string_view name) override;

  // Of QueuedOperation::Wait.
  absl::Status WaitFor(QueuedOperation& operation, absl::Duration timeout);

 protected:
  // What is derived adds itself to the node once it can be moved, and takes itself away.
  QueuedCommunicator(ShmNode& node, std::vector<int> ranks, std::string_view name, uint64_t id);
  // In the constructor of what is derived, once it has its ring: room for the parts of all ranks in each operation.
  void MakeRoom();

  // For what is derived: its ring; what it notes down of an operation that is called, where it has something of its own
  // in it (Reset goes before); a step of the first operation; a group of some of these ranks of the job, which all
  // of them make; what it holds of operations that fail now, to let go of.
  virtual QueuedOperation& at(uint64_t place) = 0;
  virtual void Reset(QueuedOperation&) {}
  virtual void Prepare(QueuedOperation& operation) = 0;
  virtual Result StepFirst(QueuedOperation& operation, bool looks_closely) = 0;
  virtual bool SharesCore() = 0;
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Make(std::span<const int> ranks, std::string_view name,
                                                             uint64_t id, absl::Duration timeout) = 0;
  virtual void LetGo() {}
  // Whether the first operation cannot end without more from `rank` of the group.
  virtual bool Awaits(const QueuedOperation& operation, int rank) const = 0;
  // "group "world", operation 3: all_reduce ... waits for rank 2 of the group"
  virtual std::string DescribeWait(const QueuedOperation& operation) = 0;

  // `fill` gives the operation what is called, under the lock of starts.
  template <typename Fill>
  Pending Start(const CollectiveOptions& options, Fill&& fill) {
    QueuedOperation* operation = nullptr;
    {
      const std::lock_guard lock(start_mutex_);
      absl::Status status;
      operation = NextFree(status);
      if (operation == nullptr) return Pending(std::move(status));
      operation->call = Call();
      operation->from_bytes = 0;
      operation->halo_count = 0;
      Reset(*operation);
      fill(*operation);
      Enqueue(*operation, options);
    }
    if (options.in_background) {
      node_.BackgroundBegun();
    } else {
      Drive(operation, false);
    }
    return Pending(*operation);
  }
  static void FillSum(QueuedOperation& operation, Collective kind, const void* from, void* to, int64_t count,
                      ElementType type, ReduceOp op, int root);

  Result MoveOnce(bool rested) override;
  int priority() const override;

  // Moving on: under the driving lock, which only one thread at a time gets.
  bool TryDrive();
  bool DriveBy(WaitClock::time_point deadline);
  void StopDriving();
  // Steps until an operation waits or `until` is done.
  void Drive(const QueuedOperation* until, bool rested);
  Result Step(bool rested);
  void Finish(QueuedOperation& operation, absl::Status status);
  void FailAll(const absl::Status& status);
  // Fails all where a rank has said that the group failed: that is the reason, then, why another one has gone.
  virtual bool FailIfBroken(const QueuedOperation& operation) = 0;
  // Fails all where a rank of the group is lost.
  bool FailIfLost(QueuedOperation& operation);
  // How a group fails: two of its ranks differ about an operation (`low` the lower), or some did not come in time.
  struct Side {
    int rank;
    uint64_t sequence;
    const Call& call;
  };
  absl::Status DiffersStatus(const Side& low, const Side& high) const;
  absl::Status TimedOutStatus(const Side& side, std::string_view late) const;
  // For the recorder: `peer` of the group, or -1. Sets the deadline; whether it is over.
  bool NoteWait(QueuedOperation& operation, int peer);

  ShmNode& node_;
  const std::vector<int> ranks_;
  const std::string name_;
  const uint64_t id_;
  int rank_ = 0;

 private:
  // Start, with what is derived preparing the operation.
  template <typename Fill>
  Pending StartPrepared(const CollectiveOptions& options, Fill&& fill);
  QueuedOperation* NextFree(absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(start_mutex_);
  void Enqueue(QueuedOperation& operation, const CollectiveOptions& options)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(start_mutex_);

  std::mutex start_mutex_;
  uint64_t started_ ABSL_GUARDED_BY(start_mutex_) = 0;
  uint64_t splits_ ABSL_GUARDED_BY(start_mutex_) = 0;
  absl::Status broken_ ABSL_GUARDED_BY(start_mutex_);
  std::atomic<uint64_t> queued_{0};  // operations ever
  std::atomic<uint64_t> finished_{0};

  std::atomic<bool> is_driven_{false};
  std::atomic<bool> is_contended_{false};
  // Of the driving thread.
  uint32_t losses_seen_ = 0;
  uint32_t looks_ = 0;

 protected:
  const std::atomic<uint64_t>& queued() const { return queued_; }
};

// Numbers of groups that are made of a group: all its ranks come to the same.
uint64_t MixIds(uint64_t a, uint64_t b);

}  // namespace gantry::shm
