// What carries much payload between two ranks beside their connection, where there is something better: RDMA (ucx/).
// The connection stays the one place where ranks prove who they are, say that they are ready, and part; a carrier moves
// the same frames, and every frame that it brought is acknowledged over the connection (FrameKind::kTaken). So what it
// moved is known to be there, and nothing of it is under way when a rank has done its part and leaves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "comm/tcp/wire.h"
#include "memory/status.h"

namespace gantry::tcp {

struct Parcel;
struct RemoteAccess;

// Thread-safe. The mailbox calls it with the peer's lock held; it never calls the mailbox with a lock of its own held.
class Carrier {
 public:
  static constexpr int64_t kLeastBytes = int64_t{4} << 10;  // less goes faster where the ready word came

  // Bytes of a rank that are to be sent: of a parcel whose receiver is ready, or the answer to a read.
  struct Load {
    FrameHeader header;  // of the first piece
    const std::byte* data = nullptr;
    int64_t bytes = 0;
    int priority = 0;
    Parcel* parcel = nullptr;  // set to kDone once the peer has all of it, to kFailed by End
  };
  // Where a piece goes that has come.
  struct Landing {
    std::byte* into = nullptr;  // null: thrown away
    Parcel* parcel = nullptr;
    RemoteAccess* access = nullptr;
  };

  virtual ~Carrier() = default;
  // Once, by the thread that made it: from here on frames go and come. Its mailbox goes before it does, also where this
  // fails.
  virtual absl::Status Begin(absl::Duration timeout) = 0;

  virtual bool Carries(int peer) const = 0;
  // "ucx 1.13.1, rc_mlx5/mlx5_0:1, 12 GB/s expected"
  virtual std::string DescribePath(int peer) const = 0;

  virtual absl::Status Send(int peer, const Load& load) = 0;
  // A frame of kind kTaken.
  virtual void Acknowledge(int peer, const FrameHeader& taken) = 0;
  // No further piece of it begins. True while the memory of one is in use; the mailbox then asks again.
  virtual bool Withdraw(int peer, const Parcel& parcel) = 0;
  // The connection has ended: nothing goes to the peer any more, and nothing comes.
  virtual void End(int peer) = 0;
  // On the thread of the mailbox's reactor: goes on with what it has in hand.
  virtual void Turn() = 0;
  // Loads that the peer has not all of.
  virtual size_t Waiting(int peer) const = 0;
};

}  // namespace gantry::tcp
