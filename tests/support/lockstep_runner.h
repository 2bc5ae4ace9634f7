// Runs the programs of all ranks of a job in one process, op by op side by side, with plain loops for what they exchange: what
// partitioned programs mean, without any communication.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "ops/kernel.h"
#include "runtime/graph/program.h"

namespace gantry::test {

// f64 only. The programs must have as many ops each, in the same order, and outlive the runner.
class LockstepRunner {
 public:
  static absl::StatusOr<LockstepRunner> Create(std::vector<const Program*> programs);

  // Any element type, given as doubles, row-major.
  void Set(int rank, ValueId value, std::span<const double> content);
  std::vector<double> Get(int rank, ValueId value) const;
  // Skips ops whose condition is 0.
  absl::Status Run();

 private:
  struct Rank {
    const Program* program;
    std::vector<std::vector<std::max_align_t>> memory;  // per value
    std::vector<std::unique_ptr<Kernel>> kernels;       // per op; null for views and exchanges
    std::vector<std::max_align_t> scratch;
  };

  absl::Status Exchange(size_t op);

  std::vector<Rank> ranks_;
};

}  // namespace gantry::test
