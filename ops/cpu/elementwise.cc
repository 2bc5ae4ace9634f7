// Fast elementwise kernels in f32: same shapes, scalars and any other broadcast on plain tensors; same shapes, scalars
// and one value per channel on panel tensors.
#include <optional>

#include "ops/cpu/cpu_kernels.h"
#include "ops/cpu/runs.h"
#include "ops/cpu/vector/vector_kernels.h"

namespace gantry::cpu {
namespace {

struct UnaryEntry {
  std::string_view name;
  UnaryOp op;
  std::string_view parameters[2];  // attributes
};

constexpr UnaryEntry kUnaries[] = {
    {"neg", UnaryOp::kNeg},
    {"abs", UnaryOp::kAbs},
    {"sign", UnaryOp::kSign},
    {"sqrt", UnaryOp::kSqrt},
    {"rsqrt", UnaryOp::kRsqrt},
    {"exp", UnaryOp::kExp},
    {"log", UnaryOp::kLog},
    {"square", UnaryOp::kSquare},
    {"reciprocal", UnaryOp::kReciprocal},
    {"erf", UnaryOp::kErf},
    {"scale", UnaryOp::kScale, {"alpha", "beta"}},
    {"clip", UnaryOp::kClip, {"low", "high"}},
    {"leaky_relu", UnaryOp::kLeakyRelu, {"slope", ""}},
    {"sigmoid", UnaryOp::kSigmoid},
    {"tanh", UnaryOp::kTanh},
    {"softplus", UnaryOp::kSoftplus},
    {"silu", UnaryOp::kSilu},
    {"gelu", UnaryOp::kGelu},
    {"cast", UnaryOp::kCopy},  // from f32 to f32
};

struct BinaryEntry {
  std::string_view name;
  BinaryOp op;
  std::string_view parameter;  // attribute
};

constexpr BinaryEntry kBinaries[] = {
    {"add", BinaryOp::kAdd},
    {"sub", BinaryOp::kSub},
    {"mul", BinaryOp::kMul},
    {"div", BinaryOp::kDiv},
    {"pow", BinaryOp::kPow},
    {"minimum", BinaryOp::kMinimum},
    {"maximum", BinaryOp::kMaximum},
    {"greater", BinaryOp::kGreater},
    {"equal", BinaryOp::kEqual},
    {"leaky_relu_grad", BinaryOp::kLeakyReluGrad, "slope"},
    {"sigmoid_grad", BinaryOp::kSigmoidGrad},
    {"tanh_grad", BinaryOp::kTanhGrad},
};

const float* FloatInput(const KernelArguments& arguments, int index) {
  return static_cast<const float*>(arguments.inputs[index]);
}
float* FloatOutput(const KernelArguments& arguments) { return static_cast<float*>(arguments.outputs[0]); }

bool IsPanel(const TensorType& type) { return type.layout == TensorLayout::kPanel; }

class UnaryKernel final : public Kernel {
 public:
  UnaryKernel(const KernelRequest& request, const UnaryEntry& entry)
      : run_(BestVectorKernels().unary[static_cast<int>(entry.op)]), threads_(request.thread_count) {
    for (int i = 0; i < 2; ++i) parameters_[i] = static_cast<float>(request.attributes.Float(entry.parameters[i]));
    if (IsPanel(request.outputs[0])) panel_ = PanelUnits(request.outputs[0].shape);
    count_ = request.outputs[0].element_count();
  }
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const float* x = FloatInput(arguments, 0);
    float* out = FloatOutput(arguments);
    const auto RunPiece = [&](int64_t begin, int64_t end) { run_(x + begin, out + begin, end - begin, parameters_); };
    if (panel_) {
      panel_->ParallelPieces(threads_, [&](int64_t begin, int64_t end) {
        RunPiece(begin * panel_->unit_floats(), end * panel_->unit_floats());
        panel_->ZeroTail(out, begin, end);
      });
    } else {
      ParallelPieces(threads_, count_, RunPiece);
    }
    return absl::OkStatus();
  }

 private:
  const VectorKernels::Unary run_;
  const int threads_;
  float parameters_[2];
  std::optional<PanelUnits> panel_;
  int64_t count_;
};

class PlainBinaryKernel final : public Kernel {
 public:
  PlainBinaryKernel(const KernelRequest& request, const BinaryEntry& entry)
      : plan_(BroadcastRuns(request.outputs[0].shape, request.inputs[0].shape, request.inputs[1].shape)),
        parameter_(static_cast<float>(request.attributes.Float(entry.parameter))),
        threads_(request.thread_count) {
    const BinaryForm form = !plan_.moves(0)   ? BinaryForm::kScalarLeft
                            : !plan_.moves(1) ? BinaryForm::kScalarRight
                                              : BinaryForm::kBothRuns;
    run_ = BestVectorKernels().binary[static_cast<int>(entry.op)][static_cast<int>(form)];
  }
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const float* x = FloatInput(arguments, 0);
    const float* y = FloatInput(arguments, 1);
    float* out = FloatOutput(arguments);
    ParallelPieces(threads_, plan_.count(), [&](int64_t begin, int64_t end) {
      plan_.ForEachRun(begin, end, [&](int64_t index, int64_t x_offset, int64_t y_offset, int64_t length) {
        run_(x + x_offset, y + y_offset, out + index, length, &parameter_);
      });
    });
    return absl::OkStatus();
  }

 private:
  const RunPlan plan_;
  const float parameter_;
  const int threads_;
  VectorKernels::Binary run_;
};

// How an operand meets a panel tensor.
enum class PanelOperand : uint8_t { kPanel, kScalar, kChannels };

std::optional<PanelOperand> PanelOperandOf(const TensorType& type, const Shape& out) {
  if (IsPanel(type)) return type.shape == out ? std::optional(PanelOperand::kPanel) : std::nullopt;
  if (type.element_count() == 1) return PanelOperand::kScalar;
  // [1, C, 1, 1] or [C, 1, 1].
  const int channel_axis = type.shape.rank() - 3;
  if (channel_axis < 0 || type.shape[channel_axis] != out[1] || type.element_count() != out[1]) return std::nullopt;
  return PanelOperand::kChannels;
}

class PanelBinaryKernel final : public Kernel {
 public:
  // One operand at least is the panel tensor.
  PanelBinaryKernel(const KernelRequest& request, const BinaryEntry& entry, PanelOperand left, PanelOperand right)
      : panel_(request.outputs[0].shape),
        left_(left),
        right_(right),
        parameter_(static_cast<float>(request.attributes.Float(entry.parameter))),
        threads_(request.thread_count) {
    const BinaryForm form = left == PanelOperand::kScalar      ? BinaryForm::kScalarLeft
                            : left == PanelOperand::kChannels  ? BinaryForm::kLanesLeft
                            : right == PanelOperand::kScalar   ? BinaryForm::kScalarRight
                            : right == PanelOperand::kChannels ? BinaryForm::kLanesRight
                                                               : BinaryForm::kBothRuns;
    run_ = BestVectorKernels().binary[static_cast<int>(entry.op)][static_cast<int>(form)];
  }
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const float* x = FloatInput(arguments, 0);
    const float* y = FloatInput(arguments, 1);
    float* out = FloatOutput(arguments);
    const bool channels = left_ == PanelOperand::kChannels || right_ == PanelOperand::kChannels;
    panel_.ParallelPieces(threads_, [&](int64_t begin, int64_t end) {
      if (channels) {
        for (int64_t unit = begin; unit < end; ++unit) RunUnit(x, y, out, unit);
      } else {
        const int64_t first = begin * panel_.unit_floats();
        run_(left_ == PanelOperand::kPanel ? x + first : x, right_ == PanelOperand::kPanel ? y + first : y, out + first,
             (end - begin) * panel_.unit_floats(), &parameter_);
      }
      panel_.ZeroTail(out, begin, end);
    });
    return absl::OkStatus();
  }

 private:
  void RunUnit(const float* x, const float* y, float* out, int64_t unit) const {
    const int64_t first = unit * panel_.unit_floats();
    const int64_t channel = unit % panel_.panels * kPanelChannels;
    const float* values = (left_ == PanelOperand::kChannels ? x : y) + channel;
    float lanes[kPanelChannels] = {};
    std::copy_n(values, std::min(kPanelChannels, panel_.channels - channel), lanes);
    run_(left_ == PanelOperand::kChannels ? lanes : x + first, left_ == PanelOperand::kChannels ? y + first : lanes,
         out + first, panel_.unit_floats(), &parameter_);
  }

  const PanelUnits panel_;
  const PanelOperand left_, right_;
  const float parameter_;
  const int threads_;
  VectorKernels::Binary run_;
};

class BroadcastKernel final : public Kernel {
 public:
  explicit BroadcastKernel(const KernelRequest& request)
      : plan_(BroadcastRuns(request.outputs[0].shape, request.inputs[0].shape, request.inputs[0].shape)),
        threads_(request.thread_count) {}
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const float* x = FloatInput(arguments, 0);
    float* out = FloatOutput(arguments);
    const VectorKernels& kernels = BestVectorKernels();
    ParallelPieces(threads_, plan_.count(), [&](int64_t begin, int64_t end) {
      plan_.ForEachRun(begin, end, [&](int64_t index, int64_t offset, int64_t, int64_t length) {
        if (plan_.moves(0)) {
          std::copy_n(x + offset, length, out + index);
        } else {
          kernels.fill(x[offset], out + index, length);
        }
      });
    });
    return absl::OkStatus();
  }

 private:
  const RunPlan plan_;
  const int threads_;
};

class FillKernel final : public Kernel {
 public:
  explicit FillKernel(const KernelRequest& request)
      : value_(static_cast<float>(request.attributes.Float("value"))),
        count_(request.outputs[0].element_count()),
        threads_(request.thread_count) {}
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    float* out = FloatOutput(arguments);
    ParallelPieces(threads_, count_,
                   [&](int64_t begin, int64_t end) { BestVectorKernels().fill(value_, out + begin, end - begin); });
    return absl::OkStatus();
  }

 private:
  const float value_;
  const int64_t count_;
  const int threads_;
};

// x + y where the flag is not 0, else x; y is not read then, it may never have been written.
class AddIfKernel final : public Kernel {
 public:
  explicit AddIfKernel(const KernelRequest& request)
      : count_(request.outputs[0].size_bytes() / static_cast<int64_t>(sizeof(float))), threads_(request.thread_count) {}
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const float* x = FloatInput(arguments, 0);
    const float* y = FloatInput(arguments, 1);
    float* out = FloatOutput(arguments);
    const bool add = *FloatInput(arguments, 2) != 0.0f;
    if (!add && out == x) return absl::OkStatus();
    const VectorKernels& kernels = BestVectorKernels();
    const auto Add = kernels.binary[static_cast<int>(BinaryOp::kAdd)][static_cast<int>(BinaryForm::kBothRuns)];
    ParallelPieces(threads_, count_, [&](int64_t begin, int64_t end) {
      if (add) {
        Add(x + begin, y + begin, out + begin, end - begin, nullptr);
      } else {
        std::copy(x + begin, x + end, out + begin);
      }
    });
    return absl::OkStatus();
  }

 private:
  const int64_t count_;
  const int threads_;
};

// Between f32 and f64.
template <typename From, typename To>
class CastKernel final : public Kernel {
 public:
  explicit CastKernel(const KernelRequest& request) : count_(request.outputs[0].element_count()), threads_(request.thread_count) {}
  std::string_view implementation() const override { return "loop"; }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* x = static_cast<const From*>(arguments.inputs[0]);
    auto* out = static_cast<To*>(arguments.outputs[0]);
    ParallelPieces(threads_, count_, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) out[i] = static_cast<To>(x[i]);
    });
    return absl::OkStatus();
  }

 private:
  const int64_t count_;
  const int threads_;
};

bool AllPlain(const KernelRequest& request) {
  return !IsPanel(request.outputs[0]) && std::none_of(request.inputs.begin(), request.inputs.end(),
                                                      [](const TensorType& type) { return IsPanel(type); });
}

std::unique_ptr<Kernel> MakeBinary(const KernelRequest& request, const BinaryEntry& entry) {
  if (AllPlain(request)) return std::make_unique<PlainBinaryKernel>(request, entry);
  if (!IsPanel(request.outputs[0])) return nullptr;
  const Shape& out = request.outputs[0].shape;
  const auto left = PanelOperandOf(request.inputs[0], out), right = PanelOperandOf(request.inputs[1], out);
  if (!left || !right || (*left != PanelOperand::kPanel && *right != PanelOperand::kPanel)) return nullptr;
  return std::make_unique<PanelBinaryKernel>(request, entry, *left, *right);
}

}  // namespace

std::string_view VectorImplementation() {
  switch (BestVectorKernels().isa) {
    case Isa::kPortable:
      return "vector portable";
    case Isa::kAvx2:
      return "vector avx2";
    case Isa::kAvx512:
      return "vector avx512";
  }
  return "vector";
}

bool AllF32(const KernelRequest& request) {
  const auto IsF32 = [](const TensorType& type) { return type.dtype == DataType::kF32; };
  return std::all_of(request.inputs.begin(), request.inputs.end(), IsF32) &&
         std::all_of(request.outputs.begin(), request.outputs.end(), IsF32);
}

absl::StatusOr<std::unique_ptr<Kernel>> MakeFastElementwise(const KernelRequest& request) {
  if (request.op.name == "cast" && AllPlain(request)) {
    const DataType from = request.inputs[0].dtype, to = request.outputs[0].dtype;
    if (from == DataType::kF32 && to == DataType::kF64) return std::make_unique<CastKernel<float, double>>(request);
    if (from == DataType::kF64 && to == DataType::kF32) return std::make_unique<CastKernel<double, float>>(request);
  }
  if (!AllF32(request)) return nullptr;
  const std::string_view name = request.op.name;
  for (const UnaryEntry& entry : kUnaries) {
    if (entry.name != name) continue;
    if (request.inputs[0].layout != request.outputs[0].layout) return nullptr;
    return std::make_unique<UnaryKernel>(request, entry);
  }
  for (const BinaryEntry& entry : kBinaries) {
    if (entry.name == name) return MakeBinary(request, entry);
  }
  if (name == "add_if") {
    const TensorLayout layout = request.outputs[0].layout;
    if (request.inputs[0].layout != layout || request.inputs[1].layout != layout) return nullptr;
    return std::make_unique<AddIfKernel>(request);
  }
  if (!AllPlain(request)) return nullptr;
  if (name == "broadcast") return std::make_unique<BroadcastKernel>(request);
  if (name == "fill") return std::make_unique<FillKernel>(request);
  return nullptr;
}

}  // namespace gantry::cpu
