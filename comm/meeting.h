// Connects this rank with all others of its job: authenticated sockets, by whatever way the job describes.
#pragma once

#include <vector>

#include "absl/time/time.h"
#include "comm/job.h"
#include "comm/socket.h"
#include "memory/status.h"

namespace gantry {

// One socket a rank, its own left empty; every one has proved the job's key. All ranks call it. `job.inherited` is used up.
// kDeadlineExceeded names the ranks that did not come, kUnauthenticated the address that failed.
absl::StatusOr<std::vector<Descriptor>> MeetOthers(Job& job, absl::Time deadline);

}  // namespace gantry
