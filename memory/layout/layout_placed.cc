#include "memory/layout/layout_placed.h"

#include <algorithm>
#include <bit>
#include <limits>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace gantry {
namespace {

// Scans what is live from the floor up and remembers the hole that `fit` wants.
class HoleScan {
 public:
  HoleScan(int64_t size, int64_t alignment, GreedyFit fit) : size_(size), alignment_(alignment), fit_(fit) {}

  // Takes the next piece; true if the search is over.
  bool Next(int64_t offset, int64_t top) {
    if (top <= cursor_) return false;
    const int64_t hole = offset - cursor_;
    if (hole >= size_ && hole - size_ < best_waste_) {
      const int64_t aligned = AlignUp(cursor_, alignment_);
      const int64_t waste = offset - aligned - size_;
      if (waste >= 0 && waste < best_waste_) {
        best_waste_ = waste;
        best_offset_ = aligned;
        if (fit_ == GreedyFit::kFirst || waste == 0) return true;
      }
    }
    cursor_ = top;
    return false;
  }

  int64_t offset() const { return best_offset_ >= 0 ? best_offset_ : AlignUp(cursor_, alignment_); }

 private:
  const int64_t size_, alignment_;
  const GreedyFit fit_;
  int64_t cursor_ = 0;
  int64_t best_waste_ = std::numeric_limits<int64_t>::max();
  int64_t best_offset_ = -1;
};

}  // namespace

PlacedPieces::PlacedPieces(size_t piece_count, int32_t section_count) : flat_(piece_count <= kFlatPieces) {
  if (!flat_) {
    leaf_count_ = static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(std::max(1, section_count))));
    nodes_.resize(2 * static_cast<size_t>(leaf_count_));
    counts_.assign(nodes_.size(), 0);
  }
}

void PlacedPieces::Insert(int64_t offset, const LayoutPiece& piece, int32_t item) {
  if (!flat_) {
    const size_t node = NodeOf(piece);
    nodes_[node].push_back({offset, offset + piece.size, {piece.first, piece.last}, item});
    for (size_t n = node; n > 0; n /= 2) ++counts_[n];
    return;
  }
  if (blocks_.empty()) blocks_.push_back(std::make_unique<Block>());
  size_t number = BlockOf(offset);
  if (blocks_[number]->count == Block::kCapacity) {
    Block& full = *blocks_[number];
    auto upper = std::make_unique<Block>();
    constexpr int32_t kHalf = Block::kCapacity / 2;
    std::copy(full.firsts + kHalf, full.firsts + Block::kCapacity, upper->firsts);
    std::copy(full.lasts + kHalf, full.lasts + Block::kCapacity, upper->lasts);
    std::copy(full.offsets + kHalf, full.offsets + Block::kCapacity, upper->offsets);
    std::copy(full.tops + kHalf, full.tops + Block::kCapacity, upper->tops);
    std::copy(full.items + kHalf, full.items + Block::kCapacity, upper->items);
    full.count = upper->count = kHalf;
    blocks_.insert(blocks_.begin() + number + 1, std::move(upper));
    number = BlockOf(offset);
  }
  Block& block = *blocks_[number];
  const auto at = std::upper_bound(block.offsets, block.offsets + block.count, offset) - block.offsets;
  block.Insert(static_cast<int32_t>(at), offset, piece, item);
}

void PlacedPieces::Remove(int64_t offset, const LayoutPiece& piece, int32_t item) {
  if (!flat_) {
    const size_t node = NodeOf(piece);
    std::vector<TreePiece>& list = nodes_[node];
    const auto at = std::find_if(list.begin(), list.end(), [&](const TreePiece& other) {
      return other.item == item && other.lifetime.first == piece.first;
    });
    *at = list.back();
    list.pop_back();
    for (size_t n = node; n > 0; n /= 2) --counts_[n];
    return;
  }
  // Pieces at one offset may reach over several blocks, up to the one found.
  for (size_t number = BlockOf(offset);; --number) {
    Block& block = *blocks_[number];
    for (int32_t at = block.count - 1; at >= 0 && block.offsets[at] >= offset; --at) {
      if (block.items[at] != item || block.firsts[at] != piece.first) continue;
      block.Remove(at);
      if (block.count == 0) blocks_.erase(blocks_.begin() + number);
      return;
    }
  }
}

size_t PlacedPieces::BlockOf(int64_t offset) const {
  const auto after = std::upper_bound(blocks_.begin(), blocks_.end(), offset,
                                      [](int64_t value, const auto& block) { return value < block->offsets[0]; });
  return after == blocks_.begin() ? 0 : after - blocks_.begin() - 1;
}

int32_t PlacedPieces::Block::FindLive(const LayoutPiece& piece, uint16_t* live) const {
  int32_t live_count = 0;
  int32_t i = 0;
#if defined(__SSE2__)
  const __m128i piece_first = _mm_set1_epi32(piece.first);
  const __m128i piece_last = _mm_set1_epi32(piece.last);
  for (; i + 4 <= count; i += 4) {
    const __m128i begins = _mm_cmpgt_epi32(piece_last, _mm_load_si128(reinterpret_cast<const __m128i*>(firsts + i)));
    const __m128i lasts_now = _mm_cmpgt_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(lasts + i)), piece_first);
    auto mask = static_cast<uint32_t>(_mm_movemask_ps(_mm_castsi128_ps(_mm_and_si128(begins, lasts_now))));
    for (; mask != 0; mask &= mask - 1) live[live_count++] = static_cast<uint16_t>(i + std::countr_zero(mask));
  }
#endif
  for (; i < count; ++i) {
    live[live_count] = static_cast<uint16_t>(i);
    live_count += (firsts[i] < piece.last) & (lasts[i] > piece.first);
  }
  return live_count;
}

void PlacedPieces::Block::Insert(int32_t at, int64_t offset, const LayoutPiece& piece, int32_t item) {
  const auto insert = [&](auto* column, auto value) {
    std::copy_backward(column + at, column + count, column + count + 1);
    column[at] = value;
  };
  insert(firsts, piece.first);
  insert(lasts, piece.last);
  insert(offsets, offset);
  insert(tops, offset + piece.size);
  insert(items, item);
  ++count;
}

void PlacedPieces::Block::Remove(int32_t at) {
  const auto remove = [&](auto* column) { std::copy(column + at + 1, column + count, column + at); };
  remove(firsts);
  remove(lasts);
  remove(offsets);
  remove(tops);
  remove(items);
  --count;
}

void PlacedPieces::CollectLive(const LayoutPiece& piece, std::vector<PlacedPiece>& live, int64_t& work) const {
  live.clear();
  if (flat_) {
    uint16_t indices[Block::kCapacity];
    for (const auto& block : blocks_) {
      const int32_t count = block->FindLive(piece, indices);
      for (int32_t k = 0; k < count; ++k) {
        const int32_t i = indices[k];
        live.push_back({block->offsets[i], block->tops[i], block->items[i]});
      }
      work += block->count / 2 + count;
    }
    return;
  }
  CollectSubtree(1, piece, live, work);
  std::sort(live.begin(), live.end(), [](const PlacedPiece& a, const PlacedPiece& b) {
    return a.offset != b.offset ? a.offset < b.offset : a.item < b.item;
  });
  work += static_cast<int64_t>(live.size() * std::bit_width(live.size()));
}

int64_t PlacedPieces::FindHole(std::span<const LayoutPiece> pieces, int64_t alignment, GreedyFit fit, int64_t& work) {
  if (pieces.size() != 1) return FindHoleForSeveral(pieces, alignment, fit, work);
  if (flat_) return FindFlatHole(pieces[0], alignment, fit, work);
  CollectLive(pieces[0], live_, work);
  return FindLiveHole(pieces[0].size, alignment, fit);
}

int64_t PlacedPieces::FindLiveHole(int64_t size, int64_t alignment, GreedyFit fit) const {
  HoleScan scan(size, alignment, fit);
  for (const PlacedPiece& other : live_) {
    if (scan.Next(other.offset, other.top)) break;
  }
  return scan.offset();
}

int64_t PlacedPieces::FindFlatHole(const LayoutPiece& piece, int64_t alignment, GreedyFit fit, int64_t& work) const {
  uint16_t live[Block::kCapacity];
  HoleScan scan(piece.size, alignment, fit);
  for (const auto& block : blocks_) {
    const int32_t count = block->FindLive(piece, live);
    work += block->count / 2 + count;
    for (int32_t k = 0; k < count; ++k) {
      if (scan.Next(block->offsets[live[k]], block->tops[live[k]])) return scan.offset();
    }
  }
  return scan.offset();
}

// Every placed piece forbids a range of offsets for each piece that it meets.
int64_t PlacedPieces::FindHoleForSeveral(std::span<const LayoutPiece> pieces, int64_t alignment, GreedyFit fit,
                                         int64_t& work) {
  forbidden_.clear();  // the item's offset cannot be in [first, second)
  for (const LayoutPiece& piece : pieces) {
    CollectLive(piece, live_, work);
    for (const PlacedPiece& other : live_) forbidden_.emplace_back(other.offset - piece.size + 1, other.top);
  }
  std::sort(forbidden_.begin(), forbidden_.end());
  work += static_cast<int64_t>(forbidden_.size() * std::bit_width(forbidden_.size()));
  int64_t cursor = 0;
  int64_t best_waste = std::numeric_limits<int64_t>::max();
  int64_t best_offset = -1;
  for (const auto& [begin, end] : forbidden_) {
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

// The lowest common ancestor of the leaves of the first and the last section.
size_t PlacedPieces::NodeOf(const LayoutPiece& piece) const {
  const auto low = static_cast<uint32_t>(leaf_count_ + piece.first);
  const auto high = static_cast<uint32_t>(leaf_count_ + piece.last - 1);
  return low >> std::bit_width(low ^ high);
}

void PlacedPieces::CollectSubtree(size_t node, const LayoutPiece& piece, std::vector<PlacedPiece>& live,
                                  int64_t& work) const {
  if (counts_[node] == 0) return;
  for (const TreePiece& other : nodes_[node]) {
    if (other.lifetime.Meets(piece)) live.push_back({other.offset, other.top, other.item});
  }
  work += static_cast<int64_t>(nodes_[node].size()) + 4;
  if (2 * node >= nodes_.size()) return;
  // Sections of the left child: [begin, middle), of the right one: [middle, end).
  const int level = std::bit_width(node) - 1;
  const int32_t width = leaf_count_ >> level;
  const int32_t begin = static_cast<int32_t>(node - (size_t{1} << level)) * width;
  const int32_t middle = begin + width / 2;
  if (piece.first < middle && piece.last > begin) CollectSubtree(2 * node, piece, live, work);
  if (piece.last > middle && piece.first < begin + width) CollectSubtree(2 * node + 1, piece, live, work);
}

}  // namespace gantry
