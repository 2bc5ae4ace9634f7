// How ways by UCX are made and measured.
#include <sodium.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "comm/ucx/ucx_carrier.h"
#include "comm/ucx/ucx_library.h"

namespace gantry::ucx {
namespace {

constexpr uint32_t kProbeTag = UINT32_MAX;  // no answer to a read has it
constexpr int64_t kProbeBytes = int64_t{1} << 20;
constexpr uint32_t kManners[] = {UCP_AM_SEND_FLAG_EAGER, UCP_AM_SEND_FLAG_RNDV};

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
  GANTRY_RETURN_IF_ERROR(reactor.Add(poke_.get(), EPOLLIN, [this](uint32_t) { OnPoke(); }));
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
      const tcp::FrameHeader header{.kind = tcp::FrameKind::kProbe, .tag = kProbeTag, .sequence = ++probes_};
      GANTRY_RETURN_IF_ERROR(Send(way->peer, {.header = header, .data = zeros_.data(), .bytes = bytes}));
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

}  // namespace gantry::ucx
