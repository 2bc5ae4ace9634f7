// Fast softmax of plain f32 tensors along any axis. Sums are in double and their order depends on the shape alone.
// (Its gradient is made of products, a sum and a difference: elementwise.cc and reduction.cc.)
#include <algorithm>
#include <limits>

#include "ops/cpu/cpu_kernels.h"
#include "ops/cpu/runs.h"
#include "ops/cpu/vector/vector_kernels.h"

namespace gantry::cpu {
namespace {

constexpr int64_t kColumns = 256;

VectorKernels::Unary UnaryOf(UnaryOp op) { return BestVectorKernels().unary[static_cast<int>(op)]; }
VectorKernels::Binary BinaryOf(BinaryOp op, BinaryForm form) {
  return BestVectorKernels().binary[static_cast<int>(op)][static_cast<int>(form)];
}

// x as [outer][length][inner], softmax over the middle.
class SoftmaxKernel final : public Kernel {
 public:
  SoftmaxKernel(const Shape& shape, int axis, int thread_count) : length_(shape[axis]) {
    for (int i = 0; i < axis; ++i) outer_ *= shape[i];
    for (int i = axis + 1; i < shape.rank(); ++i) inner_ *= shape[i];
    threads_ = UsefulThreads(thread_count, outer_ * length_ * inner_);
  }
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* x = static_cast<const float*>(arguments.inputs[0]);
    auto* out = static_cast<float*>(arguments.outputs[0]);
    if (inner_ == 1) {
      ParallelFor(threads_, outer_, [&](int64_t row) { Row(x + row * length_, out + row * length_); });
      return absl::OkStatus();
    }
    const int64_t blocks = (inner_ + kColumns - 1) / kColumns;
    ParallelFor(threads_, outer_ * blocks, [&](int64_t task) {
      const int64_t column = task % blocks * kColumns, first = task / blocks * length_ * inner_ + column;
      Columns(x + first, out + first, std::min(kColumns, inner_ - column));
    });
    return absl::OkStatus();
  }

 private:
  void Row(const float* x, float* out) const {
    const VectorKernels& kernels = BestVectorKernels();
    const float largest = kernels.max(x, length_);
    BinaryOf(BinaryOp::kSub, BinaryForm::kScalarRight)(x, &largest, out, length_, nullptr);
    UnaryOf(UnaryOp::kExp)(out, out, length_, nullptr);
    const auto total = static_cast<float>(kernels.sum(out, length_));
    BinaryOf(BinaryOp::kDiv, BinaryForm::kScalarRight)(out, &total, out, length_, nullptr);
  }

  void Columns(const float* x, float* out, int64_t columns) const {
    const VectorKernels& kernels = BestVectorKernels();
    const auto subtract = BinaryOf(BinaryOp::kSub, BinaryForm::kBothRuns);
    const auto divide = BinaryOf(BinaryOp::kDiv, BinaryForm::kBothRuns);
    float largest[kColumns], divisors[kColumns];
    double totals[kColumns] = {};
    std::fill_n(largest, columns, -std::numeric_limits<float>::infinity());
    for (int64_t i = 0; i < length_; ++i) kernels.max_to(x + i * inner_, largest, columns);
    for (int64_t i = 0; i < length_; ++i) {
      subtract(x + i * inner_, largest, out + i * inner_, columns, nullptr);
      UnaryOf(UnaryOp::kExp)(out + i * inner_, out + i * inner_, columns, nullptr);
      kernels.add_to(out + i * inner_, totals, columns);
    }
    for (int64_t i = 0; i < columns; ++i) divisors[i] = static_cast<float>(totals[i]);
    for (int64_t i = 0; i < length_; ++i) divide(out + i * inner_, divisors, out + i * inner_, columns, nullptr);
  }

  int64_t outer_ = 1, length_, inner_ = 1;
  int threads_ = 1;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Kernel>> MakeFastSoftmax(const KernelRequest& request) {
  if (request.op.name != "softmax" || !AllF32(request)) return nullptr;
  const TensorType& x = request.inputs[0];
  if (x.layout != TensorLayout::kPlain || request.outputs[0].layout != TensorLayout::kPlain) return nullptr;
  if (x.element_count() == 0) return nullptr;
  GANTRY_ASSIGN_OR_RETURN(const int axis, infer::AxisAttribute(request.attributes, "axis", x.shape.rank()));
  return std::make_unique<SoftmaxKernel>(x.shape, axis, request.thread_count);
}

}  // namespace gantry::cpu
