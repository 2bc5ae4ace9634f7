#include "ops/cpu/vector/vector_kernels.h"

#define GANTRY_VECTOR_TABLE kVectorKernelsPortable
#define GANTRY_VECTOR_ISA Isa::kPortable
#include "ops/cpu/vector/vector_loops.inc"
