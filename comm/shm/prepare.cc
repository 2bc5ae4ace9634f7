// What ranks of one node note down of an operation: where their memory is, and the messages of neighbours.

#include <algorithm>

#include "comm/shm/shm_communicator.h"

namespace gantry::shm {

void ShmCommunicator::Reset(QueuedOperation& queued) {
  auto& operation = static_cast<Operation&>(queued);
  operation.message_count = 0;
  operation.is_partial = operation.is_inline = operation.is_announced = operation.is_fold = false;
  operation.is_published = operation.is_entered = operation.is_staged = operation.has_process_memory = false;
  operation.round = operation.last_round = operation.synced = operation.peer_step = 0;
  operation.cursor = 0;
}

void ShmCommunicator::Prepare(QueuedOperation& queued) {
  auto& operation = static_cast<Operation&>(queued);
  Call& call = operation.call;
  const int64_t bytes = operation.from_bytes;
  switch (call.kind) {
    case Collective::kBarrier:
      call.memory = MemoryKind::kNothing;
      operation.is_inline = true;
      break;
    case Collective::kBroadcast:
      if (bytes > kMostPosted) {
        Expose(operation, operation.from, rank_ == call.root ? bytes : 0);
        break;
      }
      operation.is_partial = true;
      operation.message_count = 1;
      operation.messages[0] = {
          .peer = call.root, .receiver = kToAll, .out = rank_ == call.root, .data = operation.to, .bytes = bytes};
      break;
    case Collective::kAllGather:
      Expose(operation, operation.from, bytes, std::ranges::max(operation.parts) <= kCopiedBytes);
      break;
    case Collective::kExchangeHalo:
      operation.is_partial = true;
      ListMessages(operation);
      break;
    case Collective::kSendReceive:
      operation.is_partial = true;
      operation.message_count = rank_ == call.root || rank_ == call.to ? 1 : 0;
      operation.messages[0] = {.peer = rank_ == call.root ? call.to : call.root,
                               .receiver = call.to,
                               .out = rank_ == call.root,
                               .data = operation.to,
                               .bytes = bytes};
      break;
    case Collective::kAllReduce:
    case Collective::kReduce:  // whoever takes it sums all of it, which is slower than slices for more
      Expose(operation, operation.from, bytes, bytes <= kInlineBytes);
      break;
    default:
      if (call.kind == Collective::kAllToAll) call.largest_part = std::ranges::max(operation.parts);
      Expose(operation, operation.from, bytes, bytes <= kCopiedBytes);
      break;
  }
}

void ShmCommunicator::ListMessages(Operation& operation) const {
  int place = 0;
  const auto add = [&](int peer, int tag, bool out, const std::byte* data, size_t bytes) {
    operation.messages[operation.message_count++] = {.peer = peer,
                                                     .receiver = out ? peer : rank_,
                                                     .tag = tag,
                                                     .out = out,
                                                     .data = const_cast<std::byte*>(data),
                                                     .bytes = static_cast<int64_t>(bytes),
                                                     .place = out ? place++ : 0};
  };
  for (int d = 0; d < operation.halo_count; ++d) {
    const HaloExchange& halo = operation.halos[static_cast<size_t>(d)];
    const int from_before = 2 * d, from_behind = from_before + 1;
    if (halo.before == rank_) {
      add(rank_, from_behind, false, halo.from_behind.data(), halo.from_behind.size());
      operation.messages[operation.message_count - 1].local = halo.to_before.data();
      add(rank_, from_before, false, halo.from_before.data(), halo.from_before.size());
      operation.messages[operation.message_count - 1].local = halo.to_behind.data();
      continue;
    }
    if (halo.before >= 0) add(halo.before, from_behind, true, halo.to_before.data(), halo.to_before.size());
    if (halo.behind >= 0) add(halo.behind, from_before, true, halo.to_behind.data(), halo.to_behind.size());
    if (halo.before >= 0) add(halo.before, from_before, false, halo.from_before.data(), halo.from_before.size());
    if (halo.behind >= 0) add(halo.behind, from_behind, false, halo.from_behind.data(), halo.from_behind.size());
  }
}

void ShmCommunicator::Expose(Operation& operation, const void* data, int64_t bytes, bool is_small) const {
  operation.is_inline = is_small;
  if (bytes == 0) {
    operation.call.memory = MemoryKind::kNothing;
  } else if (is_small) {
    operation.call.memory = bytes <= kInlineBytes ? MemoryKind::kInline : MemoryKind::kCopied;
  } else if (const std::optional<GlobalAddress> address = node_.pool().Find(data, bytes); address.has_value()) {
    operation.call.memory = MemoryKind::kPool;
    operation.call.place = static_cast<uint64_t>(address->region) << 48 | static_cast<uint64_t>(address->offset);
  } else if (bytes >= kSlotBytes && node_.cross_memory()) {
    operation.call.memory = MemoryKind::kProcess;
    operation.call.place = reinterpret_cast<uint64_t>(data);
  } else {
    operation.call.memory = MemoryKind::kStaged;
  }
}

Pending ShmCommunicator::Fold(const void* from, int64_t count, ElementType type, ReduceOp op, int root,
                              const std::byte* before, std::byte* to, bool keeps_partial,
                              const CollectiveOptions& options) {
  return Start(options, [&](QueuedOperation& queued) {
    auto& operation = static_cast<Operation&>(queued);
    FillSum(operation, Collective::kReduce, from, to, count, type, op, root);
    operation.is_fold = true;
    operation.before = rank_ == root ? before : nullptr;
    operation.keeps_partial = keeps_partial;
    Prepare(operation);
  });
}

Pending ShmCommunicator::Announce(const Call& call, bool of_neighbours, const CollectiveOptions& options) {
  return Start(options, [&](QueuedOperation& queued) {
    auto& operation = static_cast<Operation&>(queued);
    operation.call = call;
    operation.call.memory = MemoryKind::kNothing;
    operation.is_partial = of_neighbours;
    operation.is_inline = operation.is_announced = true;
  });
}

}  // namespace gantry::shm
