// What PyTorch computed (tests/data/torch_ops.txt, written by make_torch_ops.py).
#pragma once

#include "ops/kernel.h"

namespace gantry::test {

// Runs everything in the file on `library` in `dtype` and compares with PyTorch; failures are GoogleTest's. `all`: the
// library must have a kernel for every run. Returns for how many runs it had one.
int CheckTorchOps(DataType dtype, const KernelLibrary& library, double tolerance, bool all);

}  // namespace gantry::test
