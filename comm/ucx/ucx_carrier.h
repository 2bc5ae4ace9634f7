// Payload between nodes by UCX: active messages, of which UCX makes RDMA where there is hardware for it. Only frames that
// bear a secret which the peer has been told over its proven connection are looked at; nothing else that UCX offers is
// switched on, so that who reaches UCX's own port can write nowhere (its remote memory access over TCP asks nobody).
//
// Endpoints have UCX tell of lost peers (UCP_ERR_HANDLING_MODE_PEER). One thread, the mailbox's, calls UCX; it sleeps on
// UCX's descriptor. Senders leave their loads here.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include <ucp/api/ucp.h>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "comm/socket.h"
#include "comm/tcp/carrier.h"
#include "comm/tcp/mailbox.h"
#include "comm/wait.h"
#include "memory/status.h"

namespace gantry::ucx {

inline constexpr size_t kSecretBytes = 16;
using Secret = std::array<std::byte, kSecretBytes>;

class UcxCarrier final : public tcp::Carrier {
 public:
  static constexpr int64_t kPieceBytes = int64_t{256} << 10;
  static constexpr int64_t kUnderWayBytes = int64_t{1} << 20;  // to one peer, not acknowledged
  static constexpr unsigned kMessageId = 1;                    // of UCX's active messages

  // What stands before the payload of each message.
  struct Envelope {
    Secret secret;
    int64_t from = 0;
    std::array<std::byte, tcp::kHeaderBytes> frame;
  };

  // What is given outlives it, but for the mailbox, which goes first. kUnavailable where UCX does not start.
  static absl::StatusOr<std::unique_ptr<UcxCarrier>> Open(tcp::Mailbox& mailbox, int ranks);
  ~UcxCarrier() override;

  // "1.13.1"; empty where it is not installed.
  static std::string Version();
  std::span<const std::byte> address() const { return address_; }
  // For what `peer` sends: it is to be told.
  const Secret& SecretOf(int peer) const { return ways_[static_cast<size_t>(peer)].expected; }

  // Before Begin: a way to `peer`, which has said its address and its secret. False where UCX would not use RDMA and
  // `only_rdma`: there is no way then.
  absl::StatusOr<bool> Connect(int peer, std::span<const std::byte> address, const Secret& secret, bool only_rdma);
  // Measures ways without RDMA: 1 MiB in each manner that UCX has to send (at once, or announced and then put), of which
  // the faster one is used from then on.
  absl::Status Begin(absl::Duration timeout) override;

  bool Carries(int peer) const override { return ways_[static_cast<size_t>(peer)].is_open; }
  std::string DescribePath(int peer) const override;
  absl::Status Send(int peer, const Load& load) override;
  void Acknowledge(int peer, const tcp::FrameHeader& taken) override;
  bool Withdraw(int peer, const tcp::Parcel& parcel) override;
  void End(int peer) override;
  void Turn() override { Round(); }
  size_t Waiting(int peer) const override;

 private:
  struct Queued {
    Load load;
    int64_t begun = 0, acknowledged = 0;
    int in_hand = 0;  // pieces that UCX has
    bool is_withdrawn = false;
  };
  struct Way {
    int peer = 0;
    UcxCarrier* owner = nullptr;
    Secret expected = {}, secret = {};
    ucp_ep_h endpoint = nullptr;
    bool is_open = false;
    bool has_rdma = false;
    std::string lanes;
    double bytes_per_second = 0;  // expected, or measured
    // Under mutex_:
    uint32_t send_flags = 0;
    std::vector<std::unique_ptr<Queued>> queue;
    int64_t under_way = 0;
    bool is_ended = false;
    absl::Status failed;
    WaitClock::time_point failed_at = {};
  };
  // A message that UCX has in hand, out or in.
  struct Message {
    Way* way = nullptr;
    Queued* of = nullptr;
    Envelope envelope;
    tcp::FrameHeader header;
    Landing landing;
  };

  UcxCarrier(tcp::Mailbox& mailbox, int ranks);
  absl::Status Start();
  absl::Status Measure(absl::Duration timeout);

  static ucs_status_t OnMessage(void* self, const void* header, size_t header_bytes, void* data, size_t bytes,
                                const ucp_am_recv_param_t* param);
  static void OnError(void* way, ucp_ep_h endpoint, ucs_status_t status);
  static void OnSent(void* request, ucs_status_t status, void* message);
  static void OnLanded(void* request, ucs_status_t status, size_t bytes, void* message);

  void OnPoke();
  void Step();
  bool Round();
  bool SendSome();
  bool NextPiece(Way& way, Message*& message, std::span<const std::byte>& payload, uint32_t& flags);
  void Finish(Way& way, Queued& queued) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NoteFailure(Way& way, ucs_status_t status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status FailureOf(const Way& way) const;
  void GiveUpFailed();
  void Close(Way& way);
  void Poke();
  Message* NewMessage();
  Way& at(int peer) { return ways_[static_cast<size_t>(peer)]; }

  tcp::Mailbox& mailbox_;
  const int rank_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  std::vector<std::byte> address_;
  Descriptor poke_;
  std::atomic<bool> is_poked_{false};
  bool is_closing_ = false;
  std::vector<Way> ways_;  // by rank of the job
  std::vector<std::byte> zeros_;  // of measurements
  uint64_t probes_ = 0;
  // Of the mailbox's thread.
  std::vector<Message*> spare_messages_;
  std::vector<std::unique_ptr<Message>> messages_;

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Queued>> spare_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace gantry::ucx
