// Runs as the subcommands open them.
#pragma once

#include <string>
#include <vector>

#include "tools/cli/support.h"

namespace gantry::cli {

using Run = std::unique_ptr<gantry_run, Destroy<gantry_run_destroy>>;

// Failures that a wrong setting on the command line causes are kExitUsage.
Run OpenRun(gantry_context* context, const std::string& path, const std::vector<std::string>& settings);

}  // namespace gantry::cli
