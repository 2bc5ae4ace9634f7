// Definition of the matrix product.
#include "ops/functional.h"
#include "ops/infer.h"

namespace gantry {
namespace ops {

ValueId Matmul(Builder& b, ValueId a, ValueId c, bool transpose_a, bool transpose_b) {
  return Emit1(
      b, "matmul", {a, c},
      {{"transpose_a", static_cast<int64_t>(transpose_a)}, {"transpose_b", static_cast<int64_t>(transpose_b)}});
}

// Leading dimensions are folded into the rows, so that the weight's gradient is one product and not a sum of many.
ValueId Linear(Builder& b, ValueId x, ValueId weight, ValueId bias) {
  if (x == kNoValue || weight == kNoValue) return kNoValue;
  const Shape shape = b.TypeOf(x).shape;
  ValueId y = kNoValue;
  if (shape.rank() > 2 && b.TypeOf(weight).shape.rank() == 2) {
    const int64_t columns = shape[shape.rank() - 1];
    int64_t rows = 1;
    for (int axis = 0; axis + 1 < shape.rank(); ++axis) rows *= shape[axis];
    std::vector<int64_t> dims = shape.dims();
    dims.back() = b.TypeOf(weight).shape[0];
    y = Reshape(b, Matmul(b, Reshape(b, x, {rows, columns}), weight, false, true), Shape(std::move(dims)));
  } else {
    y = Matmul(b, x, weight, false, true);
  }
  return bias == kNoValue ? y : Add(b, y, bias);
}

}  // namespace ops

namespace {

using namespace ops;  // NOLINT: gradient rules read as formulas
using infer::Inputs;
using infer::Outputs;

// [rows, columns] of an operand as it enters the product.
struct Matrix {
  int64_t rows, columns;
};

Matrix MatrixOf(const Shape& shape, bool transposed) {
  const int64_t rows = shape[shape.rank() - 2], columns = shape[shape.rank() - 1];
  return transposed ? Matrix{columns, rows} : Matrix{rows, columns};
}

std::span<const int64_t> LeadingDims(const Shape& shape) { return {shape.dims().data(), shape.dims().size() - 2}; }

Outputs InferMatmul(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireSameFloat(inputs));
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(inputs[0], "the left operand", 2, infer::kMaxRank));
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(inputs[1], "the right operand", 2, infer::kMaxRank));
  GANTRY_ASSIGN_OR_RETURN(const int64_t transpose_a, infer::IntAttribute(attributes, "transpose_a", 0, 1));
  GANTRY_ASSIGN_OR_RETURN(const int64_t transpose_b, infer::IntAttribute(attributes, "transpose_b", 0, 1));
  const Matrix a = MatrixOf(inputs[0].shape, transpose_a != 0), b = MatrixOf(inputs[1].shape, transpose_b != 0);
  if (a.columns != b.rows) {
    return absl::InvalidArgumentError(absl::StrFormat("%s%s has %d columns, %s%s has %d rows; they must be equal",
                                                      inputs[0].ToString(), transpose_a ? " transposed" : "", a.columns,
                                                      inputs[1].ToString(), transpose_b ? " transposed" : "", b.rows));
  }
  GANTRY_ASSIGN_OR_RETURN(Shape batch,
                          BroadcastShapes(Shape(LeadingDims(inputs[0].shape)), Shape(LeadingDims(inputs[1].shape))));
  std::vector<int64_t> dims = batch.dims();
  dims.insert(dims.end(), {a.rows, b.columns});
  return infer::One(inputs[0].dtype, Shape(std::move(dims)));
}

Cost MatmulCost(Inputs inputs, std::span<const TensorType> outputs, const Attributes& attributes) {
  const Matrix a = MatrixOf(inputs[0].shape, attributes.Int("transpose_a") != 0);
  return {.flops = 2.0 * static_cast<double>(outputs[0].element_count()) * static_cast<double>(a.columns)};
}

void MatmulRule(GradientContext& c) {
  Builder& b = c.builder;
  const ValueId g = c.output_gradients[0], left = c.inputs[0], right = c.inputs[1];
  const bool ta = c.attributes.Int("transpose_a") != 0, tb = c.attributes.Int("transpose_b") != 0;
  if (c.wanted[0]) {
    const ValueId gradient = ta ? Matmul(b, right, g, tb, true) : Matmul(b, g, right, false, !tb);
    c.input_gradients[0] = SumTo(b, gradient, b.TypeOf(left).shape);
  }
  if (c.wanted[1]) {
    const ValueId gradient = tb ? Matmul(b, g, left, true, ta) : Matmul(b, left, g, !ta, false);
    c.input_gradients[1] = SumTo(b, gradient, b.TypeOf(right).shape);
  }
}

}  // namespace

std::vector<OpDefinition> MatmulOps() {
  return {{.name = "matmul",
           .min_inputs = 2,
           .max_inputs = 2,
           .infer = InferMatmul,
           .differentiate = MatmulRule,
           .cost = MatmulCost}};
}

}  // namespace gantry
