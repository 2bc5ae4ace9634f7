#include "comm/reactor.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "comm/socket.h"
#include "comm/wait.h"
#include "memory/cpu/short_slices.h"

namespace gantry {
namespace {

class EpollReactor final : public Reactor {
 public:
  absl::Status Open() {
    epoll_.Reset(epoll_create1(EPOLL_CLOEXEC));
    wake_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!epoll_.valid() || !wake_.valid()) return SystemError(errno, "starting the thread that watches links");
    epoll_event event{.events = EPOLLIN, .data = {.fd = wake_.get()}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) return SystemError(errno, "watching an eventfd");
    // Signals are for the threads of the program, not for this one.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { Loop(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return absl::OkStatus();
  }

  ~EpollReactor() override { Stop(); }

  void Stop() override {
    {
      std::unique_lock lock(mutex_);
      stopping_ = true;
    }
    Wake();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Add(int descriptor, uint32_t events, std::function<void(uint32_t)> call) override {
    std::unique_lock lock(mutex_);
    watches_[descriptor] = std::make_shared<Watch>(Watch{std::move(call)});
    epoll_event event{.events = events, .data = {.fd = descriptor}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, descriptor, &event) != 0) {
      watches_.erase(descriptor);
      return SystemError(errno, "watching a descriptor");
    }
    return absl::OkStatus();
  }

  void Modify(int descriptor, uint32_t events) override {
    epoll_event event{.events = events, .data = {.fd = descriptor}};
    epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, descriptor, &event);
  }

  void Remove(int descriptor) override {
    std::unique_lock lock(mutex_);
    if (watches_.erase(descriptor) > 0) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, descriptor, nullptr);
    // Also where the call has removed itself and still runs.
    WaitWhile(lock, running_descriptor_, descriptor);
  }

  int Every(absl::Duration period, std::function<void()> call) override {
    std::unique_lock lock(mutex_);
    timers_[++last_timer_] = Timer{period, WaitClock::now() + absl::ToChronoNanoseconds(period), std::make_shared<std::function<void()>>(std::move(call))};
    Wake();
    return last_timer_;
  }

  void Cancel(int timer) override {
    std::unique_lock lock(mutex_);
    timers_.erase(timer);
    WaitWhile(lock, running_timer_, timer);
  }

  void Post(std::function<void()> call) override {
    std::unique_lock lock(mutex_);
    posted_.push_back(std::move(call));
    Wake();
  }

  bool OnOwnThread() const override { return thread_id_.load(std::memory_order_relaxed) == std::this_thread::get_id(); }

 private:
  struct Watch {
    std::function<void(uint32_t)> call;
  };
  struct Timer {
    absl::Duration period;
    WaitClock::time_point due;  // the time of day may jump
    std::shared_ptr<std::function<void()>> call;
  };

  void Wake() {
    const uint64_t one = 1;
    (void)!write(wake_.get(), &one, sizeof(one));
  }

  // Until the call of `which` that runs is over.
  void WaitWhile(std::unique_lock<std::mutex>& lock, const int& running, int which) {
    if (!OnOwnThread()) idle_.wait(lock, [&] { return running != which; });
  }

  void Loop() {
    thread_id_.store(std::this_thread::get_id(), std::memory_order_relaxed);
    prctl(PR_SET_NAME, "gantry-links");
    PreferShortSlices();
    std::vector<epoll_event> events(64);
    for (;;) {
      absl::Duration pause = absl::InfiniteDuration();
      {
        std::unique_lock lock(mutex_);
        if (stopping_) return;
        for (const auto& [number, timer] : timers_) pause = std::min(pause, absl::FromChrono(timer.due - WaitClock::now()));
        if (!posted_.empty()) pause = absl::ZeroDuration();
      }
      const int count = epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), PollTimeout(absl::Now() + pause));
      for (int i = 0; i < count; ++i) {
        if (events[i].data.fd == wake_.get()) {
          uint64_t ignored;
          (void)!read(wake_.get(), &ignored, sizeof(ignored));
        } else {
          RunWatch(events[i].data.fd, events[i].events);
        }
      }
      RunTimers();
      RunPosted();
    }
  }

  void RunWatch(int descriptor, uint32_t events) {
    std::shared_ptr<Watch> watch;
    {
      std::unique_lock lock(mutex_);
      const auto found = watches_.find(descriptor);
      if (found == watches_.end() || stopping_) return;
      watch = found->second;
      running_descriptor_ = descriptor;
    }
    watch->call(events);
    std::unique_lock lock(mutex_);
    running_descriptor_ = -1;
    idle_.notify_all();
  }

  void RunTimers() {
    const WaitClock::time_point now = WaitClock::now();
    int after = 0;
    for (;;) {
      std::shared_ptr<std::function<void()>> call;
      {
        std::unique_lock lock(mutex_);
        auto timer = timers_.upper_bound(after);
        while (timer != timers_.end() && timer->second.due > now) ++timer;
        if (timer == timers_.end() || stopping_) return;
        after = timer->first;
        timer->second.due = now + absl::ToChronoNanoseconds(timer->second.period);
        call = timer->second.call;
        running_timer_ = after;
      }
      (*call)();
      std::unique_lock lock(mutex_);
      running_timer_ = -1;
      idle_.notify_all();
    }
  }

  void RunPosted() {
    std::vector<std::function<void()>> calls;
    {
      std::unique_lock lock(mutex_);
      calls.swap(posted_);
    }
    for (const std::function<void()>& call : calls) call();
  }

  Descriptor epoll_, wake_;
  std::thread thread_;
  std::atomic<std::thread::id> thread_id_{};
  std::mutex mutex_;  // of all below
  std::condition_variable idle_;
  std::map<int, std::shared_ptr<Watch>> watches_;
  std::map<int, Timer> timers_;
  std::vector<std::function<void()>> posted_;
  int last_timer_ = 0;
  int running_descriptor_ = -1;
  int running_timer_ = -1;
  bool stopping_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Reactor>> Reactor::Start() {
  auto reactor = std::make_unique<EpollReactor>();
  GANTRY_RETURN_IF_ERROR(reactor->Open());
  return reactor;
}

}  // namespace gantry
