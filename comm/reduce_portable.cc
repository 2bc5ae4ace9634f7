#define GANTRY_REDUCE_KERNELS kPortable
#include "comm/reduce_loops.inc"
