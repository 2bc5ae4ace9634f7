// gantry layout solve, gantry layout check: placement of buffers in one arena.
#include <cinttypes>
#include <cstdio>

#include "tools/cli/commands.h"
#include "tools/cli/support.h"

namespace gantry::cli {

int RunLayoutSolve(const LayoutOptions& options) {
  gantry_layout_config config = GANTRY_LAYOUT_CONFIG_INIT;
  config.capacity_bytes = static_cast<uint64_t>(options.capacity_bytes);
  config.work_limit = options.work_limit;
  config.seed = static_cast<uint64_t>(options.seed);
  gantry_layout_result result = GANTRY_LAYOUT_RESULT_INIT;
  Require(gantry_layout_solve(options.problem.c_str(), &config, options.placed.empty() ? nullptr : options.placed.c_str(), &result));
  const double gap = result.lower_bound_bytes == 0 ? 0.0
                                                   : static_cast<double>(result.height_bytes - result.lower_bound_bytes) /
                                                         static_cast<double>(result.lower_bound_bytes);
  std::printf("buffers      %" PRIu64 "\nlower bound  %" PRIu64 "\nheight       %" PRIu64 "\ngap          %.4f %%\noptimal      %s\nmethod       %s\n",
              result.buffer_count, result.lower_bound_bytes, result.height_bytes, 100.0 * gap,
              result.optimal != 0 ? "yes, the height is the lower bound" : "not proved", result.method);
  if (result.fits != 0) return kExitOk;
  const bool impossible = result.lower_bound_bytes > config.capacity_bytes;
  std::fprintf(stderr, "gantry: no placement in %" PRId64 " bytes %s: the lowest found has %" PRIu64 "; give --capacity at least that%s\n",
               options.capacity_bytes, impossible ? "exists" : "was found", result.height_bytes,
               impossible ? "" : ", or search longer with --work");
  return kExitNegative;
}

int RunLayoutCheck(const LayoutOptions& options) {
  gantry_layout_result result = GANTRY_LAYOUT_RESULT_INIT;
  int32_t valid = 0;
  Require(gantry_layout_check(options.problem.c_str(), options.placed.c_str(), static_cast<uint64_t>(options.capacity_bytes), &valid, &result));
  if (valid == 0) {
    std::printf("wrong        %s\n", gantry_last_error());
    return kExitNegative;
  }
  std::printf("right        no two live buffers share a byte\nbuffers      %" PRIu64 "\nlower bound  %" PRIu64 "\nheight       %" PRIu64 "\n",
              result.buffer_count, result.lower_bound_bytes, result.height_bytes);
  return kExitOk;
}

}  // namespace gantry::cli
