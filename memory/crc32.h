// CRC-32 (of zlib, PNG and zip).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace gantry {

// Of what `before` is the sum of, with `bytes` behind it. Thread-safe.
uint32_t Crc32(std::span<const std::byte> bytes, uint32_t before = 0);

}  // namespace gantry
