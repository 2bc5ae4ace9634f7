// Kernels of the exchanges (ops/exchange.cc): they call the communicators of this rank's groups and wait.
#pragma once

#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "ops/kernel.h"
#include "runtime/graph/lanes.h"

namespace gantry {

// Makes kernels before there are communicators, so that a plan can be made without its ranks: Connect comes before the first Run.
// Not thread-safe; outlives its kernels.
class ExchangeKernels final : public KernelLibrary {
 public:
  ExchangeKernels();
  ~ExchangeKernels() override;

  std::string_view name() const override { return "exchange"; }
  absl::StatusOr<std::unique_ptr<Kernel>> Make(const KernelRequest& request) const override;

  // Splits the groups of the kernels made so far off `world`, which outlives this. All ranks call it, having made kernels of the same
  // program. Groups made later are not connected.
  absl::Status Connect(Communicator& world);
  // The communicator of `ranks` for what is waited for at once; null where nobody has asked for it.
  Communicator* Find(std::span<const int> ranks) const;
  // A group that a caller needs besides those of kernels. Before Connect.
  void Require(std::vector<int> ranks, PlanLane lane = PlanLane::kCompute);

 private:
  struct Group;
  // A lane has communicators of its own, so that lanes do not wait for each other.
  Group& GroupOf(const std::vector<int>& ranks, PlanLane lane) const;
  // In the order of their first use, which is the same on all ranks.
  mutable std::vector<std::unique_ptr<Group>> groups_;
};

}  // namespace gantry
