// Where a value of the whole program is on the ranks of one axis.
#pragma once

#include <cstdint>
#include <vector>

namespace gantry {

struct Placement {
  enum class Kind : uint8_t {
    kWhole,    // every rank has all of it
    kSplit,    // rank i has [cuts[i], cuts[i + 1]) along `dim`
    kPartial,  // it is the sum of what the ranks have
    kFlat,     // rank i has elements [cuts[i], cuts[i + 1]) of the row-major tensor, as a tensor of one dimension
  };
  Kind kind = Kind::kWhole;
  int dim = -1;
  std::vector<int64_t> cuts;

  bool whole() const { return kind == Kind::kWhole; }
  bool partial() const { return kind == Kind::kPartial; }
  bool split() const { return kind == Kind::kSplit; }
  bool flat() const { return kind == Kind::kFlat; }
  bool split(int axis) const { return kind == Kind::kSplit && dim == axis; }
  friend bool operator==(const Placement&, const Placement&) = default;

  static Placement Whole() { return {}; }
  static Placement Partial() { return {.kind = Kind::kPartial}; }
  static Placement Split(int dim, std::vector<int64_t> cuts) { return {.kind = Kind::kSplit, .dim = dim, .cuts = std::move(cuts)}; }
  static Placement Flat(std::vector<int64_t> cuts) { return {.kind = Kind::kFlat, .cuts = std::move(cuts)}; }
};

}  // namespace gantry
