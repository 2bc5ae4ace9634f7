// Emitting ops by function call, for gradient rules, losses, penalties and model families. Each function emits one op of the
// same name unless its comment says otherwise; the comment gives inputs, attributes and result, and is the definition's
// contract. Shapes broadcast as in NumPy where "broadcasts" is said. Spatial attributes have one entry per spatial dimension
// (1 to 3); `pads` has the begin pads, then the end pads, as in ONNX. Axes may be negative.
#pragma once

#include <initializer_list>
#include <span>
#include <string_view>
#include <vector>

#include "ops/op_definition.h"

namespace gantry::ops {

// One output of an op emitted by name.
ValueId Emit1(Builder& b, std::string_view op, std::initializer_list<ValueId> inputs, Attributes attributes = {});

// --- elementwise.cc -------------------------------------------------------------------------------------------------
// Binary, broadcast, same float type: "add" "sub" "mul" "div" "pow" "minimum" "maximum".
// Gradient of minimum and maximum at a tie: half to each.
ValueId Add(Builder& b, ValueId x, ValueId y);
ValueId Sub(Builder& b, ValueId x, ValueId y);
ValueId Mul(Builder& b, ValueId x, ValueId y);
ValueId Div(Builder& b, ValueId x, ValueId y);
ValueId Pow(Builder& b, ValueId x, ValueId y);
ValueId Minimum(Builder& b, ValueId x, ValueId y);
ValueId Maximum(Builder& b, ValueId x, ValueId y);
// alpha * x + beta, with constants {alpha, beta}.
ValueId Scale(Builder& b, ValueId x, double alpha, double beta = 0.0);
// Unary: "neg" "abs" "sign" (0 at 0; zero gradient) "sqrt" "rsqrt" "exp" "log" "square" "reciprocal" "erf".
ValueId Neg(Builder& b, ValueId x);
ValueId Abs(Builder& b, ValueId x);
ValueId Sign(Builder& b, ValueId x);
ValueId Sqrt(Builder& b, ValueId x);
ValueId Rsqrt(Builder& b, ValueId x);
ValueId Exp(Builder& b, ValueId x);
ValueId Log(Builder& b, ValueId x);
ValueId Square(Builder& b, ValueId x);
ValueId Reciprocal(Builder& b, ValueId x);
ValueId Erf(Builder& b, ValueId x);
// min(max(x, low), high) {low, high}; gradient 1 on the closed interval, as PyTorch.
ValueId Clip(Builder& b, ValueId x, double low, double high);
// 1 where x > y (broadcasts), else 0; zero gradient. "greater", and "equal" likewise.
ValueId Greater(Builder& b, ValueId x, ValueId y);
ValueId Equal(Builder& b, ValueId x, ValueId y);
// max(x, 0) + slope * min(x, 0) {slope}; relu is slope 0. slope >= 0: the sign of the result tells the sign of x.
ValueId LeakyRelu(Builder& b, ValueId x, double slope);
ValueId Relu(Builder& b, ValueId x);
// "leaky_relu_grad": g where y > 0, slope * g elsewhere {slope}; linear in g, zero gradient in y.
ValueId LeakyReluGrad(Builder& b, ValueId g, ValueId y, double slope);
ValueId Sigmoid(Builder& b, ValueId x);
ValueId Tanh(Builder& b, ValueId x);
// "sigmoid_grad": g * y * (1 - y); "tanh_grad": g * (1 - y * y); y is the activation's result.
ValueId SigmoidGrad(Builder& b, ValueId g, ValueId y);
ValueId TanhGrad(Builder& b, ValueId g, ValueId y);
// log(1 + exp(x)), computed as max(x, 0) + log1p(exp(-|x|)).
ValueId Softplus(Builder& b, ValueId x);
// x * sigmoid(x).
ValueId Silu(Builder& b, ValueId x);
// x * (1 + erf(x / sqrt(2))) / 2.
ValueId Gelu(Builder& b, ValueId x);
// Between element types {dtype: name}; the gradient is cast back.
ValueId Cast(Builder& b, ValueId x, DataType to);
// The identity, with no gradient. A view.
ValueId StopGradient(Builder& b, ValueId x);
// No inputs; every element is `value` {value, dims, dtype}. Emitted for f32, f64, i32 or i64.
ValueId Fill(Builder& b, DataType dtype, const Shape& shape, double value);

// --- reduction.cc ---------------------------------------------------------------------------------------------------
// Over `axes` (empty: all); kept as 1 where keep_dims {axes, keep_dims}. "reduce_sum" "reduce_mean" "reduce_max".
// f32 sums are accurate: pairwise or in double. Gradient of the maximum: equal shares to all that tie.
ValueId ReduceSum(Builder& b, ValueId x, std::vector<int64_t> axes, bool keep_dims = false);
ValueId ReduceMean(Builder& b, ValueId x, std::vector<int64_t> axes, bool keep_dims = false);
ValueId ReduceMax(Builder& b, ValueId x, std::vector<int64_t> axes, bool keep_dims = false);
// x summed over what broadcasting added, so that it has `shape`: reduce_sum and reshape as needed, x itself if it fits.
ValueId SumTo(Builder& b, ValueId x, const Shape& shape);
// x broadcast to `shape` {dims}; the value itself where it has that shape. "broadcast".
ValueId Broadcast(Builder& b, ValueId x, const Shape& shape);
// exp(x - max) / sum over one axis {axis}.
ValueId Softmax(Builder& b, ValueId x, int64_t axis);

// --- shape_ops.cc ---------------------------------------------------------------------------------------------------
// {dims}: no kernel, a view; the value itself where it has that shape.
ValueId Reshape(Builder& b, ValueId x, const Shape& shape);
// Result axis i is x's axis perm[i] {perm}.
ValueId Transpose(Builder& b, ValueId x, std::vector<int64_t> perm);
// x[start], x[start + step], ... count elements per axis, one entry for every axis {starts, counts, steps}; steps may be
// negative, never 0. Every index must lie inside.
ValueId Slice(Builder& b, ValueId x, std::vector<int64_t> starts, std::vector<int64_t> counts, std::vector<int64_t> steps);
// The adjoint of slice: zeros of `shape` with x written at those places {dims, starts, steps}. "slice_grad".
ValueId SliceGrad(Builder& b, ValueId x, const Shape& shape, std::vector<int64_t> starts, std::vector<int64_t> steps);
// Constant padding, begin pads of all axes, then end pads {pads, value}; pads >= 0. Emits "pad".
ValueId Pad(Builder& b, ValueId x, std::vector<int64_t> pads, double value = 0.0);
// Reflection (without the edge) and edge replication, put together from slice and concat; not ops of their own.
ValueId PadReflect(Builder& b, ValueId x, std::vector<int64_t> pads);
ValueId PadEdge(Builder& b, ValueId x, std::vector<int64_t> pads);
// One or more inputs, equal but for `axis` {axis}.
ValueId Concat(Builder& b, std::span<const ValueId> parts, int64_t axis);
// Consecutive slices of the given lengths along `axis`; emits "slice" ops.
std::vector<ValueId> Split(Builder& b, ValueId x, int64_t axis, std::span<const int64_t> lengths);

// --- matmul.cc ------------------------------------------------------------------------------------------------------
// [..., M, K] x [..., K, N] -> [..., M, N]; leading dimensions broadcast; each operand may be stored transposed
// {transpose_a, transpose_b}. Both have at least two dimensions.
ValueId Matmul(Builder& b, ValueId a, ValueId c, bool transpose_a = false, bool transpose_b = false);
// x [..., I] times weight [O, I] transposed, plus bias [O] unless kNoValue: matmul and add.
ValueId Linear(Builder& b, ValueId x, ValueId weight, ValueId bias);

// --- convolution.cc -------------------------------------------------------------------------------------------------
struct ConvAttributes {
  std::vector<int64_t> strides, pads, dilations;  // empty: all 1, all 0, all 1
  int64_t groups = 1;
};
// "conv": x [N, C, spatial], w [O, C/groups, kernel] -> [N, O, spatial'] {strides, pads, dilations, groups}; with a third
// input bias [O]. The optional attribute `slope` (only after fusion) applies leaky_relu to the result.
ValueId Conv(Builder& b, ValueId x, ValueId w, ValueId bias, const ConvAttributes& attributes);
// "conv_transpose": the adjoint of conv in x: y [N, O, spatial'], w [O, C/groups, kernel] -> [N, C, output_spatial]
// {strides, pads, dilations, groups, output_spatial}; it is conv's input gradient and PyTorch's ConvTranspose alike. Bias [C]
// and `slope` as above. output_spatial must be a size from which conv gives spatial'.
ValueId ConvTranspose(Builder& b, ValueId y, ValueId w, ValueId bias, const ConvAttributes& attributes,
                      std::vector<int64_t> output_spatial);
// The output size of a transposed convolution: (in - 1) * stride - pads + dilation * (kernel - 1) + 1 + output_padding.
std::vector<int64_t> ConvTransposeOutput(std::span<const int64_t> input_spatial, std::span<const int64_t> kernel,
                                         const ConvAttributes& attributes, std::span<const int64_t> output_padding);
// "conv_weight_grad": x [N, C, spatial], g [N, O, spatial'] -> [O, C/groups, kernel] {.., kernel}.
ValueId ConvWeightGrad(Builder& b, ValueId x, ValueId g, const ConvAttributes& attributes, std::vector<int64_t> kernel);

// --- pooling.cc -----------------------------------------------------------------------------------------------------
struct PoolAttributes {
  std::vector<int64_t> kernel, strides, pads, dilations;
  bool ceil_mode = false;          // as PyTorch: a last window must start inside the input or its begin pad
  bool count_include_pad = false;  // average only
};
ValueId AvgPool(Builder& b, ValueId x, const PoolAttributes& attributes);
ValueId MaxPool(Builder& b, ValueId x, const PoolAttributes& attributes);
// "avg_pool_grad" {.., output_spatial} is avg_pool's adjoint; each is the other's gradient. "max_pool_grad"(g, x): g
// scattered to the first maximum of each window of x; "max_pool_select"(v, x): v gathered from those places; adjoint to each other,
// zero gradient in x.

// --- resize.cc ------------------------------------------------------------------------------------------------------
// [N, C, spatial] -> [N, C, output_spatial] {mode: "nearest"|"linear", coordinates: "asymmetric"|"half_pixel"|"align_corners"|
// "pytorch_half_pixel", rounding: "floor"|"round_prefer_floor"|"round_prefer_ceil"|"ceil", scales (optional, as given)}.
ValueId Resize(Builder& b, ValueId x, std::vector<int64_t> output_spatial, Attributes attributes);
// "resize_grad" {.., output_spatial: the size of resize's input, input attributes as resize} is its adjoint, and the reverse.

// --- normalization.cc -----------------------------------------------------------------------------------------------
struct Normalized { ValueId y, mean, variance; };
// "normalize": y = (x - mean) / sqrt(variance + eps) * scale + bias; mean and biased variance over `axes`, both outputs with
// those axes kept as 1 {axes, eps}. scale and bias broadcast to x; their extents are 1 or x's. Batch norm: axes all but 1, scale [1,C,1,1];
// instance norm: the spatial axes; layer norm: the last axes; group norm: after a reshape to [N,G,C/G,spatial]. Optional attribute
// `slope` (only after fusion): leaky_relu of the result.
Normalized Normalize(Builder& b, ValueId x, ValueId scale, ValueId bias, std::vector<int64_t> axes, double eps);
// "normalize_grad": (g, x, scale, mean, variance) -> (dx, dscale, dbias) {axes, eps}; differentiated through its
// decomposition. With a sixth input y and {slope} (after fusion) g is the gradient of y = leaky_relu(normalize's result).

// Halves of both, for statistics that several ranks make together: "moments"(x) -> (mean, variance) {axes}; "normalize_apply"(x, scale,
// bias, mean, variance) {eps}; "normalize_grad_sums"(g, x, mean, variance) -> sums over what shares a mean of g and of g * normal {eps};
// "normalize_grad_apply"(g, x, scale, mean, variance, those sums) -> dx {eps, count}, where scale is the same for all that share a mean,
// and count says how many those are. With {slope} (after fusion) as above, y the last input of the gradient's halves.

// --- index_ops.cc ---------------------------------------------------------------------------------------------------
// Rows of x along `axis` chosen by i32/i64 indices of any shape {axis}: x.shape[:axis] + indices.shape + x.shape[axis+1:].
// An index outside is an error of the run that names it; negative counts from the end.
ValueId Gather(Builder& b, ValueId x, ValueId indices, int64_t axis);
// "gather_grad"(g, indices) {axis, extent}: adjoint of gather (adds up), and the reverse.

// --- random.cc ------------------------------------------------------------------------------------------------------
// Philox-4x32-10 (Salmon et al., SC'11) with key = seed and counter = (element / 4, stream, counter), so that any value can be drawn
// again. `state` is i64[2] = {seed, counter}; `stream` {dims, dtype, stream} tells draws of one step apart.
ValueId RandomUniform(Builder& b, ValueId state, DataType dtype, const Shape& shape, int64_t stream, double low, double high);
ValueId RandomNormal(Builder& b, ValueId state, DataType dtype, const Shape& shape, int64_t stream, double mean, double deviation);
// 1 / (1 - rate) with probability 1 - rate, else 0 {.., rate}. "dropout_mask".
ValueId DropoutMask(Builder& b, ValueId state, DataType dtype, const Shape& shape, int64_t stream, double rate);
// x * dropout_mask.
ValueId Dropout(Builder& b, ValueId x, ValueId state, int64_t stream, double rate);

// --- optimizer.cc ---------------------------------------------------------------------------------------------------
// Bucketed updates of k tensors in one op, in place. Inputs in this order: k weights, (adam: k first moments, k second moments; sgd with
// momentum: k momenta), k gradients, then scalars. Outputs are the new weights and moments, in the order of the inputs.
//   "adam_update" {count, beta1, beta2, epsilon, weight_decay, decoupled} scalars: learning_rate, step (1, 2, ...), gradient_scale.
//     As PyTorch: m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= lr / (1-b1^t) * m / (sqrt(v) / sqrt(1-b2^t) + eps);
//     weight decay is added to g, or (decoupled, AdamW) w *= 1 - lr * weight_decay first.
//   "sgd_update" {count, momentum, nesterov, weight_decay, dampening} scalars: learning_rate, step, gradient_scale; momentum 0: no momenta.
//     As PyTorch: the first step's momentum is the gradient.
// "lerp_update"(k targets, k sources) {count, weight, scale}: target + weight * (scale * source - target), computed as
//   (1 - weight) * target + weight * scale * source. EMA and running statistics; updates its targets.
// "sum_squares"(k tensors) -> scalar: the sum of all squares. Differentiable.
// gradient_scale multiplies every gradient first (clipping, accumulation).
// With {begin} and one tensor, operands with fewer elements than others are a piece of it from element `begin` on, a multiple of 16384: moments
//   (adam, sgd), gradients or the target (lerp). The others are whole, and change in that piece only.
// With {chunk} sums go over so many elements at a time; then "sum_squares_rows"(sum f64, piece) {chunk, last}, which only the planner
//   emits, gives the same bits: it adds the squares of one piece after the other, whole chunks each, and the last makes the result.
ValueId SumSquares(Builder& b, std::span<const ValueId> tensors);

// --- control.cc -----------------------------------------------------------------------------------------------------
// x + y where the scalar flag is not 0, else x, without looking at y; same shape. Joins what a conditional phase made.
// "add_if". Only the planner emits "stash" (device -> tier), "fetch" (tier -> device) and "write_back"(old in tier, new on device).
ValueId AddIf(Builder& b, ValueId x, ValueId y, ValueId flag);

}  // namespace gantry::ops
