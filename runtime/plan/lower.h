// Lowering: the program in terms of what the fast CPU kernels do.
#pragma once

#include "runtime/plan/plan.h"

namespace gantry {

// Moves 2-D convolutions and what lies between them to the panel layout, with reorders only where a value is needed in both
// layouts, and weights packed once per version. Everything else stays as it is. f32 only; other types pass through.
absl::StatusOr<Program> Lower(const Program& program, const PlanOptions& options);

}  // namespace gantry
