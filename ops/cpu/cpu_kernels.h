// The fast f32 kernels of the CPU. CpuKernels() asks each maker in turn; null means that it has no kernel for the request.
#pragma once

#include <memory>

#include "ops/cpu/panel_ops.h"
#include "ops/kernel.h"

namespace gantry::cpu {

using KernelMaker = absl::StatusOr<std::unique_ptr<Kernel>> (*)(const KernelRequest& request);

// panel_normalization.cc: batch norm and channel sums of panel tensors.
absl::StatusOr<std::unique_ptr<Kernel>> MakePanelNormalization(const KernelRequest& request);

}  // namespace gantry::cpu
