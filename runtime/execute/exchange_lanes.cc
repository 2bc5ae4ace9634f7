#include "runtime/execute/exchange_lanes.h"

#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>
#include <condition_variable>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "memory/cpu/short_slices.h"

namespace gantry {
namespace {

std::ptrdiff_t Index(PlanLane lane) { return std::find(std::begin(kExchangeLanes), std::end(kExchangeLanes), lane) - std::begin(kExchangeLanes); }

// At most 15 letters.
const char* ThreadName(PlanLane lane) {
  return lane == PlanLane::kGradients ? "gantry-grads" : lane == PlanLane::kUrgent ? "gantry-urgent" : "gantry-halos";
}

}  // namespace

class ExchangeLanes::Lane {
 public:
  Lane(ExchangeLanes& lanes, PlanLane lane, int max_pending) : lanes_(lanes), lane_(lane), ring_(static_cast<size_t>(max_pending)) {}
  ~Lane() {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    thread_.join();
  }

  absl::Status Begin() {
    try {
      thread_ = std::thread([this] { Loop(); });
    } catch (const std::system_error& error) {
      return absl::ResourceExhaustedError(
          absl::StrFormat("no thread for exchanges of %s: %s; raise the limit of processes", Name(lane_), error.what()));
    }
    pthread_setname_np(thread_.native_handle(), ThreadName(lane_));
    return absl::OkStatus();
  }

  int64_t Start(const LaneExchange& exchange) {
    int64_t started = 0;
    {
      std::unique_lock lock(mutex_);
      done_.wait(lock, [&] { return started_ - finished_ < static_cast<int64_t>(ring_.size()); });
      ring_[static_cast<size_t>(started_) % ring_.size()] = exchange;
      started = ++started_;
    }
    work_.notify_one();
    return started;
  }

  // The thread that waits computes nothing meanwhile, and gives its core to the lane at once.
  absl::Status Wait(int64_t count) {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return finished_ >= count; });
    return error_;
  }

  absl::Status Drain() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return finished_ == started_; });
    return error_;
  }

 private:
  void Loop() {
    prctl(PR_SET_TIMERSLACK, 1000);  // ns; by default a sleep ends up to 50 us late
    PreferShortSlices();
    std::unique_lock lock(mutex_);
    for (;;) {
      work_.wait(lock, [&] { return stopping_ || started_ > finished_; });
      if (stopping_) return;
      const LaneExchange exchange = ring_[static_cast<size_t>(finished_) % ring_.size()];
      absl::Status status;
      if (error_.ok()) {
        lock.unlock();
        status = exchange.kernel->Run(exchange.arguments);
        if (status.ok()) lanes_.HoldTo(lane_, exchange.link_bytes);
        lock.lock();
      }
      if (!status.ok()) error_ = std::move(status);
      ++finished_;
      done_.notify_all();
    }
  }

  ExchangeLanes& lanes_;
  const PlanLane lane_;
  std::mutex mutex_;
  std::condition_variable work_, done_;  // something is queued, or the lane is to stop; an exchange is finished
  std::vector<LaneExchange> ring_;       // exchange i (from 0) is at i % size until it is finished; guarded by mutex_
  int64_t started_ = 0, finished_ = 0;   // guarded by mutex_
  bool stopping_ = false;                // guarded by mutex_
  absl::Status error_;                   // guarded by mutex_
  std::thread thread_;
};

ExchangeLanes::ExchangeLanes(const Throttle& link) : link_(link) {}
ExchangeLanes::~ExchangeLanes() = default;

absl::StatusOr<std::unique_ptr<ExchangeLanes>> ExchangeLanes::Create(const Throttle& link, const std::map<PlanLane, int>& room) {
  std::unique_ptr<ExchangeLanes> lanes(new ExchangeLanes(link));
  for (const PlanLane lane : kExchangeLanes) {
    const auto found = room.find(lane);
    if (found == room.end()) continue;
    lanes->lanes_[Index(lane)] = std::make_unique<Lane>(*lanes, lane, found->second);
    GANTRY_RETURN_IF_ERROR(lanes->lanes_[Index(lane)]->Begin());
  }
  return lanes;
}

int64_t ExchangeLanes::Start(PlanLane lane, const LaneExchange& exchange) { return lanes_[Index(lane)]->Start(exchange); }

absl::Status ExchangeLanes::Wait(PlanLane lane, int64_t count) { return lanes_[Index(lane)]->Wait(count); }

absl::Status ExchangeLanes::Run(const LaneExchange& exchange) {
  GANTRY_RETURN_IF_ERROR(exchange.kernel->Run(exchange.arguments));
  HoldTo(PlanLane::kCompute, exchange.link_bytes);
  return absl::OkStatus();
}

absl::Status ExchangeLanes::Drain() {
  absl::Status status;
  for (const std::unique_ptr<Lane>& lane : lanes_) {
    if (lane != nullptr) status.Update(lane->Drain());
  }
  return status;
}

std::chrono::nanoseconds ExchangeLanes::LinkTime(int64_t bytes) const {
  return std::chrono::nanoseconds(static_cast<int64_t>(std::min(link_.Seconds(bytes), 1e6) * 1e9));
}

void ExchangeLanes::HoldTo(PlanLane lane, int64_t bytes) {
  if (!throttled()) return;
  const std::chrono::nanoseconds time = LinkTime(bytes);
  const Clock::time_point end = Clock::now() + time;
  if (lane != PlanLane::kGradients) {
    urgent_ns_.fetch_add(time.count(), std::memory_order_relaxed);
    std::this_thread::sleep_until(end);
    return;
  }
  const int64_t urgent_before = urgent_ns_.load(std::memory_order_relaxed);
  for (;;) {
    const Clock::time_point now_end = end + std::chrono::nanoseconds(urgent_ns_.load(std::memory_order_relaxed) - urgent_before);
    if (Clock::now() >= now_end) return;
    std::this_thread::sleep_until(now_end);
  }
}

}  // namespace gantry
