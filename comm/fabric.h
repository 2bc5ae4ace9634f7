// A job's ranks brought together: the pool of their memory, a path to each of them, and the group of all.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "comm/communicator.h"
#include "comm/links.h"
#include "comm/liveness.h"
#include "comm/pool.h"
#include "comm/recorder.h"
#include "comm/transport.h"
#include "memory/status.h"

namespace gantry {

struct FabricOptions {
  // process_vm_readv for memory outside the pool from 1 MiB, where a probe shows that it works between all ranks of a
  // node. Not by itself: staging through the slots was faster at every size (docs/measurements/comm.md).
  bool cross_memory = false;
  absl::Duration timeout = absl::Seconds(30);  // for the ranks to come together
  Recorder* recorder = nullptr;                // notes down every collective; outlives the fabric
};

// Thread-safe.
class Fabric {
 public:
  // All ranks of the job call it; `mine` are the regions that this rank shares. What is given outlives the fabric, and
  // the fabric outlives every group made of its world.
  static absl::StatusOr<std::unique_ptr<Fabric>> Open(Links& links, Liveness& liveness,
                                                      std::span<const PoolRegion> mine, const FabricOptions& options);
  virtual ~Fabric() = default;

  virtual const Pool& pool() const = 0;
  virtual Transport& transport(int peer) = 0;
  virtual Communicator& world() = 0;  // all ranks, in their order
  // How this rank waits and by which path it reaches each other, a line each: for a log. What is not as it was wanted is
  // in NotedFallbacks (memory/fallback.h).
  virtual std::vector<std::string> Describe() const = 0;
};

}  // namespace gantry
