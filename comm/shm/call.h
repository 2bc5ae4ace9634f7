// What a rank calls: the collective, its sizes, its name. Ranks of a group compare theirs.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "comm/communicator.h"
#include "comm/recorder.h"
#include "comm/shm/group_block.h"

namespace gantry::shm {

inline constexpr uint64_t kWithoutMemory = ~(uint64_t{0xff} << 24);  // of Entry::what

// What an entry says, as a value.
struct Call {
  Collective kind = Collective::kNone;
  ElementType type = ElementType::kU8;
  ReduceOp reduce = ReduceOp::kSum;
  int root = 0, to = 0;  // kSendReceive: from root to `to`
  int64_t count = 0;     // elements (kAllReduce, kReduce), else bytes
  uint64_t parts = 0;    // a hash of the parts that all ranks give alike
  int64_t largest_part = 0;
  char name[8 * kNameWords] = {};

  MemoryKind memory = MemoryKind::kStaged;
  uint64_t place = 0;

  // As words, to be sent or laid down.
  using Words = std::array<uint64_t, 5 + kNameWords>;
  Words ToWords() const;
  static Call FromWords(const Words& words);

  // All but the last, with which the entry becomes valid.
  void WriteTo(Entry& entry) const;
  static Call ReadFrom(const Entry& entry);
  // Whether both are the same collective with the same sizes. Reads the words alone, which is quick.
  bool Matches(const Entry& entry) const;
  bool Matches(const Call& other) const;
  RecordedKind kind_for_recorder() const;
  // `all_reduce sum of 1024 f32 "generator.0.weight gradient"`
  std::string Describe() const;

 private:
  uint64_t What(bool with_memory) const;
};

}  // namespace gantry::shm
