// A table of search states, by 128-bit key. Internal to memory/layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gantry {

inline uint64_t MixBits(uint64_t value) {  // the finaliser of MurmurHash3, a public-domain function
  value ^= value >> 33;
  value *= 0xff51afd7ed558ccdULL;
  value ^= value >> 33;
  value *= 0xc4ceb9fe1a85ec53ULL;
  return value ^ (value >> 33);
}

// States proved hopeless, in a table that grows up to 16 MiB; the newer replaces the older. Two states share a key with a
// chance of about 2^-128 a pair.
class FailedStates {
 public:
  void Clear() { table_.assign(kFirstSize, Key{}), inserted_ = 0; }
  bool Contains(uint64_t low, uint64_t high) const { return table_[low & (table_.size() - 1)] == Key{low, high}; }
  void Insert(uint64_t low, uint64_t high) {
    if (++inserted_ > table_.size() && table_.size() < kLastSize) Grow();
    table_[low & (table_.size() - 1)] = {low, high};
  }

 private:
  static constexpr size_t kFirstSize = size_t{1} << 12;
  static constexpr size_t kLastSize = size_t{1} << 20;

  struct Key {
    uint64_t low = 0;
    uint64_t high = 0;
    bool operator==(const Key&) const = default;
  };

  void Grow() {
    std::vector<Key> old(table_.size() * 4);
    old.swap(table_);
    for (const Key& key : old) table_[key.low & (table_.size() - 1)] = key;
  }

  std::vector<Key> table_ = std::vector<Key>(kFirstSize);
  size_t inserted_ = 0;
};

}  // namespace gantry
