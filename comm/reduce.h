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

namespace reduce {

using Kernel = void (*)(const std::byte* const* sources, int source_count, std::byte* const* destinations,
                        int destination_count, int64_t count);
struct Kernels {
  Kernel kernel[kElementTypes][kReduceOps];
};
extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;  // for machines with AVX2 and F16C
#endif
// Those that ReduceElements takes.
const Kernels& Best();

}  // namespace reduce
}  // namespace gantry
