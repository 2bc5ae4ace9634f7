// Runs a program op by op in plain memory, for tests of rewrites and of gradients.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "ops/kernel.h"
#include "runtime/graph/program.h"

namespace gantry::test {

// Every value has its own memory and every kernel is made once. The program must outlive the runner and not change.
class ProgramRunner {
 public:
  // An error names the op that the library has no kernel for.
  static absl::StatusOr<ProgramRunner> Create(const Program& program, const KernelLibrary& library);

  // Writes the value of an input or state (any element type, given as doubles, row-major).
  void Set(ValueId value, std::span<const double> content);
  std::vector<double> Get(ValueId value) const;
  // Runs the ops that `targets` depend on, in order.
  absl::Status Run(std::span<const ValueId> targets);

 private:
  explicit ProgramRunner(const Program& program) : program_(&program) {}

  const Program* program_;
  std::vector<std::vector<std::max_align_t>> memory_;  // per value
  std::vector<std::unique_ptr<Kernel>> kernels_;       // per op; null for views
  std::vector<std::max_align_t> scratch_;
};

}  // namespace gantry::test
