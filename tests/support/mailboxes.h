// Ranks of different nodes as threads, with a mailbox each.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "comm/pool.h"
#include "comm/tcp/mailbox.h"
#include "comm/wait.h"
#include "tests/support/thread_job.h"

namespace gantry {

struct Mailboxes {
  explicit Mailboxes(std::vector<int> node_of = {0, 1})
      : job(node_of), bells(node_of.size()), pools(node_of.size()), mailboxes(node_of.size()) {}

  void Open() {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < job.size(); ++rank) {
      threads.emplace_back([this, rank] {
        pools[rank] = *Pool::Share(job.links(rank), {}, absl::Seconds(60));
        mailboxes[rank] = *tcp::Mailbox::Open(
            job.links(rank), job.liveness(rank), *pools[rank], bells[rank], [] {}, absl::Seconds(60));
      });
    }
  }

  ThreadJob job;
  std::vector<Doorbell> bells;
  std::vector<std::unique_ptr<Pool>> pools;
  std::vector<std::unique_ptr<tcp::Mailbox>> mailboxes;
};

}  // namespace gantry
