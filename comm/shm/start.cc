// The calls that start operations: they check, note down what is called, and let it go as far as it goes.

#include <algorithm>

#include "comm/shm/queued_communicator.h"

namespace gantry::shm {
namespace {

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

int64_t TotalOf(std::span<const int64_t> parts) {
  int64_t total = 0;
  for (const int64_t part : parts) total += part;
  return total;
}

// FNV-1a over words.
uint64_t HashParts(std::span<const int64_t> parts) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const int64_t part : parts) hash = (hash ^ static_cast<uint64_t>(part)) * 0x100000001b3u;
  return hash ^ hash >> 29;
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

absl::Status CheckReduceScatter(const void* from, const void* to, std::span<const int64_t> counts, int rank,
                                int ranks) {
  GANTRY_RETURN_IF_ERROR(CheckParts("reduce_scatter", counts, ranks));
  GANTRY_RETURN_IF_ERROR(CheckCount("reduce_scatter", TotalOf(counts), from));
  return CheckCount("reduce_scatter", counts[rank], to);
}

absl::Status CheckAllGather(const void* from, const void* to, std::span<const int64_t> bytes, int rank, int ranks) {
  GANTRY_RETURN_IF_ERROR(CheckParts("all_gather", bytes, ranks));
  GANTRY_RETURN_IF_ERROR(CheckCount("all_gather", bytes[rank], from));
  return CheckCount("all_gather", TotalOf(bytes), to);
}

absl::Status CheckAllToAll(const void* from, std::span<const int64_t> from_bytes, const void* to,
                           std::span<const int64_t> to_bytes, int rank, int ranks) {
  GANTRY_RETURN_IF_ERROR(CheckParts("all_to_all, from", from_bytes, ranks));
  GANTRY_RETURN_IF_ERROR(CheckParts("all_to_all, to", to_bytes, ranks));
  GANTRY_RETURN_IF_ERROR(CheckCount("all_to_all", TotalOf(from_bytes), from));
  GANTRY_RETURN_IF_ERROR(CheckCount("all_to_all", TotalOf(to_bytes), to));
  if (from_bytes[rank] == to_bytes[rank]) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("all_to_all: this rank sends %d bytes to itself and receives %d",
                                                    from_bytes[rank], to_bytes[rank]));
}

absl::Status CheckHalo(std::span<const HaloExchange> dimensions, int rank, int ranks) {
  if (dimensions.size() > kMaxMessages / 2) {
    return absl::InvalidArgumentError(
        absl::StrFormat("exchange_halo: %d dimensions, at most %d", dimensions.size(), kMaxMessages / 2));
  }
  for (const HaloExchange& halo : dimensions) {
    for (const int neighbour : {halo.before, halo.behind}) {
      if (neighbour != -1) GANTRY_RETURN_IF_ERROR(CheckRank("exchange_halo", neighbour, ranks));
    }
    if ((halo.before == rank || halo.behind == rank) &&
        (halo.before != halo.behind || halo.to_before.size() != halo.from_behind.size() ||
         halo.to_behind.size() != halo.from_before.size())) {
      return absl::InvalidArgumentError(
          "exchange_halo: a rank that is its own neighbour is so on both sides, with equal sizes");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSendReceive(const void* data, int64_t bytes, int from, int to, int rank, int ranks) {
  const bool takes_part = rank == from || rank == to;
  GANTRY_RETURN_IF_ERROR(CheckCount("send_receive", bytes, takes_part ? data : &data));
  GANTRY_RETURN_IF_ERROR(CheckRank("send_receive", from, ranks));
  GANTRY_RETURN_IF_ERROR(CheckRank("send_receive", to, ranks));
  if (from != to) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("send_receive from rank %d to itself", from));
}

const std::byte* Bytes(const void* data) { return static_cast<const std::byte*>(data); }
std::byte* Bytes(void* data) { return static_cast<std::byte*>(data); }

}  // namespace

void QueuedCommunicator::FillSum(QueuedOperation& operation, Collective kind, const void* from, void* to, int64_t count,
                                 ElementType type, ReduceOp op, int root) {
  operation.call.kind = kind;
  operation.call.type = type;
  operation.call.reduce = op;
  operation.call.root = root;
  operation.call.count = count;
  operation.from = Bytes(from);
  operation.to = Bytes(to);
  operation.from_bytes = count * SizeBytes(type);
}

template <typename Fill>
Pending QueuedCommunicator::StartPrepared(const CollectiveOptions& options, Fill&& fill) {
  return Start(options, [&](QueuedOperation& operation) {
    fill(operation);
    Prepare(operation);
  });
}

Pending QueuedCommunicator::AllReduce(void* data, int64_t count, ElementType type, ReduceOp op,
                                      const CollectiveOptions& options) {
  if (absl::Status status = CheckCount("all_reduce", count, data); !status.ok()) return Pending(std::move(status));
  return StartPrepared(options, [&](QueuedOperation& operation) {
    FillSum(operation, Collective::kAllReduce, data, data, count, type, op, 0);
  });
}

Pending QueuedCommunicator::Reduce(void* data, int64_t count, ElementType type, ReduceOp op, int root,
                                   const CollectiveOptions& options) {
  if (absl::Status status = CheckCount("reduce", count, data); !status.ok()) return Pending(std::move(status));
  if (absl::Status status = CheckRank("reduce", root, size()); !status.ok()) return Pending(std::move(status));
  return StartPrepared(options, [&](QueuedOperation& operation) {
    FillSum(operation, Collective::kReduce, data, data, count, type, op, root);
  });
}

Pending QueuedCommunicator::ReduceScatter(const void* from, void* to, std::span<const int64_t> counts, ElementType type,
                                          ReduceOp op, const CollectiveOptions& options) {
  if (absl::Status status = CheckReduceScatter(from, to, counts, rank_, size()); !status.ok())
    return Pending(std::move(status));
  return StartPrepared(options, [&](QueuedOperation& operation) {
    FillSum(operation, Collective::kReduceScatter, from, to, TotalOf(counts), type, op, 0);
    operation.call.count = operation.from_bytes;
    operation.call.parts = HashParts(counts);
    for (int rank = 0; rank < size(); ++rank) operation.parts[rank] = counts[rank] * SizeBytes(type);
  });
}

Pending QueuedCommunicator::AllGather(const void* from, void* to, std::span<const int64_t> bytes,
                                      const CollectiveOptions& options) {
  if (absl::Status status = CheckAllGather(from, to, bytes, rank_, size()); !status.ok())
    return Pending(std::move(status));
  return StartPrepared(options, [&](QueuedOperation& operation) {
    operation.call.kind = Collective::kAllGather;
    operation.call.count = TotalOf(bytes);
    operation.call.parts = HashParts(bytes);
    operation.from = Bytes(from);
    operation.to = Bytes(to);
    operation.from_bytes = bytes[rank_];
    std::copy(bytes.begin(), bytes.end(), operation.parts.begin());
  });
}

Pending QueuedCommunicator::Broadcast(void* data, int64_t bytes, int root, const CollectiveOptions& options) {
  if (absl::Status status = CheckCount("broadcast", bytes, data); !status.ok()) return Pending(std::move(status));
  if (absl::Status status = CheckRank("broadcast", root, size()); !status.ok()) return Pending(std::move(status));
  return StartPrepared(options, [&](QueuedOperation& operation) {
    operation.call.kind = Collective::kBroadcast;
    operation.call.root = root;
    operation.call.count = operation.from_bytes = bytes;
    operation.from = operation.to = Bytes(data);
  });
}

Pending QueuedCommunicator::AllToAll(const void* from, std::span<const int64_t> from_bytes, void* to,
                                     std::span<const int64_t> to_bytes, const CollectiveOptions& options) {
  if (absl::Status status = CheckAllToAll(from, from_bytes, to, to_bytes, rank_, size()); !status.ok())
    return Pending(std::move(status));
  return StartPrepared(options, [&](QueuedOperation& operation) {
    operation.call.kind = Collective::kAllToAll;
    operation.from = Bytes(from);
    operation.to = Bytes(to);
    operation.from_bytes = TotalOf(from_bytes);
    std::copy(from_bytes.begin(), from_bytes.end(), operation.parts.begin());
    std::copy(to_bytes.begin(), to_bytes.end(), operation.to_parts.begin());
  });
}

Pending QueuedCommunicator::ExchangeHalo(std::span<const HaloExchange> dimensions, const CollectiveOptions& options) {
  if (absl::Status status = CheckHalo(dimensions, rank_, size()); !status.ok()) return Pending(std::move(status));
  return StartPrepared(options, [&](QueuedOperation& operation) {
    operation.call.kind = Collective::kExchangeHalo;
    operation.halo_count = static_cast<int>(dimensions.size());
    std::copy(dimensions.begin(), dimensions.end(), operation.halos.begin());
    for (const HaloExchange& halo : dimensions)
      operation.from_bytes += static_cast<int64_t>(halo.to_before.size() + halo.to_behind.size());
  });
}

Pending QueuedCommunicator::SendReceive(void* data, int64_t bytes, int from, int to, const CollectiveOptions& options) {
  if (absl::Status status = CheckSendReceive(data, bytes, from, to, rank_, size()); !status.ok())
    return Pending(std::move(status));
  return StartPrepared(options, [&](QueuedOperation& operation) {
    operation.call.kind = Collective::kSendReceive;
    operation.call.root = from;
    operation.call.to = to;
    operation.call.count = operation.from_bytes = bytes;
    operation.from = operation.to = Bytes(data);
  });
}

absl::Status QueuedCommunicator::Barrier(absl::Duration timeout) {
  Pending barrier = StartPrepared({.timeout = timeout},
                                  [](QueuedOperation& operation) { operation.call.kind = Collective::kBarrier; });
  return barrier.Wait(absl::InfiniteDuration());
}

}  // namespace gantry::shm
