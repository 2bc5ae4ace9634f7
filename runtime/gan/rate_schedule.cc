#include "runtime/gan/rate_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace gantry {

double RateSchedule::Factor(int64_t images_seen, int64_t run_images) const {
  if (images_seen < warmup_images) return static_cast<double>(images_seen) / static_cast<double>(warmup_images);
  if (kind == Kind::kConstant) return 1.0;
  const int64_t length = decay_images > 0 ? decay_images : run_images - warmup_images;
  if (length <= 0) return final_factor;
  const double progress =
      std::clamp(static_cast<double>(images_seen - warmup_images) / static_cast<double>(length), 0.0, 1.0);
  const double share = kind == Kind::kLinear ? 1.0 - progress : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return final_factor + (1.0 - final_factor) * share;
}

}  // namespace gantry
