// Operators that rearrange elements. Each is written once over operands: constants are rearranged at import, values by
// ops.
#include <algorithm>
#include <numeric>

#include "ops/functional.h"
#include "ops/infer.h"
#include "runtime/graph/onnx/fold.h"
#include "runtime/graph/onnx/rearrange.h"

namespace gantry::onnx {

absl::StatusOr<Operand> ReshapeTo(Node& node, const Operand& x, const Shape& shape) {
  GANTRY_RETURN_IF_ERROR(infer::CheckShape(shape));
  const Shape from = node.ShapeOf(x);
  if (from.element_count() != shape.element_count()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s does not have as many elements as %s", from.ToString(), shape.ToString()));
  }
  if (x.constant != nullptr) return MakeConstant(FoldReshape(*x.constant, shape));
  return MakeValue(ops::Reshape(node.program(), x.value, shape));
}

absl::StatusOr<Operand> TransposeBy(Node& node, const Operand& x, const std::vector<int64_t>& perm) {
  if (x.constant == nullptr) return MakeValue(ops::Transpose(node.program(), x.value, perm));
  const Shape& from = x.constant->shape;
  std::vector<bool> seen(from.rank(), false);
  std::vector<int64_t> dims, strides;
  const std::vector<int64_t> own = from.Strides();
  for (int64_t axis : perm) {
    if (axis < 0 || axis >= from.rank() || seen[axis] || perm.size() != seen.size()) {
      return absl::InvalidArgumentError(absl::StrFormat("its perm is no order of the %d axes", from.rank()));
    }
    seen[axis] = true;
    dims.push_back(from[static_cast<int>(axis)]);
    strides.push_back(own[axis]);
  }
  if (perm.size() != seen.size()) return absl::InvalidArgumentError("its perm leaves out axes");
  GANTRY_ASSIGN_OR_RETURN(HostTensor folded, FoldStrided(*x.constant, Shape(dims), 0, strides));
  return MakeConstant(std::move(folded));
}

absl::StatusOr<Operand> SliceOf(Node& node, const Operand& x, const std::vector<int64_t>& starts,
                                const std::vector<int64_t>& counts, const std::vector<int64_t>& steps) {
  if (x.constant == nullptr) {
    if (Shape(counts) == node.ShapeOf(x) && std::all_of(steps.begin(), steps.end(), [](int64_t s) { return s == 1; }))
      return x;
    return MakeValue(ops::Slice(node.program(), x.value, starts, counts, steps));
  }
  const std::vector<int64_t> own = x.constant->shape.Strides();
  std::vector<int64_t> strides;
  int64_t offset = 0;
  for (size_t axis = 0; axis < counts.size(); ++axis) {
    offset += starts[axis] * own[axis];
    strides.push_back(counts[axis] <= 1 ? 0 : steps[axis] * own[axis]);
  }
  GANTRY_ASSIGN_OR_RETURN(HostTensor folded, FoldStrided(*x.constant, Shape(counts), offset, strides));
  return MakeConstant(std::move(folded));
}

absl::StatusOr<Operand> BroadcastTo(Node& node, const Operand& x, const Shape& shape) {
  GANTRY_RETURN_IF_ERROR(infer::CheckShape(shape));
  if (x.constant == nullptr) return MakeValue(ops::Broadcast(node.program(), x.value, shape));
  GANTRY_ASSIGN_OR_RETURN(HostTensor folded, FoldBroadcast(*x.constant, shape));
  return MakeConstant(std::move(folded));
}

absl::StatusOr<Operand> ConcatOf(Node& node, std::vector<Operand> parts, int axis) {
  std::vector<const HostTensor*> constants;
  for (const Operand& part : parts) {
    if (part.constant != nullptr) constants.push_back(part.constant.get());
  }
  if (constants.size() == parts.size()) {
    GANTRY_ASSIGN_OR_RETURN(HostTensor folded, FoldConcat(constants, axis));
    return MakeConstant(std::move(folded));
  }
  std::vector<ValueId> values;
  for (Operand& part : parts) {
    GANTRY_ASSIGN_OR_RETURN(const ValueId value, node.ToValue(part));
    values.push_back(value);
  }
  return MakeValue(ops::Concat(node.program(), values, axis));
}

namespace {

// Sets output 0.
absl::Status SetOutput(Node& node, absl::StatusOr<Operand> result) {
  if (!result.ok()) return result.status();
  return node.Set(0, *std::move(result));
}

absl::Status ImportIdentity(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const Operand* x, node.Raw(0));
  return node.Set(0, *x);
}

absl::Status ImportReshape(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const Operand x, node.Get(0));
  GANTRY_ASSIGN_OR_RETURN(const std::optional<std::vector<int64_t>> wanted, node.IntsFrom("shape", 1));
  if (!wanted) return absl::InvalidArgumentError("its new shape is missing");
  const Shape from = node.ShapeOf(x);
  const bool allow_zero = node.Int("allowzero", 0) != 0;
  std::vector<int64_t> dims = *wanted;
  if (dims.size() > static_cast<size_t>(infer::kMaxRank)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("its new shape has %d dimensions; at most %d are supported", dims.size(), infer::kMaxRank));
  }
  int open = -1;
  Shape known;
  for (size_t axis = 0; axis < dims.size(); ++axis) {
    if (dims[axis] == 0 && !allow_zero) {
      if (static_cast<int>(axis) >= from.rank())
        return absl::InvalidArgumentError("its new shape copies a dimension that is not there");
      dims[axis] = from[static_cast<int>(axis)];
    }
    if (dims[axis] != -1) continue;
    if (open >= 0) return absl::InvalidArgumentError("its new shape has more than one -1");
    open = static_cast<int>(axis);
    dims[axis] = 1;
  }
  known = Shape(dims);
  GANTRY_RETURN_IF_ERROR(infer::CheckShape(known));
  if (open >= 0) {
    const int64_t rest = known.element_count();
    if (rest == 0 || from.element_count() % rest != 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s cannot be reshaped to %s", from.ToString(), Shape(*wanted).ToString()));
    }
    known[open] = from.element_count() / rest;
  }
  return SetOutput(node, ReshapeTo(node, x, known));
}

absl::Status ImportFlatten(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const Operand x, node.Get(0));
  const Shape from = node.ShapeOf(x);
  const int64_t given = node.Int("axis", 1);
  const int64_t axis = given < 0 ? given + from.rank() : given;
  if (axis < 0 || axis > from.rank())
    return absl::InvalidArgumentError(absl::StrFormat("axis %d is outside %s", given, from.ToString()));
  Shape flat{1, 1};
  for (int i = 0; i < from.rank(); ++i) flat[i < axis ? 0 : 1] *= from[i];
  return SetOutput(node, ReshapeTo(node, x, flat));
}

absl::Status ImportSqueeze(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const Operand x, node.Get(0));
  GANTRY_ASSIGN_OR_RETURN(const std::optional<std::vector<int64_t>> axes, node.IntsFrom("axes", 1));
  const Shape from = node.ShapeOf(x);
  std::vector<bool> drop(from.rank(), false);
  for (int axis = 0; axis < from.rank() && !axes; ++axis) drop[axis] = from[axis] == 1;
  for (int64_t axis : axes.value_or(std::vector<int64_t>())) {
    GANTRY_ASSIGN_OR_RETURN(const int place, NormalizeAxis(axis, from.rank()));
    if (from[place] != 1)
      return absl::InvalidArgumentError(absl::StrFormat("axis %d of %s is not 1", place, from.ToString()));
    drop[place] = true;
  }
  std::vector<int64_t> dims;
  for (int axis = 0; axis < from.rank(); ++axis) {
    if (!drop[axis]) dims.push_back(from[axis]);
  }
  return SetOutput(node, ReshapeTo(node, x, Shape(dims)));
}

absl::Status ImportUnsqueeze(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const Operand x, node.Get(0));
  GANTRY_ASSIGN_OR_RETURN(const std::optional<std::vector<int64_t>> axes, node.IntsFrom("axes", 1));
  const Shape from = node.ShapeOf(x);
  const size_t rank = from.rank() + axes.value_or(std::vector<int64_t>()).size();
  if (!axes || rank > static_cast<size_t>(infer::kMaxRank)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("its axes are missing, or give more than %d dimensions", infer::kMaxRank));
  }
  std::vector<bool> added(rank, false);
  for (int64_t axis : *axes) {
    GANTRY_ASSIGN_OR_RETURN(const int place, NormalizeAxis(axis, static_cast<int>(rank)));
    if (added[place]) return absl::InvalidArgumentError(absl::StrFormat("axis %d is named twice", place));
    added[place] = true;
  }
  std::vector<int64_t> dims;
  int next = 0;
  for (size_t axis = 0; axis < rank; ++axis) dims.push_back(added[axis] ? 1 : from[next++]);
  return SetOutput(node, ReshapeTo(node, x, Shape(dims)));
}

absl::Status ImportTranspose(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const Operand x, node.Get(0));
  std::vector<int64_t> reversed(node.ShapeOf(x).rank());
  std::iota(reversed.rbegin(), reversed.rend(), 0);
  return SetOutput(node, TransposeBy(node, x, node.Ints("perm", reversed)));
}

absl::Status ImportExpand(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const Operand x, node.Get(0));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> dims, node.ConstantInts(1));
  const Shape wanted(dims);
  GANTRY_RETURN_IF_ERROR(infer::CheckShape(wanted));
  GANTRY_ASSIGN_OR_RETURN(const Shape shape, BroadcastShapes(node.ShapeOf(x), wanted));
  return SetOutput(node, BroadcastTo(node, x, shape));
}

// One axis at a time: [outer, 1, inner] is broadcast to [outer, repeats, inner].
absl::Status ImportTile(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(Operand x, node.Get(0));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> repeats, node.ConstantInts(1));
  Shape shape = node.ShapeOf(x);
  if (static_cast<int>(repeats.size()) != shape.rank()) {
    return absl::InvalidArgumentError(absl::StrFormat("%d repeats for %s", repeats.size(), shape.ToString()));
  }
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (repeats[axis] == 1) continue;
    Shape split{1, 1, 1};
    for (int i = 0; i < shape.rank(); ++i) split[i < axis ? 0 : 2] *= shape[i];
    GANTRY_ASSIGN_OR_RETURN(x, ReshapeTo(node, x, split));
    split[1] = repeats[axis];
    GANTRY_ASSIGN_OR_RETURN(x, BroadcastTo(node, x, split));
    const __int128 extent = static_cast<__int128>(shape[axis]) * repeats[axis];
    if (extent > infer::kMaxElements) return absl::InvalidArgumentError("the result is too large");
    shape[axis] = static_cast<int64_t>(extent);
    GANTRY_ASSIGN_OR_RETURN(x, ReshapeTo(node, x, shape));
  }
  return node.Set(0, std::move(x));
}

absl::Status ImportConcat(Node& node) {
  std::vector<Operand> parts;
  for (int i = 0; i < node.input_count(); ++i) {
    GANTRY_ASSIGN_OR_RETURN(Operand part, node.Get(i));
    parts.push_back(std::move(part));
  }
  if (parts.empty()) return absl::InvalidArgumentError("it has no inputs");
  GANTRY_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(node.Int("axis", 0), node.ShapeOf(parts[0]).rank()));
  return SetOutput(node, ConcatOf(node, std::move(parts), axis));
}

// Parts of the given lengths along `axis`, which they must fill.
absl::StatusOr<std::vector<Operand>> SplitInto(Node& node, const Operand& x, int axis,
                                               const std::vector<int64_t>& lengths) {
  const Shape shape = node.ShapeOf(x);
  std::vector<int64_t> starts(shape.rank(), 0), counts = shape.dims(), steps(shape.rank(), 1);
  std::vector<Operand> parts;
  for (int64_t length : lengths) {
    if (length < 0 || length > shape[axis] - starts[axis]) break;
    counts[axis] = length;
    GANTRY_ASSIGN_OR_RETURN(Operand part, SliceOf(node, x, starts, counts, steps));
    parts.push_back(std::move(part));
    starts[axis] += length;
  }
  if (parts.size() != lengths.size() || starts[axis] != shape[axis]) {
    return absl::InvalidArgumentError(absl::StrFormat("the lengths of its %d parts do not fill axis %d of %s",
                                                      lengths.size(), axis, shape.ToString()));
  }
  return parts;
}

// Equal parts, the last one shorter where they cannot be.
absl::Status ImportSplit(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const Operand x, node.Get(0));
  GANTRY_ASSIGN_OR_RETURN(std::optional<std::vector<int64_t>> lengths, node.IntsFrom("split", 1));
  const Shape shape = node.ShapeOf(x);
  GANTRY_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(node.Int("axis", 0), shape.rank()));
  const int64_t count = node.output_count();
  if (count == 0) return absl::InvalidArgumentError("it has no outputs");
  if (!lengths) {
    const int64_t length = (shape[axis] + count - 1) / count;
    lengths.emplace(count, length);
    lengths->back() = shape[axis] - length * (count - 1);
  }
  if (static_cast<int64_t>(lengths->size()) != count) {
    return absl::InvalidArgumentError(absl::StrFormat("it has %d lengths for %d outputs", lengths->size(), count));
  }
  GANTRY_ASSIGN_OR_RETURN(std::vector<Operand> parts, SplitInto(node, x, axis, *lengths));
  for (int i = 0; i < count; ++i) GANTRY_RETURN_IF_ERROR(node.Set(i, std::move(parts[i])));
  return absl::OkStatus();
}

// The split is a list of lengths, one length of all parts, or absent: parts of 1, without the axis unless keepdims.
absl::Status ImportSplitToSequence(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const Operand x, node.Get(0));
  const Shape shape = node.ShapeOf(x);
  GANTRY_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(node.Int("axis", 0), shape.rank()));
  std::vector<int64_t> lengths = {1};
  bool all_alike = true;
  if (node.HasInput(1)) {
    GANTRY_ASSIGN_OR_RETURN(const auto split, node.Constant(1));
    GANTRY_ASSIGN_OR_RETURN(lengths, node.ConstantInts(1));
    all_alike = split->shape.rank() == 0;
  }
  constexpr int64_t kMostParts = 4096;
  if (all_alike) {
    const int64_t length = lengths[0];
    if (length < 1 || shape[axis] / length >= kMostParts) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s cannot be split by %d along axis %d", shape.ToString(), length, axis));
    }
    lengths.assign(shape[axis] / length, length);
    if (shape[axis] % length != 0) lengths.push_back(shape[axis] % length);
  }
  if (lengths.empty() || static_cast<int64_t>(lengths.size()) > kMostParts)
    return absl::InvalidArgumentError("it has no parts or too many");
  GANTRY_ASSIGN_OR_RETURN(std::vector<Operand> parts, SplitInto(node, x, axis, lengths));
  if (!node.HasInput(1) && node.Int("keepdims", 1) == 0) {
    std::vector<int64_t> dims = shape.dims();
    dims.erase(dims.begin() + axis);
    for (Operand& part : parts) {
      GANTRY_ASSIGN_OR_RETURN(part, ReshapeTo(node, part, Shape(dims)));
    }
  }
  return node.Set(0, Operand{.sequence = std::make_shared<const std::vector<Operand>>(std::move(parts))});
}

absl::Status ImportSequenceAt(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const Operand* sequence, node.Raw(0));
  GANTRY_ASSIGN_OR_RETURN(const auto position, node.Constant(1));
  if (sequence->sequence == nullptr)
    return absl::InvalidArgumentError(absl::StrFormat("'%s' is no sequence", sequence->name));
  const std::vector<Operand>& parts = *sequence->sequence;
  const auto size = static_cast<int64_t>(parts.size());
  const int64_t given = position->element_count() == 1 ? position->Integer(0) : size;
  if (given < -size || given >= size) {
    return absl::InvalidArgumentError(absl::StrFormat("'%s' has no part %d", sequence->name, given));
  }
  return node.Set(0, parts[given < 0 ? given + size : given]);
}

// DepthToSpace [N, C, H, W] -> [N, C/b^2, H*b, W*b], and back.
absl::Status ImportDepthToSpace(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(Operand x, node.Get(0));
  const Shape s = node.ShapeOf(x);
  const int64_t b = node.Int("blocksize", 0);
  constexpr int64_t kLargestBlock = 1 << 10;  // no product below overflows
  if (s.rank() != 4 || b < 1 || b > kLargestBlock) {
    return absl::InvalidArgumentError(
        absl::StrFormat("it takes images [N,C,H,W] and a blocksize, not %s and %d", s.ToString(), b));
  }
  Shape split, result;
  std::vector<int64_t> perm;
  if (node.op() == "DepthToSpace") {
    if (s[1] % (b * b) != 0)
      return absl::InvalidArgumentError(absl::StrFormat("%s has no whole blocks of %d", s.ToString(), b));
    const bool columns_first = node.String("mode", "DCR") == "CRD";
    split =
        columns_first ? Shape{s[0], s[1] / (b * b), b, b, s[2], s[3]} : Shape{s[0], b, b, s[1] / (b * b), s[2], s[3]};
    perm = columns_first ? std::vector<int64_t>{0, 1, 4, 2, 5, 3} : std::vector<int64_t>{0, 3, 4, 1, 5, 2};
    result = Shape{s[0], s[1] / (b * b), s[2] * b, s[3] * b};
  } else {
    if (s[2] % b != 0 || s[3] % b != 0)
      return absl::InvalidArgumentError(absl::StrFormat("%s has no whole blocks of %d", s.ToString(), b));
    split = Shape{s[0], s[1], s[2] / b, b, s[3] / b, b};
    perm = {0, 3, 5, 1, 2, 4};
    result = Shape{s[0], s[1] * b * b, s[2] / b, s[3] / b};
  }
  GANTRY_ASSIGN_OR_RETURN(x, ReshapeTo(node, x, split));
  GANTRY_ASSIGN_OR_RETURN(x, TransposeBy(node, x, perm));
  return SetOutput(node, ReshapeTo(node, x, result));
}

}  // namespace

std::vector<Operator> ShapeOperators() {
  return {{"Identity", ImportIdentity},
          {"Reshape", ImportReshape},
          {"Flatten", ImportFlatten},
          {"Squeeze", ImportSqueeze},
          {"Unsqueeze", ImportUnsqueeze},
          {"Transpose", ImportTranspose},
          {"Expand", ImportExpand},
          {"Tile", ImportTile},
          {"Concat", ImportConcat},
          {"Split", ImportSplit},
          {"SplitToSequence", ImportSplitToSequence},
          {"SequenceAt", ImportSequenceAt},
          {"DepthToSpace", ImportDepthToSpace},
          {"SpaceToDepth", ImportDepthToSpace}};
}

}  // namespace gantry::onnx
