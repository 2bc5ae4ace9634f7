// Parts of f32 tensors along one axis: "add_part", and "slice" of whole rows, in either layout.
#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <optional>

#include "ops/cpu/cpu_kernels.h"
#include "ops/cpu/vector/vector_kernels.h"
#include "ops/infer.h"

namespace gantry::cpu {
namespace {

constexpr int kRowAxis = 2;  // of [N, C, spatial...], outermost in panels

// A part as `count` runs of `length` floats, which lie `pitch` apart in the whole, beginning at `first`.
struct Runs {
  int64_t count = 1, length = 0, pitch = 0, first = 0;
};

// None where rows of a panel tensor are asked for along another axis.
std::optional<Runs> RunsOf(const TensorType& whole, const TensorType& part, int axis, int64_t begin) {
  const auto floats = static_cast<int64_t>(sizeof(float));
  if (whole.layout == TensorLayout::kPanel) {
    if (axis != kRowAxis || whole.shape[axis] == 0) return std::nullopt;
    return Runs{.length = part.size_bytes() / floats, .first = begin * (whole.size_bytes() / floats / whole.shape[axis])};
  }
  const std::vector<int64_t>& dims = whole.shape.dims();
  const int64_t inner = std::accumulate(dims.begin() + axis + 1, dims.end(), int64_t{1}, std::multiplies<>());
  const int64_t outer = std::accumulate(dims.begin(), dims.begin() + axis, int64_t{1}, std::multiplies<>());
  return Runs{outer, part.shape[axis] * inner, whole.shape[axis] * inner, begin * inner};
}

class AddPartKernel final : public Kernel {
 public:
  AddPartKernel(const KernelRequest& request, const Runs& runs) : bytes_(static_cast<size_t>(request.outputs[0].size_bytes())), runs_(runs) {}
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* part = static_cast<const float*>(arguments.inputs[1]);
    auto* const out = static_cast<float*>(arguments.outputs[0]);
    if (out != arguments.inputs[0]) std::memcpy(out, arguments.inputs[0], bytes_);
    const auto add = BestVectorKernels().binary[static_cast<int>(BinaryOp::kAdd)][static_cast<int>(BinaryForm::kBothRuns)];
    for (int64_t run = 0; run < runs_.count; ++run, part += runs_.length) {
      float* const to = out + runs_.first + run * runs_.pitch;
      add(to, part, to, runs_.length, nullptr);
    }
    return absl::OkStatus();
  }

 private:
  const size_t bytes_;
  const Runs runs_;
};

class RowsKernel final : public Kernel {
 public:
  explicit RowsKernel(const Runs& runs) : runs_(runs) {}
  std::string_view implementation() const override { return "copy"; }
  absl::Status Run(const KernelArguments& arguments) override {
    const auto* const from = static_cast<const float*>(arguments.inputs[0]) + runs_.first;
    auto* const to = static_cast<float*>(arguments.outputs[0]);
    for (int64_t run = 0; run < runs_.count; ++run) std::copy_n(from + run * runs_.pitch, runs_.length, to + run * runs_.length);
    return absl::OkStatus();
  }

 private:
  const Runs runs_;
};

// Whole rows, or frames, one behind the other.
bool TakesRows(const KernelRequest& request) {
  const Shape &from = request.inputs[0].shape, &to = request.outputs[0].shape;
  if (from.rank() <= kRowAxis) return false;
  const std::vector<int64_t> steps = request.attributes.Ints("steps");
  for (int axis = 0; axis < from.rank(); ++axis) {
    if (axis == kRowAxis ? steps[axis] != 1 : from[axis] != to[axis] || (steps[axis] != 1 && from[axis] > 1)) return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Kernel>> MakeRowParts(const KernelRequest& request) {
  const bool slices = request.op.name == "slice";
  if ((!slices && request.op.name != "add_part") || !AllF32(request)) return nullptr;
  for (const TensorType& input : request.inputs) {
    if (input.layout != request.outputs[0].layout) return nullptr;
  }
  if (slices) {
    if (!TakesRows(request)) return nullptr;
    const std::optional<Runs> runs = RunsOf(request.inputs[0], request.outputs[0], kRowAxis, request.attributes.Ints("starts")[kRowAxis]);
    return runs.has_value() ? std::make_unique<RowsKernel>(*runs) : nullptr;
  }
  const absl::StatusOr<int> axis = infer::AxisAttribute(request.attributes, "axis", request.inputs[0].shape.rank());
  if (!axis.ok()) return axis.status();
  const std::optional<Runs> runs = RunsOf(request.inputs[0], request.inputs[1], *axis, request.attributes.Int("begin"));
  return runs.has_value() ? std::make_unique<AddPartKernel>(request, *runs) : nullptr;
}

}  // namespace gantry::cpu
