// Lowers a greedy layout by moving single items. Internal to memory/layout.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "memory/layout/layout_items.h"

namespace gantry {

struct RepairResult {
  bool complete = false;  // false: out of work with items left over
  int64_t height = 0;
  std::vector<int64_t> offsets;  // one an item
};

// Starts from `offsets` (one an item) and looks for a layout of at most `goal` bytes, else for one below `height`. What ends
// above the ceiling, at first `goal`, is taken out and put back one by one: into a hole, or else where it pushes out the items
// that are cheapest to push out, which then wait in turn. An item gets dearer each time it finds no hole (guided ejection
// search: Nagata, Braeysy, Operations Research Letters 37(5), 2009). The ceiling rises step by step, so that there mostly is
// a result. Fixed items and alias groups of several sizes stay where they are. Adds to `work`, stops at `work_limit` or when
// `stop` returns true.
RepairResult RepairLayout(const LayoutItems& items, const std::vector<int64_t>& offsets, int64_t height, int64_t goal,
                          uint64_t seed, int64_t work_limit, int64_t& work, const std::function<bool()>& stop);

}  // namespace gantry
