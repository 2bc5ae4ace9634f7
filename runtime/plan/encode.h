// Keeping less than the value: signs in place of what only gradients of leaky relus read again, and how copies to a
// tier are encoded. After Jain et al., "Gist: Efficient Data Encoding for Deep Neural Network Training", ISCA 2018: its
// binarize is KeepSigns, its sparse storage the encoding "zeros", its delayed precision reduction "bf16".
#pragma once

#include <string_view>

#include "runtime/plan/plan.h"

namespace gantry {

// Where a value is read again, long after its last other reader, only by gradients of leaky relus (leaky_relu_grad and,
// at any distance, the fused form of normalize_grad), they read its sign bits instead: 1 bit an element lives on in
// place of 32 or 64. Bits of results do not change. `program` is lowered. Sets `masks` to how many values.
absl::StatusOr<Program> KeepSigns(const Program& program, int* masks = nullptr);

// How a copy of `value`, which an op makes, goes to `tier`: "" as it is; "zeros" as a bitmap and what is not zero, the
// same bits in the end; "bf16" rounded, only where options.stash_dtype asks for it.
std::string_view StashEncoding(const Program& program, ValueId value, const TierOptions& tier,
                               const PlanOptions& options);

// What the op makes comes from a counter and never waits in a tier where ops may run again: dropout masks, noise.
bool IsDraw(const Op& op);

}  // namespace gantry
