#include "comm/nodes/nodes_communicator.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "comm/channels.h"

namespace gantry::nodes {
namespace {

using shm::Call;
using shm::Collective;
using shm::MixIds;

// How long ranks of other nodes have to say whether they have come to an operation that ran out of time.
constexpr std::chrono::seconds kTellTime(5);
constexpr absl::Duration kLook = absl::Milliseconds(10);  // between two looks for losses, while regrouping

tcp::CallBytes ToBytes(const Call& call) {
  const Call::Words words = call.ToWords();
  tcp::CallBytes bytes = {};
  static_assert(sizeof(words) <= sizeof(bytes));
  std::memcpy(bytes.data(), words.data(), sizeof(words));
  return bytes;
}

Call FromBytes(const tcp::CallBytes& bytes) {
  Call::Words words;
  std::memcpy(words.data(), bytes.data(), sizeof(words));
  return Call::FromWords(words);
}

}  // namespace

Layout Layout::Of(std::span<const int> machine_of_rank) {
  Layout layout;
  std::vector<int> machines;
  for (int rank = 0; rank < static_cast<int>(machine_of_rank.size()); ++rank) {
    const int machine = machine_of_rank[static_cast<size_t>(rank)];
    const auto found = std::find(machines.begin(), machines.end(), machine);
    const int node = static_cast<int>(found - machines.begin());
    if (found == machines.end()) {
      machines.push_back(machine);
      layout.nodes.emplace_back();
    }
    layout.nodes[static_cast<size_t>(node)].push_back(rank);
    layout.node_of.push_back(node);
    if (layout.runs.empty() || layout.runs.back().node != node)
      layout.runs.push_back({.node = node, .first = rank, .count = 0});
    ++layout.runs.back().count;
    layout.run_of.push_back(static_cast<int>(layout.runs.size()) - 1);
  }
  return layout;
}

absl::StatusOr<std::unique_ptr<Communicator>> NodesCommunicator::Create(shm::ShmNode& node, tcp::Mailbox& mailbox,
                                                                        std::span<const int> ranks,
                                                                        std::string_view name, uint64_t id,
                                                                        absl::Duration timeout) {
  std::vector<int> machines;
  for (const int rank : ranks) machines.push_back(node.links().peer(rank).node);
  auto group = std::unique_ptr<NodesCommunicator>(new NodesCommunicator(
      node, mailbox, std::vector<int>(ranks.begin(), ranks.end()), Layout::Of(machines), name, id));
  GANTRY_RETURN_IF_ERROR(group->MeetLocal(timeout));
  return group;
}

NodesCommunicator::NodesCommunicator(shm::ShmNode& node, tcp::Mailbox& mailbox, std::vector<int> ranks, Layout layout,
                                     std::string_view name, uint64_t id)
    : QueuedCommunicator(node, std::move(ranks), name, id), mailbox_(mailbox), layout_(std::move(layout)) {
  node_index_ = layout_.node_of[static_cast<size_t>(rank_)];
  run_index_ = layout_.run_of[static_cast<size_t>(rank_)];
  local_rank_.resize(ranks_.size());
  for (const std::vector<int>& of_node : layout_.nodes) {
    for (size_t i = 0; i < of_node.size(); ++i) local_rank_[static_cast<size_t>(of_node[i])] = static_cast<int>(i);
  }
  for (int rank = 0; rank < size(); ++rank) {
    if (!IsHere(rank)) foreign_.push_back(ranks_[static_cast<size_t>(rank)]);
  }
  MakeRoom();
  room_.resize(2 * kWindow * kMostChunkBytes);
  for (int i = 0; i < kWindow; ++i) {
    slots_[static_cast<size_t>(i)].prefix = room_.data() + 2 * i * kMostChunkBytes;
    slots_[static_cast<size_t>(i)].partial = room_.data() + (2 * i + 1) * kMostChunkBytes;
  }
  parcels_ = std::make_unique<tcp::Parcel[]>(std::max<size_t>(2 * ranks_.size(), 2 * shm::kMaxMessages));
  mailbox_.Enter(id_, queued(), foreign_);
  node_.Add(*this);
}

absl::Status NodesCommunicator::MeetLocal(absl::Duration timeout) {
  const auto meet = [&](std::span<const int> members,
                        uint64_t id) -> absl::StatusOr<std::unique_ptr<shm::ShmCommunicator>> {
    if (members.size() < 2) return nullptr;
    std::vector<int> of_job;
    for (const int rank : members) of_job.push_back(ranks_[static_cast<size_t>(rank)]);
    return shm::ShmCommunicator::Create(node_, of_job, name_, id, timeout,
                                        std::vector<int>(members.begin(), members.end()));
  };
  GANTRY_ASSIGN_OR_RETURN(local_, meet(here(), MixIds(id_, 1)));
  const Layout::Run& run = layout_.runs[static_cast<size_t>(run_index_)];
  if (run.count == static_cast<int>(here().size())) {
    run_group_ = local_.get();
    return absl::OkStatus();
  }
  std::vector<int> of_run(static_cast<size_t>(run.count));
  std::iota(of_run.begin(), of_run.end(), run.first);
  GANTRY_ASSIGN_OR_RETURN(of_run_, meet(of_run, MixIds(id_, 2 + static_cast<uint64_t>(run_index_))));
  run_group_ = of_run_.get();
  return absl::OkStatus();
}

NodesCommunicator::~NodesCommunicator() {
  node_.Remove(*this);
  LetGo();
  mailbox_.Leave(id_);
}

// How it goes on.

// A barrier is one byte that every rank has a part in, and gets back once all have.
void NodesCommunicator::Prepare(shm::QueuedOperation& operation) {
  if (operation.call.kind == Collective::kBarrier)
    FillSum(operation, Collective::kBarrier, &barrier_byte_, &barrier_byte_, 1, ElementType::kU8, ReduceOp::kMax, 0);
}

// Within the node nothing runs out of time before the operation itself does.
CollectiveOptions NodesCommunicator::LocalOptions(const NodesOperation& operation) {
  return {.timeout = operation.timeout + absl::Seconds(10)};
}

shm::Mover::Result NodesCommunicator::StepFirst(shm::QueuedOperation& queued, bool looks_closely) {
  auto& operation = static_cast<NodesOperation&>(queued);
  const Collective kind = operation.call.kind;
  const bool is_messages =
      kind == Collective::kAllToAll || kind == Collective::kExchangeHalo || kind == Collective::kSendReceive;
  if (!is_begun_) {
    is_begun_ = true;
    call_ = ToBytes(operation.call);
    ForPartsHere([&](shm::ShmCommunicator& part) { part.BeginPartOf(operation.sequence); });
    const bool of_neighbours = kind == Collective::kExchangeHalo || kind == Collective::kSendReceive;
    if (local_ != nullptr) announced_ = local_->Announce(operation.call, of_neighbours, LocalOptions(operation));
    is_messages ? BeginMessages(operation) : BeginChunks(operation);
    return Result::kMoved;
  }
  ForPartsHere([&](shm::ShmCommunicator& part) { part.MoveOn(looks_closely); });
  if (announced_.work() != nullptr && announced_.done()) {
    if (absl::Status status = announced_.Wait(absl::ZeroDuration()); !status.ok()) {
      FailLocal(operation, std::move(status));
      return Result::kIdle;
    }
  }
  const bool moved = is_messages ? StepMessages(operation) : StepChunks(operation);
  if (!is_begun_) return Result::kIdle;  // it has failed
  const bool is_through = is_messages ? AreMessagesDone() : closed_ == chunk_count_;
  if (is_through && announced_.work() == nullptr) {
    is_begun_ = false;
    Finish(operation, absl::OkStatus());
    return Result::kMoved;
  }
  if (moved) return Result::kMoved;
  return IsBroken(operation, looks_closely) ? Result::kIdle : Result::kWaits;
}

bool NodesCommunicator::SharesCore() {
  for (const int rank : here()) {
    if (rank != rank_ && node_.bell(ranks_[static_cast<size_t>(rank)]).SharesCore()) return true;
  }
  return false;
}

// Failing.

// Where another rank has said that the group failed with this operation, or before.
bool NodesCommunicator::FailIfBroken(const shm::QueuedOperation& operation) {
  const uint32_t breaks = mailbox_.breaks().load(std::memory_order_seq_cst);
  if (breaks == breaks_seen_) return false;
  const std::optional<tcp::Broken> broken = mailbox_.BrokenBy(id_);
  if (!broken.has_value()) {
    breaks_seen_ = breaks;
    return false;
  }
  if (operation.sequence < broken->sequence) return false;  // what came before can still end well
  const absl::Status why(broken->code, broken->why);
  BreakHere(why);
  FailAll(why);
  return true;
}

bool NodesCommunicator::IsBroken(NodesOperation& operation, bool looks_closely) {
  if (FailIfBroken(operation) || FailIfLost(operation)) return true;
  if (!looks_closely) return false;
  if (is_begun_ && FindMismatch(operation)) return true;
  int first = size();
  ForMissing([&](int rank) { first = std::min(first, rank); });
  return NoteWait(operation, first == size() ? -1 : first) && HasTimedOut(operation);
}

bool NodesCommunicator::FindMismatch(NodesOperation& operation) {
  for (int rank = 0; rank < size(); ++rank) {
    if (!IsHere(rank) && FailIfDiffers(operation, rank, false)) return true;
  }
  return false;
}

// What `rank` has called as the same operation, if that is known. `for_sure`: they are known to differ in sizes that a
// call does not say.
bool NodesCommunicator::FailIfDiffers(NodesOperation& operation, int rank, bool for_sure) {
  const std::optional<tcp::Heard> heard = mailbox_.HeardOf(ranks_[static_cast<size_t>(rank)], id_);
  const bool is_same = heard.has_value() && heard->sequence == operation.sequence;
  const Call theirs = is_same ? FromBytes(heard->call) : operation.call;
  if (!for_sure && (!is_same || operation.call.Matches(theirs))) return false;
  const Side mine{rank_, operation.sequence, operation.call}, other{rank, operation.sequence, theirs};
  BreakAll(operation, rank_ < rank ? DiffersStatus(mine, other) : DiffersStatus(other, mine));
  return true;
}

// Ranks of other nodes say whether they have come, before anybody is blamed.
bool NodesCommunicator::HasTimedOut(NodesOperation& operation) {
  const WaitClock::time_point now = WaitClock::now();
  if (asked_for_ != operation.sequence) {
    asked_for_ = operation.sequence;
    told_by_ = now + kTellTime;
    for (const int rank : foreign_) mailbox_.Ask(rank, id_);
  }
  std::vector<int> late;
  bool all_told = true;
  for (int rank = 0; rank < size(); ++rank) {
    if (IsHere(rank)) continue;
    const std::optional<uint64_t> told = mailbox_.Told(ranks_[static_cast<size_t>(rank)], id_);
    all_told &= told.has_value();
    if (!told.has_value() || *told < operation.sequence) late.push_back(rank);
  }
  if (!all_told && now < told_by_) return false;
  // A rank that has given up and gone tells of no operation any more; its word that the group failed came before.
  if (FailIfBroken(operation)) return true;
  ForMissing([&](int rank) {
    if (IsHere(rank)) late.push_back(rank);
  });
  std::sort(late.begin(), late.end());
  if (late.empty()) late = Missing();  // all have come, and some are slow
  BreakAll(operation, TimedOutStatus({rank_, operation.sequence, operation.call}, absl::StrJoin(late, ", ")));
  return true;
}

void NodesCommunicator::BreakAll(const NodesOperation& operation, const absl::Status& why) {
  mailbox_.Break(id_, foreign_, {.sequence = operation.sequence, .code = why.code(), .why = std::string(Message(why))});
  BreakHere(why);
  FailAll(why);
}

// Ranks of this node hear of it before this one can have left; what others pass on may reach them later.
void NodesCommunicator::BreakHere(const absl::Status& why) {
  ForPartsHere([&](shm::ShmCommunicator& part) { part.BreakFor(why); });
}

// A part of the operation within the node has failed: by a loss, or because ranks of the node differ.
bool NodesCommunicator::FailLocal(NodesOperation& operation, absl::Status status) {
  if (absl::IsUnavailable(status)) {
    if (!FailIfLost(operation)) FailAll(status);
  } else {
    BreakAll(operation, status);
  }
  return true;
}

bool NodesCommunicator::FailParcel(NodesOperation& operation, const tcp::Parcel& parcel) {
  const uint32_t state = parcel.state.load(std::memory_order_seq_cst);
  if (state == tcp::Parcel::kDiffers) return FailIfDiffers(operation, RankOf(parcel.peer), true);
  if (state != tcp::Parcel::kFailed) return false;
  if (FailIfBroken(operation) || FailIfLost(operation)) return true;
  if (WaitClock::now() < mailbox_.NamedBy(parcel.peer)) return false;
  BreakAll(operation, Annotate(mailbox_.StatusOf(parcel.peer), DescribeWait(operation)));
  return true;
}

template <typename With>
void NodesCommunicator::ForMissing(With&& with) const {
  if (!is_begun_) return;
  if (announced_.work() != nullptr && !announced_.done()) {
    for (uint64_t missing = local_->MissingFrom(*announced_.work()); missing != 0; missing &= missing - 1)
      with(here()[static_cast<size_t>(std::countr_zero(missing))]);
  }
  const auto look_at = [&](const tcp::Parcel& parcel) {
    const uint32_t state = parcel.state.load(std::memory_order_seq_cst);
    if (state == tcp::Parcel::kPosted || state == tcp::Parcel::kFailed) with(RankOf(parcel.peer));
  };
  for (const Slot& slot : slots_) {
    if (!slot.is_open) continue;
    for (const tcp::Parcel* parcel : slot.parcels()) look_at(*parcel);
  }
  for (int i = 0; i < parcel_count_; ++i) look_at(parcels_[static_cast<size_t>(i)]);
}

std::vector<int> NodesCommunicator::Missing() const {
  std::vector<int> missing;
  ForMissing([&](int rank) { missing.push_back(rank); });
  std::sort(missing.begin(), missing.end());
  missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
  return missing;
}

int NodesCommunicator::RankOf(int of_job) const {
  return static_cast<int>(std::find(ranks_.begin(), ranks_.end(), of_job) - ranks_.begin());
}

std::string NodesCommunicator::DescribeWait(const shm::QueuedOperation& operation) {
  return absl::StrFormat("group \"%s\", operation %d: %s waits for rank %s of the group", name_, operation.sequence,
                         operation.call.Describe(), absl::StrJoin(Missing(), ", "));
}

bool NodesCommunicator::Awaits(const shm::QueuedOperation&, int rank) const {
  bool awaits = false;
  ForMissing([&](int missing) { awaits |= missing == rank; });
  // As long as its connection has not ended, what it sent before it left may still come.
  const int of_job = ranks_[static_cast<size_t>(rank)];
  return awaits && (!mailbox_.Reaches(of_job) || !mailbox_.StatusOf(of_job).ok());
}

void NodesCommunicator::LetGo() {
  // First what goes on within the node, which else would be waited for below.
  const absl::Status why = absl::CancelledError(absl::StrFormat("group \"%s\" has failed", name_));
  const WaitClock::time_point deadline = WaitClock::now() + std::chrono::seconds(5);
  if (is_begun_) ForPartsHere([&](shm::ShmCommunicator& part) { part.Abandon(why, deadline); });
  announced_ = Pending();
  local_message_ = Pending();
  for (Slot& slot : slots_) {
    slot.fold = Pending();
    slot.spread = Pending();
    for (tcp::Parcel* parcel : slot.parcels()) mailbox_.Cancel(*parcel);
    slot.is_open = false;
  }
  for (int i = 0; i < parcel_count_; ++i) mailbox_.Cancel(parcels_[static_cast<size_t>(i)]);
  parcel_count_ = 0;
  is_begun_ = false;
}

// Regrouping.

absl::StatusOr<std::unique_ptr<Communicator>> NodesCommunicator::Make(std::span<const int> ranks, std::string_view name,
                                                                      uint64_t id, absl::Duration timeout) {
  const auto is_here = [&](int rank) { return rank == node_.links().rank() || node_.links().SameNode(rank); };
  if (std::all_of(ranks.begin(), ranks.end(), is_here))
    return shm::ShmCommunicator::Create(node_, ranks, name, id, timeout);
  return Create(node_, mailbox_, ranks, name, id, timeout);
}

// The lowest rank that is left hears of all others that they have let go of the group, and says who goes on. Over the
// control links, which end when a rank is lost.
absl::StatusOr<std::unique_ptr<Communicator>> NodesCommunicator::Shrink(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + std::min(timeout, absl::Hours(24 * 365));
  if (!DriveBy(WaitClock::now() + absl::ToChronoNanoseconds(deadline - absl::Now())))
    return absl::DeadlineExceededError("shrink: another thread is in an operation of the group");
  FailAll(absl::UnavailableError(
      absl::StrFormat("group \"%s\" has shrunk; the group that Shrink returned goes on", name_)));
  StopDriving();

  Links& links = node_.links();
  const uint32_t came_channel = GroupChannel(MixIds(id_, 0xca3e)), word_channel = GroupChannel(MixIds(id_, 0x3a9d));
  const auto lost = [&](int rank) { return rank != links.rank() && node_.liveness().lost(rank); };
  const auto receive = [&](int from, uint32_t channel) -> absl::StatusOr<LinkMessage> {
    for (;;) {
      absl::StatusOr<LinkMessage> message = links.Receive(from, channel, kLook);
      if (message.ok()) return message;
      if (lost(from)) return absl::UnavailableError(absl::StrFormat("rank %d is lost", from));
      if (!absl::IsDeadlineExceeded(message.status()) && !absl::IsUnavailable(message.status())) return message;
      if (absl::Now() >= deadline) {
        return absl::DeadlineExceededError(
            absl::StrFormat("shrinking group \"%s\": rank %d neither came nor is lost", name_, from));
      }
    }
  };
  std::vector<int> survivors;
  for (size_t first = 0; survivors.empty(); ++first) {
    while (first < ranks_.size() && lost(ranks_[first])) ++first;
    const int leader = ranks_[first];  // this rank at the latest
    if (leader != links.rank()) {
      if (absl::Status status = links.Send(leader, came_channel, {}); !status.ok() && !lost(leader)) return status;
      absl::StatusOr<LinkMessage> word = receive(leader, word_channel);
      if (!word.ok() && lost(leader)) continue;
      GANTRY_RETURN_IF_ERROR(word.status());
      survivors.resize(word->bytes.size() / sizeof(int));
      if (!survivors.empty()) std::memcpy(survivors.data(), word->bytes.data(), survivors.size() * sizeof(int));
      break;
    }
    for (const int rank : ranks_) {
      if (rank == links.rank()) survivors.push_back(rank);
      if (rank == links.rank() || lost(rank)) continue;
      const absl::StatusOr<LinkMessage> came = receive(rank, came_channel);
      if (came.ok()) survivors.push_back(rank);
      if (!came.ok() && !lost(rank)) return came.status();
    }
    for (const int rank : survivors) {
      if (rank != links.rank()) links.Send(rank, word_channel, std::as_bytes(std::span(survivors))).IgnoreError();
    }
  }
  if (std::find(survivors.begin(), survivors.end(), links.rank()) == survivors.end()) {
    return absl::FailedPreconditionError(
        absl::StrFormat("group \"%s\" went on without this rank, which the others took for lost", name_));
  }
  uint64_t id = id_;
  for (const int rank : survivors) id = MixIds(id, static_cast<uint64_t>(rank));
  return Make(survivors, name_, id, deadline - absl::Now());
}

}  // namespace gantry::nodes
