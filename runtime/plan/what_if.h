// What a step would need and take if it were run otherwise: answers in a second or two, without planning every case to the end.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/plan/plan.h"

namespace gantry {

// A step that differs in its settings; 0: as the run has it.
struct StepVariation {
  int64_t batch = 0;      // samples per update
  int accumulate = 0;     // micro-batches that they go through the networks in
  int penalty_every = 0;  // r1 and r2 in every k-th step
};
// Builds the step program of a variation; errors where there is none, as for a batch that accumulate does not divide.
using StepSource = std::function<absl::StatusOr<Program>(const StepVariation&)>;

struct WhatIfOptions {
  int64_t batch = 1;      // of the step as it is
  int accumulate = 1;
  int penalty_every = 1;
  bool penalty = false;   // it has r1 or r2
};

// One case.
struct WhatIfAnswer {
  std::string topic;      // "now", "budget", "batch", "offload", "recompute", "states", "idle", "penalty", "accumulate"
  std::string what;       // "optimizer state and averages wait in the host"
  std::string flags;      // what to add to the command for it: "--offload host"; empty: nothing, or it cannot be asked for alone
  bool fits = true;       // the budget, where there is one
  int64_t batch = 0;
  int64_t peak_bytes = 0;   // on the device: sum of what is live at once, which layouts reach or nearly so
  int64_t tier_bytes = 0;   // off it
  double seconds = 0.0;     // predicted, of one step; with lazy penalties the mean
};

struct WhatIf {
  int64_t budget_bytes = 0;  // that `fits` is about: the plan's, or half of what the step takes where there is none
  bool assumed_budget = false;
  int op_count = 0;
  std::string costs;         // CostText
  std::vector<WhatIfAnswer> answers;  // the first is the step as it is, with nothing moved
};

// kInvalidArgument where the step itself cannot be built. Deterministic.
absl::StatusOr<WhatIf> AskWhatIf(const StepSource& source, const WhatIfOptions& what, const PlanOptions& options);

// A table to read, and JSON (docs/reference/what-if.md).
std::string Describe(const WhatIf& what_if);
std::string ToJson(const WhatIf& what_if);

}  // namespace gantry
