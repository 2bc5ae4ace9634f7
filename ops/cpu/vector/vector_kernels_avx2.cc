#include "ops/cpu/vector/vector_kernels.h"

#define GANTRY_VECTOR_TABLE kVectorKernelsAvx2
#define GANTRY_VECTOR_ISA Isa::kAvx2
#include "ops/cpu/vector/vector_loops.inc"
