// Walking the elements of a shape while keeping one offset per operand, without a division per element.
#pragma once

#include <array>
#include <cstdint>

#include "ops/infer.h"
#include "ops/tensor_type.h"

namespace gantry::reference {

// A row-major index space of at most infer::kMaxRank dimensions, and kOperands operands with a stride per dimension.
template <int kOperands>
class StridedWalk {
 public:
  using Offsets = std::array<int64_t, kOperands>;

  // Appends an inner dimension.
  void AddDimension(int64_t extent, const Offsets& strides) {
    extents_[rank_] = extent;
    strides_[rank_++] = strides;
  }

  // Calls visit(index, offsets) for index 0, 1, ... in row-major order; operand i is at offsets[i], which starts at
  // start[i].
  template <typename Visit>
  void ForEach(Offsets start, Visit visit) const {
    for (int axis = 0; axis < rank_; ++axis) {
      if (extents_[axis] == 0) return;
    }
    if (rank_ == 0) return visit(int64_t{0}, start);
    std::array<int64_t, infer::kMaxRank> position = {};
    Offsets offsets = start;
    const int inner = rank_ - 1;
    int64_t index = 0;
    while (true) {
      Offsets here = offsets;
      for (int64_t i = 0; i < extents_[inner]; ++i) {
        visit(index++, here);
        Step(here, strides_[inner], 1);
      }
      int axis = inner - 1;
      for (; axis >= 0; --axis) {
        Step(offsets, strides_[axis], 1);
        if (++position[axis] < extents_[axis]) break;
        Step(offsets, strides_[axis], -extents_[axis]);
        position[axis] = 0;
      }
      if (axis < 0) return;
    }
  }
  template <typename Visit>
  void ForEach(Visit visit) const {
    ForEach(Offsets{}, visit);
  }

 private:
  static void Step(Offsets& offsets, const Offsets& strides, int64_t times) {
    for (int operand = 0; operand < kOperands; ++operand) offsets[operand] += times * strides[operand];
  }

  int rank_ = 0;
  std::array<int64_t, infer::kMaxRank> extents_ = {};
  std::array<Offsets, infer::kMaxRank> strides_ = {};
};

// The strides with which `shape` is read when broadcast to `to`: 0 where it has one element for many.
inline std::vector<int64_t> BroadcastStrides(const Shape& shape, const Shape& to) {
  const std::vector<int64_t> own = shape.Strides();
  std::vector<int64_t> strides(to.rank(), 0);
  for (int back = 1; back <= shape.rank(); ++back) {
    const int axis = shape.rank() - back;
    if (shape[axis] != 1) strides[to.rank() - back] = own[axis];
  }
  return strides;
}

// Walks `to` with each of `shapes` broadcast to it.
template <int kOperands>
StridedWalk<kOperands> BroadcastWalk(const std::array<Shape, kOperands>& shapes, const Shape& to) {
  std::array<std::vector<int64_t>, kOperands> strides;
  for (int operand = 0; operand < kOperands; ++operand) strides[operand] = BroadcastStrides(shapes[operand], to);
  StridedWalk<kOperands> walk;
  for (int axis = 0; axis < to.rank(); ++axis) {
    std::array<int64_t, kOperands> step;
    for (int operand = 0; operand < kOperands; ++operand) step[operand] = strides[operand][axis];
    walk.AddDimension(to[axis], step);
  }
  return walk;
}

}  // namespace gantry::reference
