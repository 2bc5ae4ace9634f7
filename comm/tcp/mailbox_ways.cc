// What goes over the two connections with a peer, and what comes: frame by frame.

#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "comm/tcp/mailbox_peer.h"

namespace gantry::tcp {
namespace {

constexpr int64_t kReadAtOnce = int64_t{1} << 20;  // from one connection, before others have their turn
constexpr size_t kMaxReady = size_t{1} << 16;      // parcels that a peer awaits and this rank has not come to
constexpr size_t kMaxAnswers = 4096;               // reads of this rank's memory at a time, of one peer

}  // namespace

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
  peer.ended_at = WaitClock::now();
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

// A rank that leaves in order sees to it first that what it sent is here (Drain), but the word that it leaves comes another way and
// may be read before that.
void Mailbox::TakeRest(Peer& peer) {
  {
    const std::lock_guard lock(peer.mutex);
    for (Way* way : peer.ways()) {
      int unread = 0;
      while (peer.ended.ok() && ioctl(way->socket.get(), FIONREAD, &unread) == 0 && unread > 0) Read(peer, *way);
    }
    End(peer, absl::UnavailableError(absl::StrFormat("rank %d has left", peer.rank)));
  }
  EndTurn();
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
      // The earliest counts: ranks may have ended with a later operation over it.
      const auto known = broken_.find(in.group);
      if (known != broken_.end() && known->second.sequence <= broken.sequence) return absl::OkStatus();
      broken_[in.group] = broken;
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

}  // namespace gantry::tcp
