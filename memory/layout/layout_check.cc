#include "memory/layout/layout_check.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memory/status.h"

namespace gantry {
namespace {

// "`weights` live [3, 9) at bytes [4096, 8192)".
std::string Describe(const LayoutProblem& problem, std::span<const int64_t> offsets, size_t index) {
  const LayoutBuffer& buffer = problem.buffers[index];
  return absl::StrFormat("`%s` live [%d, %d) at bytes [%d, %d)", problem.Name(index), buffer.lower, buffer.upper,
                         offsets[index], offsets[index] + buffer.size);
}

absl::Status Fault(const LayoutProblem& problem, std::span<const int64_t> offsets, size_t index, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("layout: ", Describe(problem, offsets, index), ": ", what));
}

absl::Status CheckEachBuffer(const LayoutProblem& problem, std::span<const int64_t> offsets,
                             std::optional<int64_t> capacity) {
  std::unordered_map<int32_t, size_t> first_of_group;
  for (size_t i = 0; i < offsets.size(); ++i) {
    const LayoutBuffer& buffer = problem.buffers[i];
    // The bound keeps every later sum from overflowing.
    if (offsets[i] < 0 || offsets[i] > 4 * kLayoutMaxBytes) {
      return absl::InvalidArgumentError(
          absl::StrFormat("layout: `%s`: offset %d is out of range", problem.Name(i), offsets[i]));
    }
    if (offsets[i] % buffer.alignment != 0) {
      return Fault(problem, offsets, i, absl::StrFormat("offset %d is not a multiple of its alignment %d", offsets[i],
                                                        buffer.alignment));
    }
    if (buffer.fixed_offset && *buffer.fixed_offset != offsets[i]) {
      return Fault(problem, offsets, i, absl::StrFormat("its offset is fixed at %d", *buffer.fixed_offset));
    }
    if (capacity && offsets[i] + buffer.size > *capacity) {
      return Fault(problem, offsets, i, absl::StrFormat("ends %d bytes above the capacity of %d bytes",
                                                        offsets[i] + buffer.size - *capacity, *capacity));
    }
    if (buffer.alias_group < 0) continue;
    const auto [entry, is_new] = first_of_group.try_emplace(buffer.alias_group, i);
    if (!is_new && offsets[entry->second] != offsets[i]) {
      return Fault(problem, offsets, i, absl::StrFormat("alias group %d is at another offset: %s", buffer.alias_group,
                                                        Describe(problem, offsets, entry->second)));
    }
  }
  return absl::OkStatus();
}

// The buffers live at one time. Aliases are stacked on one place of the address map and count as one occupant, as high as
// the largest of them. The occupants never overlap: Add refuses the first that would.
class LiveSet {
 public:
  LiveSet(const LayoutProblem& problem, std::span<const int64_t> offsets) : problem_(problem), offsets_(offsets) {}

  absl::Status Add(size_t index) {
    const auto place = places_.find(offsets_[index]);
    if (place != places_.end()) {
      const size_t other = place->second.rbegin()->second;
      const int32_t group = problem_.buffers[index].alias_group;
      if (group < 0 || group != problem_.buffers[other].alias_group) return Overlap(index, other);
      place->second.emplace(problem_.buffers[index].size, index);
      return CheckNext(place);
    }
    const auto added = places_.emplace(offsets_[index], std::set<std::pair<int64_t, size_t>>()).first;
    added->second.emplace(problem_.buffers[index].size, index);
    if (added != places_.begin()) GANTRY_RETURN_IF_ERROR(CheckNext(std::prev(added)));
    return CheckNext(added);
  }

  void Remove(size_t index) {
    const auto place = places_.find(offsets_[index]);
    place->second.erase({problem_.buffers[index].size, index});
    if (place->second.empty()) places_.erase(place);
  }

 private:
  using Places = std::map<int64_t, std::set<std::pair<int64_t, size_t>>>;  // offset -> (size, buffer)

  absl::Status CheckNext(Places::iterator place) {
    const auto next = std::next(place);
    if (next == places_.end()) return absl::OkStatus();
    const auto& [size, index] = *place->second.rbegin();
    if (place->first + size <= next->first) return absl::OkStatus();
    return Overlap(index, next->second.rbegin()->second);
  }

  absl::Status Overlap(size_t left, size_t right) const {
    const LayoutBuffer& a = problem_.buffers[left];
    const LayoutBuffer& b = problem_.buffers[right];
    const int64_t low = std::max(offsets_[left], offsets_[right]);
    const int64_t high = std::min(offsets_[left] + a.size, offsets_[right] + b.size);
    return absl::InvalidArgumentError(absl::StrFormat(
        "layout: %s overlaps %s: they share %d bytes [%d, %d) during [%d, %d)", Describe(problem_, offsets_, left),
        Describe(problem_, offsets_, right), high - low, low, high, std::max(a.lower, b.lower), std::min(a.upper, b.upper)));
  }

  const LayoutProblem& problem_;
  std::span<const int64_t> offsets_;
  Places places_;
};

}  // namespace

absl::Status CheckLayoutOffsets(const LayoutProblem& problem, std::span<const int64_t> offsets,
                                std::optional<int64_t> capacity) {
  GANTRY_RETURN_IF_ERROR(ValidateLayoutProblem(problem));
  if (offsets.size() != problem.buffers.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("layout: %d offsets for %d buffers", offsets.size(), problem.buffers.size()));
  }
  GANTRY_RETURN_IF_ERROR(CheckEachBuffer(problem, offsets, capacity));
  struct Event {
    int64_t time;
    bool starts;  // ends come before starts: lifetimes are half-open
    size_t index;
    bool operator<(const Event& other) const {
      return std::tie(time, starts, index) < std::tie(other.time, other.starts, other.index);
    }
  };
  std::vector<Event> events;
  events.reserve(2 * offsets.size());
  for (size_t i = 0; i < offsets.size(); ++i) {
    if (problem.buffers[i].size == 0) continue;
    events.push_back({problem.buffers[i].lower, true, i});
    events.push_back({problem.buffers[i].upper, false, i});
  }
  std::sort(events.begin(), events.end());
  LiveSet live(problem, offsets);
  for (const Event& event : events) {
    if (event.starts) {
      GANTRY_RETURN_IF_ERROR(live.Add(event.index));
    } else {
      live.Remove(event.index);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLayout(const LayoutProblem& problem, const Layout& layout, std::optional<int64_t> capacity) {
  GANTRY_RETURN_IF_ERROR(CheckLayoutOffsets(problem, layout.offsets, capacity));
  int64_t height = 0;
  for (size_t i = 0; i < layout.offsets.size(); ++i) {
    if (problem.buffers[i].size > 0) height = std::max(height, layout.offsets[i] + problem.buffers[i].size);
  }
  if (height != layout.height) {
    return absl::InvalidArgumentError(
        absl::StrFormat("layout: states a height of %d bytes, its offsets reach %d", layout.height, height));
  }
  if (layout.lower_bound > height || layout.optimal != (layout.lower_bound == height)) {
    return absl::InvalidArgumentError(absl::StrFormat("layout: height %d, lower bound %d and optimal = %d contradict",
                                                      height, layout.lower_bound, layout.optimal));
  }
  return absl::OkStatus();
}

}  // namespace gantry
