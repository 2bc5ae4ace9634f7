// The pieces placed so far, found by lifetime and listed by offset: what the greedy passes and the repair work on. Internal
// to memory/layout.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "memory/layout/layout_items.h"

namespace gantry {

enum class GreedyFit {
  kFirst,  // the lowest hole that is large enough
  kBest,   // the tightest hole; above everything only if no hole is large enough
};

inline int64_t AlignUp(int64_t offset, int64_t alignment) {
  return alignment == 1 ? offset : (offset + alignment - 1) / alignment * alignment;
}

// A placed piece.
struct PlacedPiece {
  int64_t offset;
  int64_t top;
  int32_t item;
};

// Up to kFlatPieces pieces lie in blocks sorted by offset, and a query looks at all of them. More lie in a tree over time:
// each at the lowest node of the dyadic tree over sections that holds its lifetime (an interval tree with a fixed shape,
// Edelsbrunner 1980), so that a query looks at little more than what is live with it.
class PlacedPieces {
 public:
  static constexpr size_t kFlatPieces = 1 << 16;

  PlacedPieces(size_t piece_count, int32_t section_count);

  void Insert(int64_t offset, const LayoutPiece& piece, int32_t item);
  void Remove(int64_t offset, const LayoutPiece& piece, int32_t item);

  // The placed pieces live together with `piece`, lowest first. Adds to `work`.
  void CollectLive(const LayoutPiece& piece, std::vector<PlacedPiece>& live, int64_t& work) const;

  // Where `fit` puts an item of these pieces.
  int64_t FindHole(std::span<const LayoutPiece> pieces, int64_t alignment, GreedyFit fit, int64_t& work);

 private:
  struct Lifetime {
    int32_t first;
    int32_t last;
    bool Meets(const LayoutPiece& piece) const { return (first < piece.last) & (last > piece.first); }
  };
  struct TreePiece {
    int64_t offset;
    int64_t top;
    Lifetime lifetime;
    int32_t item;
  };

  // A stretch of the flat form, in columns: a query compares four lifetimes at once.
  struct Block {
    static constexpr int32_t kCapacity = 256;
    int32_t count = 0;
    alignas(16) int32_t firsts[kCapacity];
    alignas(16) int32_t lasts[kCapacity];
    int64_t offsets[kCapacity];
    int64_t tops[kCapacity];
    int32_t items[kCapacity];

    int32_t FindLive(const LayoutPiece& piece, uint16_t* live) const;  // indices into the columns; returns how many
    void Insert(int32_t at, int64_t offset, const LayoutPiece& piece, int32_t item);
    void Remove(int32_t at);
  };

  size_t BlockOf(int64_t offset) const;  // the last one that begins at or below `offset`, else the first
  int64_t FindFlatHole(const LayoutPiece& piece, int64_t alignment, GreedyFit fit, int64_t& work) const;
  int64_t FindLiveHole(int64_t size, int64_t alignment, GreedyFit fit) const;
  int64_t FindHoleForSeveral(std::span<const LayoutPiece> pieces, int64_t alignment, GreedyFit fit, int64_t& work);
  size_t NodeOf(const LayoutPiece& piece) const;
  void CollectSubtree(size_t node, const LayoutPiece& piece, std::vector<PlacedPiece>& live, int64_t& work) const;

  bool flat_;
  std::vector<std::unique_ptr<Block>> blocks_;     // the flat form: none is empty
  int32_t leaf_count_ = 1;                         // the tree form: a heap of nodes, the root is 1
  std::vector<std::vector<TreePiece>> nodes_;
  std::vector<int32_t> counts_;                    // pieces in each subtree
  std::vector<PlacedPiece> live_;                  // of the query under way
  std::vector<std::pair<int64_t, int64_t>> forbidden_;
};

}  // namespace gantry
