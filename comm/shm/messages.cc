// Operations that only neighbours take part in: halo exchange, send and receive; and the broadcast of what is copied,
// which is one message to all.
//
//   up to kMostPosted in an operation the sender copies its messages and is done. It is at most kTurns such operations
//     ahead: before it uses a turn, or its memory, again, its receivers have taken what it posted there.
//   what goes beyond is a stream of pieces between two ranks: the sender makes a piece ready, the receiver takes it.
//     Memory of the pool is one piece; other memory goes through a part of the slot.

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "comm/copy.h"
#include "comm/shm/shm_communicator.h"

namespace gantry::shm {
namespace {

constexpr int64_t kPartBytes = kSlotBytes / kMaxMessages / 64 * 64;  // of the slot, for each message

uint64_t Pieces(MemoryKind memory, int64_t bytes) {
  return memory == MemoryKind::kStaged
             ? static_cast<uint64_t>(std::max<int64_t>(1, (bytes + kPartBytes - 1) / kPartBytes))
             : 1;
}
// How far a message of operation `sequence` is, so that no count has to be set back.
uint64_t Mark(uint64_t sequence, uint64_t pieces) { return sequence << 20 | pieces; }

uint64_t MessageWord(int receiver, int tag, int64_t bytes) {
  return static_cast<uint64_t>(bytes) << 16 | static_cast<uint64_t>(receiver) << 8 | static_cast<uint64_t>(tag);
}

// Where a sender puts the messages of an operation that it copies, in the order of their places.
struct PostPlaces {
  int64_t used = 0;

  // Of its next message; -1: it is not copied.
  int64_t Next(int64_t bytes) {
    if (used + bytes > kMostPosted) return -1;
    return std::exchange(used, used + (bytes + 63) / 64 * 64);
  }
};

}  // namespace

Mover::Result ShmCommunicator::StepPartial(Operation& operation, bool looks_closely) {
  if (operation.message_count == 0 && !operation.is_announced) {
    Finish(operation, absl::OkStatus());
    return Result::kMoved;
  }
  const bool has_breach = HasBreach();
  if (!operation.is_published) {
    const bool has_room = HasRoom(operation, looks_closely);
    // Others may have given up, and this rank is late. What it only takes may have come before that.
    const std::span<const Message> messages(operation.messages, static_cast<size_t>(operation.message_count));
    const bool only_takes = !messages.empty() && std::ranges::none_of(messages, &Message::out);
    if (!(has_room && only_takes) && IsBroken(operation, has_breach, looks_closely)) return Result::kIdle;
    if (!has_room) return Result::kWaits;
    PublishPartial(operation);
    return Result::kMoved;
  }
  bool moved = false, done = true;
  for (int i = 0; i < operation.message_count; ++i) {
    Message& message = operation.messages[i];
    if (!message.done && MoveMessage(operation, message)) moved = true;
    done &= message.done;
  }
  if (done) Finish(operation, absl::OkStatus());
  if (done || moved) return Result::kMoved;
  if (IsBroken(operation, has_breach, looks_closely)) return Result::kIdle;
  if (looks_closely) FindMessageMismatch(operation);
  return Result::kWaits;
}

// Whether `peer` has taken as much of this rank's messages with `tag`.
bool ShmCommunicator::IsTaken(int peer, int tag, uint64_t mark) {
  uint64_t& known = taken_[peer][tag];
  if (known < mark) known = lines(peer).taken[tag].load(std::memory_order_seq_cst);
  return known >= mark;
}

// Finds the operation's turn, and where its messages are copied to. Whether all that was posted there is taken.
bool ShmCommunicator::HasRoom(Operation& operation, bool looks_closely) {
  operation.parity = static_cast<int>(operation.sequence % kTurns);
  PostPlaces places;
  for (int i = 0; i < operation.message_count; ++i) {
    Message& message = operation.messages[i];
    if (message.out) message.posted_at = places.Next(message.bytes);
  }
  operation.posted_bytes = places.used;
  for (Posts& posts : posts_) {
    if (!IsInTheWay(posts, operation)) continue;
    for (; posts.count > 0; --posts.count) {
      const auto& [peer, tag] = posts.to[posts.count - 1];
      if (IsTaken(peer, tag, Mark(posts.sequence, 1))) continue;
      if (looks_closely) FindPostMismatch(posts);
      return false;
    }
  }
  return true;
}

// Whether the operation uses the same turn, or the same memory.
bool ShmCommunicator::IsInTheWay(const Posts& posts, const Operation& operation) const {
  const int64_t begin = TurnOffset(operation.parity, operation.posted_bytes);
  return posts.count > 0 &&
         (&posts == &posts_[operation.parity] || (begin < posts.end && posts.begin < begin + operation.posted_bytes));
}

void ShmCommunicator::PublishPartial(Operation& operation) {
  RankLines& mine = lines(rank_);
  constexpr std::memory_order kRelaxed = std::memory_order_relaxed;
  Posting& posting = mine.posted[operation.parity].posting;
  Posts& posts = posts_[operation.parity];
  posts.sequence = operation.sequence;
  posts.begin = TurnOffset(operation.parity, operation.posted_bytes);
  posts.end = posts.begin + operation.posted_bytes;
  std::byte* const post = posted(rank_, operation.parity, operation.posted_bytes);
  uint64_t words[kMaxMessages];
  std::fill(std::begin(words), std::end(words), kNoMessage);
  for (int i = 0; i < operation.message_count; ++i) {
    Message& message = operation.messages[i];
    if (!message.out) continue;
    words[message.place] = MessageWord(message.receiver, message.tag, message.bytes);
    if (message.posted_at >= 0) {
      CopyBytes(post + message.posted_at, message.data, message.bytes, false);
      const bool to_all = message.receiver == kToAll;
      for (int rank = to_all ? 0 : message.peer; rank < (to_all ? size() : message.peer + 1); ++rank) {
        if (rank != rank_) posts.to[posts.count++] = {.peer = rank, .tag = message.tag};
      }
      message.done = true;
      continue;
    }
    Expose(operation, message.data, message.bytes);
    message.memory = operation.call.memory;
    if (message.memory == MemoryKind::kProcess && message.bytes <= kPartBytes) message.memory = MemoryKind::kStaged;
    MessageOut& out = mine.out[message.place];
    out.kind.store(static_cast<uint64_t>(message.memory), kRelaxed);
    out.place.store(operation.call.place, kRelaxed);
    StageMessage(operation, message);
  }
  Entry& entry = mine.partial[operation.parity];
  operation.call.WriteTo(entry);
  entry.sequence.store(operation.sequence, std::memory_order_release);
  posting.what.store(entry.what.load(kRelaxed) & kWithoutMemory, kRelaxed);
  for (int place = 0; place < kMaxMessages; ++place) posting.messages[place].store(words[place], kRelaxed);
  posting.sequence.store(operation.sequence, std::memory_order_seq_cst);
  operation.is_published = true;
  RingOthers();
}

// The next piece of a message becomes ready.
void ShmCommunicator::StageMessage(Operation& operation, Message& message) {
  ++message.pieces;
  if (message.memory != MemoryKind::kStaged) return;
  const int64_t length = std::min(kPartBytes, message.bytes - message.moved_bytes);
  CopyBytes(slot(rank_) + message.place * kPartBytes, message.data + message.moved_bytes, length, false);
  message.moved_bytes += length;
  lines(rank_).out[message.place].ready.store(Mark(operation.sequence, message.pieces), std::memory_order_seq_cst);
}

bool ShmCommunicator::MoveMessage(Operation& operation, Message& message) {
  if (message.local != nullptr || message.peer == rank_) {
    if (message.bytes > 0) std::memmove(message.data, message.local, static_cast<size_t>(message.bytes));
    message.done = true;
    return true;
  }
  RankLines& peer = lines(message.peer);
  if (message.out) {
    if (!IsTaken(message.peer, message.tag, Mark(operation.sequence, message.pieces))) return false;
    if (message.pieces == Pieces(message.memory, message.bytes)) {
      message.done = true;
    } else {
      StageMessage(operation, message);
      node_.bell(ranks_[message.peer]).Ring();
    }
    return true;
  }
  const Posting& posting = peer.posted[operation.parity].posting;
  if (posting.sequence.load(std::memory_order_seq_cst) != operation.sequence) return false;
  const uint64_t wanted = MessageWord(message.receiver, message.tag, message.bytes);
  PostPlaces places;
  int place = -1;
  int64_t at = -1;
  for (int i = 0; i < kMaxMessages; ++i) {
    const uint64_t word = posting.messages[i].load(std::memory_order_relaxed);
    if (word == kNoMessage) break;
    const int64_t next = places.Next(static_cast<int64_t>(word >> 16));
    if (word == wanted) place = i, at = next;
  }
  if (place < 0 || posting.what.load(std::memory_order_relaxed) !=
                       lines(rank_).posted[operation.parity].posting.what.load(std::memory_order_relaxed)) {
    Break(Breach::kMismatch, operation.call, operation.sequence, message.peer, &peer.partial[operation.parity], 0);
    return false;
  }
  MemoryKind memory = MemoryKind::kInline;
  if (at >= 0) {
    CopyBytes(message.data, posted(message.peer, operation.parity, places.used) + at, message.bytes, false);
  } else if (!TakePiece(operation, message, place, memory)) {
    return false;
  }
  lines(rank_).taken[message.tag].store(Mark(operation.sequence, ++message.pieces), std::memory_order_seq_cst);
  node_.bell(ranks_[message.peer]).Ring();
  message.done = message.pieces == Pieces(memory, message.bytes);
  return true;
}

// The next piece of a message that was not copied, the sender's `place`, if it is ready.
bool ShmCommunicator::TakePiece(const Operation& operation, Message& message, int place, MemoryKind& memory) {
  const MessageOut& out = lines(message.peer).out[place];
  memory = static_cast<MemoryKind>(out.kind.load(std::memory_order_relaxed));
  const uint64_t from = out.place.load(std::memory_order_relaxed);
  std::byte* const to = message.data + message.moved_bytes;
  const int64_t length =
      memory == MemoryKind::kStaged ? std::min(kPartBytes, message.bytes - message.moved_bytes) : message.bytes;
  if (memory == MemoryKind::kStaged) {
    if (out.ready.load(std::memory_order_seq_cst) < Mark(operation.sequence, message.pieces + 1)) return false;
    CopyBytes(to, slot(message.peer) + place * kPartBytes, length, false);
  } else if (memory == MemoryKind::kPool) {
    CopyBytes(to, node_.pool().data(ranks_[message.peer], static_cast<int>(from >> 48)) + (from & 0xffffffffffffu),
              length, length >= node_.stream_bytes());
  } else if (!CopyFromProcess(to, node_.process_id(ranks_[message.peer]), from, length)) {
    node_.liveness().Report(ranks_[message.peer],
                            absl::StrFormat("its memory cannot be read (%s)", std::strerror(errno)));
    return false;
  }
  message.moved_bytes += length;
  return true;
}

// A rank that has gone on although a message between it and this one has not gone through has called something else.
void ShmCommunicator::FindMessageMismatch(const Operation& operation) {
  for (int i = 0; i < operation.message_count; ++i) {
    const Message& message = operation.messages[i];
    if (message.done || message.peer == rank_) continue;
    const Entry* entry = EntryFrom(message.peer, operation.sequence, operation.sequence + 1);
    // A sender may go on once it has posted.
    if (entry == nullptr ||
        (message.out ? IsTaken(message.peer, message.tag, Mark(operation.sequence, message.pieces))
                     : lines(message.peer).partial[operation.parity].sequence.load(std::memory_order_seq_cst) ==
                           operation.sequence)) {
      continue;
    }
    Break(Breach::kMismatch, operation.call, operation.sequence, message.peer, entry, 0);
    return;
  }
}

// The same of what was posted in an operation that is done.
void ShmCommunicator::FindPostMismatch(const Posts& posts) {
  for (int i = 0; i < posts.count; ++i) {
    const auto& [peer, tag] = posts.to[i];
    const Entry* entry = EntryFrom(peer, posts.sequence, posts.sequence + 1);
    if (entry == nullptr || IsTaken(peer, tag, Mark(posts.sequence, 1))) continue;
    Break(Breach::kMismatch, Call::ReadFrom(lines(rank_).partial[posts.sequence % kTurns]), posts.sequence, peer, entry,
          0);
    return;
  }
}

// Ranks that the operation waits for, as bits.
uint64_t ShmCommunicator::MissingNeighbours(const Operation& operation) const {
  uint64_t missing = 0;
  const auto is_taken = [&](int peer, int tag, uint64_t mark) {
    return lines(peer).taken[tag].load(std::memory_order_seq_cst) >= mark;
  };
  if (!operation.is_published) {
    for (const Posts& posts : posts_) {
      for (int i = 0; i < posts.count && IsInTheWay(posts, operation); ++i) {
        const auto& [peer, tag] = posts.to[i];
        if (!is_taken(peer, tag, Mark(posts.sequence, 1))) missing |= uint64_t{1} << peer;
      }
    }
    return missing;
  }
  for (int i = 0; i < operation.message_count; ++i) {
    const Message& message = operation.messages[i];
    if (message.done) continue;
    // What a rank has posted is there though that rank may have left since; further pieces it still has to make ready.
    const bool has_come =
        message.out
            ? is_taken(message.peer, message.tag, Mark(operation.sequence, message.pieces))
            : message.pieces == 0 &&
                  lines(message.peer).posted[operation.parity].posting.sequence.load(std::memory_order_seq_cst) ==
                      operation.sequence;
    if (!has_come) missing |= uint64_t{1} << message.peer;
  }
  return missing;
}

}  // namespace gantry::shm
