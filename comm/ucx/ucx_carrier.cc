#include "comm/ucx/ucx_carrier.h"

#include <sodium.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "comm/ucx/ucx_library.h"

namespace gantry::ucx {
namespace {

constexpr std::chrono::seconds kLastWords(1);  // for the connection to say why a way has failed

}  // namespace

// What the mailbox asks, on any thread.

absl::Status UcxCarrier::Send(int peer, const Load& load) {
  {
    const std::lock_guard lock(mutex_);
    Way& way = at(peer);
    if (!way.failed.ok()) return way.failed;
    if (spare_.empty()) spare_.push_back(std::make_unique<Queued>());
    way.queue.push_back(std::move(spare_.back()));
    spare_.pop_back();
    *way.queue.back() = {.load = load};
  }
  Poke();
  return absl::OkStatus();
}

void UcxCarrier::Acknowledge(int peer, const tcp::FrameHeader& taken) {
  {
    const std::lock_guard lock(mutex_);
    Way& way = at(peer);
    way.under_way = std::max<int64_t>(0, way.under_way - taken.offset);
    for (const std::unique_ptr<Queued>& queued : way.queue) {
      const tcp::FrameHeader& header = queued->load.header;
      if (header.tag != taken.tag || header.group != taken.group || header.sequence != taken.sequence) continue;
      queued->acknowledged += taken.offset;
      Finish(way, *queued);
      break;
    }
    if (way.queue.empty()) return;
  }
  Poke();
}

bool UcxCarrier::Withdraw(int peer, const tcp::Parcel& parcel) {
  const std::lock_guard lock(mutex_);
  Way& way = at(peer);
  const auto found = std::find_if(way.queue.begin(), way.queue.end(),
                                  [&](const auto& queued) { return queued->load.parcel == &parcel; });
  if (found == way.queue.end()) return false;
  (*found)->is_withdrawn = true;
  const bool is_in_use = (*found)->in_hand > 0;
  Finish(way, **found);
  return is_in_use;
}

void UcxCarrier::End(int peer) {
  {
    const std::lock_guard lock(mutex_);
    Way& way = at(peer);
    way.is_ended = true;
    for (size_t i = way.queue.size(); i-- > 0;) Finish(way, *way.queue[i]);
  }
  Poke();
}

size_t UcxCarrier::Waiting(int peer) const {
  const std::lock_guard lock(mutex_);
  return ways_[static_cast<size_t>(peer)].queue.size();
}

// Takes it out of the queue once nothing more happens to it.
void UcxCarrier::Finish(Way& way, Queued& queued) {
  const bool is_done = queued.acknowledged >= queued.load.bytes;
  if (queued.in_hand > 0 || !(is_done || queued.is_withdrawn || way.is_ended)) return;
  if (tcp::Parcel* parcel = queued.load.parcel; parcel != nullptr && !queued.is_withdrawn) {
    parcel->state.store(is_done ? tcp::Parcel::kDone : tcp::Parcel::kFailed, std::memory_order_seq_cst);
    mailbox_.Ring();
  }
  const auto found =
      std::find_if(way.queue.begin(), way.queue.end(), [&](const auto& one) { return one.get() == &queued; });
  spare_.push_back(std::move(*found));
  way.queue.erase(found);
}

void UcxCarrier::Poke() {
  if (is_poked_.exchange(true, std::memory_order_seq_cst)) return;
  const uint64_t one = 1;
  (void)!write(poke_.get(), &one, sizeof(one));
}

// On the mailbox's thread.

void UcxCarrier::OnPoke() {
  uint64_t ignored;
  (void)!read(poke_.get(), &ignored, sizeof(ignored));
  is_poked_.store(false, std::memory_order_seq_cst);
  Step();
}

void UcxCarrier::Step() {
  constexpr int kRounds = 16;  // then others have their turn
  for (int round = 0; round < kRounds; ++round) {
    const bool has_moved = Round();
    mailbox_.EndTurn();
    if (!has_moved && Ucx().ucp_worker_arm(worker_) != UCS_ERR_BUSY) return;
  }
  Poke();
}

bool UcxCarrier::Round() {
  constexpr int kMostProgress = 64;
  bool has_moved = SendSome();
  for (int i = 0; i < kMostProgress && Ucx().ucp_worker_progress(worker_) != 0; ++i) has_moved = true;
  return has_moved;
}

UcxCarrier::Message* UcxCarrier::NewMessage() {
  if (spare_messages_.empty()) {
    messages_.push_back(std::make_unique<Message>());
    spare_messages_.reserve(messages_.size());
    return messages_.back().get();
  }
  Message* message = spare_messages_.back();
  spare_messages_.pop_back();
  return message;
}

// The next piece to the peer: the highest priority first, then in the order of starting.
bool UcxCarrier::NextPiece(Way& way, Message*& message, std::span<const std::byte>& payload, uint32_t& flags) {
  const std::lock_guard lock(mutex_);
  if (way.is_ended || !way.failed.ok() || way.under_way >= kUnderWayBytes) return false;
  Queued* best = nullptr;
  for (const std::unique_ptr<Queued>& queued : way.queue) {
    if (queued->is_withdrawn || queued->begun == queued->load.bytes) continue;
    if (best == nullptr || queued->load.priority > best->load.priority) best = queued.get();
  }
  if (best == nullptr) return false;
  tcp::FrameHeader header = best->load.header;
  header.offset += best->begun;
  header.bytes = std::min(kPieceBytes, best->load.bytes - best->begun);
  message = NewMessage();
  *message = {.way = &way, .of = best, .envelope = {.secret = way.secret, .from = rank_, .frame = Encode(header)}};
  payload = {best->load.data + best->begun, static_cast<size_t>(header.bytes)};
  flags = way.send_flags;
  best->begun += header.bytes;
  ++best->in_hand;
  way.under_way += header.bytes;
  return true;
}

bool UcxCarrier::SendSome() {
  bool has_sent = false;
  for (Way& way : ways_) {
    if (way.endpoint == nullptr) continue;
    Message* message = nullptr;
    std::span<const std::byte> payload;
    uint32_t flags = 0;
    while (NextPiece(way, message, payload, flags)) {
      has_sent = true;
      const ucp_request_param_t param{
          .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
          .flags = flags,
          .cb = {.send = &OnSent},
          .user_data = message};
      ucs_status_ptr_t request = Ucx().ucp_am_send_nbx(way.endpoint, kMessageId, &message->envelope,
                                                 sizeof(message->envelope), payload.data(), payload.size(), &param);
      if (request == nullptr || UCS_PTR_IS_ERR(request)) OnSent(nullptr, UCS_PTR_STATUS(request), message);
    }
    bool closes = false;
    {
      const std::lock_guard lock(mutex_);
      closes = way.is_ended;
    }
    if (closes) Close(way);
  }
  return has_sent;
}

void UcxCarrier::OnSent(void* request, ucs_status_t status, void* user_data) {
  auto* message = static_cast<Message*>(user_data);
  Way& way = *message->way;
  UcxCarrier& self = *way.owner;
  {
    const std::lock_guard lock(self.mutex_);
    if (status != UCS_OK) self.NoteFailure(way, status);
    --message->of->in_hand;
    self.Finish(way, *message->of);
  }
  self.spare_messages_.push_back(message);
  if (request != nullptr) Ucx().ucp_request_free(request);
}

// A way that has failed is used no more. Where the peer has left or is lost, its connection says so in a moment, with
// what came before; where it does not, GiveUpFailed ends it.
void UcxCarrier::NoteFailure(Way& way, ucs_status_t status) {
  if (!way.failed.ok()) return;
  way.failed = UcxError(status, absl::StrFormat("sending to rank %d by %s", way.peer, way.lanes));
  way.failed_at = WaitClock::now();
}

void UcxCarrier::OnError(void* arg, ucp_ep_h, ucs_status_t status) {
  Way& way = *static_cast<Way*>(arg);
  const std::lock_guard lock(way.owner->mutex_);
  way.owner->NoteFailure(way, status);
}

absl::Status UcxCarrier::FailureOf(const Way& way) const {
  const std::lock_guard lock(mutex_);
  return way.failed;
}

void UcxCarrier::GiveUpFailed() {
  for (Way& way : ways_) {
    absl::Status failed;
    {
      const std::lock_guard lock(mutex_);
      if (!way.failed.ok() && !way.is_ended && !way.queue.empty() && WaitClock::now() > way.failed_at + kLastWords)
        failed = way.failed;
    }
    if (!failed.ok()) mailbox_.Fail(way.peer, failed);
  }
}

// UCX gives back whatever it has in hand for the endpoint, at once or with what it does next.
void UcxCarrier::Close(Way& way) {
  if (way.endpoint == nullptr) return;
  const ucp_request_param_t param{.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS, .flags = UCP_EP_CLOSE_FLAG_FORCE};
  ucs_status_ptr_t request = Ucx().ucp_ep_close_nbx(std::exchange(way.endpoint, nullptr), &param);
  if (request == nullptr || UCS_PTR_IS_ERR(request)) return;
  for (int i = 0; i < 100000 && Ucx().ucp_request_check_status(request) == UCS_INPROGRESS; ++i) Ucx().ucp_worker_progress(worker_);
  Ucx().ucp_request_free(request);
}

ucs_status_t UcxCarrier::OnMessage(void* arg, const void* header, size_t header_bytes, void* data, size_t bytes,
                                   const ucp_am_recv_param_t* param) {
  UcxCarrier& self = *static_cast<UcxCarrier*>(arg);
  Envelope envelope;
  if (self.is_closing_ || header_bytes != sizeof(envelope)) return UCS_OK;
  std::memcpy(&envelope, header, sizeof(envelope));
  const bool is_rank = envelope.from >= 0 && envelope.from < std::ssize(self.ways_) &&
                       self.mailbox_.Reaches(static_cast<int>(envelope.from));
  if (!is_rank) return UCS_OK;
  Way& way = self.at(static_cast<int>(envelope.from));
  if (sodium_memcmp(envelope.secret.data(), way.expected.data(), kSecretBytes) != 0) return UCS_OK;  // a stranger's
  absl::StatusOr<tcp::FrameHeader> frame = tcp::Decode(envelope.frame, kPieceBytes);
  if (frame.ok() && frame->bytes != static_cast<int64_t>(bytes))
    frame = absl::DataLossError(absl::StrFormat("%d bytes where the header says %d", bytes, frame->bytes));
  // What UCX fetches it gives back when the endpoint is closed, which there must be.
  const bool is_announced = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  if (frame.ok() && is_announced && way.endpoint == nullptr)
    frame = absl::FailedPreconditionError("a piece to be fetched, where this rank has no way back");
  absl::StatusOr<Landing> landing = frame.ok() ? self.mailbox_.Approach(way.peer, *frame) : frame.status();
  if (!landing.ok()) {
    self.mailbox_.Fail(way.peer, Annotate(landing.status(), absl::StrFormat("what rank %d sent by UCX", way.peer)));
    return UCS_OK;
  }
  if (!is_announced || landing->into == nullptr) {
    if (landing->into != nullptr) std::memcpy(landing->into, data, bytes);
    self.mailbox_.Landed(way.peer, *frame, *landing, true);
    return UCS_OK;
  }
  Message* message = self.NewMessage();
  *message = {.way = &way, .header = *frame, .landing = *landing};
  const ucp_request_param_t how{.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                .cb = {.recv_am = &OnLanded},
                                .user_data = message};
  ucs_status_ptr_t request = Ucx().ucp_am_recv_data_nbx(self.worker_, data, landing->into, bytes, &how);
  if (request == nullptr || UCS_PTR_IS_ERR(request)) OnLanded(nullptr, UCS_PTR_STATUS(request), bytes, message);
  return UCS_INPROGRESS;
}

void UcxCarrier::OnLanded(void* request, ucs_status_t status, size_t, void* user_data) {
  auto* message = static_cast<Message*>(user_data);
  UcxCarrier& self = *message->way->owner;
  if (!self.is_closing_) self.mailbox_.Landed(message->way->peer, message->header, message->landing, status == UCS_OK);
  self.spare_messages_.push_back(message);
  if (request != nullptr) Ucx().ucp_request_free(request);
}

}  // namespace gantry::ucx
