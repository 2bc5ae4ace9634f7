// What was read is written and read again to the same buffers; a small problem is solved and its layout checked.
#include <cstdint>
#include <string_view>
#include <tuple>

#include "memory/layout/layout_check.h"
#include "memory/layout/layout_csv.h"
#include "memory/layout/layout_solver.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantry;
  const absl::StatusOr<LayoutProblem> problem = ParseLayoutCsv({reinterpret_cast<const char*>(data), size});
  if (!problem.ok()) return 0;
  const absl::StatusOr<LayoutProblem> again = ParseLayoutCsv(FormatLayoutCsv(*problem));
  GANTRY_FUZZ_CHECK(again.ok() && again->buffers.size() == problem->buffers.size());
  for (size_t i = 0; i < problem->buffers.size(); ++i) {
    const LayoutBuffer& a = problem->buffers[i];
    const LayoutBuffer& b = again->buffers[i];
    GANTRY_FUZZ_CHECK(std::tie(a.lower, a.upper, a.size, a.alignment, a.fixed_offset, a.alias_group) ==
                      std::tie(b.lower, b.upper, b.size, b.alignment, b.fixed_offset, b.alias_group));
  }
  if (problem->buffers.size() > 64) return 0;
  const absl::StatusOr<Layout> layout = SolveLayout(*problem, {.work_limit = 20'000});
  GANTRY_FUZZ_CHECK(!layout.ok() || CheckLayout(*problem, *layout).ok());
  return 0;
}
