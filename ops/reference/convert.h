// Conversion between element types, without undefined behaviour.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

namespace gantry::reference {

// Floats go to integers towards zero and end at the limits, a NaN at 0. Integers wrap.
template <typename To, typename From>
To Convert(From value) {
  if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    if (std::isnan(value)) return 0;
    // 2^digits is exact in every float type; the largest integer may not be.
    if (value >= std::ldexp(From{1}, std::numeric_limits<To>::digits)) return std::numeric_limits<To>::max();
    if (value <= static_cast<From>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  }
  return static_cast<To>(value);
}

}  // namespace gantry::reference
