// One greedy pass: items are placed one after another, each into a hole between those already there. Internal to
// memory/layout.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "memory/layout/layout_items.h"
#include "memory/layout/layout_placed.h"

namespace gantry {

enum class GreedyOrder { kSize, kArea, kDuration, kStart, kEnd, kLoad };

std::string_view GreedyOrderName(GreedyOrder order);

// The items of `items` in `order`, fixed ones first. Ties by size, then by start, then by index.
std::vector<int32_t> MakeGreedyOrder(const LayoutItems& items, GreedyOrder order);

struct GreedyResult {
  int64_t height = 0;
  std::vector<int64_t> offsets;  // one an item
};

// Places the items as `order` says, which has the fixed ones first. Adds to `work`.
GreedyResult PlaceGreedily(const LayoutItems& items, std::span<const int32_t> order, GreedyFit fit, int64_t& work);

}  // namespace gantry
