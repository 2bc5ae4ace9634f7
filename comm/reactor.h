// One thread that sleeps in epoll and calls who waits for a descriptor or a time. Links and the liveness monitor share one a job.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/time/time.h"
#include "memory/status.h"

namespace gantry {

// Thread-safe. Calls run on the reactor's thread, one at a time; they must not block and may use the reactor.
class Reactor {
 public:
  static absl::StatusOr<std::unique_ptr<Reactor>> Start();
  virtual ~Reactor() = default;  // stops it
  // Waits for the call that runs; no other follows.
  virtual void Stop() = 0;

  // `events` as epoll's (EPOLLIN, EPOLLOUT, ...), level-triggered. One entry a descriptor.
  virtual absl::Status Add(int descriptor, uint32_t events, std::function<void(uint32_t events)> call) = 0;
  virtual void Modify(int descriptor, uint32_t events) = 0;
  // When it returns the call neither runs nor will run (unless it is the caller).
  virtual void Remove(int descriptor) = 0;
  // Calls again and again until Cancel. The number that Cancel takes.
  virtual int Every(absl::Duration period, std::function<void()> call) = 0;
  virtual void Cancel(int timer) = 0;
  // Runs `call` once, soon.
  virtual void Post(std::function<void()> call) = 0;
  virtual bool OnOwnThread() const = 0;
};

}  // namespace gantry
