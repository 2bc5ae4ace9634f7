// What was read as a plan can be described, checked and compared with itself.
#include <cstdint>
#include <string_view>

#include "runtime/plan/plan_file.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantry;
  const absl::StatusOr<PlanSummary> plan = SummarizePlan({reinterpret_cast<const char*>(data), size});
  if (!plan.ok()) {
    GANTRY_FUZZ_CHECK(!plan.status().message().empty());
    return 0;
  }
  GANTRY_FUZZ_CHECK(!Describe(*plan).empty());
  static_cast<void>(CheckSummary(*plan));
  GANTRY_FUZZ_CHECK(DescribeDifference(*plan, *plan) == "no difference\n");
  return 0;
}
