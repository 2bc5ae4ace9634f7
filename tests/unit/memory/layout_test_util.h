// Random layout problems and an exhaustive solver for tiny ones, shared by the layout tests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "memory/layout/layout_problem.h"

namespace gantry {

struct RandomLayoutShape {
  int max_buffers = 40;
  int max_time = 30;
  int max_size = 64;
  bool alignments = true;
  bool aliases = true;
  bool fixed = true;
};

// A random problem that has a layout: fixed offsets are drawn above one another.
inline LayoutProblem RandomLayoutProblem(std::mt19937_64& random, const RandomLayoutShape& shape) {
  const auto draw = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  LayoutProblem problem;
  const int64_t count = draw(1, shape.max_buffers);
  const int64_t group_count = shape.aliases ? draw(0, count / 3) : 0;
  int64_t fixed_floor = 0;
  std::vector<bool> group_is_fixed(group_count, false);
  for (int64_t i = 0; i < count; ++i) {
    LayoutBuffer buffer;
    buffer.lower = draw(-5, shape.max_time);
    buffer.upper = buffer.lower + draw(1, std::max(1, shape.max_time / (draw(0, 3) == 0 ? 1 : 4)));
    buffer.size = draw(draw(0, 20) == 0 ? 0 : 1, shape.max_size);
    if (shape.alignments && draw(0, 2) == 0) buffer.alignment = int64_t{1} << draw(0, 4);
    if (shape.alignments && draw(0, 20) == 0) buffer.alignment = draw(1, 12);
    if (group_count > 0 && draw(0, 2) == 0) buffer.alias_group = static_cast<int32_t>(draw(0, group_count - 1));
    const bool may_fix = buffer.alias_group < 0 || !group_is_fixed[buffer.alias_group];
    if (shape.fixed && may_fix && draw(0, 9) == 0) {
      if (buffer.alias_group >= 0) {
        // The group may grow later: leave room for its largest possible member, at a multiple of every alignment drawn here.
        fixed_floor = (fixed_floor + 55440 - 1) / 55440 * 55440;
        group_is_fixed[buffer.alias_group] = true;
        buffer.fixed_offset = fixed_floor;
        fixed_floor += shape.max_size;
      } else {
        buffer.fixed_offset = (fixed_floor + buffer.alignment - 1) / buffer.alignment * buffer.alignment;
        fixed_floor = *buffer.fixed_offset + buffer.size;
      }
    }
    problem.buffers.push_back(buffer);
  }
  return problem;
}

// The least height of a problem of a few buffers, by trying every order with every buffer as low as possible. Right because
// some optimal layout has every buffer resting on the floor or on another one, up to alignment; placing the buffers of such a
// layout by offset, each as low as it can go above those placed before, reproduces it or a lower one.
class ExhaustiveLayout {
 public:
  explicit ExhaustiveLayout(const LayoutProblem& problem) : problem_(problem), offsets_(problem.buffers.size(), -1) {}

  int64_t Solve() {
    Place(0, 0);
    return best_;
  }

 private:
  void Place(size_t placed, int64_t height) {
    if (height >= best_) return;
    if (placed == offsets_.size()) {
      best_ = height;
      return;
    }
    for (size_t i = 0; i < offsets_.size(); ++i) {
      if (offsets_[i] >= 0) continue;
      const LayoutBuffer& buffer = problem_.buffers[i];
      int64_t offset = 0;
      for (size_t j = 0; j < offsets_.size(); ++j) {
        const LayoutBuffer& other = problem_.buffers[j];
        if (offsets_[j] < 0 || buffer.lower >= other.upper || other.lower >= buffer.upper) continue;
        offset = std::max(offset, offsets_[j] + other.size);
      }
      offset = (offset + buffer.alignment - 1) / buffer.alignment * buffer.alignment;
      offsets_[i] = offset;
      Place(placed + 1, std::max(height, offset + buffer.size));
      offsets_[i] = -1;
    }
  }

  const LayoutProblem& problem_;
  std::vector<int64_t> offsets_;
  int64_t best_ = std::numeric_limits<int64_t>::max();
};

inline std::string LayoutTestData(const std::string& name) { return std::string(GANTRY_TEST_DATA) + "/data/layout/" + name; }

}  // namespace gantry
