// Reads, writes and atomics on the memory of ranks of other nodes, which their machines carry out without their help.
#pragma once

#include <array>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "comm/shm/shm_node.h"
#include "comm/shm/shm_transport.h"
#include "comm/tcp/mailbox.h"
#include "comm/transport.h"

namespace gantry::tcp {

class TcpTransport final : public Transport {
 public:
  static constexpr int kMaxInFlight = 256;  // accesses whose Pending is there; more are kResourceExhausted

  // `of_node` waits for signals: the word lies in this rank's memory, whoever sets it.
  TcpTransport(shm::ShmNode& node, Mailbox& mailbox, shm::ShmTransport& of_node);

  std::string_view name() const override { return "tcp"; }
  std::string DescribePath(int peer) const override { return mailbox_.DescribePath(peer); }
  bool Reaches(int peer) const override { return mailbox_.Reaches(peer); }

  Pending Put(GlobalAddress to, std::span<const std::byte> from) override;
  Pending Get(std::span<std::byte> to, GlobalAddress from) override;
  absl::StatusOr<uint64_t> FetchAdd(GlobalAddress word, uint64_t add) override;
  absl::StatusOr<uint64_t> CompareSwap(GlobalAddress word, uint64_t expected, uint64_t desired) override;
  Pending Signal(GlobalAddress word, uint64_t add) override;
  absl::Status WaitSignal(int from, int region, int64_t offset, uint64_t value, absl::Duration timeout) override {
    return of_node_.WaitSignal(from, region, offset, value, timeout);
  }

 private:
  struct Access final : RemoteAccess, Pending::Work {
    bool done() const override { return RemoteAccess::done.load(std::memory_order_seq_cst); }
    absl::Status Wait(absl::Duration timeout) override;
    void Release() override;

    TcpTransport* owner = nullptr;
    bool is_free = true;
  };

  absl::StatusOr<Access*> Start(FrameKind kind, const GlobalAddress& address, std::byte* data, int64_t bytes,
                                uint64_t value, uint64_t expected = 0);
  absl::StatusOr<uint64_t> Ask(FrameKind kind, const GlobalAddress& word, uint64_t value, uint64_t expected = 0);
  absl::Status Check(FrameKind kind, const GlobalAddress& address, int64_t bytes) const;

  shm::ShmNode& node_;
  Mailbox& mailbox_;
  shm::ShmTransport& of_node_;
  std::mutex mutex_;
  std::array<Access, kMaxInFlight> accesses_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace gantry::tcp
