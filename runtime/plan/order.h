// The order of ops where memory is short.
#pragma once

#include "runtime/graph/program.h"

namespace gantry {

// Moves what ends large values and makes only small ones, updates of states and sums over gradients, to the earliest place where
// all it reads is there and nobody reads the old version any more. The rest keeps its order, exchanges between ranks always; bits do not
// change.
absl::StatusOr<Program> UpdateEarly(const Program& program);

// Keeps what only updates use (moments, averages) in pieces of about `bytes`, each updated by an op of its own, so that an update does
// not need all of it at once. Bits do not change. Wants updates of one tensor each (FuseOptions::buckets = false).
absl::StatusOr<Program> SplitUpdates(const Program& program, int64_t bytes);

}  // namespace gantry
