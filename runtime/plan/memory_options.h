// Budgets, tiers and links as people write them.
#pragma once

#include <string>
#include <string_view>

#include "runtime/plan/plan.h"

namespace gantry {

// "64MiB", "1.5 GB", "4096": a number and B, kB, MB, GB, TB or KiB, MiB, GiB, TiB. kInvalidArgument otherwise.
absl::StatusOr<int64_t> ParseBytes(std::string_view text);
// "2GB/s", "500MiB/s": bytes per second, above 0.
absl::StatusOr<double> ParseRate(std::string_view text);
// "10us", "1.5 ms", "2s".
absl::StatusOr<double> ParseSeconds(std::string_view text);

// The section [memory] of a run file; docs/reference/memory.md describes the texts.
struct MemoryOptions {
  // A budget: "64MiB", or a share of the step's footprint with nothing offloaded: "1/4", "0.25"; empty: none. Of several ranks one each, "none" for
  // those without: "64MiB,128MiB,none".
  std::string device;
  // Where values may wait that do not fit: "none", or several of "peer" (what other ranks' plans leave of their devices), "host", "remote" (host
  // memory of a rank on another node) and "file", joined with "+".
  std::string offload = "host";
  std::string host;              // most bytes of a rank's host memory, for its own values and those of other ranks; empty: no limit
  std::string file;              // budget of the file tier; empty: none
  std::string directory;         // of the file tier
  std::string link;              // "out=2GB/s,in=2GB/s,latency=10us,jitter=1ms": every tier at this speed; empty: as fast as it goes
  bool recompute = true;         // ops may run again instead of what they made being kept
  std::string machine;           // machine file to plan for; empty: see FindMachine (runtime/gan/machine_file.h)
  bool encode = true;            // sign bits and copies without zeros, where they help: the same bits in the end
  std::string stash = "f32";     // "bf16": activations that wait in a tier are rounded, which changes results
  bool checksums = false;        // compare what tiers give back with what they were given
};

// Sets device_memory, tiers and all of PlanOptions that belongs to them. kInvalidArgument names the key, "memory.device", its value and what is allowed.
absl::Status SetMemory(const MemoryOptions& memory, PlanOptions& options);
// Whether the device memory of any rank is limited.
bool HasBudget(const PlanOptions& options);
// The options with no budget, and nowhere to go for what would not fit.
PlanOptions WithoutBudgets(PlanOptions options);
// Makes the rank's budget the budget of the options. kInvalidArgument where there are budgets of another number of ranks than `ranks`.
absl::Status TakeRankMemory(int rank, int ranks, PlanOptions& options);

}  // namespace gantry
