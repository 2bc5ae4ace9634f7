// gantry: the command line on top of gantry.h.
#include <clocale>
#include <csignal>
#include <cstdio>

#include "tools/cli/arguments.h"
#include "tools/cli/support.h"

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a reader that leaves early is no reason to lose a checkpoint
  std::signal(SIGXFSZ, SIG_IGN);  // a file above the limit is an error like a full disk
  try {
    const int code = gantry::cli::ParseAndRun(argc, argv);
    gantry::cli::FlushOutput();
    return code;
  } catch (const gantry::cli::Failure& failure) {
    std::fflush(stdout);
    std::fprintf(stderr, "gantry: %s\n", failure.what());
    return failure.code();
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "gantry: out of memory; free some, or use a smaller batch\n");
    return gantry::cli::kExitUnavailable;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gantry: internal error: %s; please report it\n", error.what());
    return gantry::cli::kExitInternal;
  }
}
