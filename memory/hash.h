// A hash that is the same on every machine, for names and fingerprints; not against adversaries.
#pragma once

#include <cstdint>
#include <string_view>

namespace gantry {

// FNV-1a, 64 bits (Fowler, Noll and Vo).
constexpr uint64_t HashText(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

}  // namespace gantry
