// A machine as the planner sees it: what its device holds and how fast things go, measured (`gantry calibrate`) or described by
// hand, so that "does it fit, how long" is answered for a machine that one does not have. docs/reference/machine-file.md describes
// the file.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "memory/status.h"

namespace gantry {

inline constexpr std::string_view kMachineFormat = "gantry-machine-1";
inline constexpr size_t kMaxMachineFileBytes = size_t{16} << 20;

// One measured op: its work and the seconds that it took.
struct KernelSample {
  double flops = 0, bytes = 0, seconds = 0;
};

// Ops of one kind on one implementation with so many threads, while so many ranks of the machine computed.
struct MeasuredKernel {
  std::string family;  // "panel_conv forward, panel winograd4 avx2": FamilyOf in cost_model.h
  int threads = 1, ranks = 1;
  std::vector<KernelSample> samples;
};

// A place off the device.
struct MachineTier {
  std::string name;
  std::string kind = "host";           // "host", "file", "peer", "remote"
  int64_t memory_bytes = INT64_MAX;    // of one rank
  int64_t granularity_bytes = 64;      // what lies there begins at multiples of it
  double out_bytes_per_second = 5e9, in_bytes_per_second = 5e9;  // of a copy beside compute
  double latency_seconds = 0.0;        // of each copy
  double compute_share = 0.0;          // share of a copy's time that compute loses meanwhile: where both need the same cores or memory
};

// What connects ranks. Plans of one rank do not look at it.
struct MachineLink {
  std::string between = "node";  // "node": every two ranks of a node; "network": ranks of different nodes; "pairs": those of `pairs`
  std::vector<std::pair<int, int>> pairs;  // ranks inside a node, for each node
  double bytes_per_second = 1e10;          // one way; both ways at once
  double latency_seconds = 0.0;
  double start_seconds = 0.0;              // that compute loses where an exchange beside it begins: where both need the same cores
  int parallel = 1;                        // so many of them side by side
  bool shared = false;                     // one medium for all pairs together, as host memory is
};

struct Machine {
  std::string name;            // for people
  std::string source;          // where it was read from; not in the file
  // Of one rank's device.
  int64_t memory_bytes = 0;    // that a step may take; 0: no limit
  double flops_per_second = 0, bytes_per_second = 0;  // of ops that no sample tells about; 0: the planner's own guess
  double op_seconds = -1;      // of any op; below 0: likewise
  std::vector<MeasuredKernel> kernels;
  std::vector<MachineTier> tiers;
  int rank_count = 1, ranks_per_node = 1;
  std::vector<double> rank_speeds;  // of compute, 1 being what `device` and `kernels` say; one a rank, then anew; empty: all 1
  std::vector<MachineLink> links;

  // Null where there is none of the kind.
  const MachineTier* FindTier(std::string_view kind) const;
  const MachineLink* FindLink(std::string_view between) const;
};

// kInvalidArgument names the line, the key, its value and what is allowed; for an unknown key the nearest right one. `name` is the
// file's, for messages.
absl::StatusOr<Machine> ParseMachine(std::string_view toml, std::string_view name = "machine.toml");
// A file from which ParseMachine makes the same machine.
std::string ToToml(const Machine& machine);

}  // namespace gantry
