#include "comm/shm/shm_communicator.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace gantry::shm {
namespace {

// How often a waiting thread looks at what changes seldom: clocks, other ranks' entries.
constexpr uint32_t kLooksPerCloseLook = 256;

std::string RankList(uint64_t ranks) {
  std::string text;
  for (int rank = 0; ranks != 0; ++rank, ranks >>= 1) {
    if ((ranks & 1) != 0) absl::StrAppend(&text, text.empty() ? "" : ", ", rank);
  }
  return text;
}

}  // namespace

ShmCommunicator::ShmCommunicator(ShmNode& node, std::shared_ptr<const SharedRegion> region, int first_size,
                                 int generation, std::vector<int> ranks, std::vector<int> slots, std::string_view name,
                                 uint64_t id)
    : node_(node),
      region_(std::move(region)),
      first_size_(first_size),
      generation_(generation),
      block_(*reinterpret_cast<GroupBlock*>(region_->data() + BlockOffset(first_size, generation))),
      ranks_(std::move(ranks)),
      slots_(std::move(slots)),
      name_(name),
      id_(id) {
  rank_ = static_cast<int>(std::find(ranks_.begin(), ranks_.end(), node_.links().rank()) - ranks_.begin());
  if (node_.cross_memory()) scratch_.resize(ranks_.size() * kScratchBytes);
  for (Operation& operation : operations_) operation.group = this;
  node_.Add(*this);
}

ShmCommunicator::~ShmCommunicator() { node_.Remove(*this); }

absl::Status ShmCommunicator::WaitFor(Operation& operation, absl::Duration timeout) {
  if (operation.done()) return operation.status;
  const WaitClock::time_point deadline = WaitClock::now() + absl::ToChronoNanoseconds(timeout);
  constexpr WaitPolicy kAsleep = {.spin = {}, .yields = 0};
  WaitUntil(
      node_.own_bell(), operation.waits_asleep ? kAsleep : node_.policy(), deadline,
      [&](bool rested) {
        Drive(&operation, rested);
        if (operation.done()) return true;
        if (rested) node_.MoveOthers(this);
        return operation.done();
      },
      [this] { return SharesCore(); });
  if (operation.done()) return operation.status;
  return absl::DeadlineExceededError(
      absl::StrFormat("%s goes on after %s of waiting", operation.call.Describe(), absl::FormatDuration(timeout)));
}

Mover::Result ShmCommunicator::MoveOnce(bool rested) {
  if (finished_.load(std::memory_order_acquire) == queued_.load(std::memory_order_acquire)) return Result::kIdle;
  if (!TryDrive()) return Result::kWaits;
  const Result result = Step(rested);
  StopDriving();
  return result;
}

int ShmCommunicator::priority() const {
  return operations_[finished_.load(std::memory_order_acquire) % kMaxInFlight].priority.load(std::memory_order_relaxed);
}

bool ShmCommunicator::TryDrive() {
  if (!is_driven_.exchange(true, std::memory_order_seq_cst)) return true;
  // The driving thread may have looked before what this thread waits for was there: it wakes this one when it stops.
  is_contended_.store(true, std::memory_order_seq_cst);
  return !is_driven_.exchange(true, std::memory_order_seq_cst);
}

void ShmCommunicator::StopDriving() {
  is_driven_.store(false, std::memory_order_seq_cst);
  if (is_contended_.load(std::memory_order_seq_cst) && is_contended_.exchange(false, std::memory_order_seq_cst))
    node_.own_bell().Ring();
}

void ShmCommunicator::Drive(const Operation* until, bool rested) {
  if (!TryDrive()) return;
  while (Step(rested) == Result::kMoved && (until == nullptr || !until->done())) continue;
  StopDriving();
}

Mover::Result ShmCommunicator::Step(bool rested) {
  const uint64_t first = finished_.load(std::memory_order_relaxed);
  if (first == queued_.load(std::memory_order_acquire)) return Result::kIdle;
  Operation& operation = operations_[first % kMaxInFlight];
  const bool looks_closely = rested || ++looks_ % kLooksPerCloseLook == 0;
  return operation.is_partial ? StepPartial(operation, looks_closely) : StepFull(operation, looks_closely);
}

bool ShmCommunicator::IsBroken(Operation& operation, bool looks_closely) {
  if (block_.broken.breach.load(std::memory_order_seq_cst) > static_cast<uint32_t>(Breach::kWriting)) {
    FailAll(BrokenStatus());
    return true;
  }
  if (const uint32_t losses = node_.liveness().losses().load(std::memory_order_seq_cst); losses != losses_seen_) {
    for (const int rank : ranks_) {
      if (!node_.liveness().lost(rank)) continue;
      FailAll(node_.liveness().StatusOf(rank, DescribeWait(operation)));
      return true;
    }
    losses_seen_ = losses;
  }
  if (!looks_closely) return false;
  if (Recorder* recorder = node_.recorder(); recorder != nullptr) {
    const uint64_t missing = Missing(operation);
    const int peer = missing == 0 ? -1 : ranks_[std::countr_zero(missing)];
    if (peer != std::exchange(operation.recorded_peer, peer)) recorder->Waiting(operation.ticket, peer);
  }
  const WaitClock::time_point now = WaitClock::now();
  if (operation.deadline == WaitClock::time_point())
    operation.deadline = now + absl::ToChronoNanoseconds(operation.timeout);
  if (now >= operation.deadline) Break(Breach::kTimeout, operation, rank_, nullptr, Missing(operation));
  return false;
}

void ShmCommunicator::Finish(Operation& operation, absl::Status status) {
  if (Recorder* recorder = node_.recorder(); recorder != nullptr) recorder->End(operation.ticket, status.ok());
  operation.status = std::move(status);
  const bool in_background = operation.in_background;
  operation.state.store(Operation::kDone, std::memory_order_seq_cst);
  finished_.fetch_add(1, std::memory_order_seq_cst);
  if (in_background) node_.BackgroundDone();
  node_.own_bell().Ring();
}

void ShmCommunicator::FailAll(const absl::Status& status) {
  const std::lock_guard lock(start_mutex_);
  broken_ = status;
  while (finished_.load(std::memory_order_relaxed) != queued_.load(std::memory_order_relaxed)) {
    Finish(operations_[finished_.load(std::memory_order_relaxed) % kMaxInFlight], status);
  }
}

void ShmCommunicator::Break(Breach breach, const Operation& mine, int other, const Entry* theirs, uint64_t late) {
  GroupBlock::Broken& broken = block_.broken;
  uint32_t expected = static_cast<uint32_t>(Breach::kNone);
  if (!broken.breach.compare_exchange_strong(expected, static_cast<uint32_t>(Breach::kWriting))) return;
  broken.rank[0].store(static_cast<uint32_t>(rank_), std::memory_order_relaxed);
  broken.rank[1].store(static_cast<uint32_t>(other), std::memory_order_relaxed);
  broken.late.store(late, std::memory_order_relaxed);
  mine.call.WriteTo(broken.entry[0]);
  broken.entry[0].sequence.store(mine.sequence, std::memory_order_relaxed);
  if (theirs != nullptr) {
    Call::ReadFrom(*theirs).WriteTo(broken.entry[1]);
    broken.entry[1].sequence.store(theirs->sequence.load(std::memory_order_relaxed), std::memory_order_relaxed);
  }
  broken.breach.store(static_cast<uint32_t>(breach), std::memory_order_seq_cst);
  RingOthers();
}

absl::Status ShmCommunicator::BrokenStatus() const {
  const GroupBlock::Broken& broken = block_.broken;
  const int ranks[2] = {static_cast<int>(broken.rank[0].load()), static_cast<int>(broken.rank[1].load())};
  const uint64_t sequences[2] = {broken.entry[0].sequence.load(), broken.entry[1].sequence.load()};
  const Call calls[2] = {Call::ReadFrom(broken.entry[0]), Call::ReadFrom(broken.entry[1])};
  if (static_cast<Breach>(broken.breach.load()) == Breach::kTimeout) {
    return absl::DeadlineExceededError(
        absl::StrFormat("group \"%s\": operation %d, %s, ran out of time at rank %d; not there: rank %s of the group. "
                        "The group is of no more use",
                        name_, sequences[0], calls[0].Describe(), ranks[0], RankList(broken.late.load())));
  }
  // Named in the order of ranks, so that all ranks say the same.
  const int low = ranks[0] <= ranks[1] ? 0 : 1;
  return absl::FailedPreconditionError(
      absl::StrFormat("group \"%s\": ranks differ about an operation: rank %d calls %s (operation %d), rank %d calls "
                      "%s (operation %d); every rank of a "
                      "group calls the same collectives in the same order with the same sizes",
                      name_, ranks[low], calls[low].Describe(), sequences[low], ranks[1 - low],
                      calls[1 - low].Describe(), sequences[1 - low]));
}

uint64_t ShmCommunicator::Missing(const Operation& operation) const {
  uint64_t missing = 0;
  if (operation.is_partial) {
    for (int message = 0; message < operation.message_count; ++message) {
      if (!operation.messages[message].done) missing |= uint64_t{1} << operation.messages[message].peer;
    }
    return missing;
  }
  for (int rank = 0; rank < size(); ++rank) {
    const bool has_come =
        operation.round <= 1
            ? lines(rank).full[operation.parity].sequence.load(std::memory_order_seq_cst) >= operation.sequence
            : lines(rank).arrived.load(std::memory_order_seq_cst) >= operation.first_arrival + operation.round - 1;
    if (!has_come) missing |= uint64_t{1} << rank;
  }
  return missing;
}

std::string ShmCommunicator::DescribeWait(const Operation& operation) const {
  return absl::StrFormat("group \"%s\", operation %d: %s waits for rank %s of the group", name_, operation.sequence,
                         operation.call.Describe(), RankList(Missing(operation)));
}

bool ShmCommunicator::SharesCore() {
  for (const int rank : ranks_) {
    if (rank != ranks_[rank_] && node_.bell(rank).SharesCore()) return true;
  }
  return false;
}

void ShmCommunicator::RingOthers() {
  node_.own_bell().NoteCore();
  for (const int rank : ranks_) {
    if (rank != ranks_[rank_]) node_.bell(rank).Ring();
  }
}

}  // namespace gantry::shm
