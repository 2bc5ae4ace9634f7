// The paths of this rank to the ranks of other nodes: one TCP connection each, on which the job's key was proved. Three
// things go over it: parcels, from memory that one rank gives to memory that another gives, once both are there; reads,
// writes and atomics on memory that a rank shares (pool.h), without its help; and the few words by which a group ends.
//
// No rank ever holds bytes that nobody there has asked for: the receiver of a parcel says that it is ready, and only
// then does the sender send. Parcels go in pieces of 64 KiB, the highest priority first, and little is left to the
// kernel's own queue, so that an urgent parcel waits for about two pieces of another.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "comm/links.h"
#include "comm/liveness.h"
#include "comm/pool.h"
#include "comm/reactor.h"
#include "comm/tcp/carrier.h"
#include "comm/tcp/wire.h"
#include "comm/wait.h"
#include "memory/status.h"

namespace gantry::tcp {

// One message from a rank to another, at either end. The two are the same where group, sequence and tag are. It stays
// in its place, and its memory as it is, until `state` says kDone or it was cancelled.
struct Parcel {
  enum State : uint32_t {
    kIdle,
    kPosted,
    kDone,
    kFailed,   // the connection has ended: Mailbox::StatusOf
    kDiffers,  // the other end speaks of another number of bytes
  };

  int peer = 0;  // of the job
  uint64_t group = 0, sequence = 0;
  uint32_t tag = 0;
  int priority = 0;
  std::byte* data = nullptr;  // only read where it is sent
  int64_t bytes = 0;
  std::atomic<uint32_t> state{kIdle};

  int64_t moved = 0;  // the mailbox's
  int64_t landing = 0;  // likewise: bytes that a carrier is writing

  bool done() const { return state.load(std::memory_order_seq_cst) == kDone; }
  bool IsOf(const FrameHeader& header) const {
    return group == header.group && sequence == header.sequence && tag == header.tag;
  }
};

// An access to memory of another rank. In its place until it is done.
struct RemoteAccess {
  FrameKind kind = FrameKind::kPut;
  GlobalAddress address;
  std::byte* data = nullptr;  // kPut: read, kGet: written
  int64_t bytes = 0;
  uint64_t value = 0, expected = 0;
  std::atomic<bool> done{false};
  bool failed = false;  // once done: the connection has ended
  uint64_t result = 0;  // of atomics

  uint64_t number = 0;  // the mailbox's
  int64_t moved = 0, landing = 0;
};

// What a rank has called, as the group layer writes it: its operation, and 128 bytes that say what it is.
using CallBytes = std::array<std::byte, kCallBytes>;
struct Heard {
  uint64_t sequence = 0;
  CallBytes call = {};
};

// How a group ended, and with which of its operations.
struct Broken {
  uint64_t sequence = 0;
  absl::StatusCode code = absl::StatusCode::kUnknown;
  std::string why;
};

// Thread-safe. One thread of its own, which sleeps while nothing comes, and calls `go_on` when something is done; where it is done on
// another thread, that rings the bell.
class Mailbox {
 public:
  // All ranks of the job call it. Connects this rank with those of other nodes, on the interface by which its links
  // reach them (loopback where they are sockets of one machine). The arguments outlive it.
  static absl::StatusOr<std::unique_ptr<Mailbox>> Open(Links& links, Liveness& liveness, const Pool& pool,
                                                       Doorbell& bell, std::function<void()> go_on,
                                                       absl::Duration timeout);
  ~Mailbox();

  // Either end tells the other what it calls, once an operation, so that both see whether they differ.
  void Send(Parcel& parcel, const CallBytes& call);
  void Receive(Parcel& parcel, const CallBytes& call);
  // Nothing touches its memory any more when it returns. A piece that is half on its way is sent to its end first; for
  // that it waits a second at most, then the connection ends.
  void Cancel(Parcel& parcel);
  // The last that `peer` has said of an operation of the group.
  std::optional<Heard> HeardOf(int peer, uint64_t group);

  // Groups: `started` counts their operations, and is told to whoever asks. When one is broken, that is passed on to
  // its `ranks` of other nodes, and so reaches all.
  void Enter(uint64_t group, const std::atomic<uint64_t>& started, std::vector<int> ranks);
  void Leave(uint64_t group);
  // Tells `ranks` of other nodes that the group has failed.
  void Break(uint64_t group, std::span<const int> ranks, const Broken& broken);
  // Changes when a group is broken by another rank. Cheap.
  const std::atomic<uint32_t>& breaks() const { return breaks_; }
  std::optional<Broken> BrokenBy(uint64_t group);
  void Ask(int peer, uint64_t group);
  // What was told since the last Ask; nothing if nothing was.
  std::optional<uint64_t> Told(int peer, uint64_t group);

  // Checked by the caller (Pool::Check).
  void Start(RemoteAccess& access);

  int rank() const { return links_.rank(); }
  bool Reaches(int peer) const { return peers_[static_cast<size_t>(peer)] != nullptr; }
  // OK, or why the connection to `peer` has ended.
  absl::Status StatusOf(int peer);
  // Where it has ended: by when the monitor has said of a rank that is lost that it is.
  WaitClock::time_point NamedBy(int peer);
  std::string DescribePath(int peer) const;

  // From here on parcels and answers to reads of Carrier::kLeastBytes and more go by `carrier` where it carries to their
  // rank. It outlives the mailbox, and works on the thread of reactor().
  void Carry(Carrier& carrier) { carrier_.store(&carrier, std::memory_order_release); }
  Reactor& reactor() { return *reactor_; }
  // A frame that came by the carrier: where its payload goes. Each that is OK is followed by a Landed, when the payload
  // is there or does not come; until then the memory stays.
  absl::StatusOr<Carrier::Landing> Approach(int peer, const FrameHeader& header);
  void Landed(int peer, const FrameHeader& header, const Carrier::Landing& landing, bool is_there);
  // The peer is no use any more: ends the connection.
  void Fail(int peer, const absl::Status& why);
  // Something is done that operations may wait for. What a turn of that thread has done and has to send goes on in
  // EndTurn, at its end, with no lock held.
  void Ring();
  void EndTurn();

 private:
  struct Peer;
  struct Stream;
  struct Way;

  Mailbox(Links& links, Liveness& liveness, const Pool& pool, Doorbell& bell, std::function<void()> go_on);
  absl::Status Connect(absl::Duration timeout);
  absl::Status Watch();
  void Drain();
  void TakeRest(Peer& peer);

  void OnEvents(Peer& peer, Way& way, uint32_t events);
  void Read(Peer& peer, Way& way);
  void Close(Peer& peer, Way& way, absl::Status why);
  absl::Status TakeHeader(Peer& peer, Way& way);
  absl::Status TakePayload(Peer& peer, Way& way);
  absl::Status EndPayload(Peer& peer, Way& way);
  static void Hear(Peer& peer, const Way& way);
  absl::Status Answer(Peer& peer, const FrameHeader& header);
  absl::StatusOr<std::byte*> OwnMemory(const FrameHeader& header, int64_t bytes, bool writes) const;
  void Flush(Peer& peer, Way& way);
  void FlushNow(Peer& peer, Way& way);
  static void BeginFrame(Way& way);
  void EndFrame(Way& way);
  void SendControl(Peer& peer, const FrameHeader& header, std::span<const std::byte> payload = {});
  void BeginStream(Peer& peer, Parcel& parcel);
  void End(Peer& peer, absl::Status why);
  // The carrier that takes so many bytes to the peer; null: they go over the connection.
  Carrier* CarrierFor(const Peer& peer, int64_t bytes) const;
  Peer& at(int peer) { return *peers_[static_cast<size_t>(peer)]; }

  Links& links_;
  Liveness& liveness_;
  const Pool& pool_;
  Doorbell& bell_;
  const std::function<void()> go_on_;
  // Of the own thread, until it holds no lock.
  bool something_done_ = false;
  std::vector<std::pair<Peer*, Way*>> unsent_;
  std::vector<std::unique_ptr<Peer>> peers_;  // by rank of the job; null on this node
  std::atomic<uint64_t> tickets_{0};
  std::atomic<uint32_t> breaks_{0};
  std::atomic<Carrier*> carrier_{nullptr};
  int on_loss_ = -1;

  std::mutex groups_mutex_;
  struct Group {
    const std::atomic<uint64_t>* started = nullptr;
    std::vector<int> ranks;
  };
  std::map<uint64_t, Group> entered_ ABSL_GUARDED_BY(groups_mutex_);
  std::map<uint64_t, Broken> broken_ ABSL_GUARDED_BY(groups_mutex_);

  std::unique_ptr<Reactor> reactor_;  // the last: it goes first
};

}  // namespace gantry::tcp
