// Window ops (convolution, pooling, resizing and their gradients) along one dimension that ranks share out: which places each window reads,
// and what the op is over some places and some windows. All of this is arithmetic on extents, alike on all ranks.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "ops/resize.h"
#include "ops/window.h"

namespace gantry {

struct Span {
  int64_t begin = 0, end = 0;
  bool empty() const { return begin >= end; }
  int64_t size() const { return end - begin; }
};
Span Common(const Span& a, const Span& b);

// One of the op's tensors has places along the dimension, another one windows over them.
enum class WindowSide : uint8_t { kPlaces, kWindows };

class WindowForm {
 public:
  // The op's attributes where it has only these places and windows, which are both not empty; none where there are no such attributes.
  using Local = std::function<std::optional<Attributes>(const Span& places, const Span& windows)>;

  // {pads}, and {output_spatial} where the op has it, in `attributes` of an op with `spatial_rank` spatial dimensions are set for
  // dimension `spatial_axis`. Pooling: windows without any place are none.
  static WindowForm Sliding(const WindowAxis& axis, int64_t places, int64_t windows, Attributes attributes, int spatial_rank, int spatial_axis,
                            bool pooling = false);
  // {part} is set. `gradient`: the op's result has the places.
  static WindowForm Resizing(Attributes attributes, int spatial_axis, int64_t places, int64_t windows, bool gradient);

  // Part of an op that is linear in an operand: what it makes of `here` of the operand for `there` of the other side.
  struct Block {
    Span here, there;
    Attributes attributes;
  };
  // An op's result for `there` is the sum of its results from parts of the operand, which is on `side`: first from what is `held` of it, for
  // all of `there`, then from what is wanted before and behind that, where there is any. Empty where no attributes say so.
  std::vector<Block> InParts(WindowSide side, const Span& held, const Span& there) const;
  // The same from all that is wanted of the operand in one part.
  std::optional<Block> InOne(WindowSide side, const Span& there) const;

 private:
  // `reads`: the places of each window, ascending.
  WindowForm(std::vector<Span> reads, int64_t places, Local local);
  // What windows read of the places of others, or which windows read any of these places.
  Span Reached(WindowSide side, const Span& span) const;
  std::optional<Block> Over(WindowSide side, const Span& here, const Span& there) const;

  std::vector<Span> reads_;
  int64_t places_;
  Local local_;
};

}  // namespace gantry
