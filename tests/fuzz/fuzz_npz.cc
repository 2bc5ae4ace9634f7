// Every array of the archive is read.
#include "runtime/data/npz.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantry;
  const absl::StatusOr<NpzFile> file = NpzFile::Open(MemorySource(FuzzInput(data, size)));
  if (!file.ok()) return 0;
  for (const std::string& name : file->names()) {
    const absl::StatusOr<HostArray> array = file->Read(name);
    if (array.ok()) GANTRY_FUZZ_CHECK(array->size_bytes() / 1032 <= size);
  }
  return 0;
}
