// Memory of the node's ranks is mapped here, so that a put or a get is a copy.
#pragma once

#include <atomic>

#include "comm/shm/shm_node.h"
#include "comm/transport.h"

namespace gantry::shm {

class ShmTransport final : public Transport {
 public:
  explicit ShmTransport(ShmNode& node) : node_(node) {}

  std::string_view name() const override { return "shm"; }
  std::string DescribePath(int peer) const override;
  bool Reaches(int peer) const override;

  Pending Put(GlobalAddress to, std::span<const std::byte> from) override;
  Pending Get(std::span<std::byte> to, GlobalAddress from) override;
  absl::StatusOr<uint64_t> FetchAdd(GlobalAddress word, uint64_t add) override;
  absl::StatusOr<uint64_t> CompareSwap(GlobalAddress word, uint64_t expected, uint64_t desired) override;
  Pending Signal(GlobalAddress word, uint64_t add) override;
  absl::Status WaitSignal(int from, int region, int64_t offset, uint64_t value, absl::Duration timeout) override;

 private:
  absl::StatusOr<std::byte*> Locate(const GlobalAddress& address, int64_t bytes, Access access) const;
  absl::StatusOr<std::byte*> LocateWord(const GlobalAddress& address) const;

  ShmNode& node_;
};

}  // namespace gantry::shm
