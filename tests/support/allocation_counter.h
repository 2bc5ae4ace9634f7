// Counts this program's allocations by replacing malloc: for programs without sanitizers, which do so themselves.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gantry::testing {

// Counts allocations of at least `smallest_bytes` by any thread, from its construction until Count. One at a time.
class AllocationCounter {
 public:
  explicit AllocationCounter(size_t smallest_bytes = 0);
  ~AllocationCounter() { Count(); }
  AllocationCounter(const AllocationCounter&) = delete;
  AllocationCounter& operator=(const AllocationCounter&) = delete;
  // Ends the counting.
  int64_t Count();
};

}  // namespace gantry::testing
