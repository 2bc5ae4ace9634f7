#include "comm/tcp/tcp_transport.h"

#include <algorithm>
#include <utility>

namespace gantry::tcp {

TcpTransport::TcpTransport(shm::ShmNode& node, Mailbox& mailbox, shm::ShmTransport& of_node)
    : node_(node), mailbox_(mailbox), of_node_(of_node) {
  for (Access& access : accesses_) access.owner = this;
}

absl::Status TcpTransport::Access::Wait(absl::Duration timeout) {
  const bool is_done = WaitUntil(
      owner->node_.own_bell(), owner->node_.policy(), WaitClock::now() + absl::ToChronoNanoseconds(timeout),
      [&](bool rested) {
        if (done()) return true;
        if (rested) owner->node_.MoveOthers(nullptr);
        return done();
      },
      [] { return false; });
  const auto describe = [&] {
    return absl::StrFormat("an access to %d bytes at %d of region %d of rank %d", bytes, address.offset, address.region,
                           address.rank);
  };
  if (!is_done) return absl::DeadlineExceededError(absl::StrCat(describe(), " goes on"));
  if (!failed) return absl::OkStatus();
  const Liveness& liveness = owner->node_.liveness();
  WaitUntil(
      owner->node_.own_bell(), owner->node_.policy(), owner->mailbox_.NamedBy(address.rank),
      [&](bool) { return liveness.lost(address.rank); }, [] { return false; });
  if (absl::Status lost = liveness.StatusOf(address.rank, describe()); !lost.ok()) return lost;
  return Annotate(owner->mailbox_.StatusOf(address.rank), describe());
}

void TcpTransport::Access::Release() {
  const std::lock_guard lock(owner->mutex_);
  is_free = true;
}

absl::Status TcpTransport::Check(FrameKind kind, const GlobalAddress& address, int64_t bytes) const {
  GANTRY_RETURN_IF_ERROR(node_.pool().Check(address, bytes));
  if (!Reaches(address.rank))
    return absl::InvalidArgumentError(absl::StrFormat("rank %d is on this node", address.rank));
  const bool is_word = kind != FrameKind::kPut && kind != FrameKind::kGet;
  if (is_word && address.offset % 8 != 0)
    return absl::InvalidArgumentError(absl::StrFormat("a word at offset %d is not 8-byte aligned", address.offset));
  if (kind != FrameKind::kGet && !node_.pool().writable(address.rank, address.region)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("region %d of rank %d is lent to be read, not to be written", address.region, address.rank));
  }
  return absl::OkStatus();
}

absl::StatusOr<TcpTransport::Access*> TcpTransport::Start(FrameKind kind, const GlobalAddress& address, std::byte* data,
                                                          int64_t bytes, uint64_t value, uint64_t expected) {
  GANTRY_RETURN_IF_ERROR(Check(kind, address, bytes));
  Access* access = nullptr;
  {
    const std::lock_guard lock(mutex_);
    const auto free = std::find_if(accesses_.begin(), accesses_.end(), [](const Access& one) { return one.is_free; });
    if (free == accesses_.end()) {
      return absl::ResourceExhaustedError(absl::StrFormat(
          "%d accesses to other nodes are started and not yet waited for; wait for some of them first", kMaxInFlight));
    }
    access = &*free;
    access->is_free = false;
  }
  access->kind = kind;
  access->address = address;
  access->data = data;
  access->bytes = bytes;
  access->value = value;
  access->expected = expected;
  mailbox_.Start(*access);
  return access;
}

namespace {
template <typename Access>
Pending PendingOf(absl::StatusOr<Access*> access) {
  return access.ok() ? Pending(**access) : Pending(access.status());
}
}  // namespace

Pending TcpTransport::Put(GlobalAddress to, std::span<const std::byte> from) {
  auto* data = const_cast<std::byte*>(from.data());  // only read
  return PendingOf(Start(FrameKind::kPut, to, data, static_cast<int64_t>(from.size()), 0));
}

Pending TcpTransport::Get(std::span<std::byte> to, GlobalAddress from) {
  return PendingOf(Start(FrameKind::kGet, from, to.data(), static_cast<int64_t>(to.size()), 0));
}

Pending TcpTransport::Signal(GlobalAddress word, uint64_t add) {
  return PendingOf(Start(FrameKind::kSignal, word, nullptr, 8, add));
}

absl::StatusOr<uint64_t> TcpTransport::Ask(FrameKind kind, const GlobalAddress& word, uint64_t value,
                                           uint64_t expected) {
  GANTRY_ASSIGN_OR_RETURN(Access * access, Start(kind, word, nullptr, 8, value, expected));
  absl::Status status;
  do {
    status = access->Wait(Pending::kDefaultTimeout);  // a lost rank ends it
  } while (!access->done());
  const uint64_t result = access->result;
  access->Release();
  GANTRY_RETURN_IF_ERROR(status);
  return result;
}

absl::StatusOr<uint64_t> TcpTransport::FetchAdd(GlobalAddress word, uint64_t add) {
  return Ask(FrameKind::kFetchAdd, word, add);
}

absl::StatusOr<uint64_t> TcpTransport::CompareSwap(GlobalAddress word, uint64_t expected, uint64_t desired) {
  return Ask(FrameKind::kCompareSwap, word, desired, expected);
}

}  // namespace gantry::tcp
