// Operations that only neighbours take part in: halo exchange, send and receive. Each message is a stream of pieces
// between two ranks: the sender makes a piece ready, the receiver takes it. Memory of the pool is one piece; other
// memory goes through a part of the slot.

#include <algorithm>
#include <cerrno>
#include <cstring>

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

}  // namespace

Mover::Result ShmCommunicator::StepPartial(Operation& operation, bool looks_closely) {
  if (operation.message_count == 0) {
    if (operation.is_announced) PublishPartial(operation);
    Finish(operation, absl::OkStatus());
    return Result::kMoved;
  }
  if (!operation.is_published) {
    if (IsBroken(operation, false)) return Result::kIdle;
    PublishPartial(operation);
    return Result::kMoved;
  }
  bool moved = false, done = true;
  for (int i = 0; i < operation.message_count; ++i) {
    Message& message = operation.messages[i];
    if (!message.done && MoveMessage(operation, message)) moved = true;
    done &= message.done;
  }
  if (done) {
    Finish(operation, absl::OkStatus());
    return Result::kMoved;
  }
  if (moved) {
    RingOthers();
    return Result::kMoved;
  }
  if (IsBroken(operation, looks_closely)) return Result::kIdle;
  if (looks_closely) FindMessageMismatch(operation);
  return Result::kWaits;
}

void ShmCommunicator::PublishPartial(Operation& operation) {
  RankLines& mine = lines(rank_);
  constexpr std::memory_order kRelaxed = std::memory_order_relaxed;
  bool used[kMaxMessages] = {};
  for (int i = 0; i < operation.message_count; ++i) {
    Message& message = operation.messages[i];
    if (!message.out) continue;
    Expose(operation, message.data, message.bytes);
    message.memory = operation.call.memory;
    if (message.memory == MemoryKind::kProcess && message.bytes <= kPartBytes) message.memory = MemoryKind::kStaged;
    MessageOut& out = mine.out[message.place];
    used[message.place] = true;
    out.to_and_tag.store(static_cast<uint64_t>(message.peer) << 8 | static_cast<uint64_t>(message.tag), kRelaxed);
    out.bytes.store(static_cast<uint64_t>(message.bytes), kRelaxed);
    out.kind.store(static_cast<uint64_t>(message.memory), kRelaxed);
    out.place.store(operation.call.place, kRelaxed);
    StageMessage(operation, message);
  }
  for (int place = 0; place < kMaxMessages; ++place) {
    if (!used[place]) mine.out[place].to_and_tag.store(~uint64_t{0}, kRelaxed);
  }
  operation.call.WriteTo(mine.partial);
  mine.partial.sequence.store(operation.sequence, std::memory_order_seq_cst);
  operation.is_published = true;
  RingOthers();
}

// The next piece of a message becomes ready.
void ShmCommunicator::StageMessage(Operation& operation, Message& message) {
  if (message.memory == MemoryKind::kStaged) {
    const int64_t length = std::min(kPartBytes, message.bytes - message.moved_bytes);
    CopyBytes(slot(rank_) + message.place * kPartBytes, message.data + message.moved_bytes, length, false);
    message.moved_bytes += length;
  }
  lines(rank_).out[message.place].ready.store(Mark(operation.sequence, ++message.pieces), std::memory_order_seq_cst);
}

bool ShmCommunicator::MoveMessage(Operation& operation, Message& message) {
  if (message.local != nullptr || message.peer == rank_) {
    if (message.bytes > 0) std::memmove(message.data, message.local, static_cast<size_t>(message.bytes));
    message.done = true;
    return true;
  }
  RankLines& peer = lines(message.peer);
  if (message.out) {
    if (peer.taken[message.tag].load(std::memory_order_seq_cst) < Mark(operation.sequence, message.pieces))
      return false;
    if (message.pieces == Pieces(message.memory, message.bytes)) {
      message.done = true;
    } else {
      StageMessage(operation, message);
    }
    return true;
  }
  if (peer.partial.sequence.load(std::memory_order_seq_cst) != operation.sequence) return false;
  const uint64_t wanted = static_cast<uint64_t>(rank_) << 8 | static_cast<uint64_t>(message.tag);
  const MessageOut* out = nullptr;
  for (const MessageOut& candidate : peer.out) {
    if (candidate.to_and_tag.load(std::memory_order_relaxed) == wanted) out = &candidate;
  }
  constexpr uint64_t kWithoutMemory = ~(uint64_t{0xff} << 24);
  const bool same_call = (peer.partial.what.load(std::memory_order_relaxed) & kWithoutMemory) ==
                         (lines(rank_).partial.what.load(std::memory_order_relaxed) & kWithoutMemory);
  if (out == nullptr || !same_call ||
      out->bytes.load(std::memory_order_relaxed) != static_cast<uint64_t>(message.bytes)) {
    Break(Breach::kMismatch, operation, message.peer, &peer.partial, 0);
    return false;
  }
  if (out->ready.load(std::memory_order_seq_cst) < Mark(operation.sequence, message.pieces + 1)) return false;
  const MemoryKind memory = static_cast<MemoryKind>(out->kind.load(std::memory_order_relaxed));
  const uint64_t place = out->place.load(std::memory_order_relaxed);
  const int64_t length =
      memory == MemoryKind::kStaged ? std::min(kPartBytes, message.bytes - message.moved_bytes) : message.bytes;
  std::byte* to = message.data + message.moved_bytes;
  if (memory == MemoryKind::kStaged) {
    CopyBytes(to, slot(message.peer) + (out - peer.out) * kPartBytes, length, false);
  } else if (memory == MemoryKind::kPool) {
    const std::byte* from =
        node_.pool().data(ranks_[message.peer], static_cast<int>(place >> 48)) + (place & 0xffffffffffffu);
    CopyBytes(to, from, length, length >= node_.stream_bytes());
  } else if (memory == MemoryKind::kProcess &&
             !CopyFromProcess(to, node_.process_id(ranks_[message.peer]), place, length)) {
    node_.liveness().Report(ranks_[message.peer],
                            absl::StrFormat("its memory cannot be read (%s)", std::strerror(errno)));
    return false;
  }
  message.moved_bytes += length;
  lines(rank_).taken[message.tag].store(Mark(operation.sequence, ++message.pieces), std::memory_order_seq_cst);
  message.done = message.pieces == Pieces(memory, message.bytes);
  return true;
}

bool ShmCommunicator::FindMessageMismatch(Operation& operation) {
  for (int i = 0; i < operation.message_count; ++i) {
    const Message& message = operation.messages[i];
    if (message.done || message.peer == rank_) continue;
    const RankLines& peer = lines(message.peer);
    for (const Entry* entry : {&peer.full[0], &peer.full[1], &peer.partial}) {
      const uint64_t sequence = entry->sequence.load(std::memory_order_seq_cst);
      if (sequence < operation.sequence || (entry == &peer.partial && sequence == operation.sequence)) continue;
      // It has gone on. That is as it should be only if this message has gone through.
      const bool taken = message.out && peer.taken[message.tag].load(std::memory_order_seq_cst) >=
                                            Mark(operation.sequence, message.pieces);
      if (taken) continue;
      Break(Breach::kMismatch, operation, message.peer, entry, 0);
      return true;
    }
  }
  return false;
}

}  // namespace gantry::shm
