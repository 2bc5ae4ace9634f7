#define GANTRY_REDUCE_KERNELS kAvx2
#define GANTRY_REDUCE_F16C
#include "comm/reduce_loops.inc"
