#include "ops/cpu/vector/vector_kernels.h"

#define GANTRY_VECTOR_TABLE kVectorKernelsAvx512
#define GANTRY_VECTOR_ISA Isa::kAvx512
#include "ops/cpu/vector/vector_loops.inc"
