// Rewrites of the program that keep its meaning.
#pragma once

#include "runtime/graph/program.h"

namespace gantry {

// Drops ops that no output and no state depends on, and computes equal expressions once. Bits do not change.
absl::StatusOr<Program> Simplify(const Program& program);

struct FuseOptions {
  bool activation = true;  // leaky_relu into the conv, conv_transpose or normalize that feeds it alone, and its gradient
                           // into normalize_grad
  bool buckets = true;     // neighbouring updates of the same kind into one op
  bool buckets_by_exchange = false;  // only those whose gradients come in one exchange, so that they need not wait for others
};

// Joins ops where that saves passes over memory. Results are the same bits: a fused op does the same arithmetic.
absl::StatusOr<Program> Fuse(const Program& program, const FuseOptions& options);

}  // namespace gantry
