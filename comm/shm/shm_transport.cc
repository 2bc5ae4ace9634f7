#include "comm/shm/shm_transport.h"

#include "comm/copy.h"

namespace gantry::shm {

std::string ShmTransport::DescribePath(int peer) const {
  return absl::StrFormat("shm, memory of rank %d is mapped; copies from %d MiB go past the caches; %s", peer,
                         node_.stream_bytes() >> 20, node_.policy().Describe());
}

bool ShmTransport::Reaches(int peer) const { return peer == node_.links().rank() || node_.links().SameNode(peer); }

absl::StatusOr<std::byte*> ShmTransport::Locate(const GlobalAddress& address, int64_t bytes, Access access) const {
  const Pool& pool = node_.pool();
  GANTRY_RETURN_IF_ERROR(pool.Check(address, bytes));
  if (!Reaches(address.rank)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("rank %d is on another node, which shared memory does not reach", address.rank));
  }
  if (access == Access::kReadWrite && address.rank != node_.links().rank() &&
      !pool.writable(address.rank, address.region)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("region %d of rank %d is lent to be read, not to be written", address.region, address.rank));
  }
  return pool.data(address.rank, address.region) + address.offset;
}

absl::StatusOr<std::byte*> ShmTransport::LocateWord(const GlobalAddress& address) const {
  if (address.offset % 8 != 0)
    return absl::InvalidArgumentError(absl::StrFormat("a word at offset %d is not 8-byte aligned", address.offset));
  return Locate(address, 8, Access::kReadWrite);
}

Pending ShmTransport::Put(GlobalAddress to, std::span<const std::byte> from) {
  const absl::StatusOr<std::byte*> place = Locate(to, static_cast<int64_t>(from.size()), Access::kReadWrite);
  if (!place.ok()) return Pending(place.status());
  CopyBytes(*place, from.data(), static_cast<int64_t>(from.size()),
            static_cast<int64_t>(from.size()) >= node_.stream_bytes());
  return Pending();
}

Pending ShmTransport::Get(std::span<std::byte> to, GlobalAddress from) {
  const absl::StatusOr<std::byte*> place = Locate(from, static_cast<int64_t>(to.size()), Access::kRead);
  if (!place.ok()) return Pending(place.status());
  CopyBytes(to.data(), *place, static_cast<int64_t>(to.size()),
            static_cast<int64_t>(to.size()) >= node_.stream_bytes());
  return Pending();
}

absl::StatusOr<uint64_t> ShmTransport::FetchAdd(GlobalAddress word, uint64_t add) {
  GANTRY_ASSIGN_OR_RETURN(std::byte * place, LocateWord(word));
  return std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(place)).fetch_add(add, std::memory_order_seq_cst);
}

absl::StatusOr<uint64_t> ShmTransport::CompareSwap(GlobalAddress word, uint64_t expected, uint64_t desired) {
  GANTRY_ASSIGN_OR_RETURN(std::byte * place, LocateWord(word));
  std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(place))
      .compare_exchange_strong(expected, desired, std::memory_order_seq_cst);
  return expected;
}

Pending ShmTransport::Signal(GlobalAddress word, uint64_t add) {
  const absl::StatusOr<std::byte*> place = LocateWord(word);
  if (!place.ok()) return Pending(place.status());
  std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(*place)).fetch_add(add, std::memory_order_seq_cst);
  node_.own_bell().NoteCore();
  node_.bell(word.rank).Ring();
  return Pending();
}

absl::Status ShmTransport::WaitSignal(int from, int region, int64_t offset, uint64_t value, absl::Duration timeout) {
  GANTRY_ASSIGN_OR_RETURN(std::byte * place, LocateWord({node_.links().rank(), region, offset}));
  const std::atomic_ref<uint64_t> word(*reinterpret_cast<uint64_t*>(place));
  if (timeout > Pending::kDefaultTimeout) timeout = Pending::kDefaultTimeout;
  const auto describe = [&] {
    return absl::StrFormat("waiting for a signal of rank %d: word %d of region %d is %d, wanted %d", from, offset,
                           region, word.load(std::memory_order_seq_cst), value);
  };
  uint32_t seen = 0;
  bool lost = false;
  const bool ready = WaitUntil(
      node_.own_bell(), node_.policy(), WaitClock::now() + absl::ToChronoNanoseconds(timeout),
      [&](bool rested) {
        if (word.load(std::memory_order_seq_cst) >= value) return true;
        if (const uint32_t losses = node_.liveness().losses().load(std::memory_order_seq_cst); losses != seen) {
          seen = losses;
          lost = from >= 0 && node_.liveness().lost(from);
        }
        if (rested && !lost) node_.MoveOthers(nullptr);
        return lost;
      },
      [&] { return from >= 0 && Reaches(from) && node_.bell(from).SharesCore(); });
  if (!ready)
    return absl::DeadlineExceededError(
        absl::StrCat(describe(), "; it did not come in ", absl::FormatDuration(timeout)));
  if (!lost || word.load(std::memory_order_seq_cst) >= value) return absl::OkStatus();
  return node_.liveness().StatusOf(from, describe());
}

}  // namespace gantry::shm
