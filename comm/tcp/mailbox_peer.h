// What a mailbox keeps of each peer. Only for mailbox.cc and mailbox_ways.cc.
#pragma once

#include "comm/socket.h"
#include "comm/tcp/mailbox.h"

namespace gantry::tcp {

// Bytes that go out: a parcel whose receiver is ready, an access, or the answer to one.
struct Mailbox::Stream {
  FrameHeader header;
  const std::byte* data = nullptr;
  int64_t bytes = 0, moved = 0;
  int priority = 0;
  uint64_t ticket = 0;
  Parcel* parcel = nullptr;
  RemoteAccess* access = nullptr;
};

// One of the two connections with a peer.
struct Mailbox::Way {
  Descriptor socket;

  // Going out. A frame that was begun is sent to its end; then words, then the first of the streams.
  std::vector<std::byte> words;
  size_t words_sent = 0;
  std::vector<Stream> streams;
  std::array<std::byte, kHeaderBytes> header;
  size_t header_sent = kHeaderBytes;
  const std::byte* payload = nullptr;
  int64_t payload_left = 0, payload_bytes = 0;
  size_t current = 0;  // the stream of the frame
  bool in_frame = false;
  bool wants_out = false;
  bool is_noted = false;  // in unsent_; of the own thread

  // Coming in.
  std::array<std::byte, kHeaderBytes> in_header;
  size_t in_header_filled = 0;
  FrameHeader in;
  bool has_header = false;
  std::byte* into = nullptr;  // null: thrown away
  int64_t in_left = 0;
  Parcel* in_parcel = nullptr;
  RemoteAccess* in_access = nullptr;
  std::array<std::byte, kMaxTextBytes> text;
  int low_water = 1;  // the socket's
  bool closed = false;

  bool IsSent() const { return words.size() == words_sent && streams.empty(); }
};

struct Mailbox::Peer {
  struct OfGroup {
    uint64_t group;
    Heard heard;                   // from the peer
    uint64_t said = 0;             // to it: the last operation
    std::optional<uint64_t> told;  // by it, how many it has started
  };

  OfGroup& Of(uint64_t group) {
    for (OfGroup& entry : groups) {
      if (entry.group == group) return entry;
    }
    return groups.emplace_back(OfGroup{.group = group, .heard = {}, .told = {}});
  }

  int rank = 0;
  std::mutex mutex;
  std::string other_end;
  absl::Status ended;
  WaitClock::time_point ended_at = {};
  Way express, bulk;
  std::array<Way*, 2> ways() { return {&express, &bulk}; }

  std::vector<Parcel*> sends;  // whose receiver is not ready
  std::vector<Parcel*> receives;
  std::vector<FrameHeader> readies;  // of parcels that this rank has not sent yet
  std::vector<OfGroup> groups;
  std::vector<RemoteAccess*> asked;  // accesses that wait for an answer
  uint64_t numbers = 0;
};

}  // namespace gantry::tcp
