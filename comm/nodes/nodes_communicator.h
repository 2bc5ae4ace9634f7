// Groups of ranks on several nodes: shared memory within a node (shm/), parcels between them (tcp/).
//
// A sum must add up in the order of ranks, so it goes along the *runs*, the longest stretches of ranks that follow each
// other on one node: the first run adds up its own, the next adds its own on top of that, one rank after the other, and
// what leaves the last is the result, which then goes from node to node to all, or to the one rank that wants it. With
// ranks placed node by node there is one run a node, and each byte leaves a node once as a partial sum and comes back
// once as the result: for two nodes no algorithm sends less (Chan et al., "Collective communication: theory, practice,
// and experience", 2007, table of lower bounds). All of it in chunks, of which several are under way, so that links and
// cores are busy at the same time; each chunk has one rank a node that handles it, in turns.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/shm/queued_communicator.h"
#include "comm/shm/shm_communicator.h"
#include "comm/tcp/mailbox.h"

namespace gantry::nodes {

// Which ranks of a group are together; ranks here are those of the group.
struct Layout {
  struct Run {
    int node = 0, first = 0, count = 0;
  };
  std::vector<std::vector<int>> nodes;  // the ranks of each, ascending; nodes by their first rank
  std::vector<int> node_of;             // by rank
  std::vector<Run> runs;
  std::vector<int> run_of;  // by rank

  static Layout Of(std::span<const int> machine_of_rank);
};

struct NodesOperation final : shm::QueuedOperation {};

class NodesCommunicator final : public shm::QueuedCommunicator {
 public:
  // All of `ranks` (of the job, on two nodes at least, this one among them) call it with the same arguments, which
  // outlive the group.
  static absl::StatusOr<std::unique_ptr<Communicator>> Create(shm::ShmNode& node, tcp::Mailbox& mailbox,
                                                              std::span<const int> ranks, std::string_view name,
                                                              uint64_t id, absl::Duration timeout);
  ~NodesCommunicator() override;

  // Where two ranks are lost within the time that regrouping takes, some may form a group that others do not know; its
  // operations then fail with the second loss, and Shrink is called again.
  absl::StatusOr<std::unique_ptr<Communicator>> Shrink(absl::Duration timeout) override;

 private:
  static constexpr int kWindow = 8;  // chunks under way
  static constexpr int64_t kLeastChunkBytes = int64_t{16} << 10;
  static constexpr int64_t kUsualChunkBytes = int64_t{128} << 10;
  static constexpr int64_t kMostChunkBytes = int64_t{256} << 10;  // of long operations, as a partial result

  // Bytes of the operation that go together, `owner` being the rank that has or gets them; -1 where all do.
  struct Chunk {
    int64_t index = 0;
    int64_t offset = 0, bytes = 0;  // among the operation's
    int64_t part_offset = 0;        // in the owner's part
    int owner = -1;
  };
  // A chunk under way at this rank: what it has to do with it, and what is done.
  struct Slot {
    bool is_open = false;
    Chunk chunk;
    bool folds = false;       // takes part in a sum with others of its run
    bool handles = false;     // its run's rank for this chunk
    bool passes_on = false;   // to the next run
    bool has_result = false;  // the whole sum ends here; or it is the root's own
    bool receives = false;    // the result, from another node
    int receives_from = -1;
    bool forwards = false;                 // the result, to another node
    bool spreads = false;                  // takes part in handing the result on within its node
    int spread_from = -1, spread_to = -1;  // ranks of the node; spread_to -1: to all
    std::byte* result = nullptr;
    tcp::Parcel prefix_in, partial_out, result_in, result_out;
    bool fold_begun = false, fold_done = false, partial_posted = false, result_awaited = false, result_posted = false,
         spread_begun = false;
    Pending fold, spread;
    std::byte* prefix = nullptr;  // room for a partial result each
    std::byte* partial = nullptr;

    std::array<tcp::Parcel*, 4> parcels() { return {&prefix_in, &partial_out, &result_in, &result_out}; }
    std::array<const tcp::Parcel*, 4> parcels() const { return {&prefix_in, &partial_out, &result_in, &result_out}; }
    // The result may take the place of what this rank had in the sum, once nobody reads that any more.
    bool gave_its_part() const { return (!folds || fold_done) && (!passes_on || partial_out.done()); }
  };

  NodesCommunicator(shm::ShmNode& node, tcp::Mailbox& mailbox, std::vector<int> ranks, Layout layout,
                    std::string_view name, uint64_t id);
  absl::Status MeetLocal(absl::Duration timeout);
  // Calls `with` for the groups of this node that there are.
  template <typename With>
  void ForPartsHere(With&& with) {
    for (shm::ShmCommunicator* part : {local_.get(), of_run_.get()}) {
      if (part != nullptr) with(*part);
    }
  }

  shm::QueuedOperation& at(uint64_t place) override { return operations_[place]; }
  void Prepare(shm::QueuedOperation& operation) override;
  Result StepFirst(shm::QueuedOperation& operation, bool looks_closely) override;
  bool SharesCore() override;
  std::string DescribeWait(const shm::QueuedOperation& operation) override;
  bool Awaits(const shm::QueuedOperation& operation, int rank) const override;
  absl::StatusOr<std::unique_ptr<Communicator>> Make(std::span<const int> ranks, std::string_view name, uint64_t id,
                                                     absl::Duration timeout) override;
  void LetGo() override;

  static CollectiveOptions LocalOptions(const NodesOperation& operation);

  // Failing.
  bool FailIfBroken(const shm::QueuedOperation& operation) override;
  bool IsBroken(NodesOperation& operation, bool looks_closely);
  bool FindMismatch(NodesOperation& operation);
  bool FailIfDiffers(NodesOperation& operation, int rank, bool for_sure);
  bool HasTimedOut(NodesOperation& operation);
  void BreakAll(const NodesOperation& operation, const absl::Status& why);
  void BreakHere(const absl::Status& why);
  bool FailLocal(NodesOperation& operation, absl::Status status);
  bool FailParcel(NodesOperation& operation, const tcp::Parcel& parcel);
  // Calls `with` for ranks of the group that more is awaited of, for some more than once.
  template <typename With>
  void ForMissing(With&& with) const;
  std::vector<int> Missing() const;

  // Chunks (chunks.cc).
  bool IsFold(const NodesOperation& operation) const;
  bool GoesToAll(const NodesOperation& operation) const;
  void BeginChunks(NodesOperation& operation);
  Chunk NextChunk(const NodesOperation& operation);
  void OpenSlot(NodesOperation& operation, Slot& slot, const Chunk& chunk);
  bool StartLocal(NodesOperation& operation);
  bool BeginFold(NodesOperation& operation, Slot& slot);
  bool StepSlot(NodesOperation& operation, Slot& slot);
  bool StepChunks(NodesOperation& operation);
  int HolderOf(const Chunk& chunk, int node, int first) const;

  // Messages (messages.cc): all at once.
  void BeginMessages(NodesOperation& operation);
  bool StepMessages(NodesOperation& operation);
  bool AreMessagesDone() const;
  // The next local message, if there is one.
  void BeginLocalMessage(NodesOperation& operation);
  tcp::Parcel& NextParcel() { return parcels_[static_cast<size_t>(parcel_count_++)]; }
  void SendTo(tcp::Parcel& parcel, int rank, uint32_t tag, const NodesOperation& operation, const std::byte* data,
              int64_t bytes);
  void ReceiveFrom(tcp::Parcel& parcel, int rank, uint32_t tag, const NodesOperation& operation, std::byte* data,
                   int64_t bytes);
  int RankOf(int of_job) const;
  const std::vector<int>& here() const { return layout_.nodes[static_cast<size_t>(node_index_)]; }
  bool IsHere(int rank) const { return layout_.node_of[rank] == node_index_; }

  tcp::Mailbox& mailbox_;
  const Layout layout_;
  int node_index_ = 0, run_index_ = 0;
  std::vector<int> local_rank_;                   // by rank: its number on its node
  std::vector<int> foreign_;                      // ranks of the job, on other nodes
  std::unique_ptr<shm::ShmCommunicator> local_;   // null where this rank is alone on its node
  std::unique_ptr<shm::ShmCommunicator> of_run_;  // where its run is not all of its node
  shm::ShmCommunicator* run_group_ = nullptr;     // one of them; null where it is alone in its run

  NodesOperation operations_[kMaxInFlight];
  std::byte barrier_byte_{};
  // The operation that goes on, of the driving thread.
  bool is_begun_ = false;
  tcp::CallBytes call_ = {};
  Pending announced_;
  std::vector<std::byte> room_;
  std::array<Slot, kWindow> slots_;
  int64_t chunk_bytes_ = 0, chunk_count_ = 0, opened_ = 0, closed_ = 0, next_local_ = 0;
  Chunk next_chunk_;
  int next_part_ = 0;
  std::unique_ptr<tcp::Parcel[]> parcels_;  // of messages
  int parcel_count_ = 0;
  Pending local_message_;
  int next_pair_ = 0, pair_count_ = 0;  // messages within the node, begun and in all
  uint32_t breaks_seen_ = 0;
  uint64_t asked_for_ = 0;  // the operation that ran out of time here
  WaitClock::time_point told_by_ = {};
};

}  // namespace gantry::nodes
