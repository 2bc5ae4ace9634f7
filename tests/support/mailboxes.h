// Ranks of different nodes as threads, with a mailbox each.
#pragma once

#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "comm/pool.h"
#include "comm/tcp/mailbox.h"
#include "comm/wait.h"
#include "tests/support/thread_job.h"

namespace gantry {

struct Mailboxes {
  explicit Mailboxes(int ranks = 2) : job(NodeOfEach(ranks)), bells(ranks), pools(ranks), mailboxes(ranks) {}
  static std::vector<int> NodeOfEach(int ranks) {
    std::vector<int> nodes(ranks);
    std::iota(nodes.begin(), nodes.end(), 0);
    return nodes;
  }

  // On a thread for each of them at the same time.
  void Open(int rank) {
    pools[rank] = *Pool::Share(job.links(rank), {}, absl::Seconds(60));
    mailboxes[rank] = *tcp::Mailbox::Open(
        job.links(rank), job.liveness(rank), *pools[rank], bells[rank], [] {}, absl::Seconds(60));
  }
  void OpenAll() {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < job.size(); ++rank) threads.emplace_back([this, rank] { Open(rank); });
  }

  ThreadJob job;
  std::vector<Doorbell> bells;
  std::vector<std::unique_ptr<Pool>> pools;
  std::vector<std::unique_ptr<tcp::Mailbox>> mailboxes;
};

}  // namespace gantry
