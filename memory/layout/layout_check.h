// Says whether a layout is right, by a sweep over time that shares no code with the solver.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "memory/layout/layout_problem.h"

namespace gantry {

// OK if `offsets` (bytes, one a buffer of `problem`) is a right layout: nothing below 0, every alignment and fixed offset
// kept, every alias group at one offset, no two buffers of different groups sharing a byte while both live, and, where
// `capacity` is given, nothing above it. Else kInvalidArgument naming the buffers, their live intervals and bytes.
// O(n log n) time, O(n) memory. Thread-safe.
absl::Status CheckLayoutOffsets(const LayoutProblem& problem, std::span<const int64_t> offsets,
                                std::optional<int64_t> capacity = std::nullopt);

// CheckLayoutOffsets, and that the height is the largest offset + size, not below the stated lower bound, with `optimal` set
// only where both are equal.
absl::Status CheckLayout(const LayoutProblem& problem, const Layout& layout,
                         std::optional<int64_t> capacity = std::nullopt);

}  // namespace gantry
