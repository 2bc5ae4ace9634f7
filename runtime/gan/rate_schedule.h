// How a learning rate changes over a run, by images seen, so that it does not depend on the batch size.
#pragma once

#include <cstdint>

namespace gantry {

struct RateSchedule {
  enum class Kind : uint8_t { kConstant, kLinear, kCosine };
  Kind kind = Kind::kConstant;
  int64_t warmup_images = 0;  // the rate rises linearly from 0 over these
  int64_t decay_images = 0;   // then falls over these; 0: over the rest of the run
  double final_factor = 0.0;  // to this share of the configured rate, where it stays

  // What the configured rate is multiplied with in a step that ends with `images_seen` images, in a run of
  // `run_images`.
  double Factor(int64_t images_seen, int64_t run_images) const;
};

}  // namespace gantry
