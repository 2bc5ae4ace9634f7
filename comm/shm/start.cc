// The calls that start operations: they check, note down what is called, and let it go as far as it goes.

#include <algorithm>
#include <cstring>

#include "comm/shm/shm_communicator.h"

namespace gantry::shm {
namespace {

// FNV-1a over words, so that ranks can compare what each has been given.
uint64_t Hash(std::span<const int64_t> words) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const int64_t word : words) hash = (hash ^ static_cast<uint64_t>(word)) * 0x100000001b3u;
  return hash ^ hash >> 29;
}

int64_t Total(std::span<const int64_t> parts) {
  int64_t total = 0;
  for (const int64_t part : parts) total += part;
  return total;
}

absl::Status CheckParts(std::string_view what, std::span<const int64_t> parts, int ranks) {
  if (static_cast<int>(parts.size()) != ranks) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %d parts for %d ranks", what, parts.size(), ranks));
  }
  int64_t left = int64_t{1} << 47;  // an address space
  for (const int64_t part : parts) {
    if (part < 0 || part > left) return absl::InvalidArgumentError(absl::StrFormat("%s: a part of %d", what, part));
    left -= part;
  }
  return absl::OkStatus();
}

absl::Status CheckCount(std::string_view what, int64_t count, const void* data) {
  if (count < 0 || count > int64_t{1} << 44)
    return absl::InvalidArgumentError(absl::StrFormat("%s of %d elements", what, count));
  if (count > 0 && data == nullptr)
    return absl::InvalidArgumentError(absl::StrFormat("%s of %d elements at a null pointer", what, count));
  return absl::OkStatus();
}

absl::Status CheckRank(std::string_view what, int rank, int ranks) {
  if (rank >= 0 && rank < ranks) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("%s: rank %d of a group of %d", what, rank, ranks));
}

const std::byte* Bytes(const void* data) { return static_cast<const std::byte*>(data); }
std::byte* Bytes(void* data) { return static_cast<std::byte*>(data); }

}  // namespace

Operation* ShmCommunicator::NextFree(absl::Status& status) {
  if (!broken_.ok()) {
    status = broken_;
    return nullptr;
  }
  Operation& operation = operations_[started_ % kMaxInFlight];
  if (operation.state.load(std::memory_order_acquire) == Operation::kFree) return &operation;
  status = absl::ResourceExhaustedError(absl::StrFormat(
      "group \"%s\": %d operations are started and not yet waited for (the oldest: %s); wait for some of them first",
      name_, kMaxInFlight, operation.call.Describe()));
  return nullptr;
}

template <typename Fill>
Pending ShmCommunicator::Start(const CollectiveOptions& options, Fill&& fill) {
  Operation* operation = nullptr;
  {
    const std::lock_guard lock(start_mutex_);
    absl::Status status;
    operation = NextFree(status);
    if (operation == nullptr) return Pending(std::move(status));
    operation->call = Call();
    fill(*operation);
    const size_t name_bytes = std::min(options.name.size(), sizeof(operation->call.name) - 1);
    std::copy_n(options.name.data(), name_bytes, operation->call.name);
    operation->priority.store(options.priority, std::memory_order_relaxed);
    operation->in_background = options.in_background;
    operation->waits_asleep = options.waits_asleep;
    operation->timeout = std::min(options.timeout, absl::Hours(24 * 365));
    operation->sequence = ++started_;
    operation->deadline = {};
    operation->recorded_peer = -1;
    if (Recorder* recorder = node_.recorder(); recorder != nullptr) {
      operation->ticket = recorder->Begin({.kind = operation->call.kind_for_recorder(),
                                           .value = options.name,
                                           .group = name_,
                                           .number = operation->sequence,
                                           .bytes = operation->from_bytes});
    }
    operation->is_published = operation->is_entered = operation->is_staged = operation->has_process_memory = false;
    operation->round = operation->last_round = operation->synced = operation->peer_step = 0;
    operation->cursor = 0;
    operation->state.store(Operation::kQueued, std::memory_order_relaxed);
    queued_.store(started_, std::memory_order_release);
  }
  if (options.in_background) {
    node_.BackgroundBegun();
  } else {
    Drive(operation, false);
  }
  return Pending(*operation);
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
  return Start(options, [&](Operation& operation) {
    operation.is_partial = false;
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
  return Start(options, [&](Operation& operation) {
    operation.is_partial = false;
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
  if (absl::Status status = CheckParts("reduce_scatter", counts, size()); !status.ok())
    return Pending(std::move(status));
  if (absl::Status status = CheckCount("reduce_scatter", Total(counts), from); !status.ok())
    return Pending(std::move(status));
  if (absl::Status status = CheckCount("reduce_scatter", counts[rank_], to); !status.ok())
    return Pending(std::move(status));
  return Start(options, [&](Operation& operation) {
    operation.is_partial = false;
    operation.call.kind = Collective::kReduceScatter;
    operation.call.type = type;
    operation.call.reduce = op;
    operation.from = Bytes(from);
    operation.to = Bytes(to);
    for (int rank = 0; rank < size(); ++rank) operation.parts[rank] = counts[rank] * SizeBytes(type);
    operation.from_bytes = operation.call.count = Total(counts) * SizeBytes(type);
    operation.call.parts = Hash(counts);
    Expose(operation, from, operation.from_bytes, operation.from_bytes <= kInlineBytes);
  });
}

Pending ShmCommunicator::AllGather(const void* from, void* to, std::span<const int64_t> bytes,
                                   const CollectiveOptions& options) {
  if (absl::Status status = CheckParts("all_gather", bytes, size()); !status.ok()) return Pending(std::move(status));
  if (absl::Status status = CheckCount("all_gather", bytes[rank_], from); !status.ok())
    return Pending(std::move(status));
  if (absl::Status status = CheckCount("all_gather", Total(bytes), to); !status.ok()) return Pending(std::move(status));
  return Start(options, [&](Operation& operation) {
    operation.is_partial = false;
    operation.call.kind = Collective::kAllGather;
    operation.from = Bytes(from);
    operation.to = Bytes(to);
    std::copy(bytes.begin(), bytes.end(), operation.parts);
    operation.from_bytes = bytes[rank_];
    operation.call.count = Total(bytes);
    operation.call.parts = Hash(bytes);
    Expose(operation, from, operation.from_bytes, *std::max_element(bytes.begin(), bytes.end()) <= kInlineBytes);
  });
}

Pending ShmCommunicator::Broadcast(void* data, int64_t bytes, int root, const CollectiveOptions& options) {
  if (absl::Status status = CheckCount("broadcast", bytes, data); !status.ok()) return Pending(std::move(status));
  if (absl::Status status = CheckRank("broadcast", root, size()); !status.ok()) return Pending(std::move(status));
  return Start(options, [&](Operation& operation) {
    operation.is_partial = false;
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
  if (absl::Status status = CheckParts("all_to_all, from", from_bytes, size()); !status.ok())
    return Pending(std::move(status));
  if (absl::Status status = CheckParts("all_to_all, to", to_bytes, size()); !status.ok())
    return Pending(std::move(status));
  if (absl::Status status = CheckCount("all_to_all", Total(from_bytes), from); !status.ok())
    return Pending(std::move(status));
  if (absl::Status status = CheckCount("all_to_all", Total(to_bytes), to); !status.ok())
    return Pending(std::move(status));
  if (from_bytes[rank_] != to_bytes[rank_]) {
    return Pending(absl::InvalidArgumentError(absl::StrFormat(
        "all_to_all: this rank sends %d bytes to itself and receives %d", from_bytes[rank_], to_bytes[rank_])));
  }
  return Start(options, [&](Operation& operation) {
    operation.is_partial = false;
    operation.call.kind = Collective::kAllToAll;
    operation.from = Bytes(from);
    operation.to = Bytes(to);
    std::copy(from_bytes.begin(), from_bytes.end(), operation.parts);
    std::copy(to_bytes.begin(), to_bytes.end(), operation.to_parts);
    operation.from_bytes = Total(from_bytes);
    operation.call.largest_part = *std::max_element(from_bytes.begin(), from_bytes.end());
    Expose(operation, from, operation.from_bytes, operation.from_bytes <= kInlineBytes);
  });
}

Pending ShmCommunicator::ExchangeHalo(std::span<const HaloExchange> dimensions, const CollectiveOptions& options) {
  if (2 * dimensions.size() > kMaxMessages) {
    return Pending(absl::InvalidArgumentError(
        absl::StrFormat("exchange_halo: %d dimensions, at most %d", dimensions.size(), kMaxMessages / 2)));
  }
  for (const HaloExchange& halo : dimensions) {
    for (const int neighbour : {halo.before, halo.behind}) {
      if (neighbour == -1) continue;
      if (absl::Status status = CheckRank("exchange_halo", neighbour, size()); !status.ok())
        return Pending(std::move(status));
    }
    if ((halo.before == rank_ || halo.behind == rank_) &&
        (halo.before != halo.behind || halo.to_before.size() != halo.from_behind.size() ||
         halo.to_behind.size() != halo.from_before.size())) {
      return Pending(absl::InvalidArgumentError(
          "exchange_halo: a rank that is its own neighbour is so on both sides, with equal sizes"));
    }
  }
  return Start(options, [&](Operation& operation) {
    operation.is_partial = true;
    operation.call.kind = Collective::kExchangeHalo;
    operation.message_count = 0;
    operation.from_bytes = 0;
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
  if (absl::Status status = CheckCount("send_receive", bytes, rank_ == from || rank_ == to ? data : this);
      !status.ok()) {
    return Pending(std::move(status));
  }
  for (const int rank : {from, to}) {
    if (absl::Status status = CheckRank("send_receive", rank, size()); !status.ok()) return Pending(std::move(status));
  }
  if (from == to)
    return Pending(absl::InvalidArgumentError(absl::StrFormat("send_receive from rank %d to itself", from)));
  return Start(options, [&](Operation& operation) {
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

absl::Status ShmCommunicator::Barrier(absl::Duration timeout) {
  const CollectiveOptions options{.timeout = timeout};
  Pending barrier = Start(options, [&](Operation& operation) {
    operation.is_partial = false;
    operation.call.kind = Collective::kBarrier;
    operation.call.memory = MemoryKind::kNothing;
    operation.is_inline = true;
    operation.from_bytes = 0;
  });
  return barrier.Wait(absl::InfiniteDuration());
}

}  // namespace gantry::shm
