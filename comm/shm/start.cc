// The calls that start operations: they check, note down what is called, and let it go as far as it goes.

#include <algorithm>
#include <cstring>

#include "comm/arguments.h"
#include "comm/shm/shm_communicator.h"

namespace gantry::shm {
namespace {

const std::byte* Bytes(const void* data) { return static_cast<const std::byte*>(data); }
std::byte* Bytes(void* data) { return static_cast<std::byte*>(data); }

}  // namespace

template <typename Fill>
Pending ShmCommunicator::StartOne(const CollectiveOptions& options, Fill&& fill) {
  return Start<Operation>(options, [&](Operation& operation) {
    operation.is_partial = operation.is_inline = operation.is_announced = operation.is_fold = false;
    operation.is_published = operation.is_entered = operation.is_staged = operation.has_process_memory = false;
    operation.round = operation.last_round = operation.synced = operation.peer_step = 0;
    operation.cursor = 0;
    operation.from_bytes = 0;
    fill(operation);
  });
}

void ShmCommunicator::Expose(Operation& operation, const void* data, int64_t bytes, bool is_small) const {
  operation.is_inline = is_small;
  if (bytes == 0) {
    operation.call.memory = MemoryKind::kNothing;
  } else if (is_small) {
    operation.call.memory = MemoryKind::kInline;
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

Pending ShmCommunicator::AllReduce(void* data, int64_t count, ElementType type, ReduceOp op,
                                   const CollectiveOptions& options) {
  if (absl::Status status = CheckCount("all_reduce", count, data); !status.ok()) return Pending(std::move(status));
  return StartOne(options, [&](Operation& operation) {
    operation.call.kind = Collective::kAllReduce;
    operation.call.type = type;
    operation.call.reduce = op;
    operation.call.count = count;
    operation.from = operation.to = Bytes(data);
    operation.from_bytes = count * SizeBytes(type);
    Expose(operation, data, operation.from_bytes, operation.from_bytes <= kInlineBytes);
  });
}

Pending ShmCommunicator::Reduce(void* data, int64_t count, ElementType type, ReduceOp op, int root,
                                const CollectiveOptions& options) {
  if (absl::Status status = CheckCount("reduce", count, data); !status.ok()) return Pending(std::move(status));
  if (absl::Status status = CheckRank("reduce", root, size()); !status.ok()) return Pending(std::move(status));
  return StartOne(options, [&](Operation& operation) {
    operation.call.kind = Collective::kReduce;
    operation.call.type = type;
    operation.call.reduce = op;
    operation.call.root = root;
    operation.call.count = count;
    operation.from = operation.to = Bytes(data);
    operation.from_bytes = count * SizeBytes(type);
    Expose(operation, data, operation.from_bytes, operation.from_bytes <= kInlineBytes);
  });
}

Pending ShmCommunicator::ReduceScatter(const void* from, void* to, std::span<const int64_t> counts, ElementType type,
                                       ReduceOp op, const CollectiveOptions& options) {
  if (absl::Status status = CheckReduceScatter(from, to, counts, rank_, size()); !status.ok())
    return Pending(std::move(status));
  return StartOne(options, [&](Operation& operation) {
    operation.call.kind = Collective::kReduceScatter;
    operation.call.type = type;
    operation.call.reduce = op;
    operation.from = Bytes(from);
    operation.to = Bytes(to);
    for (int rank = 0; rank < size(); ++rank) operation.parts[rank] = counts[rank] * SizeBytes(type);
    operation.from_bytes = operation.call.count = TotalOf(counts) * SizeBytes(type);
    operation.call.parts = HashParts(counts);
    Expose(operation, from, operation.from_bytes, operation.from_bytes <= kInlineBytes);
  });
}

Pending ShmCommunicator::AllGather(const void* from, void* to, std::span<const int64_t> bytes,
                                   const CollectiveOptions& options) {
  if (absl::Status status = CheckAllGather(from, to, bytes, rank_, size()); !status.ok())
    return Pending(std::move(status));
  return StartOne(options, [&](Operation& operation) {
    operation.call.kind = Collective::kAllGather;
    operation.from = Bytes(from);
    operation.to = Bytes(to);
    std::copy(bytes.begin(), bytes.end(), operation.parts);
    operation.from_bytes = bytes[rank_];
    operation.call.count = TotalOf(bytes);
    operation.call.parts = HashParts(bytes);
    Expose(operation, from, operation.from_bytes, *std::max_element(bytes.begin(), bytes.end()) <= kInlineBytes);
  });
}

Pending ShmCommunicator::Broadcast(void* data, int64_t bytes, int root, const CollectiveOptions& options) {
  if (absl::Status status = CheckCount("broadcast", bytes, data); !status.ok()) return Pending(std::move(status));
  if (absl::Status status = CheckRank("broadcast", root, size()); !status.ok()) return Pending(std::move(status));
  return StartOne(options, [&](Operation& operation) {
    operation.call.kind = Collective::kBroadcast;
    operation.call.root = root;
    operation.call.count = bytes;
    operation.from = operation.to = Bytes(data);
    operation.from_bytes = bytes;
    Expose(operation, data, rank_ == root ? bytes : 0, bytes <= kInlineBytes);
  });
}

Pending ShmCommunicator::AllToAll(const void* from, std::span<const int64_t> from_bytes, void* to,
                                  std::span<const int64_t> to_bytes, const CollectiveOptions& options) {
  if (absl::Status status = CheckAllToAll(from, from_bytes, to, to_bytes, rank_, size()); !status.ok())
    return Pending(std::move(status));
  return StartOne(options, [&](Operation& operation) {
    operation.call.kind = Collective::kAllToAll;
    operation.from = Bytes(from);
    operation.to = Bytes(to);
    std::copy(from_bytes.begin(), from_bytes.end(), operation.parts);
    std::copy(to_bytes.begin(), to_bytes.end(), operation.to_parts);
    operation.from_bytes = TotalOf(from_bytes);
    operation.call.largest_part = *std::max_element(from_bytes.begin(), from_bytes.end());
    Expose(operation, from, operation.from_bytes, operation.from_bytes <= kInlineBytes);
  });
}

Pending ShmCommunicator::ExchangeHalo(std::span<const HaloExchange> dimensions, const CollectiveOptions& options) {
  if (absl::Status status = CheckHalo(dimensions, rank_, size()); !status.ok()) return Pending(std::move(status));
  return StartOne(options, [&](Operation& operation) {
    operation.is_partial = true;
    operation.call.kind = Collective::kExchangeHalo;
    operation.message_count = 0;
    for (const HaloExchange& halo : dimensions)
      operation.from_bytes += static_cast<int64_t>(halo.to_before.size() + halo.to_behind.size());
    int place = 0;
    const auto add = [&](int peer, int tag, bool out, const std::byte* data, size_t bytes) {
      operation.messages[operation.message_count++] = {.peer = peer,
                                                       .tag = tag,
                                                       .out = out,
                                                       .data = const_cast<std::byte*>(data),
                                                       .bytes = static_cast<int64_t>(bytes),
                                                       .place = out ? place++ : 0};
    };
    for (size_t d = 0; d < dimensions.size(); ++d) {
      const HaloExchange& halo = dimensions[d];
      const int from_before = static_cast<int>(2 * d), from_behind = from_before + 1;
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
  });
}

Pending ShmCommunicator::SendReceive(void* data, int64_t bytes, int from, int to, const CollectiveOptions& options) {
  if (absl::Status status = CheckSendReceive(data, bytes, from, to, rank_, size()); !status.ok())
    return Pending(std::move(status));
  return StartOne(options, [&](Operation& operation) {
    operation.is_partial = true;
    operation.call.kind = Collective::kSendReceive;
    operation.call.root = from;
    operation.call.to = to;
    operation.call.count = operation.from_bytes = bytes;
    operation.message_count = rank_ == from || rank_ == to ? 1 : 0;
    operation.messages[0] = {
        .peer = rank_ == from ? to : from, .out = rank_ == from, .data = Bytes(data), .bytes = bytes};
  });
}

Pending ShmCommunicator::Fold(const void* from, int64_t count, ElementType type, ReduceOp op, int root,
                              const std::byte* before, std::byte* to, bool keeps_partial,
                              const CollectiveOptions& options) {
  return StartOne(options, [&](Operation& operation) {
    operation.call.kind = Collective::kReduce;
    operation.call.type = type;
    operation.call.reduce = op;
    operation.call.root = root;
    operation.call.count = count;
    operation.is_fold = true;
    operation.from = Bytes(from);
    operation.before = rank_ == root ? before : nullptr;
    operation.to = to;
    operation.keeps_partial = keeps_partial;
    operation.from_bytes = count * SizeBytes(type);
    Expose(operation, from, operation.from_bytes, operation.from_bytes <= kInlineBytes);
  });
}

Pending ShmCommunicator::Announce(const Call& call, bool of_neighbours, const CollectiveOptions& options) {
  return StartOne(options, [&](Operation& operation) {
    operation.call = call;
    operation.call.memory = MemoryKind::kNothing;
    operation.is_partial = of_neighbours;
    operation.message_count = 0;
    operation.is_inline = operation.is_announced = true;
  });
}

absl::Status ShmCommunicator::Barrier(absl::Duration timeout) {
  const CollectiveOptions options{.timeout = timeout};
  Pending barrier = StartOne(options, [&](Operation& operation) {
    operation.call.kind = Collective::kBarrier;
    operation.call.memory = MemoryKind::kNothing;
    operation.is_inline = true;
  });
  return barrier.Wait(absl::InfiniteDuration());
}

}  // namespace gantry::shm
