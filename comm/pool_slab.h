// A tier in memory that another rank shares: what it has to spare of its device, or of its host memory.
#pragma once

#include <string>

#include "comm/fabric.h"
#include "comm/liveness.h"
#include "memory/tier/tier.h"

namespace gantry {

// Of a rank of this node the memory is mapped here, and a Write or Read is a copy; of another node it goes by the
// fabric's transport, in the order of the calls. A Write to another node returns when its bytes are on their way: what
// is read later is read behind them. A lost lender is kUnavailable and named, though its memory may still be mapped.
class PoolSlab final : public TierSlab {
 public:
  // `bytes` >= 0 of rank `lender`. Write and Read of more than 0 bytes are kFailedPrecondition until it is connected.
  PoolSlab(std::string name, int lender, int64_t bytes) : name_(std::move(name)), lender_(lender), bytes_(bytes) {}

  // Where the slab begins, in a region of the lender. The fabric and the liveness outlive every Write and Read.
  // kInvalidArgument where `place` is not of the lender, or the pool does not have the bytes there for others to write.
  absl::Status Connect(Fabric& fabric, Liveness& liveness, const GlobalAddress& place);

  int64_t size_bytes() const override { return bytes_; }
  std::byte* data() const override { return nullptr; }
  absl::Status Write(int64_t offset, std::span<const std::byte> from) override;
  absl::Status Read(int64_t offset, std::span<std::byte> to) override;
  std::string DescribePath() const override;  // "memory of rank 1, shm, ..."
  std::string_view name() const override { return name_; }

 private:
  absl::Status Check(std::string_view action, int64_t offset, size_t bytes) const;
  absl::Status Finish(std::string_view action, Pending pending, size_t bytes) const;

  const std::string name_;
  const int lender_;
  const int64_t bytes_;
  Transport* transport_ = nullptr;  // null: not connected
  Liveness* liveness_ = nullptr;
  GlobalAddress place_;
  std::byte* mapped_ = nullptr;  // null: on another node
};

}  // namespace gantry
