// Residency as a rewrite: copies to tiers and ops that run again are put into the program, so that it fits a budget.
#pragma once

#include <vector>

#include "memory/residency/residency_solver.h"
#include "runtime/plan/lay_out.h"
#include "runtime/plan/plan.h"

namespace gantry {

struct ResidentProgram {
  Program program;
  std::vector<int> done_by;  // per op: PlannedOp::done_by
};

// Whether the actions of a file are such that Rewrite can carry them out: every index exists, every op runs once, and nothing is read
// or copied that is not there. kInvalidArgument names the first action that is not so.
absl::Status CheckActions(const ResidencyProblem& problem, int tier_count, const ResidencySolution& solution);

// `base` has a program, its kernels, and what runs in place; it must outlive the resider.
class Resider {
 public:
  Resider(const Plan& base, const std::vector<TakeOver>& taken_over, const PlanOptions& options);

  const ResidencyProblem& problem() const { return problem_; }
  // For a budget of the device: which may be lower than the real one, to leave room for gaps between buffers.
  absl::StatusOr<ResidencySolution> Solve(int64_t budget_bytes, bool recompute);
  // What the layout of a tier took beyond its budget is taken from what Solve may use of it.
  void Tighten(int tier, int64_t bytes);
  absl::StatusOr<ResidentProgram> Rewrite(const ResidencySolution& solution) const;
  // The base program's op behind an op of the problem.
  OpId OpOf(int problem_op) const { return op_of_[problem_op]; }

 private:
  void BuildProblem(const std::vector<TakeOver>& taken_over);

  const Plan& base_;
  const PlanOptions& options_;
  ResidencyProblem problem_;
  std::vector<OpId> op_of_;       // per op of the problem
  std::vector<int> item_of_;      // per value of the base program; -1: nobody has it
  std::vector<ValueId> value_of_;  // per item: the value that it is at first
};

}  // namespace gantry
