// Control connections: one to every other rank of the job, authenticated both ways before a byte of content is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "comm/job.h"
#include "comm/reactor.h"
#include "comm/socket.h"
#include "memory/status.h"

namespace gantry {

struct Peer {
  int rank = 0;
  int node = 0;            // ranks with the same number are on one machine and may share memory
  int64_t pid = 0;         // as its own machine sees it
  std::string host;        // for messages
  bool visible = false;    // `pid` is the same here: one machine, one namespace of processes

  std::string Name() const;  // "rank 3 (host b, pid 71)"
};

struct LinkMessage {
  std::vector<std::byte> bytes;
  std::vector<Descriptor> descriptors;  // only from ranks of the same node
};

// Slow path: set-up, errors, small facts. Bulk goes through transport.h. Thread-safe.
class Links {
 public:
  static constexpr int64_t kMaxMessageBytes = int64_t{64} << 20;

  // All ranks call it. Connects every pair, proves the job's key both ways (HMAC challenge, replay-safe), on a node the uid too, and
  // checks the protocol version. kDeadlineExceeded names the ranks that did not come; kUnauthenticated the address that failed.
  // Starts one thread, which reads all links; it sleeps while nothing comes.
  static absl::StatusOr<std::unique_ptr<Links>> Connect(Job job, absl::Duration timeout);
  virtual ~Links() = default;

  virtual const Job& job() const = 0;
  virtual const Peer& peer(int rank) const = 0;
  int rank() const { return job().rank; }
  int size() const { return job().size; }
  bool SameNode(int rank) const { return peer(rank).node == peer(this->rank()).node; }

  // The socket, for the monitor to watch; messages go through Send and Receive only.
  virtual int descriptor(int rank) const = 0;

  // Messages to one rank on one channel arrive in order. Channels keep users of the links apart.
  // kUnavailable names the rank if it is lost; kDeadlineExceeded leaves the connection usable.
  virtual absl::Status Send(int to, uint32_t channel, std::span<const std::byte> bytes, std::span<const int> descriptors = {}) = 0;
  virtual absl::StatusOr<LinkMessage> Receive(int from, uint32_t channel, absl::Duration timeout) = 0;

  // What the liveness monitor needs. The thread that reads the links:
  virtual Reactor& reactor() = 0;
  // Messages of `channel` go to `call` on that thread instead of being kept for Receive; those that came before it go there first.
  // An empty `call` ends it.
  virtual void HandleChannel(uint32_t channel, std::function<void(int from, LinkMessage message)> call) = 0;
  // `call` runs on that thread when the connection to a rank ends, `why` being what the system says. One call; empty: none.
  virtual void OnClosed(std::function<void(int rank, std::string_view why)> call) = 0;
  // Takes in what has come from `rank`. On that thread only.
  virtual void ReadNow(int rank) = 0;
  // Bytes that have come from `rank`: they grow while a long message comes, too. On that thread only.
  virtual int64_t received_bytes(int rank) const = 0;
  // Ends the connection: what was sent still goes out, every wait for the rank ends with `why`. OnClosed is not called.
  virtual void Close(int rank, std::string_view why) = 0;

  // Every rank's bytes among `ranks`, in their order; all of them call it.
  absl::StatusOr<std::vector<LinkMessage>> Gather(std::span<const int> ranks, uint32_t channel, std::span<const std::byte> mine,
                                                  absl::Duration timeout, std::span<const int> descriptors = {});
};

}  // namespace gantry
