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

namespace gantry::tcp {
namespace {

// In the kernel's queue, beyond what is on its way: little where what is urgent goes, much where this thread would have
// to wake for it.
constexpr int kExpressUnsent = 64 << 10, kBulkUnsent = 512 << 10;
constexpr int64_t kExpressBytes = int64_t{16} << 10;  // parcels of no more go there too
constexpr int64_t kReadAtOnce = int64_t{1} << 20;  // from one connection, before others have their turn
constexpr size_t kMaxReady = size_t{1} << 16;      // parcels that a peer awaits and this rank has not come to
constexpr size_t kMaxAnswers = 4096;               // reads of this rank's memory at a time, of one peer

}  // namespace

// Bytes that go out: a parcel whose receiver is ready, an access, or the answer to one.
struct Mailbox::Stream {
  FrameHeader header;
  const std::byte* data = nullptr;
  int64_t bytes = 0, moved = 0;
  int priority = 0;
  uint64_t ticket = 0;
  Parcel* parcel = nullptr;
  RemoteAccess* access = nullptr;
};

// One of the two connections with a peer.
struct Mailbox::Way {
  Descriptor socket;

  // Going out. A frame that was begun is sent to its end; then words, then the first of the streams.
  std::vector<std::byte> words;
  size_t words_sent = 0;
  std::vector<Stream> streams;
  std::array<std::byte, kHeaderBytes> header;
  size_t header_sent = kHeaderBytes;
  const std::byte* payload = nullptr;
  int64_t payload_left = 0, payload_bytes = 0;
  size_t current = 0;  // the stream of the frame
  bool in_frame = false;
  bool wants_out = false;
  bool is_noted = false;  // in unsent_; of the own thread

  // Coming in.
  std::array<std::byte, kHeaderBytes> in_header;
  size_t in_header_filled = 0;
  FrameHeader in;
  bool has_header = false;
  std::byte* into = nullptr;  // null: thrown away
  int64_t in_left = 0;
  Parcel* in_parcel = nullptr;
  RemoteAccess* in_access = nullptr;
  std::array<std::byte, kMaxTextBytes> text;
  int low_water = 1;  // the socket's
  bool closed = false;

  bool IsSent() const { return words.size() == words_sent && streams.empty(); }
};

struct Mailbox::Peer {
  struct OfGroup {
    uint64_t group;
    Heard heard;                   // from the peer
    uint64_t said = 0;             // to it: the last operation
    std::optional<uint64_t> told;  // by it, how many it has started
  };

  OfGroup& Of(uint64_t group) {
    for (OfGroup& entry : groups) {
      if (entry.group == group) return entry;
    }
    return groups.emplace_back(OfGroup{.group = group, .heard = {}, .told = {}});
  }

  int rank = 0;
  std::mutex mutex;
  std::string other_end;
  absl::Status ended;
  Way express, bulk;
  std::array<Way*, 2> ways() { return {&express, &bulk}; }

  std::vector<Parcel*> sends;  // whose receiver is not ready
  std::vector<Parcel*> receives;
  std::vector<FrameHeader> readies;  // of parcels that this rank has not sent yet
  std::vector<OfGroup> groups;
  std::vector<RemoteAccess*> asked;  // accesses that wait for an answer
  uint64_t numbers = 0;
};

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
  const absl::Time deadline = absl::Now() + absl::Seconds(5);
  for (const std::unique_ptr<Peer>& peer : peers_) {
    for (bool sent = peer == nullptr; !sent && absl::Now() < deadline;) {
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
      if (!sent) std::this_thread::sleep_for(std::chrono::microseconds(200));
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
        peer.other_end =
            absl::StrCat(DescribeOtherEnd(outcome.socket.get()), ", ", DescribeLinkRate(outcome.socket.get()));
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
  on_loss_ = liveness_.OnLoss([this](int rank) {
    if (!Reaches(rank)) return;
    const std::lock_guard lock(at(rank).mutex);
    End(at(rank), absl::UnavailableError(absl::StrFormat("rank %d is lost", rank)));
  });
  return absl::OkStatus();
}

std::string Mailbox::DescribePath(int peer) const {
  const Peer& of = *peers_[static_cast<size_t>(peer)];
  const Carrier* carrier = CarrierFor(of, Carrier::kLeastBytes);
  const std::string tcp = absl::StrFormat("tcp to %s, pieces of %d KiB", of.other_end, kMaxPayloadBytes >> 10);
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

// Going out.

void Mailbox::SendControl(Peer& peer, const FrameHeader& header, std::span<const std::byte> payload) {
  if (!peer.ended.ok()) return;
  FrameHeader whole = header;
  whole.bytes = static_cast<int64_t>(payload.size());
  const auto encoded = Encode(whole);
  std::vector<std::byte>& words = peer.express.words;
  words.insert(words.end(), encoded.begin(), encoded.end());
  words.insert(words.end(), payload.begin(), payload.end());
  Flush(peer, peer.express);
}

void Mailbox::BeginFrame(Way& way) {
  size_t best = 0;
  for (size_t i = 1; i < way.streams.size(); ++i) {
    const Stream &one = way.streams[i], &other = way.streams[best];
    if (one.priority != other.priority ? one.priority > other.priority : one.ticket < other.ticket) best = i;
  }
  Stream& stream = way.streams[best];
  FrameHeader header = stream.header;
  header.offset += stream.moved;
  header.bytes = std::min(kMaxPayloadBytes, stream.bytes - stream.moved);
  way.header = Encode(header);
  way.header_sent = 0;
  way.payload = stream.data + stream.moved;
  way.payload_left = way.payload_bytes = header.bytes;
  way.current = best;
  way.in_frame = true;
}

void Mailbox::EndFrame(Way& way) {
  way.in_frame = false;
  Stream& stream = way.streams[way.current];
  stream.moved += way.payload_bytes;
  if (stream.moved < stream.bytes) return;
  if (stream.parcel != nullptr) stream.parcel->state.store(Parcel::kDone, std::memory_order_seq_cst);
  if (stream.access != nullptr) stream.access->done.store(true, std::memory_order_seq_cst);
  const bool is_awaited = stream.parcel != nullptr || stream.access != nullptr;
  way.streams.erase(way.streams.begin() + static_cast<std::ptrdiff_t>(way.current));
  if (is_awaited) Ring();
}

void Mailbox::Flush(Peer& peer, Way& way) {
  if (!reactor_->OnOwnThread()) return FlushNow(peer, way);
  if (!std::exchange(way.is_noted, true)) unsent_.emplace_back(&peer, &way);
}

void Mailbox::FlushNow(Peer& peer, Way& way) {
  bool is_full = false;
  while (peer.ended.ok() && !is_full) {
    if (!way.in_frame && way.words_sent == way.words.size()) {
      way.words.clear();
      way.words_sent = 0;
      if (way.streams.empty()) break;
      BeginFrame(way);
    }
    absl::StatusOr<size_t> sent = size_t{0};
    if (way.in_frame) {
      const auto header = std::span<const std::byte>(way.header).subspan(way.header_sent);
      sent = SendSome(way.socket.get(), header, {way.payload, static_cast<size_t>(way.payload_left)}, {});
      if (sent.ok()) {
        const size_t of_header = std::min(*sent, header.size());
        way.header_sent += of_header;
        way.payload += *sent - of_header;
        way.payload_left -= static_cast<int64_t>(*sent - of_header);
        is_full = *sent == 0;
        if (way.header_sent == kHeaderBytes && way.payload_left == 0) {
          EndFrame(way);
          is_full = false;
        }
      }
    } else {
      sent = SendSome(way.socket.get(), std::span<const std::byte>(way.words).subspan(way.words_sent), {}, {});
      if (sent.ok()) {
        way.words_sent += *sent;
        is_full = *sent == 0;
      }
    }
    if (!sent.ok()) End(peer, sent.status());
  }
  if (!peer.ended.ok() || way.wants_out == is_full) return;
  way.wants_out = is_full;
  reactor_->Modify(way.socket.get(), EPOLLIN | (is_full ? EPOLLOUT : 0u));
}

void Mailbox::End(Peer& peer, absl::Status why) {
  if (!peer.ended.ok()) return;
  peer.ended = why.ok() ? absl::UnavailableError("it has ended") : std::move(why);
  for (const Way* way : peer.ways()) shutdown(way->socket.get(), SHUT_RDWR);
  // Its thread finds it ended and looks no more; the numbers stay taken until then.
  reactor_->Post([this, &peer] {
    for (const Way* way : peer.ways()) reactor_->Remove(way->socket.get());
  });
  for (std::vector<Parcel*>* parcels : {&peer.sends, &peer.receives}) {
    for (Parcel* parcel : *parcels) parcel->state.store(Parcel::kFailed, std::memory_order_seq_cst);
    parcels->clear();
  }
  const auto fail = [](RemoteAccess& access) {
    access.failed = true;
    access.done.store(true, std::memory_order_seq_cst);
  };
  for (RemoteAccess* access : peer.asked) {
    if (access->landing == 0) fail(*access);
  }
  std::erase_if(peer.asked, [](const RemoteAccess* access) { return access->landing == 0; });
  if (carrier_ != nullptr) carrier_.load()->End(peer.rank);
  for (Way* way : peer.ways()) {
    for (Stream& stream : way->streams) {
      if (stream.parcel != nullptr) stream.parcel->state.store(Parcel::kFailed, std::memory_order_seq_cst);
      if (stream.access != nullptr) fail(*stream.access);
    }
    way->streams.clear();
    way->in_frame = false;
    way->into = nullptr;
    way->in_parcel = nullptr;
    way->in_access = nullptr;
  }
  bell_.Wake();
}

// Coming in.

void Mailbox::OnEvents(Peer& peer, Way& way, uint32_t events) {
  {
    const std::lock_guard lock(peer.mutex);
    if (!peer.ended.ok()) return;
    if ((events & EPOLLOUT) != 0) Flush(peer, way);
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) Read(peer, way);
  }
  EndTurn();
}

// What a turn of the own thread gives to send goes out together.
void Mailbox::EndTurn() {
  while (something_done_ || !unsent_.empty()) {
    if (std::exchange(something_done_, false)) go_on_();
    while (!unsent_.empty()) {
      const auto [of, to_send] = unsent_.back();
      const std::lock_guard lock(of->mutex);
      unsent_.pop_back();
      to_send->is_noted = false;
      FlushNow(*of, *to_send);
    }
  }
}

// What is done on the own thread is told by that once it holds no lock.
void Mailbox::Ring() {
  if (reactor_->OnOwnThread()) {
    something_done_ = true;
  } else {
    bell_.Ring();
  }
}

void Mailbox::Read(Peer& peer, Way& way) {
  static thread_local std::vector<std::byte> waste(static_cast<size_t>(kMaxPayloadBytes));
  bool is_empty = false;
  for (int64_t taken = 0; taken < kReadAtOnce && !is_empty && peer.ended.ok();) {
    // The rest of a payload, and the header behind it, in one call.
    std::span<std::byte> payload, header = std::span(way.in_header).subspan(way.in_header_filled);
    if (way.has_header) {
      payload = {way.into != nullptr ? way.into : waste.data(), static_cast<size_t>(way.in_left)};
      header = way.in_header;
    }
    const absl::StatusOr<Received> got = ReceiveSome(way.socket.get(), payload, header);
    if (!got.ok() || got->closed) return Close(peer, way, got.status());
    if (got->would_block) break;
    taken += static_cast<int64_t>(got->bytes);
    is_empty = got->bytes < payload.size() + header.size();
    const size_t of_payload = std::min(got->bytes, payload.size());
    absl::Status status;
    if (way.has_header) {
      if (way.into != nullptr) way.into += of_payload;
      way.in_left -= static_cast<int64_t>(of_payload);
      if (way.in_left > 0) continue;
      status = EndPayload(peer, way);
    }
    way.in_header_filled += got->bytes - of_payload;
    if (status.ok() && way.in_header_filled == kHeaderBytes) {
      status = TakeHeader(peer, way);
      if (status.ok() && way.in_left == 0) status = EndPayload(peer, way);
    }
    if (!status.ok()) End(peer, Annotate(status, absl::StrFormat("what rank %d sent", peer.rank)));
  }
  if (!peer.ended.ok()) return;
  // Awake again when the frame is there, not for each of its packets.
  const int awaited = static_cast<int>(way.has_header ? way.in_left : kHeaderBytes - way.in_header_filled);
  if (awaited == way.low_water) return;
  way.low_water = awaited;
  setsockopt(way.socket.get(), SOL_SOCKET, SO_RCVLOWAT, &awaited, sizeof(awaited));
}

// Of a way that has come to its end. What the peer sent over the other one before is taken first.
void Mailbox::Close(Peer& peer, Way& way, absl::Status why) {
  way.closed = true;
  Way& other = &way == &peer.bulk ? peer.express : peer.bulk;
  if (!other.closed) Read(peer, other);
  if (!why.ok()) return End(peer, std::move(why));
  if (other.closed)
    return End(peer, absl::UnavailableError(absl::StrFormat("rank %d closed the connection", peer.rank)));
  reactor_->Post([this, &way] { reactor_->Remove(way.socket.get()); });
}

absl::Status Mailbox::EndPayload(Peer& peer, Way& way) {
  way.has_header = false;
  way.in_header_filled = 0;
  return TakePayload(peer, way);
}

// A frame begins: where its payload goes.
absl::Status Mailbox::TakeHeader(Peer& peer, Way& way) {
  GANTRY_ASSIGN_OR_RETURN(way.in, Decode(way.in_header));
  const FrameHeader& in = way.in;
  way.has_header = true;
  way.in_left = in.bytes;
  way.into = nullptr;
  way.in_parcel = nullptr;
  way.in_access = nullptr;
  switch (in.kind) {
    case FrameKind::kReady:
    case FrameKind::kCalls:
    case FrameKind::kBreak:
      way.into = way.text.data();
      break;
    case FrameKind::kData:
      for (Parcel* parcel : peer.receives) {
        if (!parcel->IsOf(in)) continue;
        if (in.value != static_cast<uint64_t>(parcel->bytes) || in.offset != parcel->moved ||
            in.bytes > parcel->bytes - parcel->moved || peer.express.in_parcel == parcel ||
            peer.bulk.in_parcel == parcel) {
          return absl::DataLossError(absl::StrFormat("%d bytes at %d of %d, of which %d are there", in.bytes, in.offset,
                                                     parcel->bytes, parcel->moved));
        }
        way.in_parcel = parcel;
        way.into = parcel->data + in.offset;
        break;
      }
      break;
    case FrameKind::kPut: {
      GANTRY_ASSIGN_OR_RETURN(way.into, OwnMemory(in, in.bytes, true));
      break;
    }
    case FrameKind::kGot:
      for (RemoteAccess* access : peer.asked) {
        if (access->number != in.sequence || access->kind != FrameKind::kGet) continue;
        if (in.offset != access->moved || in.bytes > access->bytes - access->moved ||
            peer.express.in_access == access || peer.bulk.in_access == access)
          return absl::DataLossError("more than was asked for");
        way.in_access = access;
        way.into = access->data + in.offset;
      }
      if (way.in_access == nullptr) return absl::DataLossError("an answer that nobody asked for");
      break;
    default:
      break;
  }
  return absl::OkStatus();
}

// What the peer calls, of the frame that is there.
void Mailbox::Hear(Peer& peer, const Way& way) {
  if (way.in.bytes == 0) return;  // it has said so before
  Heard& heard = peer.Of(way.in.group).heard;
  if (way.in.sequence < heard.sequence) return;
  heard.sequence = way.in.sequence;
  std::memcpy(heard.call.data(), way.text.data(), kCallBytes);
}

absl::Status Mailbox::TakePayload(Peer& peer, Way& way) {
  const FrameHeader& in = way.in;
  switch (in.kind) {
    case FrameKind::kData: {
      Parcel* parcel = std::exchange(way.in_parcel, nullptr);
      if (parcel == nullptr) return absl::OkStatus();  // cancelled meanwhile
      parcel->moved += in.bytes;
      if (parcel->moved < parcel->bytes) return absl::OkStatus();
      std::erase(peer.receives, parcel);
      parcel->state.store(Parcel::kDone, std::memory_order_seq_cst);
      Ring();
      return absl::OkStatus();
    }
    case FrameKind::kCalls:
      Hear(peer, way);
      Ring();  // this rank may wait for something else, and see here that the two differ
      return absl::OkStatus();
    case FrameKind::kReady: {
      Hear(peer, way);
      for (size_t i = 0; i < peer.sends.size(); ++i) {
        Parcel* parcel = peer.sends[i];
        if (!parcel->IsOf(in)) continue;
        peer.sends.erase(peer.sends.begin() + static_cast<std::ptrdiff_t>(i));
        if (in.value == static_cast<uint64_t>(parcel->bytes)) {
          BeginStream(peer, *parcel);
        } else {
          parcel->state.store(Parcel::kDiffers, std::memory_order_seq_cst);
          Ring();
        }
        return absl::OkStatus();
      }
      if (peer.readies.size() == kMaxReady) return absl::DataLossError("it awaits more than it may");
      peer.readies.push_back(in);
      Ring();
      return absl::OkStatus();
    }
    case FrameKind::kBreak: {
      const auto code = static_cast<absl::StatusCode>(in.tag);
      const Broken broken{in.sequence, code == absl::StatusCode::kOk ? absl::StatusCode::kUnknown : code,
                          std::string(reinterpret_cast<const char*>(way.text.data()), static_cast<size_t>(in.bytes))};
      const std::lock_guard lock(groups_mutex_);
      if (!broken_.emplace(in.group, broken).second) return absl::OkStatus();
      if (const auto found = entered_.find(in.group); found != entered_.end())
        reactor_->Post([this, group = in.group, ranks = found->second.ranks, broken] {
          Break(group, ranks, broken);
          EndTurn();
        });
      breaks_.fetch_add(1, std::memory_order_seq_cst);
      bell_.Wake();
      return absl::OkStatus();
    }
    case FrameKind::kTell:
      peer.Of(in.group).told = in.sequence;
      Ring();
      return absl::OkStatus();
    case FrameKind::kGot: {
      RemoteAccess& access = *std::exchange(way.in_access, nullptr);
      access.moved += in.bytes;
      if (access.moved < access.bytes) return absl::OkStatus();
      std::erase(peer.asked, &access);
      access.done.store(true, std::memory_order_seq_cst);
      Ring();
      return absl::OkStatus();
    }
    case FrameKind::kWord: {
      const auto found = std::find_if(peer.asked.begin(), peer.asked.end(), [&](const RemoteAccess* access) {
        return access->number == in.sequence && access->kind != FrameKind::kGet;
      });
      if (found == peer.asked.end()) return absl::DataLossError("an answer that nobody asked for");
      RemoteAccess& access = **found;
      peer.asked.erase(found);
      access.result = in.value;
      access.done.store(true, std::memory_order_seq_cst);
      Ring();
      return absl::OkStatus();
    }
    case FrameKind::kPut:
      return absl::OkStatus();
    default:
      return Answer(peer, in);
  }
}

// What a rank asks of this one, and its memory.
absl::Status Mailbox::Answer(Peer& peer, const FrameHeader& header) {
  if (header.kind == FrameKind::kAsk) {
    uint64_t started = 0;
    {
      const std::lock_guard lock(groups_mutex_);
      const auto found = entered_.find(header.group);
      if (found != entered_.end()) started = found->second.started->load(std::memory_order_seq_cst);
    }
    SendControl(peer, {.kind = FrameKind::kTell, .group = header.group, .sequence = started});
    return absl::OkStatus();
  }
  if (header.kind == FrameKind::kTaken) {
    if (carrier_ == nullptr) return absl::DataLossError("it has taken what was not sent");
    carrier_.load()->Acknowledge(peer.rank, header);
    return absl::OkStatus();
  }
  if (header.kind == FrameKind::kProbe) return absl::DataLossError("a measurement of the wrong path");
  if (header.kind == FrameKind::kGet) {
    const auto bytes = static_cast<int64_t>(header.value);
    Carrier* carrier = CarrierFor(peer, bytes);
    if (peer.bulk.streams.size() + (carrier != nullptr ? carrier->Waiting(peer.rank) : 0) >= kMaxAnswers)
      return absl::DataLossError("it reads more at a time than it may");
    GANTRY_ASSIGN_OR_RETURN(const std::byte* data, OwnMemory(header, bytes, false));
    if (carrier != nullptr) {
      return carrier->Send(peer.rank, {.header = {.kind = FrameKind::kGot, .sequence = header.sequence},
                                       .data = data,
                                       .bytes = bytes});
    }
    peer.bulk.streams.push_back({.header = {.kind = FrameKind::kGot, .sequence = header.sequence},
                            .data = data,
                            .bytes = bytes,
                                 .ticket = tickets_.fetch_add(1, std::memory_order_relaxed)});
    Flush(peer, peer.bulk);
    return absl::OkStatus();
  }
  if (header.offset % 8 != 0) return absl::DataLossError("a word that is not aligned");
  GANTRY_ASSIGN_OR_RETURN(std::byte * place, OwnMemory(header, 8, true));
  const std::atomic_ref<uint64_t> word(*reinterpret_cast<uint64_t*>(place));
  uint64_t before = 0;
  if (header.kind == FrameKind::kCompareSwap) {
    before = header.group;
    word.compare_exchange_strong(before, header.value, std::memory_order_seq_cst);
  } else {
    before = word.fetch_add(header.value, std::memory_order_seq_cst);
  }
  Ring();
  if (header.kind != FrameKind::kSignal)
    SendControl(peer, {.kind = FrameKind::kWord, .sequence = header.sequence, .value = before});
  return absl::OkStatus();
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
