// Memory that the ranks of a job lend each other, as a session has it: agreed on, reserved, connected, measured.
#pragma once

#include <memory>
#include <vector>

#include "comm/fabric.h"
#include "comm/pool_slab.h"
#include "memory/tier/tier.h"
#include "runtime/execute/executor.h"
#include "runtime/partition/job_ranks.h"
#include "runtime/plan/lending.h"

namespace gantry {

// One thread at a time. Outlives the executor and the fabric that it is given; `ranks` outlives it.
class SessionLoans {
 public:
  explicit SessionLoans(JobRanks& ranks) : ranks_(ranks) {}

  // The plan of this rank: a call of all ranks (lending.h says how they come to it). Errors of any rank end all with
  // kAgreedPayload.
  absl::StatusOr<Plan> MakePlan(const Program& program, const PlanOptions& options);

  // For Executor::Create: slabs in memory of other ranks are made here, and connected later.
  absl::StatusOr<std::unique_ptr<TierSlab>> ReserveTier(const TierOptions& options, int64_t bytes);
  // The host memory that `plan` lends.
  absl::Status ReserveHost(const Plan& plan);
  // It, for the fabric to share behind the arena; of 0 bytes where there is none.
  PoolRegion HostRegion() const;
  // Proves that the plans of all ranks fit together, and connects this one's slabs. A call of all ranks, before the first
  // copy.
  absl::Status Connect(Fabric& fabric, const Plan& plan);

  // How much of what is lent has been touched, as the borrowers tell: once, after the first step. A call of all ranks.
  absl::Status Measure(const Executor& executor);
  // Highest byte that others have touched: of the device, and of the host memory that is lent.
  int64_t device_high_water_bytes() const { return high_water_[0]; }
  int64_t host_high_water_bytes() const { return high_water_[1]; }

  // Until nobody needs this rank's memory any more: a call of all ranks, where some of them borrow from other nodes.
  void Leave(Fabric& fabric) const;

 private:
  // What all ranks say of the loans of their plans.
  absl::StatusOr<std::vector<LoanTrace>> GatherLoans(const absl::StatusOr<LoanTrace>& mine);

  JobRanks& ranks_;
  std::unique_ptr<TierSlab> host_;  // lent; null: none
  std::vector<PoolSlab*> slabs_;    // of the plan's tiers, by tier; null: this rank's own. The executor's
  bool far_ = false;                // some rank borrows from another node
  bool measured_ = false;
  int64_t high_water_[2] = {};
};

}  // namespace gantry
