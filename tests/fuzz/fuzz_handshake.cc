// Both roles fed with anything: nobody without the key gets through.
#include <algorithm>
#include <cstdint>

#include "comm/handshake.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantry;
  static const JobKey key = *JobKey::Generate();
  for (const auto role : {Handshake::Role::kInitiator, Handshake::Role::kAcceptor}) {
    Handshake handshake(role, key, 1, 4, role == Handshake::Role::kInitiator ? 0 : -1);
    std::span<const std::byte> input = FuzzInput(data, size);
    absl::Status status;
    while (status.ok() && handshake.wanted() > 0 && !input.empty()) {
      const size_t count = std::min({handshake.wanted(), input.size(), size_t{1} + size % 7 * 13});
      status = handshake.Received(input.first(count));
      input = input.subspan(count);
      GANTRY_FUZZ_CHECK(handshake.output().size() <= Handshake::kHelloBytes + Handshake::kProofBytes);
    }
    GANTRY_FUZZ_CHECK(!handshake.done());
    GANTRY_FUZZ_CHECK(status.ok() || handshake.wanted() == 0);
  }
  return 0;
}
