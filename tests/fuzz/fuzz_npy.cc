// What was read is written and read again to the same array.
#include <algorithm>

#include "runtime/data/npy.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantry;
  const absl::StatusOr<HostArray> array = DecodeNpy(FuzzInput(data, size));
  if (!array.ok()) return 0;
  GANTRY_FUZZ_CHECK(array->size_bytes() <= size);
  const absl::StatusOr<std::string> header = EncodeNpyHeader(array->type(), array->shape());
  GANTRY_FUZZ_CHECK(header.ok());
  std::vector<std::byte> again(header->size());
  std::ranges::transform(*header, again.begin(), [](char c) { return static_cast<std::byte>(c); });
  again.insert(again.end(), array->bytes().begin(), array->bytes().end());
  const absl::StatusOr<HostArray> reread = DecodeNpy(again);
  GANTRY_FUZZ_CHECK(reread.ok() && *reread == *array);
  return 0;
}
