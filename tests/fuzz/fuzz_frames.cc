// A stream of frames in pieces as the input says: never a crash, the same frames whatever the pieces, no byte twice.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "comm/frame.h"
#include "comm/socket.h"
#include "tests/fuzz/fuzz_input.h"

namespace {

using namespace gantry;

struct Result {
  std::vector<Frame> frames;
  bool ok = true;
};

Result Read(std::span<const std::byte> stream, size_t piece) {
  FrameReader reader;
  Result result;
  while (!stream.empty() && result.ok) {
    const size_t count = std::min(piece, stream.size());
    result.ok = reader.Append(stream.first(count), {}).ok();
    stream = stream.subspan(count);
    while (auto frame = reader.Next()) result.frames.push_back(std::move(*frame));
  }
  return result;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::span<const std::byte> input = FuzzInput(data, size);
  const Result whole = Read(input.subspan(1), input.size()), pieces = Read(input.subspan(1), 1 + data[0] % 40);
  GANTRY_FUZZ_CHECK(whole.ok == pieces.ok && whole.frames.size() == pieces.frames.size());
  size_t bytes = 0;
  for (size_t i = 0; i < whole.frames.size(); ++i) {
    GANTRY_FUZZ_CHECK(whole.frames[i].channel == pieces.frames[i].channel && whole.frames[i].bytes == pieces.frames[i].bytes);
    bytes += kFrameHeaderBytes + whole.frames[i].bytes.size();
  }
  GANTRY_FUZZ_CHECK(bytes <= size);
  // Also as the content of a message, and as an address.
  WireReader reader(input);
  (void)reader.U32();
  (void)reader.Text(64);
  (void)reader.U64();
  const auto address = SocketAddress::Parse({reinterpret_cast<const char*>(data), size});
  if (address.ok()) {
    const auto again = SocketAddress::Parse(address->Text());
    GANTRY_FUZZ_CHECK(again.ok() && again->Text() == address->Text());
  }
  return 0;
}
