// Sums, broadcasts and gathers between nodes, chunk by chunk.

#include <algorithm>
#include <cstring>

#include "comm/nodes/nodes_communicator.h"
#include "comm/reduce.h"

namespace gantry::nodes {
namespace {

using shm::Collective;

constexpr uint32_t kPrefixTag = 0, kResultTag = 1;
uint32_t TagOf(int64_t chunk, uint32_t what) { return static_cast<uint32_t>(chunk) << 1 | what; }

// What ranks of one node start in their group, in an order that all keep: a sum of each chunk of the window, then by
// turns what hands on the oldest and the sum of the next.
struct LocalEvent {
  int64_t chunk;
  bool spreads;
};
LocalEvent EventAt(int64_t event, int64_t chunks, int64_t window) {
  const int64_t first = std::min(window, chunks);
  if (event < first) return {event, false};
  const int64_t turn = event - first, turns = 2 * (chunks - first);
  if (turn < turns) return turn % 2 == 0 ? LocalEvent{turn / 2, true} : LocalEvent{first + turn / 2, false};
  return {chunks - first + turn - turns, true};
}

}  // namespace

bool NodesCommunicator::IsFold(const NodesOperation& operation) const {
  switch (operation.call.kind) {
    case Collective::kAllReduce:
    case Collective::kBarrier:
    case Collective::kReduce:
    case Collective::kReduceScatter:
      return true;
    default:
      return false;
  }
}

bool NodesCommunicator::GoesToAll(const NodesOperation& operation) const {
  return operation.call.kind != Collective::kReduce && operation.call.kind != Collective::kReduceScatter;
}

void NodesCommunicator::BeginChunks(NodesOperation& operation) {
  const Collective kind = operation.call.kind;
  const bool by_part = kind == Collective::kReduceScatter || kind == Collective::kAllGather;
  if (!by_part) {
    // One part: the root's, or nobody's.
    std::fill(operation.parts.begin(), operation.parts.end(), 0);
    operation.parts[static_cast<size_t>(operation.call.root)] = operation.from_bytes;
  }
  int64_t total = 0;
  for (const int64_t part : operation.parts) total += part;
  // So many that links and cores are busy at the same time, and no smaller than what pays for its words. A partial result of
  // halves takes twice their bytes.
  const ElementType type = operation.call.type;
  const int64_t most = std::min(kMostChunkBytes / PartialSizeBytes(type) * SizeBytes(type),
                                std::max(kUsualChunkBytes, total / 64 / 64 * 64));
  chunk_bytes_ = std::clamp(total / 16 / 64 * 64, kLeastChunkBytes, most);
  chunk_count_ = 0;
  for (const int64_t part : operation.parts) chunk_count_ += (part + chunk_bytes_ - 1) / chunk_bytes_;
  opened_ = closed_ = next_local_ = 0;
  next_chunk_ = {};
  next_part_ = 0;
  if (kind == Collective::kAllGather && operation.from_bytes > 0) {
    std::byte* place = operation.to;
    for (int rank = 0; rank < rank_; ++rank) place += operation.parts[static_cast<size_t>(rank)];
    if (place != operation.from) std::memmove(place, operation.from, static_cast<size_t>(operation.from_bytes));
  }
}

NodesCommunicator::Chunk NodesCommunicator::NextChunk(const NodesOperation& operation) {
  // next_chunk_ says how far the part before is.
  while (next_chunk_.part_offset == operation.parts[static_cast<size_t>(next_part_)]) {
    ++next_part_;
    next_chunk_.part_offset = 0;
  }
  next_chunk_.index = opened_;
  next_chunk_.bytes =
      std::min(chunk_bytes_, operation.parts[static_cast<size_t>(next_part_)] - next_chunk_.part_offset);
  const Collective kind = operation.call.kind;
  next_chunk_.owner = kind == Collective::kAllReduce || kind == Collective::kBarrier ? -1 : next_part_;
  const Chunk chunk = next_chunk_;
  next_chunk_.offset += chunk.bytes;
  next_chunk_.part_offset += chunk.bytes;
  return chunk;
}

// Who has the result on `node`, where `first` had it first.
int NodesCommunicator::HolderOf(const Chunk& chunk, int node, int first) const {
  if (layout_.node_of[static_cast<size_t>(first)] == node) return first;
  const std::vector<int>& ranks = layout_.nodes[static_cast<size_t>(node)];
  return ranks[static_cast<size_t>(chunk.index % static_cast<int64_t>(ranks.size()))];
}

void NodesCommunicator::OpenSlot(NodesOperation& operation, Slot& slot, const Chunk& chunk) {
  const bool is_fold = IsFold(operation), to_all = GoesToAll(operation);
  const int node_count = static_cast<int>(layout_.nodes.size());
  const auto handler = [&](int run) {
    const Layout::Run& of = layout_.runs[static_cast<size_t>(run)];
    return of.first + static_cast<int>(chunk.index % of.count);
  };
  const int last_run = static_cast<int>(layout_.runs.size()) - 1;
  const int first = is_fold ? handler(last_run) : chunk.owner;  // has the result first
  const int first_node = layout_.node_of[static_cast<size_t>(first)];

  slot.is_open = true;
  slot.chunk = chunk;
  slot.fold_begun = slot.fold_done = slot.partial_posted = slot.result_awaited = slot.result_posted =
      slot.spread_begun = false;
  slot.handles = is_fold && handler(run_index_) == rank_;
  slot.folds = is_fold && (run_group_ != nullptr || slot.handles);
  slot.passes_on = slot.handles && run_index_ < last_run;
  slot.has_result = !is_fold && first == rank_;
  slot.receives = slot.forwards = slot.spreads = false;
  slot.spread_from = slot.spread_to = -1;
  if (to_all) {
    // From node to node; results of sums against the direction in which sums go, so that both ways of a link are used.
    const int step = is_fold ? -1 : 1;
    const auto node_after = [&](int node, int by) { return (node + by * step + node_count) % node_count; };
    const int holder = HolderOf(chunk, node_index_, first);
    slot.receives = node_index_ != first_node && holder == rank_;
    slot.receives_from = HolderOf(chunk, node_after(node_index_, -1), first);
    const int next = node_after(node_index_, 1);
    slot.forwards = holder == rank_ && next != first_node;
    slot.result_out.peer = ranks_[static_cast<size_t>(HolderOf(chunk, next, first))];
    slot.spreads = local_ != nullptr;
    slot.spread_from = local_rank_[static_cast<size_t>(holder)];
  } else if (chunk.owner != first) {
    const bool same_node = layout_.node_of[static_cast<size_t>(chunk.owner)] == first_node;
    slot.receives = !same_node && chunk.owner == rank_;
    slot.receives_from = first;
    slot.forwards = !same_node && first == rank_;
    slot.result_out.peer = ranks_[static_cast<size_t>(chunk.owner)];
    slot.spreads = same_node && node_index_ == first_node;
    slot.spread_from = local_rank_[static_cast<size_t>(first)];
    slot.spread_to = local_rank_[static_cast<size_t>(chunk.owner)];
  }
  const bool scatters = operation.call.kind == Collective::kReduceScatter;
  const bool keeps_result = to_all || chunk.owner == rank_;
  slot.result = !keeps_result ? slot.partial
                : scatters    ? operation.to + chunk.part_offset
                              : operation.to + chunk.offset;
  // The part of the sum before this run's may come from now on.
  const int64_t partial_bytes = chunk.bytes / SizeBytes(operation.call.type) * PartialSizeBytes(operation.call.type);
  if (slot.handles && run_index_ > 0) {
    ReceiveFrom(slot.prefix_in, handler(run_index_ - 1), TagOf(chunk.index, kPrefixTag), operation, slot.prefix,
                partial_bytes);
  }
  if (slot.passes_on) slot.partial_out.peer = ranks_[static_cast<size_t>(handler(run_index_ + 1))];
}

// The sum of this run on top of what came, in shared memory or, of one rank, here and now. False where it cannot begin.
bool NodesCommunicator::BeginFold(NodesOperation& operation, Slot& slot) {
  const bool has_prefix = slot.handles && run_index_ > 0;
  if (has_prefix && !slot.prefix_in.done()) return false;
  const ElementType type = operation.call.type;
  const std::byte* before = has_prefix ? slot.prefix : nullptr;
  const std::byte* from = operation.from + slot.chunk.offset;
  std::byte* to = slot.passes_on ? slot.partial : slot.result;
  const int64_t count = slot.chunk.bytes / SizeBytes(type);
  slot.fold_begun = true;
  if (run_group_ != nullptr) {
    const int root = static_cast<int>(slot.chunk.index % run_group_->size());
    slot.fold = run_group_->Fold(from, count, type, operation.call.reduce, root, before, to, slot.passes_on,
                                 LocalOptions(operation));
    return true;
  }
  const bool as_it_is = before == nullptr && PartialSizeBytes(type) == SizeBytes(type);
  if (!as_it_is) FoldElements(type, operation.call.reduce, before, std::span(&from, 1), to, slot.passes_on, count);
  slot.fold_done = true;
  return true;
}

// The next of what this node's ranks start together. True if one was started.
bool NodesCommunicator::StartLocal(NodesOperation& operation) {
  bool started = false;
  for (; next_local_ < 2 * chunk_count_; ++next_local_) {
    const LocalEvent event = EventAt(next_local_, chunk_count_, kWindow);
    if (event.chunk >= opened_) return started;
    Slot& slot = slots_[static_cast<size_t>(event.chunk % kWindow)];
    if (slot.chunk.index != event.chunk) continue;  // closed without it
    if (!event.spreads) {
      if (run_group_ == nullptr || !slot.folds) continue;
      if (!BeginFold(operation, slot)) return started;
    } else {
      if (!slot.spreads) continue;
      const int self = local_rank_[static_cast<size_t>(rank_)];
      if (!slot.gave_its_part() || (slot.spread_from == self && !slot.has_result)) return started;
      const bool takes_part = slot.spread_to < 0 || slot.spread_from == self || slot.spread_to == self;
      slot.spread_begun = true;
      slot.spread = slot.spread_to < 0
                        ? local_->Broadcast(slot.result, slot.chunk.bytes, slot.spread_from, LocalOptions(operation))
                        : local_->SendReceive(takes_part ? slot.result : nullptr, takes_part ? slot.chunk.bytes : 0,
                                              slot.spread_from, slot.spread_to, LocalOptions(operation));
    }
    started = true;
  }
  return started;
}

// True if something went on, or the operation has failed.
bool NodesCommunicator::StepSlot(NodesOperation& operation, Slot& slot) {
  bool moved = false;
  for (const tcp::Parcel* parcel : slot.parcels()) {
    if (FailParcel(operation, *parcel)) return true;
  }
  for (Pending* local : {&slot.fold, &slot.spread}) {
    if (local->work() == nullptr || !local->done()) continue;
    if (absl::Status status = local->Wait(absl::ZeroDuration()); !status.ok())
      return FailLocal(operation, std::move(status));
    if (local == &slot.fold) slot.fold_done = true;
    moved = true;
  }
  if (slot.folds && run_group_ == nullptr && !slot.fold_begun) moved |= BeginFold(operation, slot);
  if (slot.fold_done && slot.handles && !slot.passes_on && !slot.has_result) slot.has_result = moved = true;
  if (slot.passes_on && slot.fold_done && !slot.partial_posted) {
    // What one rank alone begins goes out from where it is.
    const ElementType type = operation.call.type;
    const bool as_it_is = run_index_ == 0 && run_group_ == nullptr && PartialSizeBytes(type) == SizeBytes(type);
    SendTo(slot.partial_out, -1, TagOf(slot.chunk.index, kPrefixTag), operation,
           as_it_is ? operation.from + slot.chunk.offset : slot.partial,
           slot.chunk.bytes / SizeBytes(type) * PartialSizeBytes(type));
    slot.partial_posted = moved = true;
  }
  if (slot.receives && slot.gave_its_part() && !slot.result_awaited) {
    ReceiveFrom(slot.result_in, slot.receives_from, TagOf(slot.chunk.index, kResultTag), operation, slot.result,
                slot.chunk.bytes);
    slot.result_awaited = moved = true;
  }
  if (slot.receives && !slot.has_result && slot.result_in.done()) slot.has_result = moved = true;
  if (slot.forwards && slot.has_result && !slot.result_posted) {
    SendTo(slot.result_out, -1, TagOf(slot.chunk.index, kResultTag), operation, slot.result, slot.chunk.bytes);
    slot.result_posted = moved = true;
  }
  const bool is_done = slot.gave_its_part() && (!slot.receives || slot.has_result) &&
                       (!slot.forwards || slot.result_out.done()) &&
                       (!slot.spreads || (slot.spread_begun && slot.spread.work() == nullptr));
  if (!is_done) return moved;
  for (tcp::Parcel* parcel : slot.parcels()) parcel->state.store(tcp::Parcel::kIdle, std::memory_order_relaxed);
  slot.is_open = false;
  return true;
}

bool NodesCommunicator::StepChunks(NodesOperation& operation) {
  bool moved = false;
  while (opened_ < std::min(chunk_count_, closed_ + kWindow)) {
    OpenSlot(operation, slots_[static_cast<size_t>(opened_ % kWindow)], NextChunk(operation));
    ++opened_;
    moved = true;
  }
  moved |= StartLocal(operation);
  for (int64_t index = closed_; index < opened_; ++index) {
    Slot& slot = slots_[static_cast<size_t>(index % kWindow)];
    if (!slot.is_open) continue;
    moved |= StepSlot(operation, slot);
    if (!is_begun_) return true;  // failed
  }
  while (closed_ < opened_ && !slots_[static_cast<size_t>(closed_ % kWindow)].is_open) ++closed_;
  return moved;
}

}  // namespace gantry::nodes
