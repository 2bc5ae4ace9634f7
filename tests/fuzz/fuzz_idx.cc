// Plain and packed IDX files; a small limit keeps the packed ones quick.
#include <algorithm>

#include "runtime/data/idx.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantry;
  constexpr uint64_t kLimit = 1 << 20;
  const absl::StatusOr<HostArray> array = DecodeIdx(FuzzInput(data, size), "idx", kLimit);
  if (array.ok()) GANTRY_FUZZ_CHECK(array->size_bytes() <= std::max<uint64_t>(size, kLimit));
  return 0;
}
