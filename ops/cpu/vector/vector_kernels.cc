#include "ops/cpu/vector/vector_kernels.h"

namespace gantry::cpu {

const VectorKernels& VectorKernelsFor(Isa isa) {
#if defined(GANTRY_VECTOR_X86)
  if (isa == Isa::kAvx512) return kVectorKernelsAvx512;
  if (isa == Isa::kAvx2) return kVectorKernelsAvx2;
#endif
  (void)isa;
  return kVectorKernelsPortable;
}

const VectorKernels& BestVectorKernels() { return VectorKernelsFor(BestIsa()); }

}  // namespace gantry::cpu
