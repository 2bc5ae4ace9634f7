// Batch norm on the panel layout as kernels of normalize and normalize_grad, and of their halves. The attribute {images} says how many images are
// summed at a time (runtime/plan/split_batch.h); without it, all.
#include "ops/cpu/panel/panel_norm.h"

#include "ops/cpu/cpu_kernels.h"

namespace gantry::cpu {
namespace {

bool IsPanel(const TensorType& type) { return type.layout == TensorLayout::kPanel; }

// Over N, H and W of a panel tensor? Where {axes} are not given, statistics of each channel say so.
bool IsBatchNorm(const KernelRequest& request, const TensorType& x) {
  if (!IsPanel(x) || x.shape.rank() != 4) return false;
  if (!request.attributes.Has("axes")) return true;
  std::vector<int64_t> axes = request.attributes.Ints("axes");
  for (int64_t& axis : axes) axis = axis < 0 ? axis + 4 : axis;
  return axes == std::vector<int64_t>{0, 2, 3};
}

bool PerChannel(const TensorType& type, const TensorType& x) {
  return type.dtype == DataType::kF32 && type.layout == TensorLayout::kPlain && type.element_count() == x.shape[1] &&
         type.shape.rank() >= 3 && type.shape[type.shape.rank() - 3] == x.shape[1];
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

// The halves, for statistics that several ranks make together.

class MomentsKernel final : public PanelKernel {
 public:
  using PanelKernel::PanelKernel;
  absl::Status Run(const KernelArguments& arguments) override {
    BatchStatistics(shape_, In(arguments, 0), Out(arguments, 0), Out(arguments, 1), static_cast<float*>(arguments.scratch), threads_, BestIsa(), part_);
    return absl::OkStatus();
  }
};

class NormalizeApplyKernel final : public PanelKernel {
 public:
  using PanelKernel::PanelKernel;
  size_t scratch_bytes() const override { return 0; }
  absl::Status Run(const KernelArguments& arguments) override {
    BatchNormalize(shape_, In(arguments, 0), In(arguments, 3), In(arguments, 4), In(arguments, 1), In(arguments, 2), epsilon_, slope_,
                   Out(arguments, 0), threads_);
    return absl::OkStatus();
  }
};

// Inputs g, x, mean, variance and, with a fused activation, y.
class NormalizeGradSumsKernel final : public PanelKernel {
 public:
  NormalizeGradSumsKernel(const KernelRequest& request, const TensorType& x) : PanelKernel(request, x), fused_(request.inputs.size() > 4) {}
  absl::Status Run(const KernelArguments& arguments) override {
    BatchNormParameterGradients(shape_,
                                {.dy = In(arguments, 0), .x = In(arguments, 1), .y = fused_ ? In(arguments, 4) : nullptr,
                                 .mean = In(arguments, 2), .variance = In(arguments, 3), .epsilon = epsilon_, .slope = slope_,
                                 .dgamma = Out(arguments, 1), .dbeta = Out(arguments, 0)},
                                static_cast<float*>(arguments.scratch), threads_, BestIsa(), part_);
    return absl::OkStatus();
  }

 private:
  const bool fused_;
};

// Inputs g, x, scale, mean, variance, sums of g and of g * normal and, with a fused activation, y.
class NormalizeGradApplyKernel final : public PanelKernel {
 public:
  NormalizeGradApplyKernel(const KernelRequest& request, const TensorType& x)
      : PanelKernel(request, x), fused_(request.inputs.size() > 7), count_(request.attributes.Float("count")) {}
  absl::Status Run(const KernelArguments& arguments) override {
    BatchNormInputGradient(shape_,
                           {.dy = In(arguments, 0), .x = In(arguments, 1), .y = fused_ ? In(arguments, 7) : nullptr,
                            .gamma = In(arguments, 2), .mean = In(arguments, 3), .variance = In(arguments, 4), .epsilon = epsilon_,
                            .slope = slope_, .dx = Out(arguments, 0)},
                           count_, In(arguments, 6), In(arguments, 5), static_cast<float*>(arguments.scratch), threads_);
    return absl::OkStatus();
  }

 private:
  const bool fused_;
  const double count_;
};

// The place of x among the inputs; -1: another op.
int PlaceOfX(std::string_view op) {
  if (op == "normalize" || op == "moments" || op == "normalize_apply") return 0;
  return op == "normalize_grad" || op == "normalize_grad_sums" || op == "normalize_grad_apply" ? 1 : -1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Kernel>> MakePanelNormalization(const KernelRequest& request) {
  const std::string_view name = request.op.name;
  const int place = PlaceOfX(name);
  if (place < 0) return nullptr;
  const TensorType& x = request.inputs[static_cast<size_t>(place)];
  if (!IsBatchNorm(request, x)) return nullptr;
  // Images are in panels; all else has a number for each channel.
  for (std::span<const TensorType> types : {request.inputs, request.outputs}) {
    for (const TensorType& type : types) {
      if (type.shape == x.shape ? !IsPanel(type) : !PerChannel(type, x)) return nullptr;
    }
  }
  if (name == "normalize") return std::make_unique<NormalizeKernel>(request, x);
  if (name == "normalize_grad") return std::make_unique<NormalizeGradKernel>(request, x);
  if (name == "moments") return std::make_unique<MomentsKernel>(request, x);
  if (name == "normalize_apply") return std::make_unique<NormalizeApplyKernel>(request, x);
  if (name == "normalize_grad_sums") return std::make_unique<NormalizeGradSumsKernel>(request, x);
  return std::make_unique<NormalizeGradApplyKernel>(request, x);
}

}  // namespace gantry::cpu
