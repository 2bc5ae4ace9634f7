#include "memory/layout/layout_repair.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <random>
#include <span>
#include <tuple>
#include <utility>

#include "memory/layout/layout_placed.h"

namespace gantry {
namespace {

constexpr int64_t kNowhere = -1;

class Repair {
 public:
  Repair(const LayoutItems& items, const std::vector<int64_t>& offsets, uint64_t seed, int64_t& work)
      : items_(items),
        offsets_(offsets),
        placed_(items.pieces.size(), items.section_count),
        penalties_(items.items.size(), 1),
        random_(seed),
        work_(work) {
    for (size_t i = 0; i < items.items.size(); ++i) Put(static_cast<int32_t>(i), offsets[i]);
  }

  // Takes out what ends above `ceiling`; false if some of it cannot move.
  bool TakeOutAbove(int64_t ceiling) {
    ceiling_ = ceiling;
    for (size_t i = 0; i < items_.items.size(); ++i) {
      const auto item = static_cast<int32_t>(i);
      if (offsets_[i] == kNowhere || offsets_[i] + items_.items[i].size <= ceiling) continue;
      if (!CanMove(item)) return false;
      TakeOut(item);
      Wait(item);
    }
    return true;
  }

  void set_ceiling(int64_t ceiling) { ceiling_ = ceiling; }
  bool done() const { return waiting_.empty(); }
  const std::vector<int64_t>& offsets() const { return offsets_; }

  // Puts back one item.
  void Step() {
    // The one that is hardest to place by what is known: large ones first, and more so each time they find no hole.
    std::pop_heap(waiting_.begin(), waiting_.end());
    const int32_t item = waiting_.back().second;
    waiting_.pop_back();
    if (PutIntoHole(item)) return;
    ++penalties_[item];
    PushOut(item);
  }

 private:
  bool CanMove(int32_t item) const { return items_.items[item].fixed_offset < 0; }

  std::span<const LayoutPiece> PiecesOf(int32_t item) const { return items_.PiecesOf(items_.items[item]); }

  void Put(int32_t item, int64_t offset) {
    offsets_[item] = offset;
    for (const LayoutPiece& piece : PiecesOf(item)) placed_.Insert(offset, piece, item);
  }

  // What is out waits to be put back. Meanwhile it gets no harder.
  void Wait(int32_t item) {
    waiting_.emplace_back(Hardness(item), item);
    std::push_heap(waiting_.begin(), waiting_.end());
    work_ += std::bit_width(waiting_.size());
  }

  void TakeOut(int32_t item) {
    for (const LayoutPiece& piece : PiecesOf(item)) placed_.Remove(offsets_[item], piece, item);
    offsets_[item] = kNowhere;
  }

  bool PutIntoHole(int32_t item) {
    const LayoutItem& it = items_.items[item];
    const int64_t offset = placed_.FindHole(PiecesOf(item), it.alignment, GreedyFit::kBest, work_);
    if (offset + it.size > ceiling_) return false;
    Put(item, offset);
    return true;
  }

  // What is placed and live together with `item`, each item once, the lowest first.
  void CollectLive(int32_t item) {
    const std::span<const LayoutPiece> pieces = PiecesOf(item);
    placed_.CollectLive(pieces[0], live_, work_);
    if (pieces.size() == 1) return;
    for (const LayoutPiece& piece : pieces.subspan(1)) {
      placed_.CollectLive(piece, more_, work_);
      live_.insert(live_.end(), more_.begin(), more_.end());
    }
    std::sort(live_.begin(), live_.end(), [](const PlacedPiece& a, const PlacedPiece& b) {
      return std::tuple(a.offset, a.item, -a.top) < std::tuple(b.offset, b.item, -b.top);
    });
    live_.erase(std::unique(live_.begin(), live_.end(), [](const PlacedPiece& a, const PlacedPiece& b) { return a.item == b.item; }), live_.end());
    work_ += static_cast<int64_t>(live_.size() * std::bit_width(live_.size()));
  }

  // Puts `item` where the items in its way are cheapest, and those among the waiting ones. Of several pieces each is taken to be as large
  // as the largest.
  void PushOut(int32_t item) {
    const LayoutItem& it = items_.items[item];
    CollectLive(item);
    candidates_.clear();
    candidates_.push_back(0);
    for (const PlacedPiece& other : live_) {
      candidates_.push_back(AlignUp(other.top, it.alignment));
      const int64_t below = other.offset - it.size;
      if (below > 0) candidates_.push_back(below - below % it.alignment);
    }
    candidates_.push_back((ceiling_ - it.size) / it.alignment * it.alignment);
    std::sort(candidates_.begin(), candidates_.end());
    candidates_.erase(std::unique(candidates_.begin(), candidates_.end()), candidates_.end());
    work_ += static_cast<int64_t>(16 * candidates_.size());
    // A window [offset, offset + size) moves up; live_ is sorted by offset, but tops are not, so each is looked at anew only
    // while it may still reach into the window.
    double best_cost = std::numeric_limits<double>::max();
    int64_t best_offset = kNowhere;
    size_t first = 0;
    for (const int64_t offset : candidates_) {
      if (offset + it.size > ceiling_) break;
      while (first < live_.size() && live_[first].top <= offset) ++first;
      double cost = 0;
      for (size_t k = first; k < live_.size() && live_[k].offset < offset + it.size && cost < best_cost; ++k) {
        ++work_;
        if (live_[k].top > offset) cost += Cost(live_[k].item);
      }
      cost *= 1 + static_cast<double>(random_() % 1024) / 1024;
      if (cost < best_cost) {
        best_cost = cost;
        best_offset = offset;
      }
    }
    if (best_offset == kNowhere || best_cost == std::numeric_limits<double>::max()) {
      Wait(item);
      return;
    }
    for (const PlacedPiece& other : live_) {
      if (other.offset >= best_offset + it.size || other.top <= best_offset || offsets_[other.item] == kNowhere) continue;
      TakeOut(other.item);
      Wait(other.item);
    }
    Put(item, best_offset);
  }

  double Hardness(int32_t item) const {
    return static_cast<double>(penalties_[item]) * static_cast<double>(items_.items[item].size);
  }

  // What it costs to push an item out: large, long ones that failed before are hard to put back.
  double Cost(int32_t item) const {
    if (!CanMove(item)) return std::numeric_limits<double>::infinity();
    int32_t duration = 0;
    for (const LayoutPiece& piece : PiecesOf(item)) duration += piece.last - piece.first;
    return Hardness(item) * (1.0 + static_cast<double>(duration) / items_.section_count);
  }

  const LayoutItems& items_;
  std::vector<int64_t> offsets_;
  PlacedPieces placed_;
  std::vector<int32_t> penalties_;
  std::vector<std::pair<double, int32_t>> waiting_;  // a heap of hardness and item
  int64_t ceiling_ = 0;
  std::mt19937_64 random_;
  int64_t& work_;
  std::vector<PlacedPiece> live_, more_;
  std::vector<int64_t> candidates_;
};

}  // namespace

RepairResult RepairLayout(const LayoutItems& items, const std::vector<int64_t>& offsets, int64_t height, int64_t goal,
                          uint64_t seed, int64_t work_limit, int64_t& work, const std::function<bool()>& stop) {
  RepairResult result;
  Repair repair(items, offsets, seed, work);
  int64_t ceiling = goal;
  if (!repair.TakeOutAbove(ceiling)) return result;
  const int64_t first_work = work;
  const int64_t span = std::max<int64_t>(1, work_limit - work);
  for (int64_t steps = 0; !repair.done(); ++steps) {
    if (work >= work_limit || ((steps & 255) == 255 && stop())) return result;
    // From the goal up to just below the old height, slowly at first.
    const double spent = static_cast<double>(work - first_work) / static_cast<double>(span);
    const int64_t raised = goal + static_cast<int64_t>(spent * spent * spent * static_cast<double>(height - 1 - goal));
    if (raised > ceiling) repair.set_ceiling(ceiling = raised);
    repair.Step();
  }
  result.offsets = repair.offsets();
  for (size_t i = 0; i < items.items.size(); ++i) {
    if (items.items[i].size > 0) result.height = std::max(result.height, result.offsets[i] + items.items[i].size);
  }
  result.complete = true;
  return result;
}

}  // namespace gantry
