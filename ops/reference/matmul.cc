#include "ops/reference/reference_kernel.h"
#include "ops/reference/strided_walk.h"

namespace gantry::reference {
namespace {

// One operand's matrix: its size, and the strides of rows and columns as it enters the product.
struct MatrixPlace {
  int64_t rows, columns, row_stride, column_stride;
};

MatrixPlace PlaceOf(const Shape& shape, bool transposed) {
  const int64_t rows = shape[shape.rank() - 2], columns = shape[shape.rank() - 1];
  return transposed ? MatrixPlace{columns, rows, 1, columns} : MatrixPlace{rows, columns, columns, 1};
}

std::unique_ptr<Kernel> MakeMatmul(const KernelRequest& request) {
  const Shape& out_shape = request.outputs[0].shape;
  const MatrixPlace a = PlaceOf(request.inputs[0].shape, request.attributes.Int("transpose_a") != 0);
  const MatrixPlace b = PlaceOf(request.inputs[1].shape, request.attributes.Int("transpose_b") != 0);
  const std::vector<int64_t> a_strides = BroadcastStrides(request.inputs[0].shape, out_shape);
  const std::vector<int64_t> b_strides = BroadcastStrides(request.inputs[1].shape, out_shape);
  StridedWalk<2> batch;
  for (int axis = 0; axis + 2 < out_shape.rank(); ++axis) {
    batch.AddDimension(out_shape[axis], {a_strides[axis], b_strides[axis]});
  }
  return MakeFloatKernel(request, [a, b, batch](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    batch.ForEach([&](int64_t index, const auto& offsets) {
      const T* left = Input<T>(arguments, 0) + offsets[0];
      const T* right = Input<T>(arguments, 1) + offsets[1];
      T* out = Output<T>(arguments, 0) + index * a.rows * b.columns;
      for (int64_t i = 0; i < a.rows; ++i) {
        for (int64_t j = 0; j < b.columns; ++j) {
          double total = 0.0;
          for (int64_t k = 0; k < a.columns; ++k) {
            total += static_cast<double>(left[i * a.row_stride + k * a.column_stride]) *
                     static_cast<double>(right[k * b.row_stride + j * b.column_stride]);
          }
          out[i * b.columns + j] = static_cast<T>(total);
        }
      }
    });
    return absl::OkStatus();
  });
}

}  // namespace

KernelTable MatmulKernels() { return {{"matmul", MakeMatmul}}; }

}  // namespace gantry::reference
