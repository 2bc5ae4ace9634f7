// Places the buffers of a LayoutProblem.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "memory/layout/layout_problem.h"

namespace gantry {

struct LayoutOptions {
  // Bytes of the arena. The solver stops at the first layout that fits. Absent: it goes on towards the lower bound.
  std::optional<int64_t> capacity;
  // How much to try, in units of roughly a nanosecond of one core. A count and not a clock, so that the same problem and
  // options give the same layout on every machine. The first greedy order always runs to its end, or where it would take more
  // than all this work, a skyline.
  int64_t work_limit = 1'000'000'000;
  // What a byte of height is worth, in the same units: it stops once it has spent more than that on each byte that is left above
  // the bound. Absent: all of the work goes into the last byte, too. Means nothing where there is a capacity.
  std::optional<int64_t> work_per_byte;
  // A clock on top of it, for callers that would rather have another result than a late one. Absent: no clock.
  std::optional<absl::Duration> time_limit;
  uint64_t seed = 1;         // of the randomised improvement steps
  bool exact_search = true;  // false: greedy orders and improvement only
};

// The lowest layout found. Tries greedy orders first, then searches exactly and repairs the best in turn; stops early when the
// height reaches the goal: the capacity if one is given, else the lower bound. One thread, deterministic unless a time limit hits.
// Where nothing fits the capacity, the result is the lowest layout found with height > capacity: not an error, so that the
// caller can say how many bytes are short; lower_bound > capacity says that no layout can fit.
// kInvalidArgument: the problem is malformed (ValidateLayoutProblem), or two buffers with fixed offsets collide.
// Thread-safe.
absl::StatusOr<Layout> SolveLayout(const LayoutProblem& problem, const LayoutOptions& options = {});

}  // namespace gantry
