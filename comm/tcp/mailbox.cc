#include "comm/tcp/mailbox.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "comm/channels.h"
#include "comm/handshake_group.h"
#include "comm/link_rate.h"
#include "comm/socket.h"
#include "comm/tcp/mailbox_peer.h"

namespace gantry::tcp {
namespace {

// In the kernel's queue, beyond what is on its way: little where what is urgent goes, much where this thread would have
// to wake for it.
constexpr int kExpressUnsent = 64 << 10, kBulkUnsent = 512 << 10;
constexpr int64_t kExpressBytes = int64_t{16} << 10;  // parcels of no more go there too

}  // namespace

Mailbox::Mailbox(Links& links, Liveness& liveness, const Pool& pool, Doorbell& bell, std::function<void()> go_on)
    : links_(links),
      liveness_(liveness),
      pool_(pool),
      bell_(bell),
      go_on_(std::move(go_on)),
      peers_(static_cast<size_t>(links.size())) {}

Mailbox::~Mailbox() {
  if (reactor_ != nullptr) Drain();
  if (on_loss_ >= 0) liveness_.Forget(on_loss_);
  if (reactor_ != nullptr) reactor_->Stop();
}

absl::StatusOr<std::unique_ptr<Mailbox>> Mailbox::Open(Links& links, Liveness& liveness, const Pool& pool,
                                                       Doorbell& bell, std::function<void()> go_on,
                                                       absl::Duration timeout) {
  auto mailbox = std::unique_ptr<Mailbox>(new Mailbox(links, liveness, pool, bell, std::move(go_on)));
  GANTRY_RETURN_IF_ERROR(Annotate(mailbox->Connect(timeout), "connecting with the ranks of other nodes"));
  GANTRY_RETURN_IF_ERROR(mailbox->Watch());
  return mailbox;
}

// What was sent is at the other machines before the connections end: the kernel throws away what it still holds of a
// connection that is closed with bytes unread.
void Mailbox::Drain() {
  constexpr std::chrono::seconds kLongest(5);
  const auto pause = [] { std::this_thread::sleep_for(std::chrono::microseconds(200)); };
  // What its own thread has to pass on, of a group that has failed.
  const auto passed_on = std::make_shared<std::atomic<bool>>(false);
  reactor_->Post([passed_on] { passed_on->store(true); });
  for (const auto end = WaitClock::now() + kLongest; !passed_on->load() && WaitClock::now() < end;) pause();
  const WaitClock::time_point end = WaitClock::now() + kLongest;
  for (const std::unique_ptr<Peer>& peer : peers_) {
    for (bool sent = peer == nullptr; !sent && WaitClock::now() < end;) {
      {
        const std::lock_guard lock(peer->mutex);
        sent = true;
        for (const Way* way : peer->ways()) {
          int unacknowledged = 0;
          ioctl(way->socket.get(), SIOCOUTQ, &unacknowledged);
          sent &= unacknowledged == 0 && way->IsSent();
        }
        if (Carrier* carrier = carrier_; carrier != nullptr) sent &= carrier->Waiting(peer->rank) == 0;
        sent |= !peer->ended.ok();
      }
      if (!sent) pause();
    }
  }
}

// The lower rank of a pair listens and says where, the higher connects, twice. Which of the two is the express way, each
// end decides for what it sends; it need not know how the other one does.
absl::Status Mailbox::Connect(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  const int self = links_.rank();
  std::map<std::string, std::pair<Descriptor, std::string>> listeners;  // by the own host: the socket, the address
  HandshakeGroup group(links_.job());
  int missing = 0;
  for (int peer = 0; peer < links_.size(); ++peer) {
    if (peer == self || links_.SameNode(peer)) continue;
    peers_[static_cast<size_t>(peer)] = std::make_unique<Peer>();
    at(peer).rank = peer;
    missing += 2;
    if (peer < self) continue;
    const int link = links_.descriptor(peer);
    std::string host = "127.0.0.1";
    if (link >= 0 && !IsUnixSocket(link)) {
      GANTRY_ASSIGN_OR_RETURN(host, LocalHost(link));
    }
    auto& [listener, address] = listeners[host];
    if (!listener.valid()) {
      GANTRY_ASSIGN_OR_RETURN(listener, Listen({.is_unix = false, .place = host}));
      GANTRY_ASSIGN_OR_RETURN(const uint16_t port, LocalPort(listener.get()));
      address = SocketAddress{.is_unix = false, .place = host, .port = port}.Text();
      group.ListenTo(listener);
    }
    GANTRY_RETURN_IF_ERROR(links_.Send(peer, kTcpChannel, std::as_bytes(std::span(address))));
  }
  for (int peer = 0; peer < self; ++peer) {
    if (!Reaches(peer)) continue;
    GANTRY_ASSIGN_OR_RETURN(const LinkMessage message, links_.Receive(peer, kTcpChannel, deadline - absl::Now()));
    const std::string text(reinterpret_cast<const char*>(message.bytes.data()), message.bytes.size());
    GANTRY_ASSIGN_OR_RETURN(const SocketAddress address, SocketAddress::Parse(text));
    if (address.is_unix)
      return absl::DataLossError(absl::StrFormat("rank %d listens at %s, which is no place on a network", peer, text));
    for (int way = 0; way < 2; ++way) {
      GANTRY_ASSIGN_OR_RETURN(Descriptor socket, StartConnect(address));
      group.Add(std::move(socket), Handshake::Role::kInitiator, peer, text, deadline);
    }
  }
  std::string stranger;
  while (missing > 0) {
    if (absl::Now() >= deadline) {
      std::string late;
      for (const std::unique_ptr<Peer>& peer : peers_) {
        if (peer != nullptr && !peer->bulk.socket.valid()) absl::StrAppend(&late, late.empty() ? "" : ", ", peer->rank);
      }
      return absl::DeadlineExceededError(absl::StrCat(
          "rank ", late, " did not connect in time", stranger.empty() ? "" : "; a connection that failed: ", stranger));
    }
    for (HandshakeGroup::Outcome& outcome : group.Step(deadline)) {
      const bool known = outcome.peer >= 0 && outcome.peer < links_.size() && Reaches(outcome.peer);
      if (outcome.status.ok() && known && !at(outcome.peer).bulk.socket.valid()) {
        Peer& peer = at(outcome.peer);
        peer.other_end = DescribeOtherEnd(outcome.socket.get());
        (peer.express.socket.valid() ? peer.bulk : peer.express).socket = std::move(outcome.socket);
        --missing;
      } else if (!outcome.status.ok() && known && outcome.peer < self) {
        return Annotate(outcome.status, absl::StrFormat("rank %d at %s", outcome.peer, outcome.address));
      } else {
        stranger = outcome.address;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Mailbox::Watch() {
  GANTRY_ASSIGN_OR_RETURN(reactor_, Reactor::Start());
  unsent_.reserve(2 * peers_.size());
  for (const std::unique_ptr<Peer>& peer : peers_) {
    if (peer == nullptr) continue;
    peer->sends.reserve(64);
    peer->receives.reserve(64);
    peer->readies.reserve(64);
    peer->asked.reserve(64);
    for (Way* way : peer->ways()) {
      const int one = 1, unsent = way == &peer->express ? kExpressUnsent : kBulkUnsent;
      setsockopt(way->socket.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
      setsockopt(way->socket.get(), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent));
      way->streams.reserve(64);
      GANTRY_RETURN_IF_ERROR(
          reactor_->Add(way->socket.get(), EPOLLIN,
                        [this, peer = peer.get(), way](uint32_t events) { OnEvents(*peer, *way, events); }));
    }
  }
  // A rank that is stopped, or behind a cut link, closes nothing by itself.
  const auto end = [this](int rank) {
    if (!Reaches(rank)) return;
    if (liveness_.has_left(rank)) return reactor_->Post([this, rank] { TakeRest(at(rank)); });
    const std::lock_guard lock(at(rank).mutex);
    End(at(rank), absl::UnavailableError(absl::StrFormat("rank %d is lost", rank)));
  };
  on_loss_ = liveness_.OnLoss(end);
  for (int rank = 0; rank < links_.size(); ++rank) {  // those that were lost before this asked
    if (Reaches(rank) && liveness_.lost(rank)) end(rank);
  }
  return absl::OkStatus();
}

WaitClock::time_point Mailbox::NamedBy(int peer) {
  const std::lock_guard lock(at(peer).mutex);
  return at(peer).ended_at + kMonitorTime;
}

std::string Mailbox::DescribePath(int peer) const {
  const Peer& of = *peers_[static_cast<size_t>(peer)];
  const Carrier* carrier = CarrierFor(of, Carrier::kLeastBytes);
  const std::string tcp = absl::StrFormat("tcp to %s, %s, pieces of %d KiB", of.other_end,
                                          DescribeLinkRate(of.bulk.socket.get()), kMaxPayloadBytes >> 10);
  return carrier == nullptr ? tcp : absl::StrCat(carrier->DescribePath(peer), "; less than ",
                                                 Carrier::kLeastBytes >> 10, " KiB: ", tcp);
}

absl::Status Mailbox::StatusOf(int peer) {
  const std::lock_guard lock(at(peer).mutex);
  return at(peer).ended;
}

// Groups.

void Mailbox::Enter(uint64_t group, const std::atomic<uint64_t>& started, std::vector<int> ranks) {
  const std::lock_guard lock(groups_mutex_);
  entered_[group] = {.started = &started, .ranks = std::move(ranks)};
}

void Mailbox::Leave(uint64_t group) {
  {
    const std::lock_guard lock(groups_mutex_);
    entered_.erase(group);
    broken_.erase(group);
  }
  for (const std::unique_ptr<Peer>& peer : peers_) {
    if (peer == nullptr) continue;
    const std::lock_guard lock(peer->mutex);
    std::erase_if(peer->readies, [&](const FrameHeader& ready) { return ready.group == group; });
    std::erase_if(peer->groups, [&](const Peer::OfGroup& entry) { return entry.group == group; });
  }
}

void Mailbox::Break(uint64_t group, std::span<const int> ranks, const Broken& broken) {
  const std::string_view text = std::string_view(broken.why).substr(0, kMaxTextBytes);
  for (const int rank : ranks) {
    if (!Reaches(rank)) continue;
    const std::lock_guard lock(at(rank).mutex);
    SendControl(at(rank),
                {.kind = FrameKind::kBreak,
                 .tag = static_cast<uint32_t>(broken.code),
                 .group = group,
                 .sequence = broken.sequence},
                std::as_bytes(std::span(text)));
  }
}

std::optional<Broken> Mailbox::BrokenBy(uint64_t group) {
  const std::lock_guard lock(groups_mutex_);
  const auto found = broken_.find(group);
  return found == broken_.end() ? std::nullopt : std::optional(found->second);
}

void Mailbox::Ask(int peer, uint64_t group) {
  const std::lock_guard lock(at(peer).mutex);
  at(peer).Of(group).told.reset();
  SendControl(at(peer), {.kind = FrameKind::kAsk, .group = group});
}

std::optional<uint64_t> Mailbox::Told(int peer, uint64_t group) {
  const std::lock_guard lock(at(peer).mutex);
  return at(peer).Of(group).told;
}

std::optional<Heard> Mailbox::HeardOf(int peer, uint64_t group) {
  const std::lock_guard lock(at(peer).mutex);
  for (const Peer::OfGroup& entry : at(peer).groups) {
    if (entry.group == group && entry.heard.sequence != 0) return entry.heard;
  }
  return std::nullopt;
}

// Parcels.

void Mailbox::Send(Parcel& parcel, const CallBytes& call) {
  Peer& peer = at(parcel.peer);
  const std::lock_guard lock(peer.mutex);
  parcel.moved = 0;
  parcel.state.store(peer.ended.ok() ? Parcel::kPosted : Parcel::kFailed, std::memory_order_seq_cst);
  if (!peer.ended.ok()) return;
  for (size_t i = 0; i < peer.readies.size(); ++i) {
    const FrameHeader ready = peer.readies[i];
    if (!parcel.IsOf(ready)) continue;
    peer.readies.erase(peer.readies.begin() + static_cast<std::ptrdiff_t>(i));
    if (ready.value != static_cast<uint64_t>(parcel.bytes)) {
      parcel.state.store(Parcel::kDiffers, std::memory_order_seq_cst);
      return;
    }
    BeginStream(peer, parcel);
    return;
  }
  peer.sends.push_back(&parcel);
  uint64_t& said = peer.Of(parcel.group).said;
  if (said >= parcel.sequence) return;
  said = parcel.sequence;
  SendControl(peer, {.kind = FrameKind::kCalls, .group = parcel.group, .sequence = parcel.sequence}, call);
}

void Mailbox::BeginStream(Peer& peer, Parcel& parcel) {
  const FrameHeader header{.kind = FrameKind::kData,
                           .tag = parcel.tag,
                           .group = parcel.group,
                           .sequence = parcel.sequence,
                           .value = static_cast<uint64_t>(parcel.bytes)};
  if (Carrier* carrier = CarrierFor(peer, parcel.bytes); carrier != nullptr) {
    const absl::Status status = carrier->Send(peer.rank, {header, parcel.data, parcel.bytes, parcel.priority, &parcel});
    if (status.ok()) return;
    parcel.state.store(Parcel::kFailed, std::memory_order_seq_cst);
    return End(peer, status);
  }
  Way& way = parcel.priority > 0 || parcel.bytes <= kExpressBytes ? peer.express : peer.bulk;
  way.streams.push_back({.header = header,
                          .data = parcel.data,
                          .bytes = parcel.bytes,
                          .priority = parcel.priority,
                          .ticket = tickets_.fetch_add(1, std::memory_order_relaxed),
                          .parcel = &parcel});
  Flush(peer, way);
}

void Mailbox::Receive(Parcel& parcel, const CallBytes& call) {
  Peer& peer = at(parcel.peer);
  const std::lock_guard lock(peer.mutex);
  parcel.moved = 0;
  parcel.state.store(peer.ended.ok() ? Parcel::kPosted : Parcel::kFailed, std::memory_order_seq_cst);
  if (!peer.ended.ok()) return;
  peer.receives.push_back(&parcel);
  const bool has_said = std::exchange(peer.Of(parcel.group).said, parcel.sequence) == parcel.sequence;
  SendControl(peer,
              {.kind = FrameKind::kReady,
               .tag = parcel.tag,
               .group = parcel.group,
               .sequence = parcel.sequence,
               .value = static_cast<uint64_t>(parcel.bytes)},
              has_said ? std::span<const std::byte>() : call);
}

void Mailbox::Cancel(Parcel& parcel) {
  if (parcel.state.load(std::memory_order_seq_cst) == Parcel::kIdle) return;
  Peer& peer = at(parcel.peer);
  const absl::Time deadline = absl::Now() + absl::Seconds(1);
  std::unique_lock lock(peer.mutex);
  std::erase(peer.sends, &parcel);
  std::erase(peer.receives, &parcel);
  for (Way* way : peer.ways()) {
    if (way->in_parcel == &parcel) way->in_parcel = nullptr, way->into = nullptr;
    const auto is_going = [&] {
      return peer.ended.ok() && way->in_frame && way->streams[way->current].parcel == &parcel;
    };
    while (is_going()) {
      if (absl::Now() >= deadline) {
        End(peer,
            absl::UnavailableError(absl::StrFormat(
                "rank %d took nothing for a second of what was half on its way when the group failed", peer.rank)));
        break;
      }
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      lock.lock();
      FlushNow(peer, *way);  // the caller may be the thread that else does it
    }
    const auto stream =
        std::find_if(way->streams.begin(), way->streams.end(), [&](const Stream& one) { return one.parcel == &parcel; });
    if (stream == way->streams.end()) continue;
    if (way->in_frame && stream - way->streams.begin() < static_cast<std::ptrdiff_t>(way->current)) --way->current;
    way->streams.erase(stream);
  }
  // What a carrier has in hand it gives back at the latest when the connection has ended.
  Carrier* carrier = carrier_;
  while (parcel.landing > 0 || (carrier != nullptr && carrier->Withdraw(peer.rank, parcel))) {
    if (absl::Now() >= deadline) {
      End(peer, absl::UnavailableError(absl::StrFormat(
                    "what was on its way to or from rank %d did not come to its end in a second", peer.rank)));
    }
    // Whoever still had it would read or write what is another's by then.
    if (absl::Now() >= deadline + absl::Seconds(30)) std::abort();
    lock.unlock();
    if (reactor_->OnOwnThread()) {
      carrier->Turn();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    lock.lock();
  }
  parcel.state.store(Parcel::kIdle, std::memory_order_seq_cst);
}

// Memory of another rank.

void Mailbox::Start(RemoteAccess& access) {
  Peer& peer = at(access.address.rank);
  const std::lock_guard lock(peer.mutex);
  access.moved = 0;
  access.failed = !peer.ended.ok();
  access.done.store(access.failed, std::memory_order_seq_cst);
  if (access.failed) return;
  FrameHeader header{.kind = access.kind,
                     .tag = static_cast<uint32_t>(access.address.region),
                     .group = access.expected,
                     .sequence = access.number = ++peer.numbers,
                     .offset = access.address.offset,
                     .value = access.kind == FrameKind::kGet ? static_cast<uint64_t>(access.bytes) : access.value};
  const bool is_answered = access.kind != FrameKind::kPut && access.kind != FrameKind::kSignal;
  if (is_answered) peer.asked.push_back(&access);
  // Also what has no payload goes behind the puts before it.
  peer.bulk.streams.push_back({.header = header,
                          .data = access.data,
                          .bytes = access.kind == FrameKind::kPut ? access.bytes : 0,
                          .ticket = tickets_.fetch_add(1, std::memory_order_relaxed),
                               .access = is_answered ? nullptr : &access});
  Flush(peer, peer.bulk);
}

// Beside the connection.

Carrier* Mailbox::CarrierFor(const Peer& peer, int64_t bytes) const {
  Carrier* carrier = carrier_.load(std::memory_order_acquire);
  return carrier != nullptr && bytes >= Carrier::kLeastBytes && carrier->Carries(peer.rank) ? carrier : nullptr;
}

void Mailbox::Fail(int rank, const absl::Status& why) {
  const std::lock_guard lock(at(rank).mutex);
  End(at(rank), why);
}

absl::StatusOr<Carrier::Landing> Mailbox::Approach(int rank, const FrameHeader& header) {
  Peer& peer = at(rank);
  const std::lock_guard lock(peer.mutex);
  if (!peer.ended.ok()) return peer.ended;
  Carrier::Landing landing;
  // Pieces come in any order.
  const auto land_in = [&](auto& whole) -> absl::Status {
    if (header.bytes == 0 || header.offset > whole.bytes - header.bytes ||
        header.bytes > whole.bytes - whole.moved - whole.landing) {
      return absl::DataLossError(absl::StrFormat("%d bytes at %d of %d, of which %d are there", header.bytes,
                                                 header.offset, whole.bytes, whole.moved + whole.landing));
    }
    landing.into = whole.data + header.offset;
    whole.landing += header.bytes;
    return absl::OkStatus();
  };
  if (header.kind == FrameKind::kData) {
    for (Parcel* parcel : peer.receives) {
      if (!parcel->IsOf(header)) continue;
      landing.parcel = parcel;
      GANTRY_RETURN_IF_ERROR(land_in(*parcel));
      break;
    }
  } else if (header.kind == FrameKind::kGot) {
    for (RemoteAccess* access : peer.asked) {
      if (access->number != header.sequence || access->kind != FrameKind::kGet) continue;
      landing.access = access;
      GANTRY_RETURN_IF_ERROR(land_in(*access));
      break;
    }
    if (landing.access == nullptr) return absl::DataLossError("an answer that nobody asked for");
  } else if (header.kind != FrameKind::kProbe) {
    return absl::DataLossError(absl::StrFormat("a frame of kind %d beside the connection", header.kind));
  }
  return landing;
}

void Mailbox::Landed(int rank, const FrameHeader& header, const Carrier::Landing& landing, bool is_there) {
  Peer& peer = at(rank);
  const std::lock_guard lock(peer.mutex);
  if (Parcel* parcel = landing.parcel; parcel != nullptr) {
    parcel->landing -= header.bytes;
    const auto awaited = std::find(peer.receives.begin(), peer.receives.end(), parcel);  // else it was cancelled
    if (is_there && awaited != peer.receives.end() && (parcel->moved += header.bytes) == parcel->bytes) {
      peer.receives.erase(awaited);
      parcel->state.store(Parcel::kDone, std::memory_order_seq_cst);
    }
  }
  if (RemoteAccess* access = landing.access; access != nullptr) {
    access->landing -= header.bytes;
    if (is_there) access->moved += header.bytes;
    access->failed = !peer.ended.ok();
    if (access->failed ? access->landing == 0 : access->moved == access->bytes) {
      std::erase(peer.asked, access);
      access->done.store(true, std::memory_order_seq_cst);
    }
  }
  Ring();
  if (is_there) {
    SendControl(peer, {.kind = FrameKind::kTaken,
                       .tag = header.tag,
                       .group = header.group,
                       .sequence = header.sequence,
                       .offset = header.bytes});
  }
}

absl::StatusOr<std::byte*> Mailbox::OwnMemory(const FrameHeader& header, int64_t bytes, bool writes) const {
  const GlobalAddress address{links_.rank(), static_cast<int>(header.tag), header.offset};
  GANTRY_RETURN_IF_ERROR(pool_.Check(address, bytes));
  if (writes && !pool_.writable(address.rank, address.region))
    return absl::InvalidArgumentError(
        absl::StrFormat("region %d is lent to be read, not to be written", address.region));
  return pool_.data(address.rank, address.region) + address.offset;
}

}  // namespace gantry::tcp
