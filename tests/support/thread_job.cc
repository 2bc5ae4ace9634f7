#include "tests/support/thread_job.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

namespace gantry {

class ThreadLinks final : public Links {
 public:
  ThreadLinks(ThreadJob& shared, int rank) : shared_(shared) {
    job_.rank = rank;
    job_.size = shared.size();
    for (int peer = 0; peer < shared.size(); ++peer)
      peers_.push_back({.rank = peer, .node = shared.node_of(peer), .pid = getpid(), .host = "threads", .visible = true});
  }
  const Job& job() const override { return job_; }
  const Peer& peer(int rank) const override { return peers_[rank]; }
  int descriptor(int) const override { return -1; }

  absl::Status Send(int to, uint32_t channel, std::span<const std::byte> bytes,
                    std::span<const int> descriptors) override {
    LinkMessage message{.bytes = std::vector<std::byte>(bytes.begin(), bytes.end())};
    for (const int descriptor : descriptors) message.descriptors.emplace_back(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
    const std::lock_guard lock(shared_.mutex_);
    shared_.queues_[{job_.rank, to, channel}].push_back(std::move(message));
    shared_.arrived_.notify_all();
    return absl::OkStatus();
  }

  // For monitors alone, of which there is none here.
  Reactor& reactor() override { std::abort(); }
  void HandleChannel(uint32_t, std::function<void(int, LinkMessage)>) override {}
  void OnClosed(std::function<void(int, std::string_view)>) override {}
  void ReadNow(int) override {}
  int64_t received_bytes(int) const override { return 0; }
  void Close(int, std::string_view) override {}

  absl::StatusOr<LinkMessage> Receive(int from, uint32_t channel, absl::Duration timeout) override {
    std::unique_lock lock(shared_.mutex_);
    std::deque<LinkMessage>& queue = shared_.queues_[{from, job_.rank, channel}];
    if (!shared_.arrived_.wait_for(lock, absl::ToChronoMilliseconds(timeout), [&] { return !queue.empty(); })) {
      return absl::DeadlineExceededError(absl::StrFormat("rank %d sent nothing on channel %d", from, channel));
    }
    LinkMessage message = std::move(queue.front());
    queue.pop_front();
    return message;
  }

 private:
  ThreadJob& shared_;
  Job job_;
  std::vector<Peer> peers_;
};

class ThreadLiveness final : public Liveness {
 public:
  bool lost(int rank) const override {
    const std::lock_guard lock(mutex_);
    return lost_.contains(rank);
  }
  bool has_left(int) const override { return false; }
  absl::Status status(std::string_view pending) const override {
    const std::lock_guard lock(mutex_);
    if (lost_.empty()) return absl::OkStatus();
    return absl::UnavailableError(
        absl::StrFormat("rank %d (threads) is lost: %s; %s", first_, lost_.at(first_), pending));
  }
  absl::Status StatusOf(int rank, std::string_view pending) const override {
    const std::lock_guard lock(mutex_);
    if (!lost_.contains(rank)) return absl::OkStatus();
    return absl::UnavailableError(absl::StrFormat("rank %d (threads) is lost: %s; %s", rank, lost_.at(rank), pending));
  }
  void Report(int rank, std::string_view why) override {
    {
      const std::lock_guard lock(mutex_);
      if (lost_.empty()) first_ = rank;
      if (!lost_.emplace(rank, why).second) return;
      losses_.fetch_add(1);
    }
    const std::lock_guard lock(calls_mutex_);
    for (const auto& [number, call] : calls_) call(rank);
  }
  int OnLoss(std::function<void(int rank)> call) override {
    const std::lock_guard lock(calls_mutex_);
    calls_[next_] = std::move(call);
    return next_++;
  }
  void Forget(int number) override {
    const std::lock_guard lock(calls_mutex_);  // no call runs when it returns
    calls_.erase(number);
  }
  void Leave() override {}

 private:
  mutable std::mutex mutex_;
  std::map<int, std::string> lost_;
  int first_ = -1;
  std::mutex calls_mutex_;
  std::map<int, std::function<void(int)>> calls_;
  int next_ = 0;
};

ThreadJob::ThreadJob(std::vector<int> node_of) : node_of_(std::move(node_of)) {
  for (int rank = 0; rank < size(); ++rank) {
    links_.push_back(std::make_unique<ThreadLinks>(*this, rank));
    liveness_.push_back(std::make_unique<ThreadLiveness>());
  }
}

void ThreadJob::Lose(int rank) {
  for (int other = 0; other < size(); ++other) {
    if (other != rank) liveness_[other]->Report(rank, "killed by the test");
  }
}

absl::StatusOr<Rank> OpenRank(Links& links, Liveness& liveness, Device& device, int64_t arena_bytes,
                              const FabricOptions& options) {
  Rank rank{.rank = links.rank(), .links = &links, .liveness = &liveness, .arena_bytes = arena_bytes};
  GANTRY_ASSIGN_OR_RETURN(rank.slab, device.Reserve(arena_bytes));
  rank.arena = rank.slab->data();
  const PoolRegion region{
      .name = "arena", .data = rank.arena, .bytes = arena_bytes, .descriptor = rank.slab->descriptor()};
  GANTRY_ASSIGN_OR_RETURN(rank.fabric, Fabric::Open(links, liveness, std::span(&region, 1), options));
  return rank;
}

void RunThreadRanks(const std::vector<int>& node_of, int64_t arena_bytes, const FabricOptions& options,
                    const std::function<void(Rank&, ThreadJob&)>& body) {
  ThreadJob job(node_of);
  const std::unique_ptr<Device> device = MakeCpuDevice({});
  std::vector<std::thread> threads;
  for (int rank = 0; rank < job.size(); ++rank) {
    threads.emplace_back([&, rank] {
      absl::StatusOr<Rank> opened = OpenRank(job.links(rank), job.liveness(rank), *device, arena_bytes, options);
      ASSERT_TRUE(opened.ok()) << Message(opened.status());
      body(*opened, job);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace gantry
