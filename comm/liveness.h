// Who is alive. One monitor thread a process watches the links (hang-up), the processes of this node (pidfd) and heartbeats, and
// passes on what other ranks have seen, so that every wait of every rank ends with the name of the rank that is lost.
// A rank that a debugger holds (on the same machine) is not lost: its heart may stand still.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "comm/links.h"
#include "memory/status.h"

namespace gantry {

// Where a connection for data has ended, the monitor says why a moment later; where it does not within this time, the connection alone has gone.
inline constexpr std::chrono::seconds kMonitorTime(3);

struct LivenessOptions {
  // A rank that gives no sign of life for so long is lost; on this machine one whose process is there and not stopped only after ten times
  // as long, for it may lack a core. Zero: never (for a debugger).
  absl::Duration heartbeat_timeout = absl::Seconds(1);

  // GANTRY_HEARTBEAT_TIMEOUT, seconds: "2.5", "0" for never.
  static absl::StatusOr<LivenessOptions> FromEnvironment();
};

// What a rank says on kLivenessChannel of one that it has lost: also before it has a monitor, so that those who have one do not take its own
// end for the first.
struct LossNotice {
  int rank = 0;
  bool is_cause = false;  // `why` is no mere symptom
  std::string why;
};
std::vector<std::byte> ToBytes(const LossNotice& notice);
std::optional<LossNotice> LossNoticeFrom(std::span<const std::byte> bytes);  // nothing: it is another message, or damaged

// Thread-safe.
class Liveness {
 public:
  // `links` must outlive it.
  static absl::StatusOr<std::unique_ptr<Liveness>> Watch(Links& links, const LivenessOptions& options);
  virtual ~Liveness() = default;

  // Counts losses and departures; never goes down. A load is cheap enough for a spin loop: whoever waits looks at it beside what it
  // waits for, and when it has changed asks lost() of those that it waits for.
  const std::atomic<uint32_t>& losses() const { return losses_; }
  // Nothing more comes from this rank: it is lost, or it has left. Cheap. Of the own rank: the others have given it up.
  virtual bool lost(int rank) const = 0;
  // Of a rank for which lost() holds: it has left in order, having done its part in all that it took part in.
  virtual bool has_left(int rank) const = 0;
  // OK, or kUnavailable: "rank 3 (host b, pid 71) is lost: killed by signal 9", the first loss first. Ranks that left are no loss.
  // `pending` says what waited: "all_reduce of 'discriminator.3.weight gradient'".
  virtual absl::Status status(std::string_view pending = {}) const = 0;
  // OK, or kUnavailable: why nothing more comes from `rank`, departures too.
  virtual absl::Status StatusOf(int rank, std::string_view pending = {}) const = 0;
  // As if it had been noticed: an error seen on another path (a transport), or a rank that gives up. All ranks learn it.
  virtual void Report(int rank, std::string_view why) = 0;
  // Called on the monitor's thread at each loss, e.g. to wake sleepers. The number that Forget takes.
  virtual int OnLoss(std::function<void(int rank)> call) = 0;
  virtual void Forget(int number) = 0;
  // A rank that leaves in order says so first; its hang-up is then no loss, but waiting for it is an error that says "has left".
  virtual void Leave() = 0;

 protected:
  std::atomic<uint32_t> losses_{0};
};

}  // namespace gantry
