// Every tensor of an accepted file is found by its name, lies in the file and can be read.
#include "runtime/data/safetensors.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantry;
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(MemorySource(FuzzInput(data, size)));
  if (!file.ok()) return 0;
  uint64_t bytes = 0;
  for (const SafetensorsEntry& tensor : file->tensors()) {
    GANTRY_FUZZ_CHECK(file->Find(tensor.name) == &tensor);
    const absl::StatusOr<HostArray> array = file->Read(tensor.name);
    GANTRY_FUZZ_CHECK(array.ok() && array->size_bytes() == tensor.size_bytes);
    bytes += tensor.size_bytes;
  }
  GANTRY_FUZZ_CHECK(bytes <= size);
  return 0;
}
