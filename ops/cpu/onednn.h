// Kernels on oneDNN (2.6 and 3.x) for plain f32 tensors: the general case, where no own kernel fits.
#pragma once

#include <memory>

#include "ops/kernel.h"

namespace gantry::cpu {

// conv, conv_transpose, conv_weight_grad, matmul, avg_pool and avg_pool_grad. Null for other ops, types and
// layouts, for empty tensors, and where oneDNN has nothing but its slow "ref" implementation. The choice of format
// follows rules, not timings, so that the same request gives the same bits in every run. Everything is created here;
// the kernel's Run sets addresses and executes. Tensors in other formats and scratchpads lie in scratch_bytes(); what
// oneDNN 2.6 itself still allocates while it runs is bookkeeping: one to two KiB, and blocks of 16 KiB in its gemm.
absl::StatusOr<std::unique_ptr<Kernel>> MakeOneDnnKernel(const KernelRequest& request);

}  // namespace gantry::cpu
