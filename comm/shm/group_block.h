// What the ranks of a group on one node share beside their data: one block of memory, mapped by all, made of plain
// atomic words. It lies in a SharedRegion, all zero to begin with. Each rank writes to its own lines and reads those of
// the others.
//
// An operation begins when a rank publishes an entry: what it calls, and where its memory is. An entry's `sequence` is
// stored last, so that whoever sees it may read the rest. It also serves as the first arrival; later ones are counted
// in `arrived`.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace gantry::shm {

inline constexpr int kMaxRanks = 64;
inline constexpr int kMaxMessages = 6;  // of a halo exchange: two in each of three dimensions
inline constexpr int kNameWords = 10;
inline constexpr int kTextWords = 128;
inline constexpr int kTurns = 8;  // of operations of neighbours: how many a sender may be ahead of its receivers
inline constexpr int64_t kInlineBytes = 2048;            // of an operation that travels with its entry
inline constexpr int64_t kCopiedBytes = 64 << 10;        // of one that is copied when it is published
inline constexpr int64_t kPostBytes = int64_t{1} << 20;  // of each rank, for messages that their sender copies
inline constexpr int64_t kMostPosted = kPostBytes / 2;   // in one operation
inline constexpr int64_t kSlotBytes = int64_t{1} << 20;  // of each rank, for memory that is not in the pool

enum class Collective : uint8_t {
  kNone,
  kBarrier,
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kBroadcast,
  kReduce,
  kAllToAll,
  kExchangeHalo,
  kSendReceive
};

// Where the memory is that an operation's peers read or write.
enum class MemoryKind : uint8_t {
  kPool,     // `place` is region << 48 | offset
  kStaged,   // in the rank's slot, a piece at a time
  kProcess,  // `place` is an address in the rank's process, for process_vm_readv
  kNothing,  // there are no bytes
  kInline,   // copied beside the entry: what is small moves in one step, and every rank works on all of it
  kCopied    // copied to where there is more room: it moves in one step too
};

struct Entry {
  std::atomic<uint64_t> sequence;  // of the operation in the group, from 1
  std::atomic<uint64_t>
      what;  // Collective | type << 8 | op << 16 | MemoryKind << 24 | root << 32 (SendReceive: from, and to << 48)
  std::atomic<uint64_t> count;  // elements, or bytes
  std::atomic<uint64_t> parts;  // a hash of the parts that all ranks must give alike; 0 where there are none
  std::atomic<uint64_t> place;
  std::atomic<uint64_t> largest_part;      // AllToAll: bytes, of this rank's
  std::atomic<uint64_t> name[kNameWords];  // the operation's, zero-padded; read for errors alone
};
static_assert(sizeof(Entry) == 128);

// What a rank sends in an operation that not all ranks take part in: one line of the cache, all that its receivers look
// at beside the bytes. The sender copies its messages one behind the other, each to whole lines, as long as they are
// not more than kMostPosted; those and the posting stay as they are until they are taken. Other messages are taken
// before their operation is done.
struct Posting {
  std::atomic<uint64_t> sequence;                // of the operation; stored last
  std::atomic<uint64_t> what;                    // as in its entry, without the memory's kind
  std::atomic<uint64_t> messages[kMaxMessages];  // bytes << 16 | receiver or kToAll << 8 | tag; kNoMessage
};
static_assert(sizeof(Posting) == 64);
inline constexpr uint64_t kNoMessage = ~uint64_t{0};
inline constexpr int kToAll = 0xff;

// Where the bytes of a message are that is not copied so. The sender makes pieces ready, the receiver says how many it
// has taken; both count from 1 within `sequence << 20`.
struct MessageOut {
  std::atomic<uint64_t> kind;  // MemoryKind
  std::atomic<uint64_t> place;
  std::atomic<uint64_t> ready;  // kStaged
};

struct RankLines {
  // Entries of operations that every rank takes part in, by turns: no rank is two such operations ahead of another.
  alignas(128) Entry full[2];
  alignas(128) std::atomic<uint64_t> arrived;
  // Of operations that only neighbours take part in, by turns of their sequence. The entries are read for errors alone.
  alignas(128) Entry partial[kTurns];
  struct alignas(128) {
    Posting posting;
  } posted[kTurns];
  alignas(128) MessageOut out[kMaxMessages];
  alignas(128) std::atomic<uint64_t> taken[kMaxMessages];  // of what this rank receives, by tag
  // AllToAll: bytes to each rank, by turns as `full`.
  alignas(128) std::atomic<int64_t> part_bytes[2][kMaxRanks];
  // Memory of small operations, by turns as `full`.
  alignas(128) std::byte inline_bytes[2][kInlineBytes];
  // Shrink: not 0 once this rank touches nothing of the group, and none of its peers' memory for it, any more.
  alignas(128) std::atomic<uint64_t> came_to_shrink;
};

enum class Breach : uint32_t { kNone, kWriting, kMismatch, kTimeout, kOfWhole };

struct GroupBlock {
  // Set once, when ranks differ about an operation, or one has waited too long: who, and what each of the two has
  // called. Or when a larger group has failed that this one is a part of (kOfWhole).
  struct Broken {
    std::atomic<uint32_t> breach;  // Breach
    std::atomic<uint32_t> rank[2];
    std::atomic<uint64_t> late;   // kTimeout: ranks that had not come, as bits
    Entry entry[2];               // kTimeout: the first alone
    std::atomic<uint64_t> whole;  // operation of the larger group, or 0: ranks that are before it go on
    std::atomic<uint32_t> code;   // kOfWhole, and so is the text, zero-padded
    std::atomic<uint64_t> text[kTextWords];
  };
  alignas(128) Broken broken;
  // Of Shrink: the ranks of the next group, as bits, by the first to decide; 0: nobody has yet.
  alignas(128) std::atomic<uint64_t> survivors;
  RankLines ranks[kMaxRanks];  // as many as the group has
};

// A group's region: a block for it and for each group that Shrink may make of it (which needs no message then), and for
// each rank a slot, its copied messages, and its copied memory of other operations, by turns as `full`.
constexpr int kGenerations = 8;
constexpr int64_t LinesBytes(int ranks) {
  return static_cast<int64_t>(sizeof(GroupBlock)) - (kMaxRanks - ranks) * static_cast<int64_t>(sizeof(RankLines));
}
constexpr int64_t BlockOffset(int ranks, int generation) { return generation * LinesBytes(ranks); }
constexpr int64_t kSlotStride = kSlotBytes + kPostBytes + 2 * kCopiedBytes;
constexpr int64_t SlotOffset(int ranks, int rank) {
  return (BlockOffset(ranks, kGenerations) + 4095) / 4096 * 4096 + rank * kSlotStride;
}
constexpr int64_t PostOffset(int ranks, int rank) { return SlotOffset(ranks, rank) + kSlotBytes; }
constexpr int64_t CopiedOffset(int ranks, int rank, int parity) {
  return PostOffset(ranks, rank) + kPostBytes + parity * kCopiedBytes;
}
// Of a turn's messages within that of PostOffset: what is large alternates between the halves.
constexpr int64_t TurnOffset(int turn, int64_t bytes) {
  return bytes <= kPostBytes / kTurns ? turn * (kPostBytes / kTurns) : turn % 2 * kMostPosted;
}
constexpr int64_t RegionBytes(int ranks) { return SlotOffset(ranks, ranks); }

static_assert(std::atomic<uint64_t>::is_always_lock_free);

}  // namespace gantry::shm
