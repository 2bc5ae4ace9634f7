// SHA-256 (FIPS 180-4), to compare weights by one short text.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace gantry::cli {

class Sha256 {
 public:
  void Update(const void* data, size_t size_bytes);
  // The digest as 64 lower-case hexadecimal digits. Call once, at the end.
  std::string Finish();

 private:
  void Block(const unsigned char* block);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> buffer_{};
  size_t buffered_ = 0;
  uint64_t total_bytes_ = 0;
};

}  // namespace gantry::cli
