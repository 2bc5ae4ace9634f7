// Kernels and offsets for a program whose order is settled.
#pragma once

#include <vector>

#include "runtime/plan/plan.h"

namespace gantry {

// An op's result in the memory of an input that ends there.
struct TakeOver {
  ValueId input, output;
};

// One step a op of plan.program, in order, with its kernel. Fills plan.schedule and plan.fallbacks.
absl::Status ChooseKernels(Plan& plan, const PlanOptions& options);

// Which values share memory, and where all memory lies: fills offsets, buffers, sizes and bounds. done_by of the schedule must be set.
// `tiers` of the plan must be as many as its values use. Stops searching at `capacity` bytes of the arena, if positive, or after
// `work` (LayoutOptions::work_limit). Returns what runs in place.
absl::StatusOr<std::vector<TakeOver>> LayOut(Plan& plan, const PlanOptions& options, int64_t capacity, int64_t work);

}  // namespace gantry
