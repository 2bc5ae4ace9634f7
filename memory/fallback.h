// What was wanted and could not be had, so that something slower does its work. Counted for the whole process, so that
// nobody finds out from a slow run alone; with GANTRY_STRICT=1 it is an error.
#pragma once

#include <string>
#include <vector>

#include "memory/status.h"

namespace gantry {

struct Fallback {
  std::string what;    // "the path to rank 3", "tier nvme"
  std::string wanted;  // "ucx"
  std::string got;     // "tcp"
  std::string why;     // "it was built without UCX"
  std::string remedy;  // "install libucx-dev and build again"

  std::string Text() const;  // "the path to rank 3: wanted ucx, got tcp: it was built without UCX"
};

// OK, or under GANTRY_STRICT (set, and neither empty nor 0) kFailedPrecondition with what fell back, why, and what to
// do. Thread-safe.
absl::Status NoteFallback(const Fallback& fallback);
// The texts of all that were noted in this process, in order. Thread-safe.
std::vector<std::string> NotedFallbacks();

}  // namespace gantry
