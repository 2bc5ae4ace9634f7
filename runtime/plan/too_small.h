// What is said where a step does not fit its budget: what is short, what takes the most, and what would fit.
#pragma once

#include <vector>

#include "runtime/plan/plan.h"
#include "runtime/plan/reside.h"

namespace gantry {

// kResourceExhausted with the bytes that are short, the largest contributors at the peak by network, phase and value, and with
// options.advise the three cheapest changes that make it fit: each as flags to add to the command, planned to the end, with its peak
// and predicted seconds. `base` is the step with nothing moved, `best` the nearest to fitting that was found, `best_bytes` what it takes.
absl::Status TooSmall(const Program& program, const Plan& base, const Resider& resider, const PlanOptions& options, int64_t budget,
                      const ResidencySolution& best, int64_t best_bytes);

// The largest buffers live at the arena's fullest moment.
std::vector<const PlannedBuffer*> LargestAtPeak(const Plan& plan, size_t count);

}  // namespace gantry
