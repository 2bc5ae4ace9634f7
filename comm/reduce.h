// The arithmetic of collectives: element by element over the memory of several ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "comm/element_type.h"

namespace gantry {

// For each of `count` elements: ((source 0 op source 1) op source 2) ..., written to every destination. This order is
// the definition of a collective's result, whatever the algorithm around it. f16 and bf16 are added in f32 and rounded
// once, at the end, to nearest even. A destination may be one of the sources exactly; apart from that they do not
// overlap. At least one source, alignment of the type.
void ReduceElements(ElementType type, ReduceOp op, std::span<const std::byte* const> sources,
                    std::span<std::byte* const> destinations, int64_t count);

// Parts of such a sum, one rank's machine after the other: ((before op source 0) op source 1) ... to `to`. A partial
// result, as `before` is (null: there is none, and source 0 comes first) and as `to` becomes if `keeps_partial`, is f32
// for f16 and bf16, else of the type itself; so the parts end in the bits of the whole. `to` may be `before` or, where
// its elements are of the type's size, one of the sources.
void FoldElements(ElementType type, ReduceOp op, const std::byte* before, std::span<const std::byte* const> sources,
                  std::byte* to, bool keeps_partial, int64_t count);
int64_t PartialSizeBytes(ElementType type);

namespace reduce {

using FoldKernel = void (*)(const std::byte* before, const std::byte* const* sources, int source_count, std::byte* to,
                            bool keeps_partial, int64_t count);
using Kernel = void (*)(const std::byte* const* sources, int source_count, std::byte* const* destinations,
                        int destination_count, int64_t count);
struct Kernels {
  Kernel kernel[kElementTypes][kReduceOps];
  FoldKernel fold[kElementTypes][kReduceOps];
};
extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;  // for machines with AVX2 and F16C
#endif
// Those that ReduceElements takes.
const Kernels& Best();

}  // namespace reduce
}  // namespace gantry
