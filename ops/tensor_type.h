// The type of a value: element type, shape and, after lowering, the memory layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/status.h"

namespace gantry {

enum class DataType : uint8_t { kF32, kF64, kI32, kI64, kU8 };

// "f32", "f64", "i32", "i64", "u8".
std::string_view Name(DataType type);
absl::StatusOr<DataType> ParseDataType(std::string_view name);
size_t SizeBytes(DataType type);
inline bool IsFloat(DataType type) { return type == DataType::kF32 || type == DataType::kF64; }

// Dimensions, outermost first; row-major where the layout is plain. Every dimension is >= 0; a scalar has no dimension.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : dims_(dims) {}
  explicit Shape(std::vector<int64_t> dims) : dims_(std::move(dims)) {}
  explicit Shape(std::span<const int64_t> dims) : dims_(dims.begin(), dims.end()) {}

  int rank() const { return static_cast<int>(dims_.size()); }
  int64_t operator[](int axis) const { return dims_[axis]; }
  int64_t& operator[](int axis) { return dims_[axis]; }
  const std::vector<int64_t>& dims() const { return dims_; }
  // The product of the dimensions; 1 for a scalar.
  int64_t element_count() const;
  // Row-major strides in elements.
  std::vector<int64_t> Strides() const;
  // "[64,3,32,32]"; "[]" for a scalar.
  std::string ToString() const;
  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::vector<int64_t> dims_;
};

// `axis` counted from the front: -1 is the last of `rank`. kInvalidArgument when outside.
absl::StatusOr<int> NormalizeAxis(int64_t axis, int rank);
// The NumPy broadcast of both shapes; kInvalidArgument names both where they do not fit.
absl::StatusOr<Shape> BroadcastShapes(const Shape& a, const Shape& b);

// How the elements of a shape lie in memory.
enum class TensorLayout : uint8_t {
  kPlain,  // row-major
  kPanel,  // [N,C,H,W] f32 as [H][W][ceil(C/16)][N][16], the channel tail zero (ops/cpu/panel/panel_layout.h)
};
std::string_view Name(TensorLayout layout);

struct TensorType {
  DataType dtype = DataType::kF32;
  Shape shape;
  TensorLayout layout = TensorLayout::kPlain;

  int64_t element_count() const { return shape.element_count(); }
  // Bytes of memory, padding of the layout included.
  int64_t size_bytes() const;
  // "f32[64,3,32,32]", with ":panel" behind it where the layout is not plain.
  std::string ToString() const;
  friend bool operator==(const TensorType&, const TensorType&) = default;
};

}  // namespace gantry
