#pragma once

namespace gantry::cli {

// Reads the command line and runs the subcommand that it names; its exit code. Wrong usage is said on stderr: kExitUsage.
int ParseAndRun(int argc, char** argv);

}  // namespace gantry::cli
