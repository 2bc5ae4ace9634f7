// A session made from a reference case.
#pragma once

#include "tools/cli/check_case.h"

namespace gantry::cli {

// The case's networks as an f32 or f64 session with roles "generator" and "discriminator", not planned yet.
Gan MakeCaseSession(gantry_context* context, const ReferenceCase& reference, int32_t dtype, gantry_gan_config config);

}  // namespace gantry::cli
