// The solver's own form of a LayoutProblem: alias groups merged, empty buffers gone, time reduced to the sections that
// matter. Internal to memory/layout.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "memory/layout/layout_problem.h"

namespace gantry {

// A rectangle of time and bytes that one item needs: sections [first, last), `size` bytes from the item's offset.
struct LayoutPiece {
  int32_t first;
  int32_t last;
  int64_t size;
};

// What gets one offset: a buffer, or an alias group. Most are one piece; a group whose needs change over time has several.
struct LayoutItem {
  int32_t first;  // of all pieces
  int32_t last;
  int32_t piece_begin;  // its pieces in LayoutItems::pieces
  int32_t piece_end;
  int64_t size;  // of the largest piece
  int64_t alignment;
  int64_t fixed_offset;  // -1: free

  bool is_rectangle() const { return piece_end - piece_begin == 1; }
};

struct LayoutItems {
  std::vector<LayoutItem> items;
  std::vector<LayoutPiece> pieces;
  std::vector<int32_t> item_of_buffer;  // -1 for a buffer of 0 bytes that no item stands for
  int32_t section_count = 0;            // times; two pieces are live together if and only if they share a section
  std::vector<int64_t> loads;           // bytes live in each section
  int64_t lower_bound = 0;

  bool has_fixed = false;
  bool has_alignment = false;   // some alignment > 1
  bool all_rectangles = true;

  std::span<const LayoutPiece> PiecesOf(const LayoutItem& item) const {
    return std::span(pieces).subspan(item.piece_begin, item.piece_end - item.piece_begin);
  }
};

// `problem` has to be valid.
LayoutItems MakeLayoutItems(const LayoutProblem& problem);

}  // namespace gantry
