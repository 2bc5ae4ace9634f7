// Exchanges of which each is between two ranks: all to all, halos, send and receive. Those between nodes are parcels,
// all at once; those within a node go through its shared memory.

#include <algorithm>
#include <cstring>

#include "comm/nodes/nodes_communicator.h"

namespace gantry::nodes {
namespace {

using shm::Collective;

void CopySpan(std::span<std::byte> to, std::span<const std::byte> from) {
  if (!from.empty()) std::memmove(to.data(), from.data(), from.size());
}

}  // namespace

void NodesCommunicator::SendTo(tcp::Parcel& parcel, int rank, uint32_t tag, const NodesOperation& operation,
                               const std::byte* data, int64_t bytes) {
  if (rank >= 0) parcel.peer = ranks_[static_cast<size_t>(rank)];
  parcel.group = id_;
  parcel.sequence = operation.sequence;
  parcel.tag = tag;
  parcel.priority = operation.priority.load(std::memory_order_relaxed);
  parcel.data = const_cast<std::byte*>(data);
  parcel.bytes = bytes;
  mailbox_.Send(parcel, call_);
}

void NodesCommunicator::ReceiveFrom(tcp::Parcel& parcel, int rank, uint32_t tag, const NodesOperation& operation,
                                    std::byte* data, int64_t bytes) {
  parcel.peer = ranks_[static_cast<size_t>(rank)];
  parcel.group = id_;
  parcel.sequence = operation.sequence;
  parcel.tag = tag;
  parcel.data = data;
  parcel.bytes = bytes;
  mailbox_.Receive(parcel, call_);
}

void NodesCommunicator::BeginMessages(NodesOperation& operation) {
  parcel_count_ = next_pair_ = pair_count_ = 0;
  if (local_ != nullptr)
    pair_count_ = operation.call.kind == Collective::kAllToAll ? local_->size() * local_->size() : 1;
  switch (operation.call.kind) {
    case Collective::kAllToAll: {
      const std::byte* from = operation.from;
      std::byte* to = operation.to;
      for (int rank = 0; rank < size(); ++rank) {
        const int64_t out = operation.parts[static_cast<size_t>(rank)];
        const int64_t in = operation.to_parts[static_cast<size_t>(rank)];
        if (rank == rank_) {
          CopySpan({to, static_cast<size_t>(in)}, {from, static_cast<size_t>(out)});
        } else if (!IsHere(rank)) {
          ReceiveFrom(NextParcel(), rank, 0, operation, to, in);
          SendTo(NextParcel(), rank, 0, operation, from, out);
        }
        from += out;
        to += in;
      }
      break;
    }
    case Collective::kExchangeHalo:
      for (int d = 0; d < operation.halo_count; ++d) {
        // The sides that go over the network are done here, and taken away from what the node does.
        HaloExchange& halo = operation.halos[static_cast<size_t>(d)];
        const auto from_before = static_cast<uint32_t>(2 * d), from_behind = from_before + 1;  // the receiver's numbers
        if (halo.before == rank_) {
          CopySpan(halo.from_behind, halo.to_before);
          CopySpan(halo.from_before, halo.to_behind);
          halo.before = halo.behind = -1;
          continue;
        }
        const auto exchange = [&](int& neighbour, uint32_t in_tag, std::span<std::byte> in, uint32_t out_tag,
                                  std::span<const std::byte> out) {
          if (neighbour < 0 || IsHere(neighbour)) return;
          ReceiveFrom(NextParcel(), neighbour, in_tag, operation, in.data(), static_cast<int64_t>(in.size()));
          SendTo(NextParcel(), neighbour, out_tag, operation, out.data(), static_cast<int64_t>(out.size()));
          neighbour = -1;
        };
        exchange(halo.before, from_before, halo.from_before, from_behind, halo.to_before);
        exchange(halo.behind, from_behind, halo.from_behind, from_before, halo.to_behind);
      }
      for (int d = 0; d < operation.halo_count; ++d) {
        HaloExchange& halo = operation.halos[static_cast<size_t>(d)];
        for (int* neighbour : {&halo.before, &halo.behind}) {
          if (*neighbour >= 0) *neighbour = local_rank_[static_cast<size_t>(*neighbour)];
        }
      }
      break;
    default: {
      const int from = operation.call.root, to = operation.call.to;
      if (IsHere(from) && IsHere(to)) break;
      if (rank_ == from) SendTo(NextParcel(), to, 0, operation, operation.from, operation.from_bytes);
      if (rank_ == to) ReceiveFrom(NextParcel(), from, 0, operation, operation.to, operation.from_bytes);
      break;
    }
  }
  BeginLocalMessage(operation);
}

void NodesCommunicator::BeginLocalMessage(NodesOperation& operation) {
  if (local_ == nullptr) return;
  const CollectiveOptions options = LocalOptions(operation);
  const Collective kind = operation.call.kind;
  if (kind == Collective::kExchangeHalo) {
    if (next_pair_++ > 0) return;
    local_message_ = local_->ExchangeHalo(
        std::span<const HaloExchange>(operation.halos.data(), static_cast<size_t>(operation.halo_count)), options);
    return;
  }
  if (kind == Collective::kSendReceive) {
    const int from = operation.call.root, to = operation.call.to;
    if (next_pair_++ > 0 || !IsHere(from) || !IsHere(to)) return;
    local_message_ = local_->SendReceive(operation.to, operation.from_bytes, local_rank_[static_cast<size_t>(from)],
                                         local_rank_[static_cast<size_t>(to)], options);
    return;
  }
  // All ordered pairs, one after the other, so that it is the same order on all ranks. Others' pairs are done at once.
  const int count = local_->size(), self = local_->rank();
  while (next_pair_ < count * count && local_message_.work() == nullptr) {
    const int from = next_pair_ / count, to = next_pair_ % count;
    ++next_pair_;
    if (from == to) continue;
    std::byte* data = nullptr;
    int64_t bytes = 0;
    if (from == self || to == self) {
      const int other = here()[static_cast<size_t>(from == self ? to : from)];
      const std::vector<int64_t>& parts = from == self ? operation.parts : operation.to_parts;
      data = from == self ? const_cast<std::byte*>(operation.from) : operation.to;
      for (int rank = 0; rank < other; ++rank) data += parts[static_cast<size_t>(rank)];
      bytes = parts[static_cast<size_t>(other)];
    }
    local_message_ = local_->SendReceive(data, bytes, from, to, options);
  }
}

bool NodesCommunicator::AreMessagesDone() const {
  if (local_message_.work() != nullptr) return false;
  if (next_pair_ < pair_count_) return false;
  for (int i = 0; i < parcel_count_; ++i) {
    if (!parcels_[static_cast<size_t>(i)].done()) return false;
  }
  return true;
}

// True if something went on, or the operation has failed.
bool NodesCommunicator::StepMessages(NodesOperation& operation) {
  for (int i = 0; i < parcel_count_; ++i) {
    if (FailParcel(operation, parcels_[static_cast<size_t>(i)])) return true;
  }
  if (local_message_.work() == nullptr || !local_message_.done()) return false;
  if (absl::Status status = local_message_.Wait(absl::ZeroDuration()); !status.ok())
    return FailLocal(operation, std::move(status));
  BeginLocalMessage(operation);
  return true;
}

}  // namespace gantry::nodes
