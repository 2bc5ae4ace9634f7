#include "comm/shm/shm_communicator.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

namespace gantry::shm {

ShmCommunicator::ShmCommunicator(ShmNode& node, std::shared_ptr<const SharedRegion> region, int first_size,
                                 int generation, std::vector<int> ranks, std::vector<int> slots,
                                 std::vector<int> labels, std::string_view name, uint64_t id)
    : QueuedCommunicator(node, std::move(ranks), name, id),
      region_(std::move(region)),
      first_size_(first_size),
      generation_(generation),
      block_(*reinterpret_cast<GroupBlock*>(region_->data() + BlockOffset(first_size, generation))),
      slots_(std::move(slots)),
      labels_(std::move(labels)) {
  MakeRoom();
  if (node_.cross_memory()) scratch_.resize(ranks_.size() * kScratchBytes);
  node_.Add(*this);
}

ShmCommunicator::~ShmCommunicator() { node_.Remove(*this); }

Mover::Result ShmCommunicator::StepFirst(QueuedOperation& operation, bool looks_closely) {
  auto& first = static_cast<Operation&>(operation);
  return first.is_partial ? StepPartial(first, looks_closely) : StepFull(first, looks_closely);
}

bool ShmCommunicator::HasBreach() const {
  return breach() > Breach::kWriting &&
         block_.broken.whole.load(std::memory_order_relaxed) <= whole_.load(std::memory_order_seq_cst);
}

bool ShmCommunicator::FailIfBroken(const QueuedOperation&) {
  if (breach() <= Breach::kWriting) return false;
  FailAll(BrokenStatus());
  return true;
}

bool ShmCommunicator::IsBroken(Operation& operation, bool has_breach, bool looks_closely) {
  if ((has_breach && FailIfBroken(operation)) || FailIfLost(operation)) return true;
  if (!looks_closely) return false;
  const uint64_t missing = Missing(operation);
  if (NoteWait(operation, missing == 0 ? -1 : std::countr_zero(missing)))
    Break(Breach::kTimeout, operation.call, operation.sequence, rank_, nullptr, missing);
  return false;
}

bool ShmCommunicator::Abandon(const absl::Status& status, WaitClock::time_point deadline) {
  if (!DriveBy(deadline)) return false;
  FailAll(status);
  StopDriving();
  return true;
}

bool ShmCommunicator::BeginBreak() {
  uint32_t expected = static_cast<uint32_t>(Breach::kNone);
  return block_.broken.breach.compare_exchange_strong(expected, static_cast<uint32_t>(Breach::kWriting));
}

void ShmCommunicator::EndBreak(Breach breach) {
  block_.broken.whole.store(whole_.load(std::memory_order_seq_cst), std::memory_order_relaxed);
  block_.broken.breach.store(static_cast<uint32_t>(breach), std::memory_order_seq_cst);
  RingOthers();
}

void ShmCommunicator::BreakFor(const absl::Status& why) {
  if (!BeginBreak()) {
    // Another rank is at it. This one may leave next, and is not to be taken for the reason; a writer may be killed.
    const WaitClock::time_point deadline = WaitClock::now() + std::chrono::milliseconds(100);
    while (breach() == Breach::kWriting && WaitClock::now() < deadline) wait_detail::Yield();
    return;
  }
  const std::string_view text = gantry::Message(why);
  uint64_t words[kTextWords] = {};
  std::memcpy(words, text.data(), std::min(text.size(), sizeof(words)));
  block_.broken.code.store(static_cast<uint32_t>(why.code()), std::memory_order_relaxed);
  for (int i = 0; i < kTextWords; ++i) block_.broken.text[i].store(words[i], std::memory_order_relaxed);
  EndBreak(Breach::kOfWhole);
}

void ShmCommunicator::Break(Breach breach, const Call& mine, uint64_t sequence, int other, const Entry* theirs,
                            uint64_t late) {
  if (!BeginBreak()) return;
  GroupBlock::Broken& broken = block_.broken;
  broken.rank[0].store(static_cast<uint32_t>(rank_), std::memory_order_relaxed);
  broken.rank[1].store(static_cast<uint32_t>(other), std::memory_order_relaxed);
  broken.late.store(late, std::memory_order_relaxed);
  mine.WriteTo(broken.entry[0]);
  broken.entry[0].sequence.store(sequence, std::memory_order_relaxed);
  if (theirs != nullptr) {
    Call::ReadFrom(*theirs).WriteTo(broken.entry[1]);
    broken.entry[1].sequence.store(theirs->sequence.load(std::memory_order_relaxed), std::memory_order_relaxed);
  }
  EndBreak(breach);
}

absl::Status ShmCommunicator::BrokenStatus() const {
  const GroupBlock::Broken& broken = block_.broken;
  if (breach() == Breach::kOfWhole) {
    uint64_t words[kTextWords + 1] = {};
    for (int i = 0; i < kTextWords; ++i) words[i] = broken.text[i].load();
    return absl::Status(static_cast<absl::StatusCode>(broken.code.load()), reinterpret_cast<const char*>(words));
  }
  const int ranks[2] = {labels_[broken.rank[0].load()], labels_[broken.rank[1].load()]};
  const uint64_t sequences[2] = {broken.entry[0].sequence.load(), broken.entry[1].sequence.load()};
  const Call calls[2] = {Call::ReadFrom(broken.entry[0]), Call::ReadFrom(broken.entry[1])};
  const Side sides[2] = {{ranks[0], sequences[0], calls[0]}, {ranks[1], sequences[1], calls[1]}};
  if (breach() == Breach::kTimeout) return TimedOutStatus(sides[0], Labels(broken.late.load()));
  // Named in the order of ranks, so that all ranks say the same.
  const int low = ranks[0] <= ranks[1] ? 0 : 1;
  return DiffersStatus(sides[low], sides[1 - low]);
}

uint64_t ShmCommunicator::Missing(const Operation& operation) const {
  if (operation.is_partial) return MissingNeighbours(operation);
  uint64_t missing = 0;
  for (int rank = 0; rank < size(); ++rank) {
    const bool has_come =
        operation.round <= 1
            ? lines(rank).full[operation.parity].sequence.load(std::memory_order_seq_cst) >= operation.sequence
            : lines(rank).arrived.load(std::memory_order_seq_cst) >= WantedArrivals(operation);
    if (!has_come) missing |= uint64_t{1} << rank;
  }
  return missing;
}

const Entry* ShmCommunicator::EntryFrom(int rank, uint64_t full, uint64_t partial) const {
  const Entry* first = nullptr;
  uint64_t first_sequence = ~uint64_t{0};
  const auto look = [&](const Entry& entry, uint64_t from) {
    const uint64_t sequence = entry.sequence.load(std::memory_order_seq_cst);
    if (sequence >= from && sequence < first_sequence) first = &entry, first_sequence = sequence;
  };
  for (const Entry& entry : lines(rank).full) look(entry, full);
  for (const Entry& entry : lines(rank).partial) look(entry, partial);
  return first;
}

std::string ShmCommunicator::DescribeWait(const QueuedOperation& operation) {
  return absl::StrFormat("group \"%s\", operation %d: %s waits for rank %s of the group", name_, operation.sequence,
                         operation.call.Describe(), Labels(Missing(static_cast<const Operation&>(operation))));
}

uint64_t ShmCommunicator::MissingFrom(const Pending::Work& operation) {
  if (!DriveBy(WaitClock::now() + std::chrono::milliseconds(1))) return 0;
  const uint64_t missing = operation.done() ? 0 : Missing(static_cast<const Operation&>(operation));
  StopDriving();
  return missing;
}

std::string ShmCommunicator::Labels(uint64_t ranks) const {
  std::string text;
  for (; ranks != 0; ranks &= ranks - 1)
    absl::StrAppend(&text, text.empty() ? "" : ", ", labels_[std::countr_zero(ranks)]);
  return text;
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
