// What the fuzz targets share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>

namespace gantry {

inline std::span<const std::byte> FuzzInput(const uint8_t* data, size_t size) {
  return std::as_bytes(std::span(data, size));
}

// Stops the fuzzer with the input at hand: `condition` must hold for every input.
#define GANTRY_FUZZ_CHECK(condition)                                                      \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                       \
    }                                                                                     \
  } while (false)

}  // namespace gantry
