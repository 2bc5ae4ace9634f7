// How reference kernels are written: a plain loop over typed pointers, made into a Kernel by MakeKernel.
#pragma once

#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/kernel.h"

namespace gantry::reference {

// What a loop sees besides the pointers. Lives as long as the kernel.
struct OpInstance {
  Attributes attributes;
  std::vector<TensorType> inputs;
  std::vector<TensorType> outputs;
};

template <typename Loop>
class LoopKernel final : public Kernel {
 public:
  LoopKernel(const KernelRequest& request, Loop loop, size_t scratch_bytes)
      : op_{request.attributes, {request.inputs.begin(), request.inputs.end()}, {request.outputs.begin(), request.outputs.end()}},
        loop_(std::move(loop)),
        scratch_bytes_(scratch_bytes) {}
  size_t scratch_bytes() const override { return scratch_bytes_; }
  std::string_view implementation() const override { return "reference"; }
  absl::Status Run(const KernelArguments& arguments) override { return loop_(op_, arguments); }

 private:
  OpInstance op_;
  Loop loop_;
  size_t scratch_bytes_;
};

// `loop` is absl::Status(const OpInstance&, const KernelArguments&); it finds `scratch_bytes` at arguments.scratch.
template <typename Loop>
std::unique_ptr<Kernel> MakeKernel(const KernelRequest& request, Loop loop, size_t scratch_bytes = 0) {
  return std::make_unique<LoopKernel<Loop>>(request, std::move(loop), scratch_bytes);
}

// MakeKernel for both float types: `loop` is a generic lambda absl::Status(auto zero, const OpInstance&, const KernelArguments&)
// whose first argument has the element type of output 0. Null for other types.
template <typename Loop>
std::unique_ptr<Kernel> MakeFloatKernel(const KernelRequest& request, Loop loop, size_t scratch_bytes = 0) {
  switch (request.outputs[0].dtype) {
    case DataType::kF32:
      return MakeKernel(request, [loop](const OpInstance& op, const KernelArguments& arguments) {
        return loop(float{}, op, arguments);
      }, scratch_bytes);
    case DataType::kF64:
      return MakeKernel(request, [loop](const OpInstance& op, const KernelArguments& arguments) {
        return loop(double{}, op, arguments);
      }, scratch_bytes);
    default: return nullptr;
  }
}

template <typename T>
const T* Input(const KernelArguments& arguments, int index) {
  return static_cast<const T*>(arguments.inputs[index]);
}
template <typename T>
T* Output(const KernelArguments& arguments, int index) {
  return static_cast<T*>(arguments.outputs[index]);
}

// Null where the types are not covered.
using KernelMaker = std::unique_ptr<Kernel> (*)(const KernelRequest& request);
using KernelTable = std::vector<std::pair<std::string_view, KernelMaker>>;

// One table per family file, put together by reference_kernels.cc.
KernelTable ElementwiseKernels();
KernelTable ReductionKernels();
KernelTable ShapeKernels();
KernelTable MatmulKernels();
KernelTable ConvolutionKernels();
KernelTable PoolingKernels();
KernelTable ResizeKernels();
KernelTable NormalizationKernels();
KernelTable IndexKernels();
KernelTable RandomKernels();
KernelTable OptimizerKernels();
KernelTable ControlKernels();
KernelTable EncodeKernels();

}  // namespace gantry::reference
