// Two ranks of different nodes as threads, with a mailbox each.
#pragma once

#include <memory>

#include "comm/pool.h"
#include "comm/tcp/mailbox.h"
#include "comm/wait.h"
#include "tests/support/thread_job.h"

namespace gantry {

struct TwoMailboxes {
  // On a thread for each of the two at the same time.
  void Open(int rank) {
    pools[rank] = *Pool::Share(job.links(rank), {}, absl::Seconds(60));
    mailboxes[rank] =
        *tcp::Mailbox::Open(job.links(rank), job.liveness(rank), *pools[rank], bells[rank], [] {}, absl::Seconds(60));
  }

  ThreadJob job{{0, 1}};
  Doorbell bells[2] = {};
  std::unique_ptr<Pool> pools[2];
  std::unique_ptr<tcp::Mailbox> mailboxes[2];
};

}  // namespace gantry
