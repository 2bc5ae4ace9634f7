// Operations that all ranks of a group take part in, round by round.
//
//   small: publish with a copy of the memory | every rank works on all of it. No second meeting: what a rank publishes
//     stays as it is until the operation after the next, and by then all have been through.
//   pool memory: publish | work on everybody's memory | through
//   other memory, below a slot's size or where cross-memory calls do not work, goes through the ranks' slots in chunks:
//     chunk 0 into the slot, publish | work | chunk 0 out, chunk 1 in | work | ... | last chunk out
//   and in a large all-reduce of two ranks, where each sums all, and may be a chunk ahead of the other:
//     chunks 0 and 1 into the slot, publish | sum chunk 0 to the own memory, chunk 2 in | ... | through
//   other processes' large memory outside the pool is read by cross-memory calls:
//     publish | sum the own slice | read the others' slices
//
// Between two rounds (|) every rank waits for all others.

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "comm/copy.h"
#include "comm/reduce.h"
#include "comm/shm/shm_communicator.h"

namespace gantry::shm {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kPieceBytes = 256 << 10;  // of work between two looks for something more urgent
// Where each rank sums all: of a chunk, and how many are in the slot before they are summed. Chunks that were staged
// are still in the core's own cache (1 MiB on the machine of docs/measurements/comm.md) when they are summed.
constexpr int64_t kWholeBytes = 128 << 10;
constexpr int kChunksAhead = 2;

// Where slice `index` of `slices` begins in `bytes`: at whole cache lines, so that no two ranks write to one.
int64_t SliceBegin(int64_t bytes, int slices, int index) {
  return index == slices ? bytes : bytes / kLineBytes * index / slices * kLineBytes;
}

int64_t Before(std::span<const int64_t> parts, int rank) {
  int64_t offset = 0;
  for (int i = 0; i < rank; ++i) offset += parts[i];
  return offset;
}

}  // namespace

Mover::Result ShmCommunicator::StepFull(Operation& operation, bool looks_closely) {
  const bool has_breach = HasBreach();
  if (!operation.is_published) {
    if (IsBroken(operation, has_breach, false)) return Result::kIdle;  // others have given up, and this rank is late
    Publish(operation);
    return Result::kMoved;
  }
  if (!AllArrived(operation)) {
    if (IsBroken(operation, has_breach, looks_closely)) return Result::kIdle;
    if (looks_closely) FindMismatch(operation);
    return Result::kWaits;
  }
  if (!operation.is_entered && !Enter(operation)) {
    IsBroken(operation, HasBreach(), looks_closely);
    return Result::kWaits;
  }
  if (!DoRound(operation)) return Result::kMoved;
  if (operation.round == operation.last_round) {
    Finish(operation, absl::OkStatus());
  } else {
    Arrive(operation);
  }
  return Result::kMoved;
}

void ShmCommunicator::Publish(Operation& operation) {
  operation.parity = static_cast<int>(full_operations_++ & 1);
  operation.first_arrival = arrivals_;
  const bool by_part =
      operation.call.kind == Collective::kReduceScatter || operation.call.kind == Collective::kAllToAll;
  operation.sums_whole =
      operation.call.kind == Collective::kAllReduce && size() <= 2 && operation.from_bytes >= kSlotBytes;
  operation.piece_bytes = by_part                ? kSlotBytes / size() / kLineBytes * kLineBytes
                          : operation.sums_whole ? kWholeBytes
                                                 : kSlotBytes;
  for (int chunk = 0; chunk < (operation.sums_whole ? kChunksAhead : 1); ++chunk) StageIn(operation, chunk);
  RankLines& mine = lines(rank_);
  if (operation.call.memory == MemoryKind::kInline || operation.call.memory == MemoryKind::kCopied)
    CopyBytes(copied(rank_, operation.parity, operation.call.memory), operation.from, operation.from_bytes, false);
  if (operation.call.kind == Collective::kAllToAll && !operation.is_announced) {
    for (int rank = 0; rank < size(); ++rank) {
      mine.part_bytes[operation.parity][rank].store(operation.parts[rank], std::memory_order_relaxed);
    }
  }
  Entry& entry = mine.full[operation.parity];
  operation.call.WriteTo(entry);
  entry.sequence.store(operation.sequence, std::memory_order_seq_cst);
  operation.is_published = true;
  operation.round = 1;
  RingOthers();
}

// What the others' counts have to be for this round.
uint64_t ShmCommunicator::WantedArrivals(const Operation& operation) const {
  // Where each rank sums all, others need only have summed what this rank writes over.
  const int behind =
      operation.sums_whole && operation.round < operation.last_round ? std::min(operation.round, kChunksAhead) - 1 : 0;
  return operation.first_arrival + static_cast<uint64_t>(operation.round - 1 - behind);
}

bool ShmCommunicator::AllArrived(Operation& operation) {
  const uint64_t arrivals = WantedArrivals(operation);
  for (; operation.synced < size(); ++operation.synced) {
    const RankLines& peer = lines(operation.synced);
    if (operation.round == 1
            ? peer.full[operation.parity].sequence.load(std::memory_order_seq_cst) != operation.sequence
            : peer.arrived.load(std::memory_order_seq_cst) < arrivals) {
      return false;
    }
  }
  return true;
}

// A rank that has begun this operation or a later one, but not as one of this kind at this place, has called something
// else.
bool ShmCommunicator::FindMismatch(Operation& operation) {
  if (operation.round != 1) return false;
  for (int rank = 0; rank < size(); ++rank) {
    const Entry* entry = EntryFrom(rank, operation.sequence, operation.sequence);
    if (entry == nullptr ||
        lines(rank).full[operation.parity].sequence.load(std::memory_order_seq_cst) == operation.sequence)
      continue;
    Break(Breach::kMismatch, operation.call, operation.sequence, rank, entry, 0);
    return true;
  }
  return false;
}

// All have published: whether they agree, where their memory is, and in how many rounds it goes.
bool ShmCommunicator::Enter(Operation& operation) {
  for (int rank = 0; rank < size(); ++rank) {
    const Entry& entry = lines(rank).full[operation.parity];
    if (!operation.call.Matches(entry)) {
      Break(Breach::kMismatch, operation.call, operation.sequence, rank, &entry, 0);
      return false;
    }
    const uint64_t place = entry.place.load(std::memory_order_relaxed);
    MemoryKind memory = static_cast<MemoryKind>(entry.what.load(std::memory_order_relaxed) >> 24 & 0xff);
    operation.is_staged |= memory == MemoryKind::kStaged;
    operation.has_process_memory |= memory == MemoryKind::kProcess;
    const std::byte* base = nullptr;
    if (memory == MemoryKind::kStaged) {
      base = slot(rank);
    } else if (memory == MemoryKind::kInline || memory == MemoryKind::kCopied) {
      base = copied(rank, operation.parity, memory);
    } else if (rank == rank_) {
      base = operation.from;
      if (memory == MemoryKind::kProcess) memory = MemoryKind::kPool;  // as far as this rank is concerned
    } else if (memory == MemoryKind::kPool) {
      base = node_.pool().data(ranks_[rank], static_cast<int>(place >> 48)) + (place & 0xffffffffffffu);
    } else if (memory == MemoryKind::kProcess) {
      base = reinterpret_cast<const std::byte*>(place);
    }
    if (operation.call.kind == Collective::kAllToAll && !operation.is_announced) {
      const std::atomic<int64_t>* parts = lines(rank).part_bytes[operation.parity];
      if (parts[rank_].load(std::memory_order_relaxed) != operation.to_parts[rank]) {
        Break(Breach::kMismatch, operation.call, operation.sequence, rank, &entry, 0);
        return false;
      }
      for (int before = 0; before < rank_ && memory != MemoryKind::kStaged && base != nullptr; ++before) {
        base += parts[before].load(std::memory_order_relaxed);
      }
    }
    // Ranks have different parts, and learn here whether all of them are small.
    if (operation.call.kind == Collective::kAllToAll) {
      operation.is_inline =
          (rank == 0 || operation.is_inline) &&
          (memory == MemoryKind::kInline || memory == MemoryKind::kCopied || memory == MemoryKind::kNothing);
    }
    operation.memory[rank] = memory;
    operation.base[rank] = base;
  }
  PlanRounds(operation);
  operation.is_entered = true;
  return true;
}

void ShmCommunicator::PlanRounds(Operation& operation) {
  const Collective kind = operation.call.kind;
  if (operation.is_inline) {
    operation.last_round = 1;
  } else if (operation.is_staged) {
    int64_t largest = operation.call.count;
    if (kind == Collective::kAllReduce || kind == Collective::kReduce) largest *= SizeBytes(operation.call.type);
    if (kind == Collective::kReduceScatter || kind == Collective::kAllGather) {
      largest = std::ranges::max(operation.parts);
    }
    if (kind == Collective::kAllToAll) {
      largest = 0;
      for (int rank = 0; rank < size(); ++rank) {
        const Entry& entry = lines(rank).full[operation.parity];
        largest = std::max(largest, static_cast<int64_t>(entry.largest_part.load(std::memory_order_relaxed)));
      }
    }
    if (operation.sums_whole && !std::all_of(operation.memory, operation.memory + size(),
                                             [](MemoryKind memory) { return memory == MemoryKind::kStaged; })) {
      operation.sums_whole = false;  // others may read memory of the pool, which this would write to
      operation.piece_bytes = kChunksAhead * kWholeBytes;
    }
    const int chunks =
        static_cast<int>(std::max<int64_t>(1, (largest + operation.piece_bytes - 1) / operation.piece_bytes));
    operation.last_round = operation.sums_whole ? chunks + 1 : 2 * chunks;
  } else {
    operation.sums_whole = false;
    operation.last_round = kind == Collective::kAllReduce && operation.has_process_memory ? 3 : 2;
  }
}

void ShmCommunicator::Arrive(Operation& operation) {
  lines(rank_).arrived.store(++arrivals_, std::memory_order_seq_cst);
  ++operation.round;
  operation.synced = operation.peer_step = 0;
  operation.cursor = 0;
  RingOthers();
}

// True when the round is over; false after a piece of it.
bool ShmCommunicator::DoRound(Operation& operation) {
  const Collective kind = operation.call.kind;
  if (kind == Collective::kBarrier || operation.is_announced) return true;
  int64_t chunk = 0;
  if (operation.sums_whole) {
    if (operation.round < operation.last_round) SumChunk(operation, operation.round - 1);
    return true;
  }
  if (operation.is_staged) {
    chunk = (operation.round - 1) / 2;
    if (operation.round % 2 == 0) {
      StageOut(operation, chunk);
      if (operation.round < operation.last_round) StageIn(operation, chunk + 1);
      return true;
    }
  } else if (operation.round == operation.last_round && !operation.is_inline) {
    return true;
  } else if (operation.round == 2) {
    return PullSlices(operation);
  }
  switch (kind) {
    case Collective::kAllReduce:
    case Collective::kReduce:
      return operation.is_fold ? FoldPart(operation, chunk) : ReduceSlices(operation, chunk);
    case Collective::kReduceScatter:
      return ReduceScatterPart(operation, chunk);
    default:
      return PullParts(operation, chunk);
  }
}

void ShmCommunicator::StageIn(Operation& operation, int64_t chunk) {
  if (operation.call.memory != MemoryKind::kStaged) return;
  const int64_t begin = chunk * operation.piece_bytes;
  const Collective kind = operation.call.kind;
  if (kind == Collective::kReduceScatter || kind == Collective::kAllToAll) {
    int64_t part = 0;
    for (int rank = 0; rank < size(); part += operation.parts[rank++]) {
      CopyBytes(slot(rank_) + rank * operation.piece_bytes, operation.from + part + begin,
                std::min(operation.piece_bytes, operation.parts[rank] - begin), false);
    }
    return;
  }
  const int64_t at = operation.sums_whole ? chunk % (2 * kChunksAhead) * operation.piece_bytes : 0;
  CopyBytes(slot(rank_) + at, operation.from + begin, std::min(operation.piece_bytes, operation.from_bytes - begin),
            false);
}

// A chunk of everybody's memory, summed by each rank to its own; then a later one into the slot, where the others have
// summed what it writes over.
void ShmCommunicator::SumChunk(Operation& operation, int64_t chunk) {
  const int64_t begin = chunk * operation.piece_bytes;
  const int64_t at = chunk % (2 * kChunksAhead) * operation.piece_bytes;
  const int64_t bytes = std::min(operation.piece_bytes, operation.from_bytes - begin);
  const std::byte* from[kMaxRanks];
  for (int rank = 0; rank < size(); ++rank) from[rank] = rank == rank_ ? operation.from + begin : slot(rank) + at;
  std::byte* const to = operation.to + begin;
  ReduceElements(operation.call.type, operation.call.reduce, std::span(from, static_cast<size_t>(size())),
                 std::span(&to, 1), bytes / SizeBytes(operation.call.type));
  StageIn(operation, chunk + kChunksAhead);
}

void ShmCommunicator::StageOut(Operation& operation, int64_t chunk) {
  if (operation.call.memory != MemoryKind::kStaged) return;
  const Collective kind = operation.call.kind;
  if (kind != Collective::kAllReduce && (kind != Collective::kReduce || rank_ != operation.call.root)) return;
  if (operation.is_fold) return;
  const int64_t begin = chunk * operation.piece_bytes;
  CopyBytes(operation.to + begin, slot(rank_), std::min(operation.piece_bytes, operation.from_bytes - begin), false);
}

// This rank's slice of everybody's memory (of a chunk of it), summed and written to all, or to the root.
bool ShmCommunicator::ReduceSlices(Operation& operation, int64_t chunk) {
  const int64_t first = operation.is_staged ? chunk * operation.piece_bytes : 0;
  const int64_t bytes = operation.is_staged
                            ? std::clamp<int64_t>(operation.from_bytes - first, 0, operation.piece_bytes)
                            : operation.from_bytes;
  int64_t begin = SliceBegin(bytes, size(), rank_), end = SliceBegin(bytes, size(), rank_ + 1);
  const bool only_root = operation.call.kind == Collective::kReduce;
  const bool only_own = operation.has_process_memory;  // nobody can write to another process's memory
  if (operation.is_inline) {
    std::byte* const to = operation.to;
    const bool takes = bytes > 0 && (!only_root || rank_ == operation.call.root);
    return !takes || ReduceRun(operation, 0, 0, bytes, std::span(&to, 1));
  }
  if (only_root && only_own) {
    begin = 0;
    end = rank_ == operation.call.root ? bytes : 0;
  }
  const int64_t length = std::min(kPieceBytes, end - begin - operation.cursor);
  if (length > 0) {
    std::byte* to[kMaxRanks];
    int count = 0;
    for (int rank = 0; rank < size(); ++rank) {
      if (only_root ? rank != operation.call.root : only_own && rank != rank_) continue;
      const int64_t offset = begin + operation.cursor + (operation.memory[rank] == MemoryKind::kStaged ? 0 : first);
      to[count++] = const_cast<std::byte*>(operation.base[rank]) + offset;
    }
    if (!ReduceRun(operation, first + begin + operation.cursor, begin + operation.cursor, length, std::span(to, count)))
      return false;
    operation.cursor += length;
  }
  return operation.cursor >= end - begin;
}

// The root's alone: what is added up goes to memory that no other rank sees.
bool ShmCommunicator::FoldPart(Operation& operation, int64_t chunk) {
  if (rank_ != operation.call.root) return true;
  const int64_t first = operation.is_staged ? chunk * operation.piece_bytes : 0;
  const int64_t bytes = operation.is_staged
                            ? std::clamp<int64_t>(operation.from_bytes - first, 0, operation.piece_bytes)
                            : operation.from_bytes;
  const int64_t block = operation.has_process_memory ? kScratchBytes : kPieceBytes;
  const int64_t length = std::min(block, bytes - operation.cursor);
  if (length > 0) {
    const int64_t size_bytes = SizeBytes(operation.call.type);
    const int64_t element = (first + operation.cursor) / size_bytes;
    const std::byte* from[kMaxRanks];
    if (!FindSources(operation, first + operation.cursor, operation.cursor, length, from)) return false;
    const int64_t partial_bytes = PartialSizeBytes(operation.call.type);
    const std::byte* before = operation.before == nullptr ? nullptr : operation.before + element * partial_bytes;
    FoldElements(operation.call.type, operation.call.reduce, before, std::span(from, static_cast<size_t>(size())),
                 operation.to + element * (operation.keeps_partial ? partial_bytes : size_bytes),
                 operation.keeps_partial, length / size_bytes);
    operation.cursor += length;
  }
  return operation.cursor >= bytes;
}

bool ShmCommunicator::ReduceScatterPart(Operation& operation, int64_t chunk) {
  const int64_t first = operation.is_staged ? chunk * operation.piece_bytes : 0;
  const int64_t left = operation.parts[rank_] - first;
  const int64_t bytes = std::max<int64_t>(operation.is_staged ? std::min(left, operation.piece_bytes) : left, 0);
  const int64_t length = std::min(kPieceBytes, bytes - operation.cursor);
  if (length > 0) {
    std::byte* const to = operation.to + first + operation.cursor;
    const int64_t offset = Before(operation.parts, rank_) + first + operation.cursor;
    if (!ReduceRun(operation, offset, rank_ * operation.piece_bytes + operation.cursor, length, std::span(&to, 1)))
      return false;
    operation.cursor += length;
  }
  return operation.cursor >= bytes;
}

// Sums `bytes` at `offset` of everybody's memory (`staged_offset` of the slots) to `to`.
bool ShmCommunicator::ReduceRun(Operation& operation, int64_t offset, int64_t staged_offset, int64_t bytes,
                                std::span<std::byte* const> to) {
  const int64_t block = operation.has_process_memory ? kScratchBytes : bytes;
  for (int64_t done = 0; done < bytes; done += block) {
    const int64_t length = std::min(block, bytes - done);
    const std::byte* from[kMaxRanks];
    if (!FindSources(operation, offset + done, staged_offset + done, length, from)) return false;
    std::byte* targets[kMaxRanks];
    for (size_t i = 0; i < to.size(); ++i) targets[i] = to[i] + done;
    ReduceElements(operation.call.type, operation.call.reduce, std::span(from, static_cast<size_t>(size())),
                   std::span(targets, to.size()), length / SizeBytes(operation.call.type));
  }
  return true;
}

// Where `bytes` at `offset` of everybody's memory (`staged_offset` of the slots) can be read.
bool ShmCommunicator::FindSources(Operation& operation, int64_t offset, int64_t staged_offset, int64_t bytes,
                                  const std::byte** from) {
  for (int rank = 0; rank < size(); ++rank) {
    from[rank] = operation.base[rank] + (operation.memory[rank] == MemoryKind::kStaged ? staged_offset : offset);
    if (operation.memory[rank] != MemoryKind::kProcess) continue;
    std::byte* scratch = scratch_.data() + rank * kScratchBytes;
    if (!Fetch(operation, rank, offset, 0, scratch, bytes, false)) return false;
    from[rank] = scratch;
  }
  return true;
}

// All-reduce of memory that others cannot write to: each rank's slice, from where it was summed.
bool ShmCommunicator::PullSlices(Operation& operation) {
  const int peer = (rank_ + 1 + operation.peer_step) % size();
  if (peer == rank_) return true;
  const int64_t begin = SliceBegin(operation.from_bytes, size(), peer),
                end = SliceBegin(operation.from_bytes, size(), peer + 1);
  const int64_t length = std::min(kPieceBytes, end - begin - operation.cursor);
  const int64_t offset = begin + operation.cursor;
  if (length > 0) {
    const bool past_caches = operation.from_bytes >= node_.stream_bytes();
    if (!Fetch(operation, peer, offset, 0, operation.to + offset, length, past_caches)) return false;
    operation.cursor += length;
  }
  if (operation.cursor < end - begin) return false;
  operation.cursor = 0;
  ++operation.peer_step;
  return false;
}

// What each rank has for this one, next to each other.
bool ShmCommunicator::PullParts(Operation& operation, int64_t chunk) {
  const Collective kind = operation.call.kind;
  for (; operation.peer_step < size(); ++operation.peer_step, operation.cursor = 0) {
    const int peer = (rank_ + operation.peer_step) % size();
    int64_t part = 0, place = 0;
    if (kind == Collective::kBroadcast) {
      part = peer == operation.call.root && peer != rank_ ? operation.call.count : 0;
    } else {
      const std::vector<int64_t>& parts = kind == Collective::kAllToAll ? operation.to_parts : operation.parts;
      part = parts[peer];
      place = Before(parts, peer);
    }
    const int64_t first = operation.is_staged ? chunk * operation.piece_bytes : 0;
    const int64_t bytes = operation.is_staged ? std::min(part - first, operation.piece_bytes) : part;
    const int64_t length = std::min(kPieceBytes, bytes - operation.cursor);
    if (length <= 0) continue;
    std::byte* to = operation.to + place + first + operation.cursor;
    if (peer == rank_) {
      const int64_t own = kind == Collective::kAllToAll ? Before(operation.parts, rank_) : 0;
      const std::byte* from = operation.from + own + first + operation.cursor;
      if (from != to) std::memmove(to, from, static_cast<size_t>(length));
    } else {
      const int64_t staged = (kind == Collective::kAllToAll ? rank_ * operation.piece_bytes : 0) + operation.cursor;
      const bool past_caches = part >= node_.stream_bytes();
      if (!Fetch(operation, peer, first + operation.cursor, staged, to, length, past_caches)) return false;
    }
    operation.cursor += length;
    return false;
  }
  return true;
}

bool ShmCommunicator::Fetch(Operation& operation, int from, int64_t offset, int64_t staged_offset, std::byte* to,
                            int64_t bytes, bool past_caches) {
  switch (operation.memory[from]) {
    case MemoryKind::kStaged:
      CopyBytes(to, operation.base[from] + staged_offset, bytes, false);
      return true;
    case MemoryKind::kProcess: {
      const uint64_t address = reinterpret_cast<uint64_t>(operation.base[from]) + static_cast<uint64_t>(offset);
      if (CopyFromProcess(to, node_.process_id(ranks_[from]), address, bytes)) return true;
      // It worked when the node met: the process has gone. The monitor says how; if it has not noticed yet, it learns
      // it here.
      node_.liveness().Report(ranks_[from], absl::StrFormat("its memory cannot be read (%s)", std::strerror(errno)));
      IsBroken(operation, HasBreach(), false);
      return false;
    }
    default:
      CopyBytes(to, operation.base[from] + offset, bytes, past_caches);
      return true;
  }
}

}  // namespace gantry::shm
