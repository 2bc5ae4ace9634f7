// Cutting broadcast tensors and panel tensors into runs that a vector loop can take, and sharing them between threads.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "memory/cpu/parallel.h"
#include "ops/cpu/panel/panel_layout.h"
#include "ops/infer.h"
#include "ops/tensor_type.h"

namespace gantry::cpu {

// One dimension of a row-major index space, with the stride of each of two operands.
struct StridedDimension {
  int64_t extent;
  std::array<int64_t, 2> strides;
};

// An index space as outer dimensions around runs, in which each operand moves by a stride (1 or 0 for broadcast
// operands). Dimensions of 1 are dropped and those that lie together in both operands are joined.
class RunPlan {
 public:
  RunPlan() = default;
  explicit RunPlan(std::span<const StridedDimension> dimensions) {
    for (const StridedDimension& dimension : dimensions) Append(dimension);
  }

  int64_t count() const { return outer_count_ * run_.extent; }
  int64_t run_length() const { return run_.extent; }
  int64_t run_stride(int operand) const { return run_.strides[operand]; }
  bool moves(int operand) const { return run_.strides[operand] != 0; }

  // Calls visit(index, offset of operand 0, offset of operand 1, length) for the runs and parts of runs that make up
  // the indices [begin, end).
  template <typename Visit>
  void ForEachRun(int64_t begin, int64_t end, Visit visit) const {
    if (begin >= end) return;
    std::array<int64_t, infer::kMaxRank> position = {};
    std::array<int64_t, 2> offsets = {};
    int64_t outer = begin / run_.extent, within = begin % run_.extent;
    for (int axis = outer_rank_ - 1; axis >= 0; --axis) {
      position[axis] = outer % outer_[axis].extent;
      outer /= outer_[axis].extent;
      for (int i = 0; i < 2; ++i) offsets[i] += position[axis] * outer_[axis].strides[i];
    }
    while (begin < end) {
      const int64_t length = std::min(run_.extent - within, end - begin);
      visit(begin, offsets[0] + within * run_.strides[0], offsets[1] + within * run_.strides[1], length);
      begin += length;
      within = 0;
      for (int axis = outer_rank_ - 1; axis >= 0; --axis) {
        for (int i = 0; i < 2; ++i) offsets[i] += outer_[axis].strides[i];
        if (++position[axis] < outer_[axis].extent) break;
        for (int i = 0; i < 2; ++i) offsets[i] -= outer_[axis].extent * outer_[axis].strides[i];
        position[axis] = 0;
      }
    }
  }

 private:
  void Append(const StridedDimension& inner) {
    if (inner.extent == 1) return;
    const auto Joins = [&](int i) { return run_.strides[i] == inner.strides[i] * inner.extent; };
    if (run_.extent == 1) {
      run_ = inner;
    } else if (Joins(0) && Joins(1)) {
      run_ = {run_.extent * inner.extent, inner.strides};
    } else {
      outer_[outer_rank_++] = run_;
      outer_count_ *= run_.extent;
      run_ = inner;
    }
  }

  int outer_rank_ = 0;
  int64_t outer_count_ = 1;
  std::array<StridedDimension, infer::kMaxRank> outer_ = {};
  StridedDimension run_ = {1, {1, 1}};
};

// `out` as runs, with `x` and `y` broadcast to it.
RunPlan BroadcastRuns(const Shape& out, const Shape& x, const Shape& y);

// How many threads are worth starting for `count` elements.
inline int UsefulThreads(int thread_count, int64_t count) {
  constexpr int64_t kElementsPerThread = 16384;
  return static_cast<int>(std::clamp<int64_t>(count / kElementsPerThread, 1, std::max(thread_count, 1)));
}

// Cuts [0, count) into one piece per useful thread, at multiples of 16, and calls body(begin, end) for each.
template <typename Body>
void ParallelPieces(int thread_count, int64_t count, Body body) {
  const int threads = UsefulThreads(thread_count, count);
  const auto Place = [&](int64_t piece) { return piece == threads ? count : count * piece / threads / 16 * 16; };
  ParallelFor(threads, threads, [&](int64_t piece) { body(Place(piece), Place(piece + 1)); });
}

// A panel tensor [H][W][panels][N][16] as `units` of N * 16 floats, `panels` of them for every pixel.
struct PanelUnits {
  int64_t batch = 0, channels = 0, pixels = 0, panels = 0;

  PanelUnits() = default;
  explicit PanelUnits(const Shape& shape)
      : batch(shape[0]), channels(shape[1]), pixels(shape[2] * shape[3]), panels(PanelCount(shape[1])) {}
  int64_t unit_floats() const { return batch * kPanelChannels; }
  int64_t units() const { return pixels * panels; }
  int64_t floats() const { return units() * unit_floats(); }
  // Lanes of the last panel that hold channels.
  int64_t last_lanes() const { return channels - (panels - 1) * kPanelChannels; }
  // Zeroes the lanes without channel in units [begin, end).
  void ZeroTail(float* data, int64_t begin, int64_t end) const;
  // Cuts the units into one piece per useful thread and calls body(begin, end) for each.
  template <typename Body>
  void ParallelPieces(int thread_count, Body body) const {
    const int threads = UsefulThreads(thread_count, floats());
    ParallelFor(threads, threads,
                [&](int64_t piece) { body(units() * piece / threads, units() * (piece + 1) / threads); });
  }
};

}  // namespace gantry::cpu
