// The fast f32 kernels of the CPU. CpuKernels() asks each maker in turn; null means that it has no kernel for the
// request.
#pragma once

#include <memory>

#include "ops/cpu/panel_ops.h"
#include "ops/kernel.h"

namespace gantry::cpu {

using KernelMaker = absl::StatusOr<std::unique_ptr<Kernel>> (*)(const KernelRequest& request);

// panel_normalization.cc: batch norm of panel tensors.
absl::StatusOr<std::unique_ptr<Kernel>> MakePanelNormalization(const KernelRequest& request);
// batch_parts.cc: images of a batch, and the steps of a batch norm whose images come part after part.
absl::StatusOr<std::unique_ptr<Kernel>> MakeBatchParts(const KernelRequest& request);
// normalization.cc: batch, instance, group and layer norm of plain tensors, statistics and parameters constant over rows of at least
// 16 elements.
absl::StatusOr<std::unique_ptr<Kernel>> MakePlainNormalization(const KernelRequest& request);
// elementwise.cc: every elementwise op, broadcast, fill and add_if. On plain tensors with any broadcast; on panel
// tensors with operands of the same shape, scalars, and one value per channel.
absl::StatusOr<std::unique_ptr<Kernel>> MakeFastElementwise(const KernelRequest& request);
// reduction.cc: reduce_sum, reduce_mean and reduce_max of plain tensors over any axes; sum and mean of panel tensors
// over all axes or all but the batch, the channel, or both.
absl::StatusOr<std::unique_ptr<Kernel>> MakeFastReduction(const KernelRequest& request);
// resampling.cc: resize, avg_pool and their gradients, on plain tensors and on panel tensors. (oneDNN's average pooling of
// small plain images is faster, and comes first.)
absl::StatusOr<std::unique_ptr<Kernel>> MakeFastResampling(const KernelRequest& request);
// max_pooling.cc: max_pool, max_pool_grad and max_pool_select of plain tensors.
absl::StatusOr<std::unique_ptr<Kernel>> MakeFastMaxPooling(const KernelRequest& request);
// softmax.cc: softmax of plain tensors along any axis.
absl::StatusOr<std::unique_ptr<Kernel>> MakeFastSoftmax(const KernelRequest& request);
// optimizer.cc: adam_update, sgd_update, lerp_update and sum_squares.
absl::StatusOr<std::unique_ptr<Kernel>> MakeFastOptimizer(const KernelRequest& request);
// encode.cc: sign_bits and leaky_relu_grad_bits in any layout.
absl::StatusOr<std::unique_ptr<Kernel>> MakeFastEncoding(const KernelRequest& request);
// rows.cc: add_part, and slices of whole rows, in either layout.
absl::StatusOr<std::unique_ptr<Kernel>> MakeRowParts(const KernelRequest& request);

// Helpers of the makers: whether all inputs and outputs are f32, and the name of kernels on ops/cpu/vector.
bool AllF32(const KernelRequest& request);
std::string_view VectorImplementation();

}  // namespace gantry::cpu
