#include "comm/shm/queued_communicator.h"

#include <algorithm>

namespace gantry::shm {
namespace {

// How often a waiting thread looks at what changes seldom: clocks, other ranks' entries.
constexpr uint32_t kLooksPerCloseLook = 256;

}  // namespace

// splitmix64's finisher (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014).
uint64_t MixIds(uint64_t a, uint64_t b) {
  uint64_t x = a + 0x9e3779b97f4a7c15u * (b + 1);
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

absl::Status QueuedOperation::Wait(absl::Duration wait) { return group->WaitFor(*this, wait); }

void QueuedOperation::Release() {
  status = absl::OkStatus();
  state.store(kFree, std::memory_order_release);
}

QueuedCommunicator::QueuedCommunicator(ShmNode& node, std::vector<int> ranks, std::string_view name, uint64_t id)
    : node_(node), ranks_(std::move(ranks)), name_(name), id_(id) {
  rank_ = static_cast<int>(std::find(ranks_.begin(), ranks_.end(), node_.links().rank()) - ranks_.begin());
}

void QueuedCommunicator::MakeRoom() {
  for (uint64_t place = 0; place < kMaxInFlight; ++place) {
    at(place).group = this;
    at(place).parts.resize(ranks_.size());
    at(place).to_parts.resize(ranks_.size());
  }
}

QueuedOperation* QueuedCommunicator::NextFree(absl::Status& status) {
  if (!broken_.ok()) {
    status = broken_;
    return nullptr;
  }
  QueuedOperation& operation = at(started_ % kMaxInFlight);
  if (operation.state.load(std::memory_order_acquire) == QueuedOperation::kFree) return &operation;
  status = absl::ResourceExhaustedError(absl::StrFormat(
      "group \"%s\": %d operations are started and not yet waited for (the oldest: %s); wait for some of them first",
      name_, kMaxInFlight, operation.call.Describe()));
  return nullptr;
}

void QueuedCommunicator::Enqueue(QueuedOperation& operation, const CollectiveOptions& options) {
  const size_t name_bytes = std::min(options.name.size(), sizeof(operation.call.name) - 1);
  std::copy_n(options.name.data(), name_bytes, operation.call.name);
  operation.priority.store(options.priority, std::memory_order_relaxed);
  operation.in_background = options.in_background;
  operation.waits_asleep = options.waits_asleep;
  operation.timeout = std::min(options.timeout, absl::Hours(24 * 365));
  operation.sequence = ++started_;
  operation.deadline = {};
  operation.recorded_peer = -1;
  if (Recorder* recorder = node_.recorder(); recorder != nullptr) {
    operation.ticket = recorder->Begin({.kind = operation.call.kind_for_recorder(),
                                        .value = options.name,
                                        .group = name_,
                                        .number = operation.sequence,
                                        .bytes = operation.from_bytes});
  }
  operation.state.store(QueuedOperation::kQueued, std::memory_order_relaxed);
  queued_.store(started_, std::memory_order_release);
}

absl::Status QueuedCommunicator::WaitFor(QueuedOperation& operation, absl::Duration timeout) {
  if (operation.done()) return operation.status;
  const WaitClock::time_point deadline = WaitClock::now() + absl::ToChronoNanoseconds(timeout);
  constexpr WaitPolicy kAsleep = {.spin = {}, .yields = 0, .dozes = true};
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

Mover::Result QueuedCommunicator::MoveOnce(bool rested) {
  if (finished_.load(std::memory_order_acquire) == queued_.load(std::memory_order_acquire)) return Result::kIdle;
  if (!TryDrive()) return Result::kWaits;
  const Result result = Step(rested);
  StopDriving();
  return result;
}

int QueuedCommunicator::priority() const {
  // The ring does not change; only what lies in it does.
  return const_cast<QueuedCommunicator*>(this)
      ->at(finished_.load(std::memory_order_acquire) % kMaxInFlight)
      .priority.load(std::memory_order_relaxed);
}

bool QueuedCommunicator::TryDrive() {
  if (!is_driven_.exchange(true, std::memory_order_seq_cst)) return true;
  // The driving thread may have looked before what this thread waits for was there: it wakes this one when it stops.
  is_contended_.store(true, std::memory_order_seq_cst);
  return !is_driven_.exchange(true, std::memory_order_seq_cst);
}

bool QueuedCommunicator::DriveBy(WaitClock::time_point deadline) {
  while (!TryDrive()) {
    if (WaitClock::now() >= deadline) return false;
    wait_detail::Yield();
  }
  return true;
}

void QueuedCommunicator::StopDriving() {
  is_driven_.store(false, std::memory_order_seq_cst);
  if (is_contended_.load(std::memory_order_seq_cst) && is_contended_.exchange(false, std::memory_order_seq_cst))
    node_.own_bell().Ring();
}

void QueuedCommunicator::Drive(const QueuedOperation* until, bool rested) {
  if (!TryDrive()) return;
  while (Step(rested) == Result::kMoved && (until == nullptr || !until->done())) continue;
  StopDriving();
}

Mover::Result QueuedCommunicator::Step(bool rested) {
  const uint64_t first = finished_.load(std::memory_order_relaxed);
  if (first == queued_.load(std::memory_order_acquire)) return Result::kIdle;
  const bool looks_closely = rested || ++looks_ % kLooksPerCloseLook == 0;
  return StepFirst(at(first % kMaxInFlight), looks_closely);
}

bool QueuedCommunicator::FailIfLost(QueuedOperation& operation) {
  const uint32_t losses = node_.liveness().losses().load(std::memory_order_seq_cst);
  if (losses == losses_seen_) return false;
  bool none_left = true;
  for (int rank = 0; rank < size(); ++rank) {
    const int of_job = ranks_[static_cast<size_t>(rank)];
    if (!node_.liveness().lost(of_job)) continue;
    // One that has left in order may have done all that this operation needs of it.
    if (node_.liveness().has_left(of_job) && !Awaits(operation, rank)) {
      none_left = false;
      continue;
    }
    if (FailIfBroken(operation)) return true;
    FailAll(node_.liveness().StatusOf(of_job, DescribeWait(operation)));
    return true;
  }
  if (none_left) losses_seen_ = losses;
  return false;
}

bool QueuedCommunicator::NoteWait(QueuedOperation& operation, int peer) {
  if (Recorder* recorder = node_.recorder(); recorder != nullptr) {
    const int of_job = peer < 0 ? -1 : ranks_[peer];
    if (of_job != std::exchange(operation.recorded_peer, of_job)) recorder->Waiting(operation.ticket, of_job);
  }
  const WaitClock::time_point now = WaitClock::now();
  if (operation.deadline == WaitClock::time_point())
    operation.deadline = now + absl::ToChronoNanoseconds(operation.timeout);
  return now >= operation.deadline;
}

absl::Status QueuedCommunicator::DiffersStatus(const Side& low, const Side& high) const {
  return absl::FailedPreconditionError(absl::StrFormat(
      "group \"%s\": ranks differ about an operation: rank %d calls %s (operation %d), rank %d calls %s (operation "
      "%d); "
      "every rank of a group calls the same collectives in the same order with the same sizes",
      name_, low.rank, low.call.Describe(), low.sequence, high.rank, high.call.Describe(), high.sequence));
}

absl::Status QueuedCommunicator::TimedOutStatus(const Side& side, std::string_view late) const {
  return absl::DeadlineExceededError(
      absl::StrFormat("group \"%s\": operation %d, %s, ran out of time at rank %d; not there: rank %s of the group. "
                      "The group is of no more use",
                      name_, side.sequence, side.call.Describe(), side.rank, late));
}

void QueuedCommunicator::Finish(QueuedOperation& operation, absl::Status status) {
  if (Recorder* recorder = node_.recorder(); recorder != nullptr) recorder->End(operation.ticket, status.ok());
  operation.status = std::move(status);
  const bool in_background = operation.in_background;
  operation.state.store(QueuedOperation::kDone, std::memory_order_seq_cst);
  finished_.fetch_add(1, std::memory_order_seq_cst);
  if (in_background) node_.BackgroundDone();
  node_.own_bell().Ring();
}

void QueuedCommunicator::FailAll(const absl::Status& status) {
  LetGo();
  const std::lock_guard lock(start_mutex_);
  broken_ = status;
  while (finished_.load(std::memory_order_relaxed) != queued_.load(std::memory_order_relaxed)) {
    Finish(at(finished_.load(std::memory_order_relaxed) % kMaxInFlight), status);
  }
}

absl::StatusOr<std::unique_ptr<Communicator>> QueuedCommunicator::Split(int color, int key, std::string_view name) {
  struct Wish {
    int64_t color, key;
  };
  uint64_t split = 0;
  {
    const std::lock_guard lock(start_mutex_);
    split = ++splits_;
  }
  const Wish mine = {color, key};
  std::vector<Wish> wishes(ranks_.size());
  const std::vector<int64_t> bytes(ranks_.size(), sizeof(Wish));
  GANTRY_RETURN_IF_ERROR(Annotate(AllGather(&mine, wishes.data(), bytes, {.name = "split"}).Wait(), "split"));
  if (color < 0) return nullptr;
  std::vector<int> members;
  for (int rank = 0; rank < size(); ++rank) {
    if (wishes[rank].color == color) members.push_back(rank);
  }
  std::stable_sort(members.begin(), members.end(), [&](int a, int b) { return wishes[a].key < wishes[b].key; });
  for (int& member : members) member = ranks_[member];
  return Make(members, name, MixIds(MixIds(id_, split), static_cast<uint64_t>(color)), Pending::kDefaultTimeout);
}

}  // namespace gantry::shm
