// Runs as the subcommands open them.
#pragma once

#include <string>
#include <vector>

#include "tools/cli/commands.h"
#include "tools/cli/support.h"

namespace gantry::cli {

using Run = std::unique_ptr<gantry_run, Destroy<gantry_run_destroy>>;

// `settings` and what the flags say as settings.
std::vector<std::string> WithMemory(std::vector<std::string> settings, const MemoryFlags& memory);
// Likewise how ranks share out the step.
std::vector<std::string> WithRanks(std::vector<std::string> settings, const RankFlags& ranks);
// The same for a session.
void SetMemory(gantry_gan* gan, const MemoryFlags& memory);

using Planning = std::unique_ptr<gantry_planning, Destroy<gantry_planning_destroy>>;

// Failures that a wrong setting on the command line causes are kExitUsage.
Run OpenRun(gantry_context* context, const std::string& path, const std::vector<std::string>& settings);
Planning OpenPlanning(gantry_context* context, const std::string& path, const std::vector<std::string>& settings);

}  // namespace gantry::cli
