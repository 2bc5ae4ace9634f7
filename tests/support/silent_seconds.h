// The time that an error of a monitor speaks of.
#pragma once

#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>

namespace gantry {

// Of "... no sign of life for 1.75 s, ...": 1.75; without that, infinite. How long the rank was silent for the monitor, which does not count
// the time when it stood still itself: a busy machine does not make it longer.
inline double SilentSeconds(std::string_view error) {
  constexpr std::string_view kBefore = "no sign of life for ";
  const size_t at = error.find(kBefore);
  if (at == std::string_view::npos) return std::numeric_limits<double>::infinity();
  return std::atof(std::string(error.substr(at + kBefore.size())).c_str());
}

}  // namespace gantry
