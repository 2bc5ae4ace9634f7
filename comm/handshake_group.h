// Many handshakes at once on non-blocking sockets, so that a slow or silent stranger holds up nobody.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "comm/handshake.h"
#include "comm/job.h"
#include "comm/socket.h"
#include "memory/status.h"

namespace gantry {

// Not thread-safe. Blocks only in Step.
class HandshakeGroup {
 public:
  struct Outcome {
    absl::Status status;  // of this connection; OK: `peer` has proved itself
    int peer = -1;        // also of a failed one, where it was known beforehand
    Descriptor socket;
    std::string address;  // who that is, for messages
  };

  // `job` must outlive it. At most `max_unproved` accepted connections at once; further ones wait in the kernel's queue.
  explicit HandshakeGroup(const Job& job, size_t max_unproved = 256) : job_(job), max_unproved_(max_unproved) {}

  // Who connects to it takes part. `listener` must outlive it.
  void ListenTo(const Descriptor& listener) { listeners_.push_back(listener.get()); }
  // `address` as it is named in errors. The connection fails at `deadline`.
  void Add(Descriptor socket, Handshake::Role role, int peer, std::string address, absl::Time deadline);
  // Waits until something is decided or `until` has come; what was decided, perhaps nothing.
  std::vector<Outcome> Step(absl::Time until);
  bool empty() const { return entries_.empty(); }

  // A stranger that connects must have proved itself within this time.
  static constexpr absl::Duration kStrangerTime = absl::Seconds(15);

 private:
  struct Entry {
    Descriptor socket;
    std::unique_ptr<Handshake> handshake;
    int peer;
    std::string address;
    absl::Time deadline;
  };

  void Accept(int listener, std::vector<Outcome>& outcomes);
  // Whether it is decided; then `status` says how.
  bool Advance(Entry& entry, absl::Status& status);

  const Job& job_;
  const size_t max_unproved_;
  std::vector<int> listeners_;
  std::vector<Entry> entries_;
};

}  // namespace gantry
