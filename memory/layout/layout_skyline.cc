#include "memory/layout/layout_skyline.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <queue>
#include <span>
#include <vector>

#include "memory/layout/layout_placed.h"

namespace gantry {
namespace {

constexpr int32_t kNone = -1;
constexpr int32_t kNever = std::numeric_limits<int32_t>::max();

// Unplaced items whose lifetimes are about as long as one another, by start: which of those that start in a stretch of time
// ends first? A tree of minima over the items.
class ItemsOfOneLength {
 public:
  void Add(int32_t item, int32_t first, int32_t last) {
    items_.push_back(item);
    firsts_.push_back(first);
    lasts_.push_back(last);
  }

  void Build() {
    leaves_ = std::bit_ceil(std::max<size_t>(1, items_.size()));
    earliest_.assign(2 * leaves_, kNever);
    std::copy(lasts_.begin(), lasts_.end(), earliest_.begin() + leaves_);
    for (size_t node = leaves_ - 1; node > 0; --node) earliest_[node] = std::min(earliest_[2 * node], earliest_[2 * node + 1]);
    lasts_ = {};
  }

  // Takes out an item live within [begin, end) and returns it, or kNone.
  int32_t Take(int32_t begin, int32_t end) {
    if (earliest_[1] > end) return kNone;
    size_t low = std::lower_bound(firsts_.begin(), firsts_.end(), begin) - firsts_.begin() + leaves_;
    size_t high = std::lower_bound(firsts_.begin(), firsts_.end(), end) - firsts_.begin() + leaves_;
    size_t best = 0;
    for (; low < high; low /= 2, high /= 2) {
      if (low & 1) best = Better(best, low++);
      if (high & 1) best = Better(best, --high);
    }
    if (best == 0 || earliest_[best] > end) return kNone;
    while (best < leaves_) best = 2 * best + (earliest_[2 * best + 1] < earliest_[2 * best]);
    earliest_[best] = kNever;
    for (size_t node = best / 2; node > 0; node /= 2) earliest_[node] = std::min(earliest_[2 * node], earliest_[2 * node + 1]);
    return items_[best - leaves_];
  }

 private:
  size_t Better(size_t a, size_t b) const { return a == 0 || earliest_[b] < earliest_[a] ? b : a; }

  std::vector<int32_t> items_, firsts_, lasts_;
  size_t leaves_ = 1;
  std::vector<int32_t> earliest_;  // a heap of nodes, the root is 1
};

class Skyline {
 public:
  Skyline(const LayoutItems& items, int64_t& work) : items_(items), work_(work), lengths_(2 * 32) {
    std::vector<int32_t> by_first(items.items.size());
    std::iota(by_first.begin(), by_first.end(), 0);
    std::sort(by_first.begin(), by_first.end(), [&](int32_t a, int32_t b) {
      return std::pair(items.items[a].first, a) < std::pair(items.items[b].first, b);
    });
    for (const int32_t i : by_first) {
      const LayoutItem& item = items.items[i];
      if (item.first < item.last) lengths_[LengthOf(item.last - item.first)].Add(i, item.first, item.last);
    }
    for (ItemsOfOneLength& length : lengths_) length.Build();
    result_.offsets.assign(items.items.size(), 0);
  }

  GreedyResult Place() {
    AddRun(0, items_.section_count, 0, kNone, kNone);
    while (!lowest_.empty()) {
      const Entry entry = lowest_.top();
      lowest_.pop();
      if (runs_[entry.run].level != entry.level || runs_[entry.run].begin != entry.begin || !runs_[entry.run].alive) continue;
      const int32_t item = TakeLongest(runs_[entry.run].begin, runs_[entry.run].end);
      if (item != kNone) {
        PutOn(entry.run, item);
      } else {
        Raise(entry.run);
      }
    }
    return std::move(result_);
  }

 private:
  struct Run {
    int32_t begin, end;
    int64_t level;
    int32_t left, right;  // neighbours, or kNone
    bool alive;
  };
  struct Entry {
    int64_t level;
    int32_t begin, run;
    bool operator<(const Entry& other) const {  // the lowest on top of a priority queue
      return std::pair(level, begin) > std::pair(other.level, other.begin);
    }
  };

  // Two classes of length to a power of two.
  static size_t LengthOf(int32_t duration) {
    const int bits = std::bit_width(static_cast<uint32_t>(duration));
    return 2 * static_cast<size_t>(bits) + (bits > 1 ? static_cast<uint32_t>(duration) >> (bits - 2) & 1 : 0);
  }

  int32_t TakeLongest(int32_t begin, int32_t end) {
    for (size_t length = std::min(LengthOf(end - begin), lengths_.size() - 1); length >= 2; --length) {
      const int32_t item = lengths_[length].Take(begin, end);
      work_ += 20;
      if (item != kNone) return item;
    }
    return kNone;
  }

  int32_t AddRun(int32_t begin, int32_t end, int64_t level, int32_t left, int32_t right) {
    int32_t run = static_cast<int32_t>(runs_.size());
    if (!free_runs_.empty()) {
      run = free_runs_.back();
      free_runs_.pop_back();
      runs_[run] = {begin, end, level, left, right, true};
    } else {
      runs_.push_back({begin, end, level, left, right, true});
    }
    lowest_.push({level, begin, run});
    work_ += 20;
    return run;
  }

  void PutOn(int32_t run, int32_t index) {
    const LayoutItem& item = items_.items[index];
    const Run old = runs_[run];
    const int64_t offset = AlignUp(old.level, item.alignment);
    result_.offsets[index] = offset;
    result_.height = std::max(result_.height, offset + item.size);
    int32_t left = old.left, right = old.right;
    runs_[run].alive = false;
    free_runs_.push_back(run);
    if (old.begin < item.first) left = Link(left, AddRun(old.begin, item.first, old.level, left, kNone));
    const int32_t top = AddRun(item.first, item.last, offset + item.size, left, kNone);
    left = Link(left, top);
    if (item.last < old.end) left = Link(left, AddRun(item.last, old.end, old.level, left, kNone));
    Link(left, right);
  }

  // Makes `right` the right neighbour of `left` and returns it.
  int32_t Link(int32_t left, int32_t right) {
    if (left != kNone) runs_[left].right = right;
    if (right != kNone) runs_[right].left = left;
    return right;
  }

  // To the lower neighbour, which it joins. The last run of all has nothing left to carry.
  void Raise(int32_t run) {
    const Run old = runs_[run];
    if (old.left == kNone && old.right == kNone) return;
    int64_t level = std::numeric_limits<int64_t>::max();
    if (old.left != kNone) level = runs_[old.left].level;
    if (old.right != kNone) level = std::min(level, runs_[old.right].level);
    Run joined = old;
    const auto release = [&](int32_t neighbour) {
      runs_[neighbour].alive = false;
      free_runs_.push_back(neighbour);
    };
    runs_[run].alive = false;
    free_runs_.push_back(run);
    if (old.left != kNone && runs_[old.left].level == level) {
      joined.begin = runs_[old.left].begin;
      joined.left = runs_[old.left].left;
      release(old.left);
    }
    if (old.right != kNone && runs_[old.right].level == level) {
      joined.end = runs_[old.right].end;
      joined.right = runs_[old.right].right;
      release(old.right);
    }
    const int32_t whole = AddRun(joined.begin, joined.end, level, joined.left, joined.right);
    Link(joined.left, whole);
    Link(whole, joined.right);
  }

  const LayoutItems& items_;
  int64_t& work_;
  std::vector<ItemsOfOneLength> lengths_;  // by LengthOf
  std::vector<Run> runs_;
  std::vector<int32_t> free_runs_;
  std::priority_queue<Entry> lowest_;  // with entries of runs gone since
  GreedyResult result_;
};

}  // namespace

GreedyResult PlaceOnSkyline(const LayoutItems& items, int64_t& work) { return Skyline(items, work).Place(); }

}  // namespace gantry
