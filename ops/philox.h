// Philox-4x32-10, a counter-based random generator: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC'11, section 3.3. The same key and counter always give the same four words, so a draw needs no state and no order.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define GANTRY_HOST_DEVICE __host__ __device__
#else
#define GANTRY_HOST_DEVICE
#endif

namespace gantry {

struct PhiloxWords {
  uint32_t word[4];
};

// Ten rounds of Philox-4x32 on `counter` under `key`.
GANTRY_HOST_DEVICE inline PhiloxWords Philox4x32(PhiloxWords counter, uint32_t key_low, uint32_t key_high) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = kMultiplier0 * counter.word[0];
    const uint64_t product1 = kMultiplier1 * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key_low, static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key_high, static_cast<uint32_t>(product0)}};
    key_low += kWeyl0;
    key_high += kWeyl1;
  }
  return counter;
}

// The most that a draw's `stream` may be: it shares a word with the upper bits of the element.
inline constexpr int64_t kMaxRandomStream = (int64_t{1} << 24) - 1;

// The words for elements 4 * block ... 4 * block + 3 of one draw, element 4 * block + i by word i. `block` < 2^40,
// 0 <= stream <= kMaxRandomStream; seed and counter are the two entries of the generator's state.
GANTRY_HOST_DEVICE inline PhiloxWords RandomBlock(int64_t seed, int64_t counter, int64_t stream, int64_t block) {
  const auto step = static_cast<uint64_t>(counter);
  const auto key = static_cast<uint64_t>(seed);
  const PhiloxWords words = {
      {static_cast<uint32_t>(block),
       static_cast<uint32_t>(stream) << 8 | static_cast<uint32_t>(static_cast<uint64_t>(block) >> 32),
       static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32)}};
  return Philox4x32(words, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
}

// A multiple of 2^-24 in [0, 1): exact in f32, so both float types draw the same numbers.
GANTRY_HOST_DEVICE inline float UniformOf(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

// Two independent standard normal numbers (Box and Muller, 1958). They are found in double precision, so that backends
// agree up to the last bit of their mathematics library.
struct NormalPair {
  double first, second;
};
GANTRY_HOST_DEVICE inline NormalPair NormalsOf(uint32_t radius_word, uint32_t angle_word) {
  const double radius = std::sqrt(-2.0 * std::log((static_cast<double>(radius_word) + 1.0) * 0x1p-32));
  const double angle = 2.0 * 3.14159265358979323846 * static_cast<double>(angle_word) * 0x1p-32;
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace gantry
