// Rearrangements of operands: of constants at import, of values by ops. Attributes are checked for constants here and
// for values by the ops.
#pragma once

#include <vector>

#include "runtime/graph/onnx/node.h"

namespace gantry::onnx {

absl::StatusOr<Operand> ReshapeTo(Node& node, const Operand& x, const Shape& shape);
absl::StatusOr<Operand> TransposeBy(Node& node, const Operand& x, const std::vector<int64_t>& perm);
// starts, counts and steps have one entry per axis and lie inside x.
absl::StatusOr<Operand> SliceOf(Node& node, const Operand& x, const std::vector<int64_t>& starts,
                                const std::vector<int64_t>& counts, const std::vector<int64_t>& steps);
// `shape` is the broadcast of x's shape with something.
absl::StatusOr<Operand> BroadcastTo(Node& node, const Operand& x, const Shape& shape);
// At least one part; `axis` is one of the first part's.
absl::StatusOr<Operand> ConcatOf(Node& node, std::vector<Operand> parts, int axis);

}  // namespace gantry::onnx
