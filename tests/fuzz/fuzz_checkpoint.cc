// Every tensor of an accepted checkpoint is whole and can be read.
#include <vector>

#include "runtime/checkpoint/checkpoint.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantry;
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(MemorySource(FuzzInput(data, size)));
  if (!checkpoint.ok()) return 0;
  (void)checkpoint->Integer("steps").ok();
  const bool whole = checkpoint->Verify().ok();
  std::vector<std::vector<std::byte>> memory;
  std::vector<CheckpointTarget> targets;
  for (const SafetensorsEntry& tensor : checkpoint->tensors()) {
    GANTRY_FUZZ_CHECK(tensor.size_bytes <= size);
    memory.emplace_back(tensor.size_bytes);
    targets.push_back({tensor.name, tensor.type, tensor.shape, memory.back()});
  }
  GANTRY_FUZZ_CHECK(checkpoint->Read(targets).ok() == whole);
  return 0;
}
