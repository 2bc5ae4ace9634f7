#include "runtime/gan/straggler_watch.h"

#include <algorithm>

#include "memory/status.h"

namespace gantry {
namespace {

double Median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

std::optional<std::string> StragglerWatch::Add(int64_t steps, std::span<const Times> ranks) {
  steps_ += steps;
  double longest = 0.0;
  for (size_t rank = 0; rank < sums_.size(); ++rank) {
    sums_[rank].busy += ranks[rank].busy;
    sums_[rank].waiting += ranks[rank].waiting;
    longest = std::max(longest, sums_[rank].busy + sums_[rank].waiting);
  }
  if (sums_.size() < 2 || steps_ < kLeastSteps || longest < kLeastSeconds) return std::nullopt;
  const auto slowest = static_cast<size_t>(
      std::max_element(sums_.begin(), sums_.end(), [](const Times& a, const Times& b) { return a.busy < b.busy; }) -
      sums_.begin());
  const auto MedianOfOthers = [&](auto value) {
    others_.clear();
    for (size_t rank = 0; rank < sums_.size(); ++rank) {
      if (rank != slowest) others_.push_back(value(sums_[rank]));
    }
    return Median(others_);
  };
  const double busy = MedianOfOthers([](const Times& times) { return times.busy; });
  const double waiting = MedianOfOthers([](const Times& times) { return times.waiting; });
  const Times slow = sums_[slowest];
  const auto count = static_cast<double>(steps_);
  std::optional<std::string> line;
  if (slow.busy < kFactor * busy || waiting < kWaitShare * (busy + waiting)) {
    named_ = suspect_ = -1;
  } else if (suspect_ != static_cast<int>(slowest)) {
    suspect_ = static_cast<int>(slowest);
  } else if (named_ != static_cast<int>(slowest)) {
    named_ = static_cast<int>(slowest);
    line = absl::StrFormat(
        "rank %d keeps the others waiting: in the last %d steps it computed %.3g ms a step, the others %.3g ms, and "
        "these stood in exchanges "
        "for %.3g ms",
        slowest, steps_, 1e3 * slow.busy / count, 1e3 * busy / count, 1e3 * waiting / count);
  }
  std::fill(sums_.begin(), sums_.end(), Times{});
  steps_ = 0;
  return line;
}

}  // namespace gantry
