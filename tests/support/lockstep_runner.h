// Runs the programs of all ranks of a job in one process, from exchange to exchange side by side, with plain loops for what they exchange: what
// partitioned programs mean, without any communication.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "ops/kernel.h"
#include "runtime/graph/program.h"

namespace gantry::test {

// f64 and i64 only. The ranks of a group must come to the same exchanges in the same order. Programs outlive the runner.
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
    size_t next = 0;                                    // op
  };

  const Op& NextOp(size_t rank) const { return ranks_[rank].program->ops()[ranks_[rank].next]; }
  bool Ended(size_t rank) const { return ranks_[rank].next == ranks_[rank].program->ops().size(); }
  absl::Status RunAlone(size_t rank);
  absl::StatusOr<int> Exchange();

  std::vector<Rank> ranks_;
};

}  // namespace gantry::test
