// Sign bits in f32, whatever the layout: both ops go through memory in order.
#include "ops/cpu/cpu_kernels.h"
#include "ops/cpu/runs.h"
#include "ops/cpu/vector/vector_kernels.h"

namespace gantry::cpu {
namespace {

int64_t FloatsOf(const TensorType& type) { return type.size_bytes() / static_cast<int64_t>(sizeof(float)); }

class SignBitsKernel final : public Kernel {
 public:
  explicit SignBitsKernel(const KernelRequest& request)
      : count_(FloatsOf(request.inputs[0])), threads_(request.thread_count) {}
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* y = static_cast<const float*>(arguments.inputs[0]);
    auto* bits = static_cast<uint8_t*>(arguments.outputs[0]);
    // Pieces of whole bytes.
    ParallelPieces(threads_, (count_ + 7) / 8, [&](int64_t begin, int64_t end) {
      BestVectorKernels().sign_bits(y + 8 * begin, bits + begin, std::min(8 * end, count_) - 8 * begin);
    });
    return absl::OkStatus();
  }

 private:
  const int64_t count_;
  const int threads_;
};

class GradientKernel final : public Kernel {
 public:
  explicit GradientKernel(const KernelRequest& request)
      : count_(FloatsOf(request.outputs[0])),
        slope_(static_cast<float>(request.attributes.Float("slope"))),
        threads_(request.thread_count) {}
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* g = static_cast<const float*>(arguments.inputs[0]);
    const auto* bits = static_cast<const uint8_t*>(arguments.inputs[1]);
    auto* out = static_cast<float*>(arguments.outputs[0]);
    ParallelPieces(threads_, (count_ + 7) / 8, [&](int64_t begin, int64_t end) {
      BestVectorKernels().scale_by_bits(g + 8 * begin, bits + begin, out + 8 * begin,
                                        std::min(8 * end, count_) - 8 * begin, slope_);
    });
    return absl::OkStatus();
  }

 private:
  const int64_t count_;
  const float slope_;
  const int threads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Kernel>> MakeFastEncoding(const KernelRequest& request) {
  if (request.inputs.empty() || request.inputs[0].dtype != DataType::kF32) return nullptr;
  if (request.op.name == "sign_bits") return std::make_unique<SignBitsKernel>(request);
  if (request.op.name == "leaky_relu_grad_bits" && request.inputs[0].layout == request.outputs[0].layout) {
    return std::make_unique<GradientKernel>(request);
  }
  return nullptr;
}

}  // namespace gantry::cpu
