// Exchanges beside compute: the order of ops that leaves them time, and what waits for them.
#pragma once

#include "runtime/plan/plan.h"

namespace gantry {

// Puts ops in an order in which compute seldom waits for exchanges: whatever can run while an exchange is under way goes before what needs
// it, and what a long exchange waits for goes first. List scheduling by the longest way to the end of the step (Hu 1961; Graham 1966) on the
// costs of `options`, with compute and each lane as machines. Exchanges keep their order among each other, on all ranks the same; what is
// live takes hardly more than before (kMoreMemory). The program as it is where that is no slower. Bits do not change.
absl::StatusOr<Program> OrderForOverlap(const Program& program, const PlanOptions& options);

// Sets PlannedOp::done_by of the exchanges that may run beside compute: the first step that reads what they make or writes over what they
// read. `budget_bytes` above 0: no later than what they hold has room. With PlanOptions::overlap off every exchange is waited for where it
// stands.
void SetWaits(Plan& plan, const PlanOptions& options, int64_t budget_bytes);

// By the clock of `plan.costs`: how long compute stands still for exchanges that run beside it, and for those that do not, and what a step
// takes in all. Copies are taken as done in time.
struct OverlapEstimate {
  double seconds = 0.0, exposed_seconds = 0.0, exchange_seconds = 0.0;  // the last one: of all exchanges, hidden or not
};
OverlapEstimate EstimateOverlap(const Plan& plan);

}  // namespace gantry
