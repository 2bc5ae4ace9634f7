// An accepted run file writes itself as a run file that is accepted and is the same run.
#include <string_view>

#include "runtime/gan/run_config.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantry;
  const absl::StatusOr<RunConfig> config =
      ParseRunConfig(std::string_view(reinterpret_cast<const char*>(data), size), {.folder = "/runs"});
  if (!config.ok()) {
    GANTRY_FUZZ_CHECK(!Message(config.status()).empty());
    return 0;
  }
  const std::string text = ToToml(*config);
  const absl::StatusOr<RunConfig> again = ParseRunConfig(text);
  GANTRY_FUZZ_CHECK(again.ok());
  GANTRY_FUZZ_CHECK(ToToml(*again) == text);
  return 0;
}
