// Batch, instance, layer and group normalization.
#include <numeric>

#include "ops/functional.h"
#include "runtime/graph/onnx/node.h"

namespace gantry::onnx {
namespace {

using namespace ops;  // NOLINT: emission reads as formulas

// [1, C, 1, ...] of the rank of x.
Shape ChannelShape(const Shape& x) {
  Shape shape(std::vector<int64_t>(x.rank(), 1));
  shape[1] = x[1];
  return shape;
}

// A per-channel vector [C] as [1, C, 1, ...].
absl::StatusOr<ValueId> PerChannel(Node& node, int input, const Shape& x) {
  GANTRY_ASSIGN_OR_RETURN(const ValueId value, node.Value(input));
  const Shape shape = node.program().TypeOf(value).shape;
  if (shape.element_count() != x[1]) {
    return absl::InvalidArgumentError(absl::StrFormat("'%s' is %s; %s has %d channels", node.input_name(input),
                                                      shape.ToString(), x.ToString(), x[1]));
  }
  return Reshape(node.program(), value, ChannelShape(x));
}

absl::StatusOr<Shape> ChannelledInput(Node& node, ValueId x) {
  const Shape shape = node.program().TypeOf(x).shape;
  if (shape.rank() < 2)
    return absl::InvalidArgumentError(absl::StrFormat("its input %s has no channels", shape.ToString()));
  return shape;
}

// running = running * momentum + scale * batch * (1 - momentum), where `running` is a weight of the file.
absl::Status UpdateRunning(Node& node, int input, ValueId batch, double momentum, double scale) {
  GANTRY_ASSIGN_OR_RETURN(const ValueId running, node.Value(input));
  Program& p = node.program();
  const ValueId source = Reshape(p, batch, p.TypeOf(running).shape);
  const ValueId inputs[] = {running, source};
  const ValueId updated =
      p.Emit("lerp_update", inputs, {{"count", int64_t{1}}, {"weight", 1.0 - momentum}, {"scale", scale}})[0];
  GANTRY_RETURN_IF_ERROR(p.status());
  GANTRY_ASSIGN_OR_RETURN(const Operand* operand, node.Raw(input));
  p.UpdateState(operand->weight->proto->name(), updated);
  operand->weight->current = updated;
  return node.SetValue(input - 2, updated);  // mean is input 3 and output 1
}

absl::Status ImportBatchNormalization(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const ValueId x, node.Value(0));
  GANTRY_ASSIGN_OR_RETURN(const Shape shape, ChannelledInput(node, x));
  GANTRY_ASSIGN_OR_RETURN(const ValueId scale, PerChannel(node, 1, shape));
  GANTRY_ASSIGN_OR_RETURN(const ValueId bias, PerChannel(node, 2, shape));
  if (node.Int("spatial", 1) != 1) return absl::UnimplementedError("spatial = 0 is not supported");
  const double eps = node.Float("epsilon", 1e-5);
  const double momentum = node.Float("momentum", 0.9);
  // Before opset 14 training shows in the outputs of running statistics.
  const bool trains = node.Trains(node.opset() >= 14 ? node.Int("training_mode", 0) != 0 : node.HasOutput(1));
  Program& p = node.program();
  if (!trains) {
    GANTRY_ASSIGN_OR_RETURN(const ValueId mean, PerChannel(node, 3, shape));
    GANTRY_ASSIGN_OR_RETURN(const ValueId variance, PerChannel(node, 4, shape));
    const ValueId factor = Mul(p, Rsqrt(p, Scale(p, variance, 1.0, eps)), scale);
    return node.SetValue(0, Add(p, Mul(p, Sub(p, x, mean), factor), bias));
  }
  std::vector<int64_t> axes = {0};
  for (int axis = 2; axis < shape.rank(); ++axis) axes.push_back(axis);
  const int64_t count = shape[1] == 0 ? 0 : shape.element_count() / shape[1];
  if (count < 2) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "training needs more than one value per channel, %s has %d; use a larger batch", shape.ToString(), count));
  }
  const Normalized normalized = Normalize(p, x, scale, bias, axes, eps);
  GANTRY_RETURN_IF_ERROR(node.SetValue(0, normalized.y));
  const double unbiased = static_cast<double>(count) / static_cast<double>(count - 1);
  for (int input : {3, 4}) {
    GANTRY_ASSIGN_OR_RETURN(const Operand* running, node.Raw(input));
    // Statistics that are not weights of the file (an instance norm in disguise) are not kept.
    if (running->weight == nullptr || running->weight->role != StateRole::kStatistic) continue;
    const bool is_mean = input == 3;
    GANTRY_RETURN_IF_ERROR(UpdateRunning(node, input, is_mean ? normalized.mean : normalized.variance, momentum,
                                         is_mean ? 1.0 : unbiased));
  }
  return absl::OkStatus();
}

absl::Status ImportInstanceNormalization(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const ValueId x, node.Value(0));
  GANTRY_ASSIGN_OR_RETURN(const Shape shape, ChannelledInput(node, x));
  if (shape.rank() < 3)
    return absl::InvalidArgumentError(absl::StrFormat("its input %s has no spatial dimension", shape.ToString()));
  GANTRY_ASSIGN_OR_RETURN(const ValueId scale, PerChannel(node, 1, shape));
  GANTRY_ASSIGN_OR_RETURN(const ValueId bias, PerChannel(node, 2, shape));
  std::vector<int64_t> axes(shape.rank() - 2);
  std::iota(axes.begin(), axes.end(), 2);
  return node.SetValue(0, Normalize(node.program(), x, scale, bias, axes, node.Float("epsilon", 1e-5)).y);
}

absl::Status ImportLayerNormalization(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const ValueId x, node.Value(0));
  Program& p = node.program();
  const Shape shape = p.TypeOf(x).shape;
  GANTRY_ASSIGN_OR_RETURN(const int first, NormalizeAxis(node.Int("axis", -1), shape.rank()));
  std::vector<int64_t> axes(shape.rank() - first);
  std::iota(axes.begin(), axes.end(), first);
  // Scale and bias broadcast to x from the right.
  const auto Aligned = [&](int input, double absent) -> absl::StatusOr<ValueId> {
    const Shape ones(std::vector<int64_t>(shape.rank(), 1));
    if (!node.HasInput(input)) return Fill(p, node.dtype(), ones, absent);
    GANTRY_ASSIGN_OR_RETURN(const ValueId value, node.Value(input));
    const Shape own = p.TypeOf(value).shape;
    if (own.rank() > shape.rank()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("'%s' has more dimensions than %s", node.input_name(input), shape.ToString()));
    }
    Shape aligned = ones;
    for (int axis = 0; axis < own.rank(); ++axis) aligned[shape.rank() - own.rank() + axis] = own[axis];
    return Reshape(p, value, aligned);
  };
  GANTRY_ASSIGN_OR_RETURN(const ValueId scale, Aligned(1, 1.0));
  GANTRY_ASSIGN_OR_RETURN(const ValueId bias, Aligned(2, 0.0));
  const double eps = node.Float("epsilon", 1e-5);
  const Normalized normalized = Normalize(p, x, scale, bias, axes, eps);
  GANTRY_RETURN_IF_ERROR(node.SetValue(0, normalized.y));
  if (node.HasOutput(1)) GANTRY_RETURN_IF_ERROR(node.SetValue(1, normalized.mean));
  if (!node.HasOutput(2)) return absl::OkStatus();
  return node.SetValue(2, Rsqrt(p, Scale(p, normalized.variance, 1.0, eps)));
}

// As [N, groups, C / groups, rest]. Scale and bias are per group at opset 18 to 20, per channel since 21.
absl::Status ImportGroupNormalization(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const ValueId x, node.Value(0));
  GANTRY_ASSIGN_OR_RETURN(const Shape shape, ChannelledInput(node, x));
  Program& p = node.program();
  const int64_t groups = node.Int("num_groups", 0);
  if (groups < 1 || shape[1] % groups != 0 || shape.element_count() == 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s cannot be split into num_groups = %d", shape.ToString(), groups));
  }
  const int64_t rest = shape.element_count() / shape[0] / shape[1];
  const Shape grouped{shape[0], groups, shape[1] / groups, rest};
  const auto Spread = [&](int input) -> absl::StatusOr<ValueId> {
    GANTRY_ASSIGN_OR_RETURN(const ValueId value, node.Value(input));
    const int64_t count = p.TypeOf(value).shape.element_count();
    if (count == shape[1] && (node.opset() >= 21 || count != groups))
      return Reshape(p, value, Shape{1, groups, shape[1] / groups, 1});
    if (count == groups) return Reshape(p, value, Shape{1, groups, 1, 1});
    return absl::InvalidArgumentError(absl::StrFormat("'%s' has %d elements for %d groups of %s",
                                                      node.input_name(input), count, groups, shape.ToString()));
  };
  GANTRY_ASSIGN_OR_RETURN(const ValueId scale, Spread(1));
  GANTRY_ASSIGN_OR_RETURN(const ValueId bias, Spread(2));
  const Normalized normalized = Normalize(p, Reshape(p, x, grouped), scale, bias, {2, 3}, node.Float("epsilon", 1e-5));
  return node.SetValue(0, Reshape(p, normalized.y, shape));
}

}  // namespace

std::vector<Operator> NormalizationOperators() {
  return {{"BatchNormalization", ImportBatchNormalization},
          {"InstanceNormalization", ImportInstanceNormalization},
          {"LayerNormalization", ImportLayerNormalization},
          {"GroupNormalization", ImportGroupNormalization}};
}

}  // namespace gantry::onnx
