// A shuffle of 0 .. n-1 that needs no memory: each position is computed.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace gantry {

// A pseudo-random permutation of [0, size), the same for the same (size, seed, epoch) on every machine. A Feistel
// network over the next even power of two, applied until the value lies below `size` (cycle walking: Black and Rogaway,
// "Ciphers with Arbitrary Finite Domains", CT-RSA 2002), fewer than four times on average. Not for secrets.
class Permutation {
 public:
  // 0 < size <= 2^62.
  Permutation(uint64_t size, uint64_t seed, uint64_t epoch) : size_(size) {
    half_bits_ = (std::bit_width(size - 1) + 1) / 2;
    if (half_bits_ == 0) half_bits_ = 1;
    mask_ = (uint64_t{1} << half_bits_) - 1;
    uint64_t state = Mix(seed) ^ Mix(~epoch);
    for (uint64_t& key : keys_) key = Mix(state += 0x9e3779b97f4a7c15);
  }

  // Where position `index` (< size) goes.
  uint64_t operator()(uint64_t index) const {
    do {
      index = Encrypt(index);
    } while (index >= size_);
    return index;
  }

 private:
  // The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), a bijection of 64 bits.
  static uint64_t Mix(uint64_t value) {
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
    value = (value ^ value >> 27) * 0x94d049bb133111eb;
    return value ^ value >> 31;
  }
  uint64_t Encrypt(uint64_t value) const {
    uint64_t left = value >> half_bits_, right = value & mask_;
    for (uint64_t key : keys_) {
      const uint64_t next = left ^ (Mix(right ^ key) & mask_);
      left = right;
      right = next;
    }
    return left << half_bits_ | right;
  }

  uint64_t size_, mask_ = 0;
  int half_bits_ = 0;
  std::array<uint64_t, 8> keys_;  // eight rounds: four are enough for large sizes, small ones mix worse
};

}  // namespace gantry
