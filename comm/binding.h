// Which cores each rank of a machine gets.
#pragma once

#include <sched.h>

#include <vector>

#include "memory/status.h"

namespace gantry {

struct RankBinding {
  std::vector<int> cpus;  // empty: all that the launcher may use
  int memory_node = -1;   // where its memory comes from first; -1: as the system likes
};

// The cores that this process may use, dealt out in equal runs in the order of the machine's tree, so that the ranks share as few
// caches and memory nodes as can be. No binding for anybody where ranks outnumber cores. With hwloc where the machine has several memory
// nodes or threads a core; from the mask alone where there is nothing to know (hwloc's discovery takes longer than a job's start).
absl::StatusOr<std::vector<RankBinding>> BindRanks(int ranks);

}  // namespace gantry
