// What all subcommands share: failures, owned handles of gantry.h, and small text helpers.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <gantry/gantry.h>

#include "tools/cli/exit_codes.h"

namespace gantry::cli {

// Ends the subcommand; main prints the message to stderr, unless it is empty, and exits with the code.
class Failure : public std::runtime_error {
 public:
  Failure(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

// The exit code that a library's status usually means.
ExitCode ExitCodeOf(gantry_status status);
// Throws the last error as a Failure, with `context` before it, unless `status` is GANTRY_OK.
void Require(gantry_status status, std::string_view context = "");

template <auto kDestroy>
struct Destroy {
  template <typename T>
  void operator()(T* handle) const {
    kDestroy(handle);
  }
};
using Context = std::unique_ptr<gantry_context, Destroy<gantry_context_destroy>>;
using Array = std::unique_ptr<gantry_array, Destroy<gantry_array_destroy>>;
using Archive = std::unique_ptr<gantry_archive, Destroy<gantry_archive_destroy>>;
using Network = std::unique_ptr<gantry_network, Destroy<gantry_network_destroy>>;
using Gan = std::unique_ptr<gantry_gan, Destroy<gantry_gan_destroy>>;

// A context on the CPU whose messages up to `log_level` go to stderr. 0 threads: one for each core.
Context MakeContext(int thread_count, int32_t log_level = GANTRY_LOG_WARNING);
// Starts this program anew, `ranks` times, as the ranks of a job (gantry run --restarts), with the same arguments less --ranks and
// --restarts. Returns only where there is nothing to start: one rank, and no restarts.
void StartRanks(int ranks, int restarts = 0);
// The context of a rank of the job that the environment describes, or of the only one. Ranks but the first print nothing to stdout and
// no warnings: all say the same.
Context JoinRanks(int thread_count);
// Whether this is such another rank, once it has joined. For signal handlers, too.
bool IsQuiet();

// What all ranks do at once: of an error that all of them end with, the first one tells.
template <typename Function>
auto Together(const gantry_context* context, Function&& function) {
  try {
    return function();
  } catch (const Failure& failure) {
    if (gantry_context_rank(context) == 0 || gantry_context_failed_together(context) == 0) throw;
    throw Failure(failure.code(), "");
  }
}

// "12,345,678 bytes (11.8 MiB)".
std::string BytesText(uint64_t bytes);
// The entry of `names` nearest to `name`, or "" where none is near.
std::string Nearest(std::string_view name, const std::vector<std::string>& names);
// printf into a string.
std::string Format(const char* format, ...) __attribute__((format(printf, 1, 2)));
// The whole file. Failure: kExitMissingInput, kExitInputOutput, or kExitBadData above `max_bytes`.
std::string ReadTextFile(const std::string& path, size_t max_bytes);
// Throws kExitInputOutput where stdout could not be written, as to a full disk. A closed pipe is no error.
void FlushOutput();

}  // namespace gantry::cli
