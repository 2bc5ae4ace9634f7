// What a residency solver may decide: the gaps between accesses of items, and what may happen in each.
#pragma once

#include <vector>

#include "memory/residency/residency_problem.h"

namespace gantry {

struct ResidencyGap {
  int item;
  int index;     // into ResidencyChoice[item]
  int from, to;  // ops around it; -1 and ops.size() at the ends of the step
};

class ResidencyGaps {
 public:
  // `problem` must outlive the object.
  ResidencyGaps(const ResidencyProblem& problem, bool recompute, bool tiers);

  // Those in which more than one thing may happen. The last gap of an item that wraps is its first and is not listed.
  const std::vector<ResidencyGap>& open() const { return open_; }
  // What may happen in gap `gap` of item `item`, kKeep first.
  std::vector<Residence> Choices(int item, int gap) const;
  // Whether `op` runs inside the gap, so that the item need not be on the device.
  bool Covers(const ResidencyGap& gap, int op) const;
  // Sets the gap, and with it what must follow: states that leave between uses must leave between steps.
  void Set(ResidencyChoice& choice, const ResidencyGap& gap, Residence residence) const;

 private:
  const ResidencyProblem& problem_;
  const bool recompute_, tiers_;
  const int ops_;
  std::vector<ResidencyGap> open_;
};

// Bytes on the device while `op` runs and nothing else is there: operands and scratch. No choice makes them fewer.
int64_t OperandBytes(const ResidencyProblem& problem, int op);

// No choice takes less time: `kept_bytes` are those of every op with all kept.
double ResidencyBound(const ResidencyProblem& problem, const ResidencyGaps& gaps, bool tiers, const std::vector<int64_t>& kept_bytes);

}  // namespace gantry
