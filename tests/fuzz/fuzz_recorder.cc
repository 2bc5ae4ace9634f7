// A recorder's memory and a file of recorders, both damaged: read, explained and shown without a crash.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include <vector>

#include "comm/recorder.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantry;
  const std::span<const std::byte> input = FuzzInput(data, size);
  if (const auto images = ParseRecorderFile(input); images.ok()) {
    (void)FormatRecorders(*images);
    (void)FormatRecordersJson(*images);
  }
  // The input over a memory of the right size with a right header, entry by entry.
  static const std::vector<std::byte> good = [] {
    const auto recorder = Recorder::Create(1, 3);
    for (int i = 0; i < 20; ++i) (*recorder)->End((*recorder)->Begin({.kind = RecordedKind::kBarrier, .group = "world", .number = static_cast<uint64_t>(i)}), true);
    std::vector<std::byte> bytes(4096 + size_t{128} * Recorder::kEntries);
    GANTRY_FUZZ_CHECK(pread((*recorder)->descriptor(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
    return bytes;
  }();
  std::vector<std::byte> memory = good;
  std::copy_n(input.begin(), std::min(input.size(), memory.size() - 4096), memory.begin() + 4096);
  const auto image = ParseRecorder(memory, 1'000'000'000);
  GANTRY_FUZZ_CHECK(image.ok());
  (void)FormatRecorders(std::span(&*image, 1));
  (void)FormatRecordersJson(std::span(&*image, 1));
  std::copy_n(input.begin(), std::min<size_t>(input.size(), 64), memory.begin());
  (void)ParseRecorder(memory, 1);
  (void)ParseRecorder(input, 1);
  return 0;
}
