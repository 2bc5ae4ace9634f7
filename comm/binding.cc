#include "comm/binding.h"

#include <hwloc.h>

#include <cerrno>
#include <fstream>
#include <string>

#include "comm/socket.h"

namespace gantry {
namespace {

std::string FirstLine(const std::string& path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

// One memory node, and cores without a second thread.
bool IsFlat(const std::vector<int>& cpus) {
  if (FirstLine("/sys/devices/system/node/online") != "0") return false;
  for (const int cpu : cpus) {
    const std::string path = absl::StrFormat("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    if (FirstLine(path) != std::to_string(cpu)) return false;
  }
  return true;
}

// The threads of each core that this process may use, cores in the order of the tree.
absl::StatusOr<std::vector<RankBinding>> CoresFromHwloc(const cpu_set_t& allowed) {
  hwloc_topology_t topology;
  if (hwloc_topology_init(&topology) != 0) return SystemError(errno, "hwloc");
  std::vector<RankBinding> cores;
  if (hwloc_topology_load(topology) == 0) {
    const int count = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE);
    for (int i = 0; i < count; ++i) {
      const hwloc_obj_t core = hwloc_get_obj_by_type(topology, HWLOC_OBJ_CORE, static_cast<unsigned>(i));
      RankBinding binding;
      unsigned cpu;
      hwloc_bitmap_foreach_begin(cpu, core->cpuset) {
        if (cpu < CPU_SETSIZE && CPU_ISSET(cpu, &allowed)) binding.cpus.push_back(static_cast<int>(cpu));
      }
      hwloc_bitmap_foreach_end();
      binding.memory_node = hwloc_bitmap_weight(core->nodeset) == 1 ? hwloc_bitmap_first(core->nodeset) : -1;
      if (!binding.cpus.empty()) cores.push_back(std::move(binding));
    }
  }
  hwloc_topology_destroy(topology);
  if (cores.empty()) return absl::UnavailableError("hwloc finds no cores on this machine");
  return cores;
}

}  // namespace

absl::StatusOr<std::vector<RankBinding>> BindRanks(int ranks) {
  std::vector<RankBinding> bindings(static_cast<size_t>(ranks));
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return SystemError(errno, "asking for the cores that may be used");
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) cpus.push_back(cpu);
  }
  if (static_cast<int>(cpus.size()) < ranks) return bindings;
  std::vector<RankBinding> cores;
  if (IsFlat(cpus)) {
    for (const int cpu : cpus) cores.push_back({.cpus = {cpu}});
  } else {
    GANTRY_ASSIGN_OR_RETURN(cores, CoresFromHwloc(allowed));
  }
  if (static_cast<int>(cores.size()) < ranks) return bindings;
  for (size_t i = 0; i < cores.size(); ++i) {
    RankBinding& binding = bindings[i * static_cast<size_t>(ranks) / cores.size()];
    const bool first = binding.cpus.empty();
    binding.cpus.insert(binding.cpus.end(), cores[i].cpus.begin(), cores[i].cpus.end());
    if (first) {
      binding.memory_node = cores[i].memory_node;
    } else if (binding.memory_node != cores[i].memory_node) {
      binding.memory_node = -1;
    }
  }
  return bindings;
}

}  // namespace gantry
