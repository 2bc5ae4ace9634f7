// Static offset assignment: where in one arena does each buffer of a fixed schedule live? Two buffers that are live at the
// same time must not share a byte; the arena's height (the highest used byte) is to be as small as possible. This is dynamic
// storage allocation with known lifetimes, strongly NP-hard (Garey and Johnson, 1979, problem SR2).
// Plain data, no graph: the runtime's planner fills a LayoutProblem, SolveLayout (layout_solver.h) answers with a Layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gantry {

// One buffer, live in the half-open interval [lower, upper) of abstract time (usually: step numbers of a schedule).
struct LayoutBuffer {
  int64_t lower = 0;
  int64_t upper = 0;      // > lower
  int64_t size = 0;       // bytes, >= 0; a buffer of 0 bytes conflicts with nothing
  int64_t alignment = 1;  // offset % alignment == 0; any positive number up to kLayoutMaxAlignment
  std::optional<int64_t> fixed_offset;  // where it must be, if the caller has decided already
  // Buffers with the same group >= 0 share one offset (a value and its views, a value overwritten in place). They may be
  // live together; at each moment the group needs as many bytes as its largest live member. -1: alone.
  int32_t alias_group = -1;
};

struct LayoutProblem {
  std::vector<LayoutBuffer> buffers;
  std::vector<std::string> names;  // for messages and files; empty, or one a buffer

  // names[index], or "#index" where the problem has no names.
  std::string Name(size_t index) const;
};

inline constexpr int64_t kLayoutMaxAlignment = int64_t{1} << 40;
// The sum of a problem's sizes and alignments plus its highest fixed offset is at most this, so that no sum overflows.
inline constexpr int64_t kLayoutMaxBytes = int64_t{1} << 60;

// A placement of every buffer.
struct Layout {
  std::vector<int64_t> offsets;  // bytes, one a buffer, in the problem's order
  int64_t height = 0;            // largest offset + size
  int64_t lower_bound = 0;       // no layout is lower than this: LowerBound(), or more where the search proved more
  bool optimal = false;          // height == lower_bound, hence proved
  int64_t work = 0;              // units of work spent, as in LayoutOptions::work_limit
  std::string method;            // what found it: "greedy size best-fit", "search area", ...

  // height / lower_bound - 1; 0 for an empty problem.
  double gap() const {
    return lower_bound > 0 ? static_cast<double>(height - lower_bound) / static_cast<double>(lower_bound) : 0.0;
  }
};

// OK if the problem is well formed; kInvalidArgument names the first buffer that is not, and why: empty lifetime, negative
// size, alignment or fixed offset out of range, fixed offset not a multiple of the alignment, aliases with different fixed
// offsets, or sums beyond kLayoutMaxBytes. Says nothing about whether fixed buffers collide; SolveLayout and CheckLayout do.
absl::Status ValidateLayoutProblem(const LayoutProblem& problem);

// A height that no layout can go below: the largest sum of the sizes of buffers live at one time, aliases counted once.
// Where every alignment is a multiple of some g > 1, every offset is too, so at any time all live buffers but the topmost take
// multiples of g; the bound counts that. Fixed buffers add their own top. O(n log n). The error is ValidateLayoutProblem's.
absl::StatusOr<int64_t> LowerBound(const LayoutProblem& problem);

}  // namespace gantry
