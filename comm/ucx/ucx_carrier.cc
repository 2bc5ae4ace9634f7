#include "comm/ucx/ucx_carrier.h"

#include <sodium.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "comm/ucx/ucx_library.h"

namespace gantry::ucx {
namespace {

constexpr unsigned kMessageId = 1;
constexpr uint32_t kProbeTag = UINT32_MAX;  // no answer to a read has it
constexpr int64_t kProbeBytes = int64_t{1} << 20;
constexpr uint32_t kManners[] = {UCP_AM_SEND_FLAG_EAGER, UCP_AM_SEND_FLAG_RNDV};
constexpr std::chrono::seconds kLastWords(1);  // for the connection to say why a way has failed

// Only where an UcxCarrier was opened.
const Library& Ucx() { return **LoadLibrary(); }

absl::Status UcxError(ucs_status_t status, std::string_view doing) {
  return absl::UnavailableError(absl::StrFormat("%s: UCX says \"%s\"", doing, Ucx().ucs_status_string(status)));
}

// What UCX prints of itself, which it does not tell otherwise (ucp_ep_query knows transports from 1.14 on only).
template <typename Print>
std::string Printed(Print&& print) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* file = open_memstream(&text, &size);
  if (file == nullptr) return "";
  print(file);
  std::fclose(file);
  std::string result(text, size);
  std::free(text);
  return result;
}

// "tcp/eth0", "rc_mlx5/mlx5_0:1": of lines "lane[0]: 1:tcp/eth0.0 md[1] -> ...".
std::vector<std::string> LanesOf(ucp_ep_h endpoint) {
  std::vector<std::string> lanes;
  const std::string printed = Printed([&](std::FILE* file) { Ucx().ucp_ep_print_info(endpoint, file); });
  for (const absl::string_view line : absl::StrSplit(printed, '\n')) {
    const size_t at = line.find("lane[");
    if (at == absl::string_view::npos) continue;
    const std::vector<absl::string_view> words = absl::StrSplit(line.substr(at), ' ', absl::SkipWhitespace());
    if (words.size() < 2) continue;
    const absl::string_view name = words[1].substr(words[1].find(':') + 1);
    std::string lane(name.substr(0, name.rfind('.')));
    if (std::find(lanes.begin(), lanes.end(), lane) == lanes.end()) lanes.push_back(std::move(lane));
  }
  return lanes;
}

// InfiniBand, RoCE and EFA, by the names that UCX gives its transports.
bool IsRdma(const std::string& lane) {
  return absl::StartsWith(lane, "rc_") || absl::StartsWith(lane, "dc_") || absl::StartsWith(lane, "ud_") ||
         absl::StartsWith(lane, "srd");
}

}  // namespace

UcxCarrier::UcxCarrier(tcp::Mailbox& mailbox, int ranks)
    : mailbox_(mailbox), rank_(mailbox.rank()), ways_(static_cast<size_t>(ranks)) {
  for (int peer = 0; peer < ranks; ++peer) {
    at(peer).peer = peer;
    at(peer).owner = this;
    randombytes_buf(at(peer).expected.data(), kSecretBytes);
  }
}

absl::StatusOr<std::unique_ptr<UcxCarrier>> UcxCarrier::Open(tcp::Mailbox& mailbox, int ranks) {
  GANTRY_RETURN_IF_ERROR(LoadLibrary().status());
  auto carrier = std::unique_ptr<UcxCarrier>(new UcxCarrier(mailbox, ranks));
  GANTRY_RETURN_IF_ERROR(carrier->Start());
  return carrier;
}

std::string UcxCarrier::Version() {
  if (!LoadLibrary().ok()) return "";
  unsigned major = 0, minor = 0, release = 0;
  Ucx().ucp_get_version(&major, &minor, &release);
  return absl::StrFormat("%d.%d.%d", major, minor, release);
}

absl::Status UcxCarrier::Start() {
  poke_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!poke_.valid()) return SystemError(errno, "making an eventfd");
  ucp_config_t* config = nullptr;
  if (const ucs_status_t status = Ucx().ucp_config_read(nullptr, nullptr, &config); status != UCS_OK)
    return UcxError(status, "reading its settings (UCX_* in the environment)");
  const ucp_params_t params{.field_mask = UCP_PARAM_FIELD_FEATURES,
                            .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP};
  const ucs_status_t made = Ucx().ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &context_);
  Ucx().ucp_config_release(config);
  if (made != UCS_OK) return UcxError(made, "starting");
  const ucp_worker_params_t of_worker{.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                      .thread_mode = UCS_THREAD_MODE_SERIALIZED};
  if (const ucs_status_t status = Ucx().ucp_worker_create(context_, &of_worker, &worker_); status != UCS_OK)
    return UcxError(status, "making a worker");
  ucp_worker_attr_t attributes{.field_mask = UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER};
  if (const ucs_status_t status = Ucx().ucp_worker_query(worker_, &attributes);
      status != UCS_OK || attributes.max_am_header < sizeof(Envelope))
    return absl::UnavailableError("none of its transports here sends active messages with headers");
  const ucp_am_handler_param_t handler{
      .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG |
                    UCP_AM_HANDLER_PARAM_FIELD_FLAGS,
      .id = kMessageId,
      .flags = UCP_AM_FLAG_WHOLE_MSG,
      .cb = &OnMessage,
      .arg = this};
  if (const ucs_status_t status = Ucx().ucp_worker_set_am_recv_handler(worker_, &handler); status != UCS_OK)
    return UcxError(status, "setting what takes messages");
  ucp_address_t* address = nullptr;
  size_t bytes = 0;
  if (const ucs_status_t status = Ucx().ucp_worker_get_address(worker_, &address, &bytes); status != UCS_OK)
    return UcxError(status, "asking for the worker's address");
  const auto* first = reinterpret_cast<const std::byte*>(address);
  address_.assign(first, first + bytes);
  Ucx().ucp_worker_release_address(worker_, address);
  return absl::OkStatus();
}

// The mailbox is gone, and with it the thread.
UcxCarrier::~UcxCarrier() {
  is_closing_ = true;
  if (worker_ != nullptr) {
    for (Way& way : ways_) Close(way);
    Ucx().ucp_worker_destroy(worker_);
  }
  if (context_ != nullptr) Ucx().ucp_cleanup(context_);
}

absl::StatusOr<bool> UcxCarrier::Connect(int peer, std::span<const std::byte> address, const Secret& secret,
                                         bool only_rdma) {
  Way& way = at(peer);
  const ucp_ep_params_t params{
      .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                    UCP_EP_PARAM_FIELD_ERR_HANDLER,
      .address = reinterpret_cast<const ucp_address_t*>(address.data()),
      .err_mode = UCP_ERR_HANDLING_MODE_PEER,
      .err_handler = {.cb = &OnError, .arg = &way}};
  if (const ucs_status_t status = Ucx().ucp_ep_create(worker_, &params, &way.endpoint); status != UCS_OK) {
    way.endpoint = nullptr;
    return UcxError(status, absl::StrFormat("making an endpoint to rank %d", peer));
  }
  const std::vector<std::string> lanes = LanesOf(way.endpoint);
  way.lanes = absl::StrJoin(lanes, ", ");
  way.has_rdma = std::any_of(lanes.begin(), lanes.end(), IsRdma);
  if (only_rdma && !way.has_rdma) {
    Close(way);
    return false;
  }
  way.secret = secret;
  way.is_open = true;
  const ucp_ep_evaluate_perf_param_t of{.field_mask = UCP_EP_PERF_PARAM_FIELD_MESSAGE_SIZE,
                                        .message_size = static_cast<size_t>(kPieceBytes)};
  ucp_ep_evaluate_perf_attr_t is{.field_mask = UCP_EP_PERF_ATTR_FIELD_ESTIMATED_TIME};
  if (Ucx().ucp_ep_evaluate_perf(way.endpoint, &of, &is) == UCS_OK && is.estimated_time > 0)
    way.bytes_per_second = kPieceBytes / is.estimated_time;
  return true;
}

absl::Status UcxCarrier::Begin(absl::Duration timeout) {
  int descriptor = -1;
  if (const ucs_status_t status = Ucx().ucp_worker_get_efd(worker_, &descriptor); status != UCS_OK)
    return UcxError(status, "asking for its descriptor to sleep on");
  mailbox_.Carry(*this);
  Reactor& reactor = mailbox_.reactor();
  GANTRY_RETURN_IF_ERROR(reactor.Add(poke_.get(), EPOLLIN, [this](uint32_t) { Step(); }));
  GANTRY_RETURN_IF_ERROR(reactor.Add(descriptor, EPOLLIN, [this](uint32_t) { Step(); }));
  reactor.Every(absl::Seconds(1), [this] { GiveUpFailed(); });
  Poke();
  return Measure(timeout);
}

// All ways at once: a piece to be sure that both ends are there, then each manner.
absl::Status UcxCarrier::Measure(absl::Duration timeout) {
  zeros_.resize(static_cast<size_t>(kProbeBytes));
  std::vector<Way*> measured;
  for (Way& way : ways_) {
    if (way.is_open && !way.has_rdma) measured.push_back(&way);
  }
  const auto send = [&](int64_t bytes, uint32_t flags, std::vector<double>& seconds) -> absl::Status {
    const WaitClock::time_point begin = WaitClock::now();
    for (Way* way : measured) {
      {
        const std::lock_guard lock(mutex_);
        way->send_flags = flags;
      }
      GANTRY_RETURN_IF_ERROR(Send(
          way->peer, {.header = {.kind = tcp::FrameKind::kProbe, .tag = kProbeTag, .sequence = ++probes_}, .data = zeros_.data(), .bytes = bytes}));
    }
    seconds.assign(measured.size(), 0);
    for (size_t left = measured.size(); left > 0;) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      const double now = std::chrono::duration<double>(WaitClock::now() - begin).count();
      for (size_t i = 0; i < measured.size(); ++i) {
        if (seconds[i] > 0) continue;
        GANTRY_RETURN_IF_ERROR(mailbox_.StatusOf(measured[i]->peer));
        GANTRY_RETURN_IF_ERROR(FailureOf(*measured[i]));
        if (Waiting(measured[i]->peer) == 0) {
          seconds[i] = now;
          --left;
        } else if (now > absl::ToDoubleSeconds(timeout)) {
          return absl::DeadlineExceededError(absl::StrFormat("rank %d did not take %d bytes by UCX (%s) in %s",
                                                             measured[i]->peer, bytes, measured[i]->lanes,
                                                             absl::FormatDuration(timeout)));
        }
      }
    }
    return absl::OkStatus();
  };
  std::vector<double> seconds;
  if (measured.empty()) return absl::OkStatus();
  GANTRY_RETURN_IF_ERROR(send(1, UCP_AM_SEND_FLAG_EAGER, seconds));
  std::vector<uint32_t> best(measured.size(), 0);
  for (Way* way : measured) way->bytes_per_second = 0;
  for (const uint32_t manner : kManners) {
    GANTRY_RETURN_IF_ERROR(send(kProbeBytes, manner, seconds));
    for (size_t i = 0; i < measured.size(); ++i) {
      const double rate = static_cast<double>(kProbeBytes) / seconds[i];
      if (rate <= measured[i]->bytes_per_second) continue;
      measured[i]->bytes_per_second = rate;
      best[i] = manner;
    }
  }
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < measured.size(); ++i) measured[i]->send_flags = best[i];
  return absl::OkStatus();
}

std::string UcxCarrier::DescribePath(int peer) const {
  const Way& way = ways_[static_cast<size_t>(peer)];
  std::string how = "expected";
  if (!way.has_rdma)
    how = way.send_flags == UCP_AM_SEND_FLAG_RNDV ? "measured, announced and then put" : "measured, active messages";
  return absl::StrFormat("ucx %s, %s, %.2g GB/s %s", Version(), way.lanes, 1e-9 * way.bytes_per_second, how);
}

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

void UcxCarrier::Step() {
  constexpr int kRounds = 16;  // then others have their turn
  uint64_t ignored;
  if (is_poked_.load(std::memory_order_seq_cst)) {
    (void)!read(poke_.get(), &ignored, sizeof(ignored));
    is_poked_.store(false, std::memory_order_seq_cst);
  }
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
