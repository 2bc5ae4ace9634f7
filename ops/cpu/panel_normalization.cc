// Batch norm on the panel layout as kernels of normalize and normalize_grad. The attribute {images} says how many images are summed at a
// time (runtime/plan/split_batch.h); without it, all.
#include "ops/cpu/panel/panel_norm.h"

#include "ops/cpu/cpu_kernels.h"

namespace gantry::cpu {
namespace {

bool IsPanel(const TensorType& type) { return type.layout == TensorLayout::kPanel; }

// Over N, H and W of a panel tensor?
bool IsBatchNorm(const KernelRequest& request, const TensorType& x) {
  if (!IsPanel(x) || x.shape.rank() != 4) return false;
  std::vector<int64_t> axes = request.attributes.Ints("axes");
  for (int64_t& axis : axes) axis = axis < 0 ? axis + 4 : axis;
  return axes == std::vector<int64_t>{0, 2, 3};
}

bool PerChannel(const TensorType& type, const TensorType& x) {
  return type.dtype == DataType::kF32 && type.layout == TensorLayout::kPlain && type.element_count() == x.shape[1];
}

PanelShape ShapeOf(const TensorType& x) { return {x.shape[0], x.shape[1], x.shape[2], x.shape[3]}; }

class PanelKernel : public Kernel {
 public:
  PanelKernel(const KernelRequest& request, const TensorType& x)
      : shape_(ShapeOf(x)), threads_(request.thread_count), epsilon_(static_cast<float>(request.attributes.Float("eps"))),
        slope_(static_cast<float>(request.attributes.Float("slope", 1.0))), part_(request.attributes.Int("images", 0)) {}
  size_t scratch_bytes() const override { return NormScratchFloats(shape_) * sizeof(float); }
  std::string_view implementation() const override { return "panel"; }

 protected:
  static const float* In(const KernelArguments& arguments, int i) { return static_cast<const float*>(arguments.inputs[i]); }
  static float* Out(const KernelArguments& arguments, int i) { return static_cast<float*>(arguments.outputs[i]); }

  const PanelShape shape_;
  const int threads_;
  const float epsilon_, slope_;
  const int64_t part_;
};

class NormalizeKernel final : public PanelKernel {
 public:
  using PanelKernel::PanelKernel;
  absl::Status Run(const KernelArguments& arguments) override {
    float* const mean = Out(arguments, 1);
    float* const variance = Out(arguments, 2);
    BatchStatistics(shape_, In(arguments, 0), mean, variance, static_cast<float*>(arguments.scratch), threads_, BestIsa(), part_);
    BatchNormalize(shape_, In(arguments, 0), mean, variance, In(arguments, 1), In(arguments, 2), epsilon_, slope_,
                   Out(arguments, 0), threads_);
    return absl::OkStatus();
  }
};

// Inputs g, x, scale, mean, variance and, with a fused activation, y.
class NormalizeGradKernel final : public PanelKernel {
 public:
  NormalizeGradKernel(const KernelRequest& request, const TensorType& x)
      : PanelKernel(request, x), fused_(request.inputs.size() > 5) {}
  absl::Status Run(const KernelArguments& arguments) override {
    BatchNormBackward(shape_,
                      {.dy = In(arguments, 0), .x = In(arguments, 1), .y = fused_ ? In(arguments, 5) : nullptr,
                       .gamma = In(arguments, 2), .mean = In(arguments, 3), .variance = In(arguments, 4),
                       .epsilon = epsilon_, .slope = fused_ ? slope_ : 1.0f, .dx = Out(arguments, 0),
                       .dgamma = Out(arguments, 1), .dbeta = Out(arguments, 2)},
                      static_cast<float*>(arguments.scratch), threads_, BestIsa(), part_);
    return absl::OkStatus();
  }

 private:
  const bool fused_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Kernel>> MakePanelNormalization(const KernelRequest& request) {
  const std::string_view name = request.op.name;
  if (name == "normalize" || name == "normalize_grad") {
    const bool gradient = name == "normalize_grad";
    const TensorType& x = request.inputs[gradient ? 1 : 0];
    if (!IsBatchNorm(request, x) || !IsPanel(request.outputs[0])) return nullptr;
    for (size_t i = 0; i < request.inputs.size(); ++i) {
      const TensorType& type = request.inputs[i];
      if (type.shape == x.shape ? !IsPanel(type) : !PerChannel(type, x)) return nullptr;
    }
    if (!PerChannel(request.outputs[1], x) || !PerChannel(request.outputs[2], x)) return nullptr;
    if (gradient) return std::make_unique<NormalizeGradKernel>(request, x);
    return std::make_unique<NormalizeKernel>(request, x);
  }
  return nullptr;
}

}  // namespace gantry::cpu
