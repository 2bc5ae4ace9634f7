// Arrays of random numbers from counters: the same (seed, counter, stream) gives the same numbers on every machine.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/philox.h"

namespace gantry {

// Streams of the session's own draws lie above those of the networks' random ops.
inline constexpr int64_t kFirstSessionStream = int64_t{1} << 23;
inline constexpr int64_t kNoiseStream = kFirstSessionStream;
inline constexpr int64_t kMixStream = kFirstSessionStream + (int64_t{1} << 20);
inline constexpr int64_t kSampleStream = kFirstSessionStream + (int64_t{1} << 21);

template <typename T>
void FillNormal(uint64_t seed, int64_t counter, int64_t stream, double mean, double deviation, T* to, int64_t count) {
  for (int64_t block = 0; 4 * block < count; ++block) {
    const PhiloxWords words = RandomBlock(static_cast<int64_t>(seed), counter, stream, block);
    const NormalPair low = NormalsOf(words.word[0], words.word[1]), high = NormalsOf(words.word[2], words.word[3]);
    const double values[4] = {low.first, low.second, high.first, high.second};
    for (int64_t i = 0; i < std::min<int64_t>(4, count - 4 * block); ++i) {
      to[4 * block + i] = static_cast<T>(mean + deviation * values[i]);
    }
  }
}

template <typename T>
void FillUniform(uint64_t seed, int64_t counter, int64_t stream, double low, double high, T* to, int64_t count) {
  for (int64_t block = 0; 4 * block < count; ++block) {
    const PhiloxWords words = RandomBlock(static_cast<int64_t>(seed), counter, stream, block);
    for (int64_t i = 0; i < std::min<int64_t>(4, count - 4 * block); ++i) {
      to[4 * block + i] = static_cast<T>(low + (high - low) * UniformOf(words.word[i]));
    }
  }
}

}  // namespace gantry
