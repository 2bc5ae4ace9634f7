// Exchanges between ranks beside compute: lanes (threads with queues) for large gradients and for what is wanted sooner, and the link that they share.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>

#include "memory/status.h"
#include "memory/tier/tier.h"
#include "ops/kernel.h"
#include "runtime/graph/lanes.h"

namespace gantry {

struct LaneExchange {
  Kernel* kernel = nullptr;
  KernelArguments arguments;
  int64_t link_bytes = 0;  // LinkBytes (runtime/graph/lanes.h)
};

// A lane carries out its exchanges one after another, in the order of Start; lanes do not wait for each other. After one has failed its lane
// carries out no further one: they count as finished and Wait says why. Thread-safe for one thread that starts and waits.
//
// On a throttled link an exchange ends no earlier than latency + link_bytes / bytes_per_second after all ranks have met, and whoever carries it
// out sleeps meanwhile. Exchanges of a lane follow one another on the link. What something waits for sooner goes first: the other lanes and
// Run take their time from that of gradients under way.
class ExchangeLanes {
 public:
  // Room for so many exchanges under way in each lane: what one step begins. Others have no thread. kResourceExhausted where the machine
  // has no threads for it.
  static absl::StatusOr<std::unique_ptr<ExchangeLanes>> Create(const Throttle& link, const std::map<PlanLane, int>& room);
  // Waits for what is under way: until its communicator's deadline at the latest.
  ~ExchangeLanes();
  ExchangeLanes(const ExchangeLanes&) = delete;
  ExchangeLanes& operator=(const ExchangeLanes&) = delete;

  // How many exchanges the lane has been given so far, this one included: what Wait takes. Allocates nothing.
  int64_t Start(PlanLane lane, const LaneExchange& exchange);
  // Until the lane has finished its first `count` exchanges. The first error of any of that lane; every later Wait returns it too.
  absl::Status Wait(PlanLane lane, int64_t count);
  // Carries it out in the calling thread.
  absl::Status Run(const LaneExchange& exchange);
  // Until all lanes have finished what they have been given; the first error.
  absl::Status Drain();

 private:
  using Clock = std::chrono::steady_clock;
  class Lane;

  explicit ExchangeLanes(const Throttle& link);
  std::chrono::nanoseconds LinkTime(int64_t bytes) const;
  bool throttled() const { return link_.bytes_per_second > 0 || link_.latency_seconds > 0; }
  // Sleeps for what the link takes from now on, and returns when it has.
  void HoldTo(PlanLane lane, int64_t bytes);

  const Throttle link_;
  std::atomic<int64_t> urgent_ns_{0};      // of the link, by exchanges that go before gradients
  std::unique_ptr<Lane> lanes_[std::size(kExchangeLanes)];  // null without room
};

}  // namespace gantry
