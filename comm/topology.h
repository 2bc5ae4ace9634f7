// What a machine is made of: packages, memory nodes, caches, cores, GPUs and network cards, as hwloc finds them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "memory/status.h"

namespace gantry {

struct TopologyNode {
  // "machine", "package", "memory", "l3", "core", "bridge", "pci", "gpu", "network", "block", ...; of a description (runtime/simulate)
  // also "job", "node", "rank", "tier", "link".
  std::string kind;
  std::string name;        // of a device: "mlx5_0", "cuda0", "10de:2330"
  int number = -1;         // the system's; -1: none
  uint64_t bytes = 0;      // of memory and caches
  double gigabytes_per_second = 0;  // of a link; 0: not known
  double latency_seconds = 0;       // likewise
  std::vector<int> cpus;   // of cores and above, by their numbers
  std::vector<TopologyNode> children;
};

// Takes tens of milliseconds. kUnavailable where hwloc finds nothing.
absl::StatusOr<TopologyNode> DiscoverTopology();

// A line a node, indented below what it is part of.
std::string FormatTopology(const TopologyNode& machine);
std::string FormatTopologyJson(const TopologyNode& machine);  // one object

}  // namespace gantry
