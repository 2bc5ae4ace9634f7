// Groups of ranks on one node. Every collective is a few rounds: a rank publishes what it calls and where its memory
// is, waits until all others have, reads and writes their memory, and says that it is through. The all-reduce is the
// two-barrier push of NCCL's LSA example and of XPMEM-based MPI collectives (Hashmi et al., "Designing Efficient Shared
// Address Space Reduction Collectives", IPDPS 2018): rank r adds up the r-th slice of everybody's memory, in the order
// of ranks, and writes the sum to all of them.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/shm/group_block.h"
#include "comm/shm/operation.h"
#include "comm/shm/shm_node.h"

namespace gantry::shm {

inline constexpr int64_t kScratchBytes =
    64 << 10;  // of each rank's memory at a time, where it is read by cross-memory calls

class ShmCommunicator final : public QueuedCommunicator {
 public:
  // All of `ranks` (of the job, all on this node, this one among them) call it with the same arguments. `labels`: what
  // messages call its ranks, where it is a part of another group; empty: 0, 1, 2, ...
  static absl::StatusOr<std::unique_ptr<ShmCommunicator>> Create(ShmNode& node, std::span<const int> ranks,
                                                                 std::string_view name, uint64_t id,
                                                                 absl::Duration timeout, std::vector<int> labels = {});
  // No Pending of it is left.
  ~ShmCommunicator() override;

  absl::StatusOr<std::unique_ptr<Communicator>> Shrink(absl::Duration timeout) override;

  // What groups of several nodes are made of:
  // A reduce of part of a larger sum. At the root `before` (null: none) comes first, a partial result as FoldElements
  // has it, and so does `to` become one if `keeps_partial`; elsewhere all three are ignored.
  Pending Fold(const void* from, int64_t count, ElementType type, ReduceOp op, int root, const std::byte* before,
               std::byte* to, bool keeps_partial, const CollectiveOptions& options);
  // Ranks tell each other what they call, and differ about it as about any operation; nothing moves. `of_neighbours`:
  // of a call that not all take part in; a rank says so and goes on.
  Pending Announce(const Call& call, bool of_neighbours, const CollectiveOptions& options);
  // Ranks of this group that have not come to a started operation, as bits; none where another thread moves it right
  // now.
  uint64_t MissingFrom(const Pending::Work& operation);
  // What is started from now on is part of this operation of the larger group; nothing else is under way.
  void BeginPartOf(uint64_t whole) { whole_.store(whole, std::memory_order_seq_cst); }
  // The larger group has failed with that operation: so does this one, at all ranks, once they are there.
  void BreakFor(const absl::Status& why);
  // Everything started fails with `status`, and so does what follows. False where another thread is in an operation
  // until `deadline`.
  bool Abandon(const absl::Status& status, WaitClock::time_point deadline);
  void MoveOn(bool rested) { Drive(nullptr, rested); }

 private:
  ShmCommunicator(ShmNode& node, std::shared_ptr<const SharedRegion> region, int first_size, int generation,
                  std::vector<int> ranks, std::vector<int> slots, std::vector<int> labels, std::string_view name,
                  uint64_t id);

  QueuedOperation& at(uint64_t place) override { return operations_[place]; }
  Result StepFirst(QueuedOperation& operation, bool looks_closely) override;
  bool SharesCore() override;
  std::string DescribeWait(const QueuedOperation& operation) override;
  bool Awaits(const QueuedOperation& operation, int rank) const override {
    return (Missing(static_cast<const Operation&>(operation)) >> rank & 1) != 0;
  }
  absl::StatusOr<std::unique_ptr<Communicator>> Make(std::span<const int> ranks, std::string_view name, uint64_t id,
                                                     absl::Duration timeout) override;

  // prepare.cc. `is_small`: the operation's memory is small enough to be copied on every rank, which all of them know
  // alike.
  void Reset(QueuedOperation& operation) override;
  void Prepare(QueuedOperation& operation) override;
  void ListMessages(Operation& operation) const;
  void Expose(Operation& operation, const void* data, int64_t bytes, bool is_small = false) const;

  // shm_communicator.cc: moving on.
  Breach breach() const { return static_cast<Breach>(block_.broken.breach.load(std::memory_order_seq_cst)); }
  // Whether others have broken the group. Asked for before a look for what they have done: they may do their part in an
  // operation, and break the group with the next.
  bool HasBreach() const;
  bool FailIfBroken(const QueuedOperation& operation) override;
  bool IsBroken(Operation& operation, bool has_breach, bool looks_closely);
  void Break(Breach breach, const Call& mine, uint64_t sequence, int other, const Entry* theirs, uint64_t late);
  bool BeginBreak();
  void EndBreak(Breach breach);
  absl::Status BrokenStatus() const;
  uint64_t Missing(const Operation& operation) const;  // ranks that the operation waits for, as bits
  // A rank's first operation from `full` on that all take part in, or from `partial` on that not all do; null: it has
  // come to none, as far as its entries still say.
  const Entry* EntryFrom(int rank, uint64_t full, uint64_t partial) const;
  std::string Labels(uint64_t ranks) const;
  void RingOthers();

  // rounds.cc: operations that all ranks take part in.
  Result StepFull(Operation& operation, bool looks_closely);
  void Publish(Operation& operation);
  void PlanRounds(Operation& operation);
  uint64_t WantedArrivals(const Operation& operation) const;
  bool AllArrived(Operation& operation);
  bool FindMismatch(Operation& operation);
  bool Enter(Operation& operation);
  void Arrive(Operation& operation);
  bool DoRound(Operation& operation);
  void StageIn(Operation& operation, int64_t chunk);
  void StageOut(Operation& operation, int64_t chunk);
  void SumChunk(Operation& operation, int64_t chunk);
  bool ReduceSlices(Operation& operation, int64_t chunk);
  bool FoldPart(Operation& operation, int64_t chunk);
  bool ReduceScatterPart(Operation& operation, int64_t chunk);
  bool PullParts(Operation& operation, int64_t chunk);
  bool PullSlices(Operation& operation);
  bool ReduceRun(Operation& operation, int64_t offset, int64_t staged_offset, int64_t bytes,
                 std::span<std::byte* const> to);
  bool FindSources(Operation& operation, int64_t offset, int64_t staged_offset, int64_t bytes, const std::byte** from);
  bool Fetch(Operation& operation, int from, int64_t offset, int64_t staged_offset, std::byte* to, int64_t bytes,
             bool past_caches);

  // messages.cc: operations of neighbours.
  Result StepPartial(Operation& operation, bool looks_closely);
  struct Posts {  // an operation's messages that were copied, which may not all be taken yet
    struct To {
      int peer, tag;
    };
    uint64_t sequence = 0;
    int64_t begin = 0, end = 0;  // where they lie
    int count = 0;
    To to[kMaxRanks] = {};
  };
  bool IsTaken(int peer, int tag, uint64_t mark);
  bool HasRoom(Operation& operation, bool looks_closely);
  bool IsInTheWay(const Posts& posts, const Operation& operation) const;
  void PublishPartial(Operation& operation);
  void StageMessage(Operation& operation, Message& message);
  bool MoveMessage(Operation& operation, Message& message);
  bool TakePiece(const Operation& operation, Message& message, int place, MemoryKind& memory);
  void FindMessageMismatch(const Operation& operation);
  void FindPostMismatch(const Posts& posts);
  uint64_t MissingNeighbours(const Operation& operation) const;

  RankLines& lines(int rank) { return block_.ranks[rank]; }
  const RankLines& lines(int rank) const { return block_.ranks[rank]; }
  std::byte* slot(int rank) const { return region_->data() + SlotOffset(first_size_, slots_[rank]); }
  std::byte* copied(int rank, int parity, MemoryKind kind) const {
    return kind == MemoryKind::kInline ? block_.ranks[rank].inline_bytes[parity]
                                       : region_->data() + CopiedOffset(first_size_, slots_[rank], parity);
  }
  std::byte* posted(int rank, int turn, int64_t bytes) const {
    return region_->data() + PostOffset(first_size_, slots_[rank]) + TurnOffset(turn, bytes);
  }

  const std::shared_ptr<const SharedRegion> region_;
  const int first_size_;  // ranks of the group that the region was made for
  const int generation_;
  std::atomic<uint64_t> whole_{0};  // operation of the larger group
  GroupBlock& block_;
  const std::vector<int> slots_;    // whose slot each rank has: its number in the first group
  const std::vector<int> labels_;   // by rank, for messages
  std::vector<std::byte> scratch_;  // blocks of other processes' memory
  Operation operations_[kMaxInFlight];

  // Of the driving thread.
  uint64_t full_operations_ = 0;
  uint64_t arrivals_ = 0;
  Posts posts_[kTurns];
  uint64_t taken_[kMaxRanks][kMaxMessages] = {};  // as far as this rank has seen
};

}  // namespace gantry::shm
