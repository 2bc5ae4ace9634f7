// Kernels that only move elements see them as words of their size.
#pragma once

#include <cstdint>

#include "ops/reference/reference_kernel.h"

namespace gantry::reference {

// As MakeFloatKernel, for every element type: `loop`'s first argument is an unsigned word of output 0's element size.
template <typename Loop>
std::unique_ptr<Kernel> MakeMoveKernel(const KernelRequest& request, Loop loop) {
  switch (SizeBytes(request.outputs[0].dtype)) {
    case 1:
      return MakeKernel(request, [loop](const OpInstance& op, const KernelArguments& arguments) {
        return loop(uint8_t{}, op, arguments);
      });
    case 4:
      return MakeKernel(request, [loop](const OpInstance& op, const KernelArguments& arguments) {
        return loop(uint32_t{}, op, arguments);
      });
    case 8:
      return MakeKernel(request, [loop](const OpInstance& op, const KernelArguments& arguments) {
        return loop(uint64_t{}, op, arguments);
      });
    default:
      return nullptr;
  }
}

}  // namespace gantry::reference
