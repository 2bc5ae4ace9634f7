// Definitions of what ranks of a group do together. A group has P ranks; `index` is this rank's place in it (0 .. P-1) and `ranks` are
// their numbers in the job. Every rank of the group emits the same exchanges in the same order.
//   "all_reduce"(x...) {ranks, index}: for each x, the sum of all ranks' x, added in the order of the group. Several go in one exchange.
//   "reduce_scatter"(x) {ranks, index, begins, ends}: of that sum, along axis 0, the part [begins[index], ends[index]).
//   "exchange"(x) {ranks, index, axis, from_begins, from_ends, to_begins, to_ends}: x is the part [from_begins[i], from_ends[i]) along `axis`
//     of a tensor that the group holds in parts; the result is its part [to_begins[i], to_ends[i]). Parts held may not overlap, parts wanted
//     may: an all-gather wants everything.
//   "halo"(x) {as exchange}: of what is wanted only what is not held, where a rank wants what it holds and some places on either side: its
//     results are [to_begins[index], from_begins[index]) and [from_ends[index], to_ends[index]).
// {sequence} is the exchange's place in the one order in which all ranks begin their exchanges; it also tells exchanges of the same operands
// apart: what one rank takes for one exchange must not be two for another. {purpose} says what for: "gradient", "gather" (of a state that
// is held in parts), "halo", "statistics", "sum", "channels" (activations), "whole", "shares", "edge" (from one role or stage to another). {urgent = 1}: a gradient that goes before large ones under way.
// {backward = 1}: statistics of what goes back through a batch norm, which weight gradients can hide. All are linear. The group's name is not part of the program: two groups
// with the same ranks are one.
#include "ops/functional.h"
#include "ops/infer.h"

namespace gantry {
namespace {

using infer::Inputs;
using infer::Outputs;

constexpr int kMaxRanks = 1 << 16;

// The number of ranks.
absl::StatusOr<int> CheckGroup(const Attributes& attributes) {
  const std::vector<int64_t> ranks = attributes.Ints("ranks");
  if (ranks.empty() || ranks.size() > kMaxRanks) {
    return absl::InvalidArgumentError(absl::StrFormat("attribute 'ranks' names %d ranks; a group has 1 to %d", ranks.size(), kMaxRanks));
  }
  const int size = static_cast<int>(ranks.size());
  GANTRY_RETURN_IF_ERROR(infer::IntAttribute(attributes, "index", 0, size - 1).status());
  return size;
}

struct Parts {
  std::vector<int64_t> begins, ends;
};

absl::StatusOr<Parts> CheckParts(const Attributes& attributes, std::string_view begins, std::string_view ends, int size) {
  Parts parts{attributes.Ints(begins), attributes.Ints(ends)};
  if (static_cast<int>(parts.begins.size()) != size || static_cast<int>(parts.ends.size()) != size) {
    return absl::InvalidArgumentError(absl::StrFormat("attributes '%s' and '%s' must have %d entries, one a rank", begins, ends, size));
  }
  for (int i = 0; i < size; ++i) {
    if (parts.begins[i] < 0 || parts.ends[i] < parts.begins[i]) {
      return absl::InvalidArgumentError(absl::StrFormat("rank %d of the group has the part [%d, %d)", i, parts.begins[i], parts.ends[i]));
    }
  }
  return parts;
}

Outputs InferAllReduce(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireFloat(inputs));
  GANTRY_RETURN_IF_ERROR(CheckGroup(attributes).status());
  for (const TensorType& input : inputs) {
    if (input.dtype != inputs[0].dtype) {
      return absl::InvalidArgumentError(absl::StrFormat("%s and %s go in one exchange, but have different types", inputs[0].ToString(), input.ToString()));
    }
  }
  return std::vector<TensorType>(inputs.begin(), inputs.end());
}

Outputs InferReduceScatter(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireFloat(inputs));
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(inputs[0], "x", 1, infer::kMaxRank));
  GANTRY_ASSIGN_OR_RETURN(const int size, CheckGroup(attributes));
  GANTRY_ASSIGN_OR_RETURN(const Parts parts, CheckParts(attributes, "begins", "ends", size));
  for (int i = 0; i < size; ++i) {
    if (parts.ends[i] > inputs[0].shape[0]) {
      return absl::InvalidArgumentError(absl::StrFormat("rank %d wants [%d, %d) of %s", i, parts.begins[i], parts.ends[i], inputs[0].ToString()));
    }
  }
  const int64_t index = attributes.Int("index");
  Shape shape = inputs[0].shape;
  shape[0] = parts.ends[index] - parts.begins[index];
  return infer::One(inputs[0].dtype, std::move(shape));
}

// What this rank holds and wants along an axis.
struct Move {
  int axis = 0;
  int64_t from_begin = 0, from_end = 0, to_begin = 0, to_end = 0;
};

absl::StatusOr<Move> CheckMove(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(inputs[0], "x", 1, infer::kMaxRank));
  GANTRY_ASSIGN_OR_RETURN(const int size, CheckGroup(attributes));
  GANTRY_ASSIGN_OR_RETURN(const int axis, infer::AxisAttribute(attributes, "axis", inputs[0].shape.rank()));
  GANTRY_ASSIGN_OR_RETURN(const Parts from, CheckParts(attributes, "from_begins", "from_ends", size));
  GANTRY_ASSIGN_OR_RETURN(const Parts to, CheckParts(attributes, "to_begins", "to_ends", size));
  int64_t held = 0;
  for (int i = 0; i < size; ++i) {
    if (from.begins[i] != held) {
      return absl::InvalidArgumentError(absl::StrFormat("rank %d holds [%d, %d), but the ranks before it end at %d", i, from.begins[i],
                                                        from.ends[i], held));
    }
    held = from.ends[i];
  }
  for (int i = 0; i < size; ++i) {
    if (to.ends[i] > held) {
      return absl::InvalidArgumentError(absl::StrFormat("rank %d wants [%d, %d), but only %d are held", i, to.begins[i], to.ends[i], held));
    }
  }
  const int64_t index = attributes.Int("index");
  if (inputs[0].shape[axis] != from.ends[index] - from.begins[index]) {
    return absl::InvalidArgumentError(absl::StrFormat("x is %s, but this rank's part is [%d, %d) along axis %d", inputs[0].ToString(),
                                                      from.begins[index], from.ends[index], axis));
  }
  return Move{axis, from.begins[index], from.ends[index], to.begins[index], to.ends[index]};
}

TensorType WithExtent(const TensorType& type, int axis, int64_t extent) {
  TensorType result{type.dtype, type.shape};
  result.shape[axis] = extent;
  return result;
}

Outputs InferExchange(Inputs inputs, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(const Move move, CheckMove(inputs, attributes));
  return std::vector<TensorType>{WithExtent(inputs[0], move.axis, move.to_end - move.to_begin)};
}

Outputs InferHalo(Inputs inputs, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(const Move move, CheckMove(inputs, attributes));
  if (move.to_begin > move.from_begin || move.to_end < move.from_end) {
    return absl::InvalidArgumentError(absl::StrFormat("this rank holds [%d, %d), but wants [%d, %d), which lacks some of it", move.from_begin,
                                                      move.from_end, move.to_begin, move.to_end));
  }
  return std::vector<TensorType>{WithExtent(inputs[0], move.axis, move.from_begin - move.to_begin),
                                 WithExtent(inputs[0], move.axis, move.to_end - move.from_end)};
}

}  // namespace

std::vector<OpDefinition> ExchangeOps() {
  return {
      {.name = "all_reduce", .max_inputs = -1, .infer = InferAllReduce, .in_place = {{0, 0}}, .communicates = true},
      {.name = "reduce_scatter", .infer = InferReduceScatter, .communicates = true},
      {.name = "exchange", .infer = InferExchange, .communicates = true},
      {.name = "halo", .infer = InferHalo, .communicates = true},
  };
}

}  // namespace gantry
