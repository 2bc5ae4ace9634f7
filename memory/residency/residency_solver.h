// Chooses where items wait so that a step fits its budget and takes the least time.
#pragma once

#include "absl/status/statusor.h"
#include "memory/residency/residency_problem.h"

namespace gantry {

struct ResidencyOptions {
  bool recompute = true;  // allow running ops again
  bool tiers = true;      // allow copies to tiers
  // How many schedules the search tries; a count and not a clock, so that the same problem gives the same answer everywhere.
  // Problems with at most `exhaustive_gaps` open choices are searched completely, whatever this says.
  int trials = 0;  // 0: as many as take about half a second for a thousand ops
  int greedy_budgets = 7;  // budgets that the greedy choice is made for, 1 to 7: less than the real one leaves copies room
  int exhaustive_gaps = 10;
};

struct ResidencySolution {
  ResidencyChoice choice;
  ResidencySchedule schedule;
  bool fits = false;            // device and tiers within their budgets
  // No choice takes less time: compute without waits, and what must at least be copied or run again for the step to fit.
  double bound_seconds = 0.0;
  bool optimal = false;         // searched completely, or at the bound
  // Where it does not fit: the op with the largest operands, which no choice can make smaller, and their bytes.
  int largest_op = -1;
  int64_t largest_op_bytes = 0;
  int trials = 0;

  // schedule.seconds / bound_seconds - 1.
  double gap() const { return bound_seconds > 0 ? schedule.seconds / bound_seconds - 1.0 : 0.0; }
};

// The best schedule found. One that does not fit is no error: it is the one with the lowest peak found, so that the caller can
// say what is short. kInvalidArgument as ValidateResidencyProblem. Deterministic, thread-safe.
absl::StatusOr<ResidencySolution> SolveResidency(const ResidencyProblem& problem, const ResidencyOptions& options = {});

}  // namespace gantry
