// An accepted machine file writes itself as a machine file that is accepted and is the same machine.
#include <string_view>

#include "runtime/plan/machine.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantry;
  const absl::StatusOr<Machine> machine = ParseMachine(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!machine.ok()) {
    GANTRY_FUZZ_CHECK(!machine.status().message().empty());
    return 0;
  }
  const std::string text = ToToml(*machine);
  const absl::StatusOr<Machine> again = ParseMachine(text);
  GANTRY_FUZZ_CHECK(again.ok());
  GANTRY_FUZZ_CHECK(ToToml(*again) == text);
  return 0;
}
