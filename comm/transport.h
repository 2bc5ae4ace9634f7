// Bytes to and from the memory of another rank, without its help. One class a kind of path; the fabric chooses one per
// peer and says so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/time/time.h"
#include "memory/status.h"

namespace gantry {

// A place in the pool: which rank, which of the regions that it shares (arena, tier slabs, in the order of sharing),
// which byte.
struct GlobalAddress {
  int rank = 0;
  int region = 0;
  int64_t offset = 0;
};

// An operation in flight. Move-only; waits when it goes. One thread at a time.
class [[nodiscard]] Pending {
 public:
  // Lies in a place that its maker keeps for it, so that starting an operation allocates nothing.
  class Work {
   public:
    virtual bool done() const = 0;
    // The operation's status, or kDeadlineExceeded where it goes on. Does not block once the operation is done.
    virtual absl::Status Wait(absl::Duration timeout) = 0;
    // It is done and nobody will ask again: its place may be used for another.
    virtual void Release() = 0;

   protected:
    ~Work() = default;
  };

  Pending() = default;  // done, OK
  explicit Pending(absl::Status status) : status_(std::move(status)) {}
  explicit Pending(Work& work) : work_(&work) {}
  Pending(Pending&& from) noexcept : work_(std::exchange(from.work_, nullptr)), status_(std::move(from.status_)) {}
  Pending& operator=(Pending&& from) noexcept;
  ~Pending();

  bool done() const { return work_ == nullptr || work_->done(); }
  const Work* work() const { return work_; }  // null: done
  // kDeadlineExceeded leaves it running: wait again. kUnavailable names the rank that is lost and the operation. There
  // is no wait without a deadline: InfiniteDuration is taken as kDefaultTimeout.
  absl::Status Wait(absl::Duration timeout = kDefaultTimeout);

  static constexpr absl::Duration kDefaultTimeout = absl::Minutes(5);

 private:
  Work* work_ = nullptr;
  absl::Status status_;
};

// Thread-safe. Ranges outside the region are kInvalidArgument before anything moves, and so is writing to a region lent
// to be read.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual std::string_view name() const = 0;             // "shm", "tcp"
  virtual std::string DescribePath(int peer) const = 0;  // "tcp to 10.0.0.2:4711, 1.25 GB/s expected of eth0, ..."
  virtual bool Reaches(int peer) const = 0;

  // Done when the bytes may be read at the other side, after a Signal that follows it. Puts and signals to one rank
  // arrive in order.
  virtual Pending Put(GlobalAddress to, std::span<const std::byte> from) = 0;
  virtual Pending Get(std::span<std::byte> to, GlobalAddress from) = 0;
  // 8-byte aligned words. The word's value before.
  virtual absl::StatusOr<uint64_t> FetchAdd(GlobalAddress word, uint64_t add) = 0;
  virtual absl::StatusOr<uint64_t> CompareSwap(GlobalAddress word, uint64_t expected, uint64_t desired) = 0;
  // Sets a word of the peer's region (adds `add`) after all puts before it, and wakes who waits for it.
  virtual Pending Signal(GlobalAddress word, uint64_t add) = 0;
  // Until a word of this rank's own region is at least `value`. `from`: the rank that will see to it; kUnavailable if
  // that is lost.
  virtual absl::Status WaitSignal(int from, int region, int64_t offset, uint64_t value, absl::Duration timeout) = 0;
};

}  // namespace gantry
