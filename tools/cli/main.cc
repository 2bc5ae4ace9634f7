// gantry: the command line on top of gantry.h.
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

#include <unistd.h>

#include "tools/cli/arguments.h"
#include "tools/cli/support.h"

namespace {

// OpenMP's threads spin for milliseconds at each barrier. Where other processes want the cores too, the one that is awaited
// cannot run meanwhile, and a step takes up to ten times as long. libgomp reads this setting before main, so start again with it.
void SpinBriefly(char** argv) {
  if (std::getenv("GOMP_SPINCOUNT") != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  std::error_code unknown;
  const std::string program = std::filesystem::read_symlink("/proc/self/exe", unknown).string();
  setenv("GOMP_SPINCOUNT", "3000", 1);
  if (!program.empty()) execv(program.c_str(), argv);  // where that fails, it goes on as it is
}

}  // namespace

int main(int argc, char** argv) {
  const bool computes = argc > 1 && std::string_view(argv[1]) != "run" && std::string_view(argv[1]) != "recorder" && std::string_view(argv[1]) != "topo";
  if (computes) SpinBriefly(argv);
  std::signal(SIGPIPE, SIG_IGN);  // a reader that leaves early is no reason to lose a checkpoint
  std::signal(SIGXFSZ, SIG_IGN);  // a file above the limit is an error like a full disk
  try {
    const int code = gantry::cli::ParseAndRun(argc, argv);
    gantry::cli::FlushOutput();
    return code;
  } catch (const gantry::cli::Failure& failure) {
    std::fflush(stdout);
    if (*failure.what() != '\0') std::fprintf(stderr, "gantry: %s\n", failure.what());
    return failure.code();
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "gantry: out of memory; free some, or use a smaller batch\n");
    return gantry::cli::kExitUnavailable;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gantry: internal error: %s; please report it\n", error.what());
    return gantry::cli::kExitInternal;
  }
}
