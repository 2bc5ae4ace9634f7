#include "comm/tcp/mailbox.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "comm/channels.h"
#include "comm/handshake_group.h"
#include "comm/socket.h"

namespace gantry::tcp {
namespace {

constexpr int kUnsentBytes = 128 << 10;            // in the kernel's queue, beyond what is on its way
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
  Descriptor socket;
  std::string other_end;
  absl::Status ended;

  // Going out. A frame that was begun is sent to its end; then words, then the first of the streams.
  std::vector<std::byte> words;
  size_t words_sent = 0;
  std::vector<Parcel*> sends;  // whose receiver is not ready
  std::vector<Stream> streams;
  std::array<std::byte, kHeaderBytes> header;
  size_t header_sent = kHeaderBytes;
  const std::byte* payload = nullptr;
  int64_t payload_left = 0, payload_bytes = 0;
  size_t current = 0;  // the stream of the frame
  bool in_frame = false;
  bool wants_out = false;

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
  std::vector<Parcel*> receives;
  std::vector<FrameHeader> readies;  // of parcels that this rank has not sent yet
  std::vector<OfGroup> groups;
  std::vector<RemoteAccess*> asked;  // accesses that wait for an answer
  uint64_t numbers = 0;
};

Mailbox::Mailbox(Links& links, Liveness& liveness, const Pool& pool, Doorbell& bell)
    : links_(links), liveness_(liveness), pool_(pool), bell_(bell), peers_(static_cast<size_t>(links.size())) {}

Mailbox::~Mailbox() {
  if (reactor_ != nullptr) Drain();
  if (on_loss_ >= 0) liveness_.Forget(on_loss_);
  if (reactor_ != nullptr) reactor_->Stop();
}

absl::StatusOr<std::unique_ptr<Mailbox>> Mailbox::Open(Links& links, Liveness& liveness, const Pool& pool,
                                                       Doorbell& bell, absl::Duration timeout) {
  auto mailbox = std::unique_ptr<Mailbox>(new Mailbox(links, liveness, pool, bell));
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
        int unacknowledged = 0;
        ioctl(peer->socket.get(), SIOCOUTQ, &unacknowledged);
        sent = !peer->ended.ok() ||
               (unacknowledged == 0 && peer->words.size() == peer->words_sent && peer->streams.empty());
      }
      if (!sent) std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }
}

// The lower rank of a pair listens and says where, the higher connects.
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
    ++missing;
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
    GANTRY_ASSIGN_OR_RETURN(Descriptor socket, StartConnect(address));
    group.Add(std::move(socket), Handshake::Role::kInitiator, peer, text, deadline);
  }
  std::string stranger;
  while (missing > 0) {
    if (absl::Now() >= deadline) {
      std::string late;
      for (const std::unique_ptr<Peer>& peer : peers_) {
        if (peer != nullptr && !peer->socket.valid()) absl::StrAppend(&late, late.empty() ? "" : ", ", peer->rank);
      }
      return absl::DeadlineExceededError(absl::StrCat(
          "rank ", late, " did not connect in time", stranger.empty() ? "" : "; a connection that failed: ", stranger));
    }
    for (HandshakeGroup::Outcome& outcome : group.Step(deadline)) {
      const bool known = outcome.peer >= 0 && outcome.peer < links_.size() && Reaches(outcome.peer);
      if (outcome.status.ok() && known && !at(outcome.peer).socket.valid()) {
        at(outcome.peer).other_end = DescribeOtherEnd(outcome.socket.get());
        at(outcome.peer).socket = std::move(outcome.socket);
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
  for (const std::unique_ptr<Peer>& peer : peers_) {
    if (peer == nullptr) continue;
    const int one = 1;
    setsockopt(peer->socket.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(peer->socket.get(), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &kUnsentBytes, sizeof(kUnsentBytes));
    peer->sends.reserve(64);
    peer->streams.reserve(64);
    peer->receives.reserve(64);
    peer->readies.reserve(64);
    peer->asked.reserve(64);
    GANTRY_RETURN_IF_ERROR(reactor_->Add(peer->socket.get(), EPOLLIN,
                                         [this, peer = peer.get()](uint32_t events) { OnEvents(*peer, events); }));
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
  return absl::StrFormat("tcp to %s, pieces of %d KiB", peers_[static_cast<size_t>(peer)]->other_end,
                         kMaxPayloadBytes >> 10);
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
  peer.streams.push_back({.header = {.kind = FrameKind::kData,
                                     .tag = parcel.tag,
                                     .group = parcel.group,
                                     .sequence = parcel.sequence,
                                     .value = static_cast<uint64_t>(parcel.bytes)},
                          .data = parcel.data,
                          .bytes = parcel.bytes,
                          .priority = parcel.priority,
                          .ticket = tickets_.fetch_add(1, std::memory_order_relaxed),
                          .parcel = &parcel});
  Flush(peer);
}

void Mailbox::Receive(Parcel& parcel, const CallBytes& call) {
  Peer& peer = at(parcel.peer);
  const std::lock_guard lock(peer.mutex);
  parcel.moved = 0;
  parcel.state.store(peer.ended.ok() ? Parcel::kPosted : Parcel::kFailed, std::memory_order_seq_cst);
  if (!peer.ended.ok()) return;
  peer.receives.push_back(&parcel);
  peer.Of(parcel.group).said = parcel.sequence;
  SendControl(peer,
              {.kind = FrameKind::kReady,
               .tag = parcel.tag,
               .group = parcel.group,
               .sequence = parcel.sequence,
               .value = static_cast<uint64_t>(parcel.bytes)},
              call);
}

void Mailbox::Cancel(Parcel& parcel) {
  if (parcel.state.load(std::memory_order_seq_cst) == Parcel::kIdle) return;
  Peer& peer = at(parcel.peer);
  const absl::Time deadline = absl::Now() + absl::Seconds(1);
  std::unique_lock lock(peer.mutex);
  std::erase(peer.sends, &parcel);
  std::erase(peer.receives, &parcel);
  if (peer.in_parcel == &parcel) peer.in_parcel = nullptr, peer.into = nullptr;
  const auto is_going = [&] {
    return peer.ended.ok() && peer.in_frame && peer.streams[peer.current].parcel == &parcel;
  };
  while (is_going()) {
    if (absl::Now() >= deadline) {
      End(peer, absl::UnavailableError(absl::StrFormat(
                    "rank %d took nothing for a second of what was half on its way when the group failed", peer.rank)));
      break;
    }
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    lock.lock();
  }
  const auto stream =
      std::find_if(peer.streams.begin(), peer.streams.end(), [&](const Stream& one) { return one.parcel == &parcel; });
  if (stream != peer.streams.end()) {
    if (peer.in_frame && stream - peer.streams.begin() < static_cast<std::ptrdiff_t>(peer.current)) --peer.current;
    peer.streams.erase(stream);
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
  peer.streams.push_back({.header = header,
                          .data = access.data,
                          .bytes = access.kind == FrameKind::kPut ? access.bytes : 0,
                          .ticket = tickets_.fetch_add(1, std::memory_order_relaxed),
                          .access = is_answered ? nullptr : &access});
  Flush(peer);
}

// Going out.

void Mailbox::SendControl(Peer& peer, const FrameHeader& header, std::span<const std::byte> payload) {
  if (!peer.ended.ok()) return;
  FrameHeader whole = header;
  whole.bytes = static_cast<int64_t>(payload.size());
  const auto encoded = Encode(whole);
  peer.words.insert(peer.words.end(), encoded.begin(), encoded.end());
  peer.words.insert(peer.words.end(), payload.begin(), payload.end());
  Flush(peer);
}

void Mailbox::BeginFrame(Peer& peer) {
  size_t best = 0;
  for (size_t i = 1; i < peer.streams.size(); ++i) {
    const Stream &one = peer.streams[i], &other = peer.streams[best];
    if (one.priority != other.priority ? one.priority > other.priority : one.ticket < other.ticket) best = i;
  }
  Stream& stream = peer.streams[best];
  FrameHeader header = stream.header;
  header.offset += stream.moved;
  header.bytes = std::min(kMaxPayloadBytes, stream.bytes - stream.moved);
  peer.header = Encode(header);
  peer.header_sent = 0;
  peer.payload = stream.data + stream.moved;
  peer.payload_left = peer.payload_bytes = header.bytes;
  peer.current = best;
  peer.in_frame = true;
}

void Mailbox::EndFrame(Peer& peer) {
  peer.in_frame = false;
  Stream& stream = peer.streams[peer.current];
  stream.moved += peer.payload_bytes;
  if (stream.moved < stream.bytes) return;
  if (stream.parcel != nullptr) stream.parcel->state.store(Parcel::kDone, std::memory_order_seq_cst);
  if (stream.access != nullptr) stream.access->done.store(true, std::memory_order_seq_cst);
  const bool is_awaited = stream.parcel != nullptr || stream.access != nullptr;
  peer.streams.erase(peer.streams.begin() + static_cast<std::ptrdiff_t>(peer.current));
  if (is_awaited) bell_.Ring();
}

void Mailbox::Flush(Peer& peer) {
  bool is_full = false;
  while (peer.ended.ok() && !is_full) {
    if (!peer.in_frame && peer.words_sent == peer.words.size()) {
      peer.words.clear();
      peer.words_sent = 0;
      if (peer.streams.empty()) break;
      BeginFrame(peer);
    }
    absl::StatusOr<size_t> sent = size_t{0};
    if (peer.in_frame) {
      const auto header = std::span<const std::byte>(peer.header).subspan(peer.header_sent);
      sent = SendSome(peer.socket.get(), header, {peer.payload, static_cast<size_t>(peer.payload_left)}, {});
      if (sent.ok()) {
        const size_t of_header = std::min(*sent, header.size());
        peer.header_sent += of_header;
        peer.payload += *sent - of_header;
        peer.payload_left -= static_cast<int64_t>(*sent - of_header);
        is_full = *sent == 0;
        if (peer.header_sent == kHeaderBytes && peer.payload_left == 0) {
          EndFrame(peer);
          is_full = false;
        }
      }
    } else {
      sent = SendSome(peer.socket.get(), std::span<const std::byte>(peer.words).subspan(peer.words_sent), {}, {});
      if (sent.ok()) {
        peer.words_sent += *sent;
        is_full = *sent == 0;
      }
    }
    if (!sent.ok()) End(peer, sent.status());
  }
  if (!peer.ended.ok() || peer.wants_out == is_full) return;
  peer.wants_out = is_full;
  reactor_->Modify(peer.socket.get(), EPOLLIN | (is_full ? EPOLLOUT : 0u));
}

void Mailbox::End(Peer& peer, absl::Status why) {
  if (!peer.ended.ok()) return;
  peer.ended = why.ok() ? absl::UnavailableError("it has ended") : std::move(why);
  shutdown(peer.socket.get(), SHUT_RDWR);
  // Its thread finds it ended and looks no more; the number stays taken until then.
  reactor_->Post([this, &peer] { reactor_->Remove(peer.socket.get()); });
  for (std::vector<Parcel*>* parcels : {&peer.sends, &peer.receives}) {
    for (Parcel* parcel : *parcels) parcel->state.store(Parcel::kFailed, std::memory_order_seq_cst);
    parcels->clear();
  }
  const auto fail = [](RemoteAccess& access) {
    access.failed = true;
    access.done.store(true, std::memory_order_seq_cst);
  };
  for (Stream& stream : peer.streams) {
    if (stream.parcel != nullptr) stream.parcel->state.store(Parcel::kFailed, std::memory_order_seq_cst);
    if (stream.access != nullptr) fail(*stream.access);
  }
  for (RemoteAccess* access : peer.asked) fail(*access);
  peer.streams.clear();
  peer.asked.clear();
  peer.in_frame = false;
  peer.into = nullptr;
  peer.in_parcel = nullptr;
  peer.in_access = nullptr;
  bell_.Wake();
}

// Coming in.

void Mailbox::OnEvents(Peer& peer, uint32_t events) {
  const std::lock_guard lock(peer.mutex);
  if (!peer.ended.ok()) return;
  if ((events & EPOLLOUT) != 0) Flush(peer);
  if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) Read(peer);
}

void Mailbox::Read(Peer& peer) {
  static thread_local std::vector<std::byte> waste(static_cast<size_t>(kMaxPayloadBytes));
  std::vector<Descriptor> none;
  for (int64_t taken = 0; taken < kReadAtOnce && peer.ended.ok();) {
    std::span<std::byte> to = std::span(peer.in_header).subspan(peer.in_header_filled);
    if (peer.has_header) {
      to = {peer.into != nullptr ? peer.into : waste.data(), static_cast<size_t>(peer.in_left)};
    }
    const absl::StatusOr<Received> got = ReceiveSome(peer.socket.get(), to, none);
    if (!got.ok()) return End(peer, got.status());
    if (got->would_block) return;
    if (got->closed)
      return End(peer, absl::UnavailableError(absl::StrFormat("rank %d closed the connection", peer.rank)));
    taken += static_cast<int64_t>(got->bytes);
    absl::Status status;
    if (peer.has_header) {
      if (peer.into != nullptr) peer.into += got->bytes;
      peer.in_left -= static_cast<int64_t>(got->bytes);
    } else {
      peer.in_header_filled += got->bytes;
      if (peer.in_header_filled < kHeaderBytes) continue;
      status = TakeHeader(peer);
    }
    if (status.ok() && peer.has_header && peer.in_left == 0) {
      status = TakePayload(peer);
      peer.has_header = false;
      peer.in_header_filled = 0;
    }
    if (!status.ok()) End(peer, Annotate(status, absl::StrFormat("what rank %d sent", peer.rank)));
  }
}

// A frame begins: where its payload goes.
absl::Status Mailbox::TakeHeader(Peer& peer) {
  GANTRY_ASSIGN_OR_RETURN(peer.in, Decode(peer.in_header));
  const FrameHeader& in = peer.in;
  peer.has_header = true;
  peer.in_left = in.bytes;
  peer.into = nullptr;
  peer.in_parcel = nullptr;
  peer.in_access = nullptr;
  switch (in.kind) {
    case FrameKind::kReady:
    case FrameKind::kCalls:
    case FrameKind::kBreak:
      peer.into = peer.text.data();
      break;
    case FrameKind::kData:
      for (Parcel* parcel : peer.receives) {
        if (!parcel->IsOf(in)) continue;
        if (in.value != static_cast<uint64_t>(parcel->bytes) || in.offset != parcel->moved ||
            in.bytes > parcel->bytes - parcel->moved) {
          return absl::DataLossError(absl::StrFormat("%d bytes at %d of %d, of which %d are there", in.bytes, in.offset,
                                                     parcel->bytes, parcel->moved));
        }
        peer.in_parcel = parcel;
        peer.into = parcel->data + in.offset;
        break;
      }
      break;
    case FrameKind::kPut: {
      GANTRY_ASSIGN_OR_RETURN(peer.into, OwnMemory(in, in.bytes, true));
      break;
    }
    case FrameKind::kGot:
      for (RemoteAccess* access : peer.asked) {
        if (access->number != in.sequence || access->kind != FrameKind::kGet) continue;
        if (in.offset != access->moved || in.bytes > access->bytes - access->moved)
          return absl::DataLossError("more than was asked for");
        peer.in_access = access;
        peer.into = access->data + in.offset;
      }
      if (peer.in_access == nullptr) return absl::DataLossError("an answer that nobody asked for");
      break;
    default:
      break;
  }
  return absl::OkStatus();
}

// What the peer calls, of the frame that is there.
void Mailbox::Hear(Peer& peer) {
  Heard& heard = peer.Of(peer.in.group).heard;
  if (peer.in.sequence < heard.sequence) return;
  heard.sequence = peer.in.sequence;
  std::memcpy(heard.call.data(), peer.text.data(), kCallBytes);
}

absl::Status Mailbox::TakePayload(Peer& peer) {
  const FrameHeader& in = peer.in;
  switch (in.kind) {
    case FrameKind::kData: {
      Parcel* parcel = std::exchange(peer.in_parcel, nullptr);
      if (parcel == nullptr) return absl::OkStatus();  // cancelled meanwhile
      parcel->moved += in.bytes;
      if (parcel->moved < parcel->bytes) return absl::OkStatus();
      std::erase(peer.receives, parcel);
      parcel->state.store(Parcel::kDone, std::memory_order_seq_cst);
      bell_.Ring();
      return absl::OkStatus();
    }
    case FrameKind::kCalls:
      Hear(peer);
      bell_.Ring();  // this rank may wait for something else, and see here that the two differ
      return absl::OkStatus();
    case FrameKind::kReady: {
      Hear(peer);
      for (size_t i = 0; i < peer.sends.size(); ++i) {
        Parcel* parcel = peer.sends[i];
        if (!parcel->IsOf(in)) continue;
        peer.sends.erase(peer.sends.begin() + static_cast<std::ptrdiff_t>(i));
        if (in.value == static_cast<uint64_t>(parcel->bytes)) {
          BeginStream(peer, *parcel);
        } else {
          parcel->state.store(Parcel::kDiffers, std::memory_order_seq_cst);
          bell_.Ring();
        }
        return absl::OkStatus();
      }
      if (peer.readies.size() == kMaxReady) return absl::DataLossError("it awaits more than it may");
      peer.readies.push_back(in);
      bell_.Ring();
      return absl::OkStatus();
    }
    case FrameKind::kBreak: {
      const auto code = static_cast<absl::StatusCode>(in.tag);
      const Broken broken{in.sequence, code == absl::StatusCode::kOk ? absl::StatusCode::kUnknown : code,
                          std::string(reinterpret_cast<const char*>(peer.text.data()), static_cast<size_t>(in.bytes))};
      const std::lock_guard lock(groups_mutex_);
      if (!broken_.emplace(in.group, broken).second) return absl::OkStatus();
      if (const auto found = entered_.find(in.group); found != entered_.end())
        reactor_->Post([this, group = in.group, ranks = found->second.ranks, broken] { Break(group, ranks, broken); });
      breaks_.fetch_add(1, std::memory_order_seq_cst);
      bell_.Wake();
      return absl::OkStatus();
    }
    case FrameKind::kTell:
      peer.Of(in.group).told = in.sequence;
      bell_.Ring();
      return absl::OkStatus();
    case FrameKind::kGot: {
      RemoteAccess& access = *std::exchange(peer.in_access, nullptr);
      access.moved += in.bytes;
      if (access.moved < access.bytes) return absl::OkStatus();
      std::erase(peer.asked, &access);
      access.done.store(true, std::memory_order_seq_cst);
      bell_.Ring();
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
      bell_.Ring();
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
  if (header.kind == FrameKind::kGet) {
    if (peer.streams.size() >= kMaxAnswers) return absl::DataLossError("it reads more at a time than it may");
    const auto bytes = static_cast<int64_t>(header.value);
    GANTRY_ASSIGN_OR_RETURN(const std::byte* data, OwnMemory(header, bytes, false));
    peer.streams.push_back({.header = {.kind = FrameKind::kGot, .sequence = header.sequence},
                            .data = data,
                            .bytes = bytes,
                            .ticket = tickets_.fetch_add(1, std::memory_order_relaxed)});
    Flush(peer);
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
  bell_.Ring();
  if (header.kind != FrameKind::kSignal)
    SendControl(peer, {.kind = FrameKind::kWord, .sequence = header.sequence, .value = before});
  return absl::OkStatus();
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
