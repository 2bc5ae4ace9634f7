// gantry backends, gantry ops: what this build has.
#include <cstdio>

#include "tools/cli/commands.h"
#include "tools/cli/support.h"

namespace gantry::cli {

int RunBackends() {
  std::printf("%s\n", gantry_backends());
  return kExitOk;
}

int RunOps() {
  std::printf("%-20s %-8s %s\n", "op", "inputs", "gradient");
  for (size_t i = 0; i < gantry_op_count(); ++i) {
    gantry_op_info op = GANTRY_OP_INFO_INIT;
    Require(gantry_op_get(i, &op));
    std::string inputs = Format("%d", op.min_inputs);
    if (op.max_inputs < 0) {
      inputs += "+";
    } else if (op.max_inputs != op.min_inputs) {
      inputs += Format("-%d", op.max_inputs);
    }
    std::printf("%-20s %-8s %s\n", op.name, inputs.c_str(), op.differentiable != 0 ? "yes" : "none");
  }
  return kExitOk;
}

}  // namespace gantry::cli
