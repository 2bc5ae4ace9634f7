// Exact search for a layout below a given height. Internal to memory/layout.
//
// The free space is what lies between a floor and a ceiling, two step functions of time. A run is a longest stretch of
// sections at one level; take a floor run with higher neighbours (or a ceiling run with lower ones). If any completion exists,
// then one exists in which everything left is pushed down, and there either some item inside the run's stretch lies on it, or
// nothing does and the run can be raised to its lower neighbour. That gives two ways to branch:
//   edge   which item lies leftmost (or rightmost) on the run; what is left of it is raised, being empty; or none: raise all.
//   pivot  in a section without slack some item has to lie on the run right there: which one?
// The argument is about existence, so every node may choose its run, from below or above, and its kind of branch anew; the one
// with the fewest choices is taken. A section's slack is ceiling - floor - bytes still to be placed there; it never gets
// negative, and raising uses it up.
// Stretches of time that no unplaced item connects are searched apart. States proved hopeless are kept in a hash table, which
// stays right over restarts with other orders of choice. Related: branch and bound on bottom-left-justified strip packings
// (Martello, Monaci, Vigo, INFORMS J. Computing 15(3), 2003); fail-first choice (Haralick, Elliott, Artif. Intell. 14, 1980).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "memory/layout/layout_items.h"

namespace gantry {

enum class SearchOutcome {
  kFound,       // offsets() hold a layout of at most the height asked for
  kImpossible,  // there is none; said only if the search is exact for these items
  kExhausted,   // there is none of the restricted kind that an inexact search looks at
  kGaveUp,      // out of work
};

// Searches for several heights one after another. Items with several pieces are treated as if they needed their largest size
// throughout, and nothing is put below a fixed item: then it says kExhausted where it would say kImpossible.
class LayoutSearch {
 public:
  static constexpr int32_t kMaxItems = 4096;  // tables grow with items x sections / 64

  // `items` must outlive the search and have at most kMaxItems items.
  LayoutSearch(const LayoutItems& items, uint64_t seed);
  ~LayoutSearch();

  // Adds what it spent to `work` and stops once that reaches `work_limit`, or when `stop` returns true.
  SearchOutcome Find(int64_t height, int64_t work_limit, int64_t& work, const std::function<bool()>& stop);

  // Of the last layout found, one an item.
  const std::vector<int64_t>& offsets() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gantry
