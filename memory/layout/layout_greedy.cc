#include "memory/layout/layout_greedy.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace gantry {
namespace {

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

GreedyResult PlaceGreedily(const LayoutItems& items, std::span<const int32_t> order, GreedyFit fit, int64_t& work) {
  GreedyResult result;
  result.offsets.assign(items.items.size(), 0);
  PlacedPieces placed(items.pieces.size(), items.section_count);
  for (const int32_t index : order) {
    const LayoutItem& item = items.items[index];
    const std::span<const LayoutPiece> pieces = items.PiecesOf(item);
    int64_t offset = item.fixed_offset;
    if (offset < 0) {
      offset = placed.FindHole(pieces, item.alignment, fit, work);
    }
    result.offsets[index] = offset;
    if (pieces.empty()) continue;
    result.height = std::max(result.height, offset + item.size);
    for (const LayoutPiece& piece : pieces) placed.Insert(offset, piece, index);
  }
  return result;
}

}  // namespace gantry
