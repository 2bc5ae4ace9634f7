// Names a rank that makes the others wait: from how long each computes and how long each stands in exchanges.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace gantry {

// The same on every rank, since all are given the same numbers. One thread; Add allocates only where it has something
// to say. Rule: over kLeastSteps steps and kLeastSeconds seconds at least, a rank is a straggler that computed kFactor
// times as long as the median of the others, where that median stood in exchanges for kWaitShare of its time at least.
// It is named once, where that was so two times in a row, and again when it was none in between.
class StragglerWatch {
 public:
  static constexpr int64_t kLeastSteps = 20;
  static constexpr double kLeastSeconds = 5.0, kFactor = 1.3, kWaitShare = 0.15;

  explicit StragglerWatch(int ranks) : sums_(static_cast<size_t>(ranks)) {}

  // Of one rank over some steps: seconds outside of exchanges, and in them.
  struct Times {
    double busy = 0.0, waiting = 0.0;
  };
  // `steps` more of them, an entry a rank. A line for the log where a rank is named.
  std::optional<std::string> Add(int64_t steps, std::span<const Times> ranks);
  int named() const { return named_; }  // -1: nobody

 private:
  std::vector<Times> sums_;
  std::vector<double> others_;
  int64_t steps_ = 0;
  int named_ = -1, suspect_ = -1;
};

}  // namespace gantry
