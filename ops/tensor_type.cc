#include "ops/tensor_type.h"

#include <algorithm>

#include "absl/strings/str_join.h"

namespace gantry {

std::string_view Name(DataType type) {
  switch (type) {
    case DataType::kF32: return "f32";
    case DataType::kF64: return "f64";
    case DataType::kI32: return "i32";
    case DataType::kI64: return "i64";
    case DataType::kU8: return "u8";
  }
  return "?";
}

absl::StatusOr<DataType> ParseDataType(std::string_view name) {
  for (DataType type : {DataType::kF32, DataType::kF64, DataType::kI32, DataType::kI64, DataType::kU8}) {
    if (Name(type) == name) return type;
  }
  return absl::InvalidArgumentError(absl::StrFormat("unknown element type '%s'; known are f32, f64, i32, i64, u8", name));
}

size_t SizeBytes(DataType type) {
  switch (type) {
    case DataType::kF32: case DataType::kI32: return 4;
    case DataType::kF64: case DataType::kI64: return 8;
    case DataType::kU8: return 1;
  }
  return 0;
}

int64_t Shape::element_count() const {
  int64_t count = 1;
  for (int64_t dim : dims_) count *= dim;
  return count;
}

std::vector<int64_t> Shape::Strides() const {
  std::vector<int64_t> strides(dims_.size(), 1);
  for (int axis = rank() - 2; axis >= 0; --axis) strides[axis] = strides[axis + 1] * dims_[axis + 1];
  return strides;
}

std::string Shape::ToString() const { return absl::StrCat("[", absl::StrJoin(dims_, ","), "]"); }

absl::StatusOr<int> NormalizeAxis(int64_t axis, int rank) {
  if (axis < -rank || axis >= rank) {
    return absl::InvalidArgumentError(absl::StrFormat("axis %d is outside a shape of %d dimensions", axis, rank));
  }
  return static_cast<int>(axis < 0 ? axis + rank : axis);
}

absl::StatusOr<Shape> BroadcastShapes(const Shape& a, const Shape& b) {
  const int rank = std::max(a.rank(), b.rank());
  std::vector<int64_t> dims(rank);
  for (int back = 1; back <= rank; ++back) {
    const int64_t dim_a = back <= a.rank() ? a[a.rank() - back] : 1;
    const int64_t dim_b = back <= b.rank() ? b[b.rank() - back] : 1;
    if (dim_a != dim_b && dim_a != 1 && dim_b != 1) {
      return absl::InvalidArgumentError(
          absl::StrFormat("shapes %s and %s do not broadcast: %d against %d", a.ToString(), b.ToString(), dim_a, dim_b));
    }
    dims[rank - back] = dim_a == 1 ? dim_b : dim_a;
  }
  return Shape(std::move(dims));
}

std::string_view Name(TensorLayout layout) { return layout == TensorLayout::kPlain ? "plain" : "panel"; }

int64_t TensorType::size_bytes() const {
  const auto element_bytes = static_cast<int64_t>(SizeBytes(dtype));
  if (layout == TensorLayout::kPanel) {
    return element_bytes * shape[0] * ((shape[1] + 15) / 16 * 16) * shape[2] * shape[3];
  }
  return element_bytes * shape.element_count();
}

std::string TensorType::ToString() const {
  std::string text = absl::StrCat(ToAbsl(Name(dtype)), shape.ToString());
  if (layout != TensorLayout::kPlain) absl::StrAppend(&text, ":", ToAbsl(Name(layout)));
  return text;
}

}  // namespace gantry
