// Groups of ranks on one node. Every collective is a few rounds: a rank publishes what it calls and where its memory
// is, waits until all others have, reads and writes their memory, and says that it is through. The all-reduce is the
// two-barrier push of NCCL's LSA example and of XPMEM-based MPI collectives (Hashmi et al., "Designing Efficient Shared
// Address Space Reduction Collectives", IPDPS 2018): rank r adds up the r-th slice of everybody's memory, in the order
// of ranks, and writes the sum to all of them.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "comm/communicator.h"
#include "comm/shm/group_block.h"
#include "comm/shm/operation.h"
#include "comm/shm/shm_node.h"

namespace gantry::shm {

inline constexpr int64_t kScratchBytes =
    64 << 10;  // of each rank's memory at a time, where it is read by cross-memory calls

class ShmCommunicator final : public Communicator, private Mover {
 public:
  // All of `ranks` (of the job, all on this node, this one among them) call it with the same arguments.
  static absl::StatusOr<std::unique_ptr<Communicator>> Create(ShmNode& node, std::span<const int> ranks,
                                                              std::string_view name, uint64_t id,
                                                              absl::Duration timeout);
  // No Pending of it is left.
  ~ShmCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(ranks_.size()); }
  std::string_view name() const override { return name_; }
  std::span<const int> ranks() const override { return ranks_; }

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
  absl::StatusOr<std::unique_ptr<Communicator>> Shrink(absl::Duration timeout) override;

  // Of Operation::Wait.
  absl::Status WaitFor(Operation& operation, absl::Duration timeout);

 private:
  ShmCommunicator(ShmNode& node, std::shared_ptr<const SharedRegion> region, int first_size, int generation,
                  std::vector<int> ranks, std::vector<int> slots, std::string_view name, uint64_t id);

  // start.cc
  Operation* NextFree(absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(start_mutex_);
  template <typename Fill>
  Pending Start(const CollectiveOptions& options, Fill&& fill);
  // `is_small`: the operation's memory is at most kInlineBytes on every rank, which all of them know alike.
  void Expose(Operation& operation, const void* data, int64_t bytes, bool is_small = false) const;

  // shm_communicator.cc: moving on. All of it under the driving lock, which only one thread at a time gets.
  Result MoveOnce(bool rested) override;
  int priority() const override;
  bool TryDrive();
  void StopDriving();
  // Steps until an operation waits or `until` is done.
  void Drive(const Operation* until, bool rested);
  Result Step(bool rested);
  bool IsBroken(Operation& operation, bool looks_closely);
  void Finish(Operation& operation, absl::Status status);
  void FailAll(const absl::Status& status);
  void Break(Breach breach, const Operation& mine, int other, const Entry* theirs, uint64_t late);
  absl::Status BrokenStatus() const;
  uint64_t Missing(const Operation& operation) const;  // ranks that the operation waits for, as bits
  std::string DescribeWait(const Operation& operation) const;
  void RingOthers();
  bool SharesCore();

  // rounds.cc: operations that all ranks take part in.
  Result StepFull(Operation& operation, bool looks_closely);
  void Publish(Operation& operation);
  void PlanRounds(Operation& operation);
  bool AllArrived(Operation& operation);
  bool FindMismatch(Operation& operation);
  bool Enter(Operation& operation);
  void Arrive(Operation& operation);
  bool DoRound(Operation& operation);
  void StageIn(Operation& operation, int64_t chunk);
  void StageOut(Operation& operation, int64_t chunk);
  bool ReduceSlices(Operation& operation, int64_t chunk);
  bool ReduceScatterPart(Operation& operation, int64_t chunk);
  bool PullParts(Operation& operation, int64_t chunk);
  bool PullSlices(Operation& operation);
  bool ReduceRun(Operation& operation, int64_t offset, int64_t staged_offset, int64_t bytes,
                 std::span<std::byte* const> to);
  bool Fetch(Operation& operation, int from, int64_t offset, int64_t staged_offset, std::byte* to, int64_t bytes,
             bool past_caches);

  // messages.cc: operations of neighbours.
  Result StepPartial(Operation& operation, bool looks_closely);
  void PublishPartial(Operation& operation);
  bool MoveMessage(Operation& operation, Message& message);
  bool FindMessageMismatch(Operation& operation);
  void StageMessage(Operation& operation, Message& message);

  RankLines& lines(int rank) { return block_.ranks[rank]; }
  const RankLines& lines(int rank) const { return block_.ranks[rank]; }
  std::byte* slot(int rank) const { return region_->data() + SlotOffset(first_size_, slots_[rank]); }

  ShmNode& node_;
  const std::shared_ptr<const SharedRegion> region_;
  const int first_size_;  // ranks of the group that the region was made for
  const int generation_;
  GroupBlock& block_;
  const std::vector<int> ranks_;
  const std::vector<int> slots_;  // whose slot each rank has: its number in the first group
  const std::string name_;
  const uint64_t id_;
  int rank_ = 0;
  std::vector<std::byte> scratch_;  // blocks of other processes' memory

  std::mutex start_mutex_;
  uint64_t started_ ABSL_GUARDED_BY(start_mutex_) = 0;
  uint64_t splits_ ABSL_GUARDED_BY(start_mutex_) = 0;
  absl::Status broken_ ABSL_GUARDED_BY(start_mutex_);
  Operation operations_[kMaxInFlight];
  std::atomic<uint64_t> queued_{0};  // operations ever
  std::atomic<uint64_t> finished_{0};

  std::atomic<bool> is_driven_{false};
  std::atomic<bool> is_contended_{false};
  // Of the driving thread.
  uint64_t full_operations_ = 0;
  uint64_t arrivals_ = 0;
  uint32_t losses_seen_ = 0;
  uint32_t looks_ = 0;
};

}  // namespace gantry::shm
