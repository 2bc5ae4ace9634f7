// One rule a kind of op: from where the inputs are, where the outputs are and what this rank computes of them.
#include <algorithm>
#include <limits>

#include "absl/strings/str_join.h"
#include "ops/functional.h"
#include "ops/infer.h"
#include "ops/window.h"
#include "runtime/partition/partitioner.h"

namespace gantry {
namespace {

bool IsOneOf(std::string_view op, std::span<const std::string_view> names) {
  return std::find(names.begin(), names.end(), op) != names.end();
}

constexpr std::string_view kElementwise[] = {
    "add",  "sub",    "mul",        "div",  "pow",  "minimum", "maximum", "scale",      "neg",             "abs",     "sign",
    "sqrt", "rsqrt",  "exp",        "log",  "square", "reciprocal", "erf", "clip",      "greater",         "equal",   "leaky_relu",
    "leaky_relu_grad", "sigmoid", "sigmoid_grad", "tanh", "tanh_grad", "softplus", "silu", "gelu", "cast", "stop_gradient", "add_if"};

// f(sum of parts) is the sum of f(part).
bool IsLinear(std::string_view op, const Attributes& attributes) {
  constexpr std::string_view kLinear[] = {"add",        "sub",         "neg",   "stop_gradient", "reshape", "transpose",
                                          "reduce_sum", "reduce_mean", "slice", "slice_grad",    "add_if"};
  return IsOneOf(op, kLinear) || (op == "scale" && attributes.Float("beta") == 0.0);
}

// Linear in each operand. Of a gradient on its way to its parameter, a factor over all ranks need not wait for the sum: a weight over its spectral norm.
constexpr std::string_view kLinearInOne[] = {"mul", "div", "matmul", "broadcast"};

// The axis of the result of a reshape that holds what `dim` held, with places in the same order, and what one place there is worth: result
// places = source places * multiply / divide. -1 where there is none.
struct ReshapedAxis {
  int axis = -1;
  int64_t multiply = 1, divide = 1;
};

ReshapedAxis FindReshapedAxis(const Shape& from, const Shape& to, int dim) {
  int64_t before = 1;
  for (int axis = 0; axis < dim; ++axis) before *= from[axis];
  int64_t result_before = 1;
  for (int axis = 0; axis < to.rank(); ++axis) {
    if (result_before == before && to[axis] > 1) {
      if (to[axis] == from[dim]) return {axis, 1, 1};
      if (to[axis] % from[dim] == 0) return {axis, to[axis] / from[dim], 1};
      if (from[dim] % to[axis] == 0) return {axis, 1, from[dim] / to[axis]};
      return {};
    }
    result_before *= to[axis];
    if (result_before > before) return {};
  }
  return {};
}

}  // namespace

Partitioner::Locals Partitioner::EverythingWhole(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes) {
  std::vector<ValueId> locals;
  for (ValueId input : inputs) locals.push_back(AsWhole(input));
  Locals outputs;
  for (ValueId value : EmitLocal(op, locals, attributes)) outputs.push_back({Placement::Whole(), value});
  return outputs;
}

Partitioner::Locals Partitioner::Rule(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                                      std::span<const TensorType> outputs) {
  const OpDefinition* definition = FindOp(op);
  if (definition->communicates) return Communication(op, inputs, attributes);
  if (definition->updates != nullptr) return Update(op, inputs, attributes, outputs);
  if (op == "sum_squares") return SumSquares(inputs);
  if (Locals partial = LinearOfPartial(op, inputs, attributes, outputs[0]); !partial.empty()) return partial;
  // From here on a sum over ranks is something that this op does not take.
  for (ValueId input : inputs) Resolve(input);
  if (IsOneOf(op, kElementwise)) return Elementwise(op, inputs, attributes, outputs[0]);
  if (op == "reduce_sum" || op == "reduce_mean") return Reduction(op, inputs[0], attributes, outputs[0]);
  if (op == "broadcast") return BroadcastTo(inputs[0], attributes, outputs[0]);
  if (op == "reshape") return ReshapeTo(inputs[0], outputs[0]);
  if (op == "matmul") return Matmul(inputs, attributes, outputs[0]);
  if (op == "conv" || op == "conv_transpose" || op == "conv_weight_grad") return Convolution(op, inputs, attributes, outputs[0]);
  if (op == "avg_pool" || op == "avg_pool_grad" || op == "resize" || op == "resize_grad") return Resampling(op, inputs[0], attributes, outputs[0]);
  if (op == "max_pool" || op == "max_pool_grad" || op == "max_pool_select") return Pooling(op, inputs, attributes, outputs[0]);
  if (op == "normalize" || op == "normalize_grad") return Normalization(op, inputs, attributes, outputs);
  if (op == "gather" || op == "gather_grad") return GatherRows(op, inputs, attributes, outputs[0]);
  return AlongUntouchedAxis(op, inputs, attributes, outputs[0]);
}

Partitioner::Locals Partitioner::LinearOfPartial(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                                                 const TensorType& output) {
  if (gradients_only_[at_] && IsOneOf(op, kLinearInOne)) return LinearInOnePartial(op, inputs, attributes);
  const size_t operands = op == "add_if" ? 2 : inputs.size();
  if (!IsLinear(op, attributes) || operands == 0) return {};
  for (size_t i = 0; i < operands; ++i) {
    if (!values_[inputs[i]].placement.partial() || TypeOf(inputs[i]).shape != TypeOf(inputs[0]).shape) return {};
  }
  std::vector<ValueId> locals;
  for (size_t i = 0; i < operands; ++i) locals.push_back(values_[inputs[i]].local);
  if (op == "add_if") locals.push_back(AsWhole(inputs[2]));
  if (op == "reshape") return {{Placement::Partial(), LocalReshape(locals[0], output.shape)}};
  return {{Placement::Partial(), EmitLocal(op, locals, attributes)[0]}};
}

Partitioner::Locals Partitioner::LinearInOnePartial(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes) {
  std::vector<ValueId> locals;
  size_t partial = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Placement& placement = values_[inputs[i]].placement;
    if (placement.split() || (placement.partial() && op == "div" && i > 0)) return {};
    partial += placement.partial();
  }
  if (partial != 1) return {};
  for (const ValueId input : inputs) locals.push_back(values_[input].placement.partial() ? values_[input].local : AsWhole(input));
  return {{Placement::Partial(), EmitLocal(op, locals, attributes)[0]}};
}

Partitioner::Locals Partitioner::Elementwise(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                                             const TensorType& output) {
  // The largest input that is in parts says how.
  Placement placement;
  int64_t most = 0;
  const int rank = output.shape.rank();
  for (ValueId input : inputs) {
    const WholeValue& value = values_[input];
    if (value.placement.whole() || value.type.element_count() <= most) continue;
    if (value.placement.flat() && value.type.shape != output.shape) continue;
    most = value.type.element_count();
    placement = value.placement;
    if (placement.split()) placement.dim += rank - value.type.shape.rank();
  }
  if (placement.flat()) {
    // Scalars go with elements as they lie; other shapes do not.
    for (ValueId input : inputs) {
      if (TypeOf(input).shape != output.shape && TypeOf(input).element_count() != 1) return {};
    }
  }
  std::vector<ValueId> locals;
  for (ValueId input : inputs) {
    const Shape& shape = TypeOf(input).shape;
    const int dim = placement.dim - (rank - shape.rank());
    if (placement.split() && dim >= 0 && shape[dim] > 1) {
      locals.push_back(AsSplit(input, dim, placement.cuts));
    } else if (placement.flat() && shape == output.shape) {
      locals.push_back(AsFlat(input, placement.cuts));
    } else {
      locals.push_back(placement.flat() && op != "add_if" ? LocalReshape(AsWhole(input), Shape{1}) : AsWhole(input));
    }
  }
  return {{placement, EmitLocal(op, locals, attributes)[0]}};
}

Partitioner::Locals Partitioner::Reduction(std::string_view op, ValueId x, const Attributes& attributes, const TensorType& output) {
  const Placement placement = values_[x].placement;
  const Shape& shape = TypeOf(x).shape;
  if (!placement.split()) return {};
  const absl::StatusOr<std::vector<int>> axes = infer::AxesAttribute(attributes, "axes", shape.rank());
  if (!axes.ok()) return {};
  if (std::find(axes->begin(), axes->end(), placement.dim) == axes->end()) {
    int dim = placement.dim;
    if (attributes.Int("keep_dims") == 0) {
      for (int axis : *axes) dim -= axis < placement.dim;
    }
    return {{Placement::Split(dim, placement.cuts), EmitLocal(op, {values_[x].local}, attributes)}};
  }
  ValueId sum = EmitLocal("reduce_sum", {values_[x].local}, attributes);
  if (op == "reduce_mean") {
    const double count = static_cast<double>(shape.element_count()) / static_cast<double>(std::max<int64_t>(output.element_count(), 1));
    sum = ops::Scale(target_, sum, 1.0 / count);
  }
  return {{Placement::Partial(), sum}};
}

Partitioner::Locals Partitioner::SumSquares(std::span<const ValueId> inputs) {
  std::vector<ValueId> shared, whole;
  for (ValueId input : inputs) {
    Resolve(input);
    (values_[input].placement.whole() ? whole : shared).push_back(values_[input].local);
  }
  if (shared.empty()) return {};
  // Each addend once: what every rank has counts on one of them.
  const ValueId of_parts = EmitLocal("sum_squares", shared, {})[0];
  if (whole.empty()) return {{Placement::Partial(), of_parts}};
  const ValueId reduced = EmitGroupOp("all_reduce", {&of_parts, 1}, GroupAttributes(), "sum", at_)[0];
  return {{Placement::Whole(), ops::Add(target_, reduced, EmitLocal("sum_squares", whole, {})[0])}};
}

Partitioner::Locals Partitioner::BroadcastTo(ValueId x, const Attributes& attributes, const TensorType& output) {
  const Placement placement = values_[x].placement;
  if (!placement.split()) return {};
  const int dim = placement.dim + output.shape.rank() - TypeOf(x).shape.rank();
  const Placement result = Placement::Split(dim, placement.cuts);
  Attributes local = attributes;
  local.Set("dims", LocalShape(output.shape, result).dims());
  return {{result, EmitLocal("broadcast", {values_[x].local}, std::move(local))}};
}

Partitioner::Locals Partitioner::ReshapeTo(ValueId x, const TensorType& output) {
  const Placement placement = values_[x].placement;
  if (!placement.split()) return {};
  const ReshapedAxis axis = FindReshapedAxis(TypeOf(x).shape, output.shape, placement.dim);
  if (axis.axis < 0) return {};
  std::vector<int64_t> cuts = placement.cuts;
  const bool apart = std::any_of(cuts.begin(), cuts.end(), [&](int64_t cut) { return cut % axis.divide != 0; });
  if (apart) {
    // Parts that end between two places of the result.
    cuts = over_channels() ? Cuts(output.shape[axis.axis]) : std::vector<int64_t>();
    if (cuts.empty()) return {};
    for (int64_t& cut : cuts) cut *= axis.divide;
  }
  const ValueId local = AsSplit(x, placement.dim, cuts);
  for (int64_t& cut : cuts) cut = cut * axis.multiply / axis.divide;
  const Placement result = Placement::Split(axis.axis, std::move(cuts));
  return {{result, LocalReshape(local, LocalShape(output.shape, result))}};
}

// Ops that work along some axes, where the split one is none of them.
Partitioner::Locals Partitioner::AlongUntouchedAxis(std::string_view op, std::span<const ValueId> inputs, Attributes attributes,
                                                    const TensorType& output) {
  if (inputs.empty() || !values_[inputs[0]].placement.split()) {
    if (op != "concat") return {};
  }
  int first = -1;
  for (size_t i = 0; i < inputs.size() && first < 0; ++i) {
    if (values_[inputs[i]].placement.split()) first = static_cast<int>(i);
  }
  if (first < 0) return {};
  const Placement placement = values_[inputs[first]].placement;
  const Shape shape = TypeOf(inputs[first]).shape;
  const int dim = placement.dim;
  Placement result = placement;
  const int64_t extent = placement.cuts[index_ + 1] - placement.cuts[index_];
  const auto SetAt = [&](std::string_view name, size_t place, int64_t value) {
    std::vector<int64_t> entries = attributes.Ints(name);
    entries[place] = value;
    attributes.Set(std::string(name), entries);
  };
  if (op == "transpose") {
    const std::vector<int64_t> perm = attributes.Ints("perm");
    for (size_t axis = 0; axis < perm.size(); ++axis) {
      if ((perm[axis] + shape.rank()) % shape.rank() == dim) result.dim = static_cast<int>(axis);
    }
  } else if (op == "slice") {
    if (attributes.Ints("starts")[dim] != 0 || attributes.Ints("steps")[dim] != 1 || output.shape[dim] != shape[dim]) return {};
    SetAt("counts", dim, extent);
  } else if (op == "slice_grad") {
    if (attributes.Ints("starts")[dim] != 0 || attributes.Ints("steps")[dim] != 1 || output.shape[dim] != shape[dim]) return {};
    SetAt("dims", dim, extent);
  } else if (op == "pad") {
    const std::vector<int64_t> pads = attributes.Ints("pads");
    if (pads[dim] != 0 || pads[shape.rank() + dim] != 0) return {};
  } else if (op == "concat" || op == "softmax" || op == "add_part") {
    const absl::StatusOr<int> axis = infer::AxisAttribute(attributes, "axis", shape.rank());
    if (!axis.ok() || *axis == dim) return {};
  } else if (op == "reduce_max") {
    const absl::StatusOr<std::vector<int>> axes = infer::AxesAttribute(attributes, "axes", shape.rank());
    if (!axes.ok() || std::find(axes->begin(), axes->end(), dim) != axes->end()) return {};
    if (attributes.Int("keep_dims") == 0) {
      for (int axis : *axes) result.dim -= axis < dim;
    }
  } else {
    return {};
  }
  std::vector<ValueId> locals;
  for (ValueId input : inputs) locals.push_back(AsSplit(input, dim, placement.cuts));
  return {{result, EmitLocal(op, locals, std::move(attributes))[0]}};
}

Partitioner::Locals Partitioner::Matmul(std::span<const ValueId> inputs, const Attributes& attributes, const TensorType& output) {
  const Placement &a = values_[inputs[0]].placement, &b = values_[inputs[1]].placement;
  const int rank_a = TypeOf(inputs[0]).shape.rank(), rank_b = TypeOf(inputs[1]).shape.rank(), rank = output.shape.rank();
  const int rows_a = attributes.Int("transpose_a") != 0 ? rank_a - 1 : rank_a - 2, inner_a = 2 * rank_a - 3 - rows_a;
  const int columns_b = attributes.Int("transpose_b") != 0 ? rank_b - 2 : rank_b - 1, inner_b = 2 * rank_b - 3 - columns_b;
  const auto Emit2 = [&](ValueId left, ValueId right) { return EmitLocal("matmul", {left, right}, attributes); };
  bool inner = a.split(inner_a) || b.split(inner_b), rows = a.split(rows_a), columns = b.split(columns_b);
  if (over_channels() && inner + rows + columns > 1) {
    const std::vector<int64_t> cuts = a.split(inner_a) ? a.cuts : b.cuts;
    const auto Bytes = [&](bool possible, const Placement& left, const Placement& right, int64_t result) {
      return possible ? BytesToMove(inputs[0], left) + BytesToMove(inputs[1], right) + result : kImpossible;
    };
    const int64_t bytes[] = {Bytes(inner, Placement::Split(inner_a, cuts), Placement::Split(inner_b, cuts), BytesToSum(output)),
                             Bytes(rows, a, Placement::Whole(), BytesToState(output, rank - 2)),
                             Bytes(columns, Placement::Whole(), b, BytesToState(output, rank - 1))};
    const int choice = Choose(bytes);
    if (choice < 0) return {};
    inner = choice == 0;
    rows = choice == 1;
    columns = choice == 2;
  }
  if (inner) {
    const std::vector<int64_t> cuts = a.split(inner_a) ? a.cuts : b.cuts;
    return {{Placement::Partial(), Emit2(AsSplit(inputs[0], inner_a, cuts), AsSplit(inputs[1], inner_b, cuts))}};
  }
  if (rows) {
    const std::vector<int64_t> cuts = a.cuts;
    const ValueId right = AsWhole(inputs[1]);
    return {{Placement::Split(rank - 2, cuts), Emit2(values_[inputs[0]].local, right)}};
  }
  if (columns) {
    const std::vector<int64_t> cuts = b.cuts;
    const ValueId left = AsWhole(inputs[0]);
    return {{Placement::Split(rank - 1, cuts), Emit2(left, values_[inputs[1]].local)}};
  }
  const bool leads = a.split();  // the operand whose leading axis is in parts
  if (!a.split() && !b.split()) return {};
  const std::vector<int64_t> cuts = leads ? a.cuts : b.cuts;
  const int dim = (leads ? a.dim - rank_a : b.dim - rank_b) + rank;
  const auto Part = [&](ValueId input, int operand_rank) {
    const int axis = dim - rank + operand_rank;
    return axis >= 0 && TypeOf(input).shape[axis] > 1 ? AsSplit(input, axis, cuts) : AsWhole(input);
  };
  const ValueId left = Part(inputs[0], rank_a), right = Part(inputs[1], rank_b);
  return {{Placement::Split(dim, cuts), Emit2(left, right)}};
}

Partitioner::Locals Partitioner::Normalization(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                                               std::span<const TensorType> outputs) {
  const bool gradient = op == "normalize_grad";
  const ValueId x = inputs[gradient ? 1 : 0];
  Placement placement = values_[x].placement;
  if (!placement.split() && gradient) placement = values_[inputs[0]].placement;
  if (!placement.split()) return {};
  const Shape& shape = TypeOf(x).shape;
  const absl::StatusOr<std::vector<int>> axes = infer::AxesAttribute(attributes, "axes", shape.rank());
  if (!axes.ok()) return {};
  const auto Part = [&](ValueId input) {
    const Shape& given = TypeOf(input).shape;
    const int dim = placement.dim - (shape.rank() - given.rank());
    return dim >= 0 && given[dim] > 1 ? AsSplit(input, dim, placement.cuts) : AsWhole(input);
  };
  if (std::find(axes->begin(), axes->end(), placement.dim) != axes->end()) {
    return NormalizationOverRanks(op, inputs, attributes, outputs, placement);
  }
  std::vector<ValueId> locals;
  for (ValueId input : inputs) locals.push_back(Part(input));
  const std::vector<ValueId> results = EmitLocal(op, locals, attributes);
  Locals placed = {{placement, results[0]}};
  for (size_t o = 1; o < outputs.size(); ++o) {
    const int dim = placement.dim - (shape.rank() - outputs[o].shape.rank());
    const bool apart = dim >= 0 && outputs[o].shape[dim] > 1;
    // Of the gradient: parameters that are the same for all parts get a sum of what each part gives.
    placed.push_back({apart ? Placement::Split(dim, placement.cuts) : gradient ? Placement::Partial() : Placement::Whole(), results[o]});
  }
  return placed;
}

// Statistics over all ranks: each rank's own, then what they are together, then the rest. One exchange has both moments, the second about 0 rather than
// about the mean, which nobody knows yet: in f64, where their difference loses nothing that f32 would have (Chan, Golub and LeVeque 1983, section 2).
Partitioner::Locals Partitioner::NormalizationOverRanks(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                                                        std::span<const TensorType> outputs, const Placement& placement) {
  const bool gradient = op == "normalize_grad";
  const ValueId x = inputs[gradient ? 1 : 0], scale = inputs[gradient ? 2 : 1];
  const Shape shape = TypeOf(x).shape, statistics = gradient ? TypeOf(inputs[3]).shape : outputs[1].shape;
  const double count = static_cast<double>(shape.element_count()) / static_cast<double>(std::max<int64_t>(statistics.element_count(), 1));
  // A parameter that differs among what shares a mean, or that is itself in parts: in simpler ops, whose reductions know what to do.
  const auto SameForAll = [&](ValueId parameter) {
    const Shape& given = TypeOf(parameter).shape;
    for (int axis = 0; axis < given.rank(); ++axis) {
      if (given[axis] > 1 && statistics[axis + shape.rank() - given.rank()] == 1) return false;
    }
    return true;
  };
  if (attributes.Has("slope") || !SameForAll(scale) || (!gradient && !SameForAll(inputs[2]))) {
    Locals locals;
    for (ValueId value : FindOp(op)->decompose(*this, inputs, attributes)) {
      if (value == kNoValue) return {};
      locals.push_back({values_[value].placement, values_[value].local});
    }
    return locals;
  }
  const double eps = attributes.Float("eps");
  const auto Reduced = [&](const std::vector<ValueId>& locals) {
    Attributes group = GroupAttributes();
    if (gradient) group.Set("backward", int64_t{1});
    return EmitGroupOp("all_reduce", locals, std::move(group), "statistics", at_);
  };
  const ValueId part = AsSplit(x, placement.dim, placement.cuts);
  const double mine = count * static_cast<double>(placement.cuts[index_ + 1] - placement.cuts[index_]) / static_cast<double>(placement.cuts.back());
  if (!gradient) {
    const ValueId own[] = {part};
    const std::vector<ValueId> moments = EmitLocal("moments", own, {{"axes", attributes.Ints("axes")}});
    const DataType dtype = TypeOf(x).dtype;
    const ValueId own_mean = ops::Cast(target_, moments[0], DataType::kF64), own_variance = ops::Cast(target_, moments[1], DataType::kF64);
    const ValueId own_squares = ops::Add(target_, own_variance, ops::Square(target_, own_mean));
    const std::vector<ValueId> both = Reduced({ops::Scale(target_, own_mean, mine / count), ops::Scale(target_, own_squares, mine / count)});
    const ValueId mean = ops::Cast(target_, both[0], dtype);
    const ValueId apart = ops::Sub(target_, both[1], ops::Square(target_, both[0]));
    const ValueId variance = ops::Cast(target_, ops::Clip(target_, apart, 0.0, std::numeric_limits<double>::max()), dtype);
    const ValueId bias = AsWhole(inputs[2]);
    const ValueId y = EmitLocal("normalize_apply", {part, AsWhole(scale), bias, mean, variance}, {{"eps", eps}});
    return {{placement, y}, {Placement::Whole(), mean}, {Placement::Whole(), variance}};
  }
  const ValueId g = AsSplit(inputs[0], placement.dim, placement.cuts), mean = AsWhole(inputs[3]), variance = AsWhole(inputs[4]);
  const ValueId operands[] = {g, part, mean, variance};
  const std::vector<ValueId> sums = EmitLocal("normalize_grad_sums", operands, {{"eps", eps}});
  const std::vector<ValueId> reduced = Reduced({sums[0], sums[1]});
  const ValueId sum = reduced[0], product = reduced[1];
  const ValueId dx = EmitLocal("normalize_grad_apply", {g, part, AsWhole(scale), mean, variance, sum, product}, {{"eps", eps}, {"count", count}});
  const Shape parameter = outputs[1].shape;
  return {{placement, dx},
          {Placement::Whole(), ops::SumTo(target_, product, parameter)},
          {Placement::Whole(), ops::SumTo(target_, sum, parameter)}};
}

Partitioner::Locals Partitioner::GatherRows(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                                            const TensorType& output) {
  const bool gradient = op == "gather_grad";
  const Shape table = gradient ? output.shape : TypeOf(inputs[0]).shape;
  const absl::StatusOr<int> axis = infer::AxisAttribute(attributes, "axis", table.rank());
  if (!axis.ok()) return {};
  const int index_rank = TypeOf(inputs[1]).shape.rank();
  const Placement &x = values_[inputs[0]].placement, &indices = values_[inputs[1]].placement;
  if (gradient) {
    if (!x.split() || x.dim < *axis || x.dim >= *axis + index_rank) return {};
    const std::vector<int64_t> cuts = x.cuts;
    const ValueId local = AsSplit(inputs[1], x.dim - *axis, cuts);
    return {{Placement::Partial(), EmitLocal(op, {values_[inputs[0]].local, local}, attributes)}};
  }
  if (!indices.split()) return {};
  const Placement result = Placement::Split(*axis + indices.dim, indices.cuts);
  const ValueId rows = AsWhole(inputs[0]);
  return {{result, EmitLocal(op, {rows, values_[inputs[1]].local}, attributes)}};
}

Partitioner::Locals Partitioner::Update(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                                        std::span<const TensorType> outputs) {
  Placement placement;
  for (size_t o = 0; o < outputs.size(); ++o) {
    if (!values_[inputs[o]].placement.whole()) placement = values_[inputs[o]].placement;
  }
  std::vector<ValueId> locals;
  for (ValueId input : inputs) {
    locals.push_back(TypeOf(input).shape == outputs[0].shape ? As(input, placement) : AsWhole(input));
  }
  Locals results;
  for (ValueId value : EmitLocal(op, locals, attributes)) results.push_back({placement, value});
  return results;
}

// What another axis of the mesh does: along this one it is linear, and moves nothing where it works along another axis of the tensor.
Partitioner::Locals Partitioner::Communication(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes) {
  std::vector<Placement> placements;
  std::vector<ValueId> locals;
  int ready = -1;
  for (const ValueId x : inputs) {
    Placement placement = values_[x].placement;
    const bool moves_along = placement.split() && op != "all_reduce" && placement.dim == (op == "reduce_scatter" ? 0 : attributes.Int("axis"));
    const bool whole = moves_along || placement.flat();
    if (whole) placement = Placement::Whole();
    crossings_.push_back(absl::StrCat(ToAbsl(op), " ", sequence_, placement.whole() ? " whole" : placement.partial() ? " partial" : " split "));
    if (placement.split()) absl::StrAppend(&crossings_.back(), placement.dim, " at ", absl::StrJoin(placement.cuts, ","));
    locals.push_back(whole ? AsWhole(x) : values_[x].local);
    placements.push_back(std::move(placement));
    ready = std::max(ready, values_[x].made_at);
  }
  Locals results;
  for (ValueId result : EmitGroupOp(op, locals, attributes, attributes.String("purpose"), ready)) {
    results.push_back({placements[std::min(results.size(), placements.size() - 1)], result});
  }
  return results;
}

}  // namespace gantry
