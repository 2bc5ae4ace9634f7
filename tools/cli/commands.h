// The subcommands: each takes what its options said and returns the exit code. They throw Failure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gantry::cli {

struct CheckOptions {
  std::string folder;
  std::string kernels = "reference";
  std::string dtype;  // empty: f64 with reference kernels, f32 with fast ones
  int threads = 0;    // 0: one for each core
  bool winograd = true;
  bool json = false;
};
int RunCheck(const CheckOptions& options);

struct LayoutOptions {
  std::string problem, placed;
  uint64_t capacity_bytes = 0;  // 0: none
  int64_t work_limit = 0;       // 0: the library's
  uint64_t seed = 1;
};
int RunLayoutSolve(const LayoutOptions& options);
int RunLayoutCheck(const LayoutOptions& options);

int RunBackends();
int RunOps();

}  // namespace gantry::cli
