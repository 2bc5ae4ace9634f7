// Headers of frames between nodes: refused, or within all bounds and the same when written again.
#include <cstdint>
#include <cstring>

#include "comm/tcp/wire.h"
#include "tests/fuzz/fuzz_input.h"

using gantry::FuzzInput;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantry::tcp;
  const std::span<const std::byte> input = FuzzInput(data, size);
  for (size_t at = 0; at + kHeaderBytes <= input.size(); at += kHeaderBytes) {
    const auto bytes = input.subspan(at).first<kHeaderBytes>();
    const auto header = Decode(bytes);
    if (!header.ok()) continue;
    GANTRY_FUZZ_CHECK(header->bytes >= 0 && header->bytes <= kMaxPayloadBytes && header->offset >= 0);
    const auto again = Encode(*header);
    GANTRY_FUZZ_CHECK(std::memcmp(again.data(), bytes.data(), kHeaderBytes) == 0);
  }
  return 0;
}
