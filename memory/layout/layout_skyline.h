// Greedy placement for scale: time and memory hardly depend on how many items are live at once. Internal to memory/layout.
#pragma once

#include <cstdint>

#include "memory/layout/layout_greedy.h"
#include "memory/layout/layout_items.h"

namespace gantry {

// Raises a skyline, the top of what is placed over time: its lowest run takes one of the longest items whose lifetime lies
// within the run, at its left; where there is none it is raised to its lower neighbour, and what lies below stays empty. The
// rule is the best fit of Burke, Kendall, Whitwell (Operations Research 52(4), 2004), with the items' places in time given.
// Every item has to be free and one rectangle. O(n log n log T) time for n items of lifetimes up to T. Adds to `work`.
GreedyResult PlaceOnSkyline(const LayoutItems& items, int64_t& work);

}  // namespace gantry
