#include "memory/crc32.h"

#include <zlib.h>

namespace gantry {

uint32_t Crc32(std::span<const std::byte> bytes, uint32_t before) {
  if (bytes.empty()) return before;  // zlib takes a null pointer for "begin anew"
  return static_cast<uint32_t>(crc32_z(before, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

}  // namespace gantry
