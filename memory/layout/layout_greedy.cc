#include "memory/layout/layout_greedy.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace gantry {
namespace {

int64_t AlignUp(int64_t offset, int64_t alignment) {
  return alignment == 1 ? offset : (offset + alignment - 1) / alignment * alignment;
}

// Pieces placed so far, sorted by offset.
class PlacedPieces {
 public:
  void Insert(int64_t offset, const LayoutPiece& piece) {
    const Placed placed{offset, offset + piece.size, piece.first, piece.last};
    const auto at = std::upper_bound(placed_.begin(), placed_.end(), offset,
                                     [](int64_t value, const Placed& other) { return value < other.offset; });
    placed_.insert(at, placed);
  }

  // Where `fit` puts a rectangle.
  int64_t FindHole(const LayoutPiece& piece, int64_t alignment, GreedyFit fit, int64_t& work) const {
    int64_t cursor = 0;
    int64_t best_waste = std::numeric_limits<int64_t>::max();
    int64_t best_offset = -1;
    size_t scanned = 0;
    for (; scanned < placed_.size(); ++scanned) {
      const Placed& other = placed_[scanned];
      if (other.first >= piece.last || other.last <= piece.first || other.top <= cursor) continue;
      const int64_t offset = AlignUp(cursor, alignment);
      const int64_t waste = other.offset - offset - piece.size;
      if (waste >= 0 && waste < best_waste) {
        best_waste = waste;
        best_offset = offset;
        if (fit == GreedyFit::kFirst || waste == 0) break;
      }
      cursor = other.top;
    }
    work += static_cast<int64_t>(scanned);
    return best_offset >= 0 ? best_offset : AlignUp(cursor, alignment);
  }

  // The same for an item of several pieces: every placed piece forbids a range of offsets for each piece it meets.
  int64_t FindHole(std::span<const LayoutPiece> pieces, int64_t alignment, GreedyFit fit, int64_t& work) const {
    std::vector<std::pair<int64_t, int64_t>> forbidden;  // the item's offset cannot be in [first, second)
    for (const Placed& other : placed_) {
      for (const LayoutPiece& piece : pieces) {
        if (other.first >= piece.last || other.last <= piece.first) continue;
        forbidden.emplace_back(other.offset - piece.size + 1, other.top);
      }
    }
    work += static_cast<int64_t>(placed_.size() * pieces.size() + 8 * forbidden.size());
    std::sort(forbidden.begin(), forbidden.end());
    int64_t cursor = 0;
    int64_t best_waste = std::numeric_limits<int64_t>::max();
    int64_t best_offset = -1;
    for (const auto& [begin, end] : forbidden) {
      const int64_t offset = AlignUp(cursor, alignment);
      if (offset < begin && begin - 1 - offset < best_waste) {
        best_waste = begin - 1 - offset;
        best_offset = offset;
        if (fit == GreedyFit::kFirst) break;
      }
      cursor = std::max(cursor, end);
    }
    return best_offset >= 0 ? best_offset : AlignUp(cursor, alignment);
  }

 private:
  struct Placed {
    int64_t offset;
    int64_t top;
    int32_t first;
    int32_t last;
  };
  std::vector<Placed> placed_;
};

// Largest first under the key of `order`.
double OrderKey(const LayoutItem& item, GreedyOrder order, int64_t heaviest_load) {
  switch (order) {
    case GreedyOrder::kSize:
      return static_cast<double>(item.size);
    case GreedyOrder::kArea:
      return static_cast<double>(item.size) * (item.last - item.first);
    case GreedyOrder::kDuration:
      return item.last - item.first;
    case GreedyOrder::kStart:
      return -item.first;
    case GreedyOrder::kEnd:
      return item.last;
    case GreedyOrder::kLoad:
      return static_cast<double>(heaviest_load);
  }
  return 0;
}

// The heaviest section each item is live in, by a sparse table.
std::vector<int64_t> HeaviestLoads(const LayoutItems& items) {
  std::vector<std::vector<int64_t>> table = {items.loads};
  for (size_t width = 1; 2 * width <= items.loads.size(); width *= 2) {
    const std::vector<int64_t>& half = table.back();
    std::vector<int64_t> whole(items.loads.size() - 2 * width + 1);
    for (size_t i = 0; i < whole.size(); ++i) whole[i] = std::max(half[i], half[i + width]);
    table.push_back(std::move(whole));
  }
  std::vector<int64_t> heaviest;
  heaviest.reserve(items.items.size());
  for (const LayoutItem& item : items.items) {
    if (item.last <= item.first) {
      heaviest.push_back(0);
      continue;
    }
    const int level = 31 - __builtin_clz(static_cast<uint32_t>(item.last - item.first));
    heaviest.push_back(std::max(table[level][item.first], table[level][item.last - (1 << level)]));
  }
  return heaviest;
}

}  // namespace

std::string_view GreedyOrderName(GreedyOrder order) {
  switch (order) {
    case GreedyOrder::kSize:
      return "size";
    case GreedyOrder::kArea:
      return "area";
    case GreedyOrder::kDuration:
      return "duration";
    case GreedyOrder::kStart:
      return "start";
    case GreedyOrder::kEnd:
      return "end";
    case GreedyOrder::kLoad:
      return "load";
  }
  return "";
}

std::vector<int32_t> MakeGreedyOrder(const LayoutItems& items, GreedyOrder order) {
  struct Keyed {
    bool free;
    double key;
    int64_t size;
    int32_t first;
    int32_t index;
  };
  const std::vector<int64_t> heaviest =
      order == GreedyOrder::kLoad ? HeaviestLoads(items) : std::vector<int64_t>(items.items.size(), 0);
  std::vector<Keyed> keyed;
  keyed.reserve(items.items.size());
  for (size_t i = 0; i < items.items.size(); ++i) {
    const LayoutItem& item = items.items[i];
    keyed.push_back({item.fixed_offset < 0, OrderKey(item, order, heaviest[i]), item.size, item.first,
                     static_cast<int32_t>(i)});
  }
  std::sort(keyed.begin(), keyed.end(), [](const Keyed& a, const Keyed& b) {
    return std::tuple(a.free, -a.key, -a.size, a.first, a.index) < std::tuple(b.free, -b.key, -b.size, b.first, b.index);
  });
  std::vector<int32_t> result;
  result.reserve(keyed.size());
  for (const Keyed& entry : keyed) result.push_back(entry.index);
  return result;
}

GreedyResult PlaceGreedily(const LayoutItems& items, std::span<const int32_t> order, GreedyFit fit,
                           int64_t ceiling, int64_t& work) {
  GreedyResult result;
  result.offsets.assign(items.items.size(), 0);
  PlacedPieces placed;
  for (const int32_t index : order) {
    const LayoutItem& item = items.items[index];
    const std::span<const LayoutPiece> pieces(items.pieces.data() + item.piece_begin,
                                              items.pieces.data() + item.piece_end);
    int64_t offset = item.fixed_offset;
    if (offset < 0) {
      offset = pieces.size() == 1 ? placed.FindHole(pieces[0], item.alignment, fit, work)
                                  : placed.FindHole(pieces, item.alignment, fit, work);
    }
    result.offsets[index] = offset;
    if (pieces.empty()) continue;
    result.height = std::max(result.height, offset + item.size);
    if (result.height > ceiling) return result;
    for (const LayoutPiece& piece : pieces) placed.Insert(offset, piece);
  }
  result.complete = true;
  return result;
}

}  // namespace gantry
