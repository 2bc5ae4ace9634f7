// Tensors known at import: initializers and what follows from constants.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "ops/tensor_type.h"
#include "runtime/graph/onnx/onnx_subset.pb.h"

namespace gantry::onnx {

enum class ElementKind : uint8_t { kFloat, kInt, kBool };

// Floats of any width are doubles here, integers and bools are int64. One stored element may stand for all.
struct HostTensor {
  ElementKind kind = ElementKind::kFloat;
  Shape shape;
  std::vector<double> floats;  // of kFloat
  std::vector<int64_t> ints;   // of kInt and kBool (0 or 1)

  static HostTensor Floats(Shape shape, std::vector<double> values) {
    return {ElementKind::kFloat, std::move(shape), std::move(values), {}};
  }
  static HostTensor Ints(Shape shape, std::vector<int64_t> values) {
    return {ElementKind::kInt, std::move(shape), {}, std::move(values)};
  }

  int64_t element_count() const { return shape.element_count(); }
  size_t stored() const { return kind == ElementKind::kFloat ? floats.size() : ints.size(); }
  // All elements are the stored first one.
  bool is_splat() const { return stored() == 1; }
  double Real(int64_t index) const {
    const size_t place = is_splat() ? 0 : static_cast<size_t>(index);
    return kind == ElementKind::kFloat ? floats[place] : static_cast<double>(ints[place]);
  }
  // Floats are cut to integers, and to the range of int64.
  int64_t Integer(int64_t index) const;
  // Keeps one element if all are equal.
  void CollapseSplat();
};

// Cut towards zero, limited to int64; 0 for NaN.
int64_t ToInt64(double value);

// What the header of a tensor says, checked: known element type, dimensions within the limits of infer::CheckShape.
struct TensorHeader {
  ElementKind kind = ElementKind::kFloat;
  int element_bytes = 0;
  Shape shape;
};
absl::StatusOr<TensorHeader> ReadHeader(const TensorProto& tensor);

// The element kind of an ONNX TensorProto.DataType; kUnimplemented for strings, complex and packed types.
absl::StatusOr<ElementKind> KindOf(int32_t onnx_type, int* element_bytes);

// The elements. Their number is checked against the data before anything is allocated. External data is read from files
// inside `folder`; an empty folder means there are none.
absl::StatusOr<HostTensor> ReadTensor(const TensorProto& tensor, const std::filesystem::path& folder);

// The number that was most likely rounded to the f32 `value`: a root or reciprocal of a small integer, a well-known
// constant, or the shortest decimal. Never further away than f32 rounding.
double BeforeRounding(float value);
// The same for a value that is exactly an f32, itself otherwise.
double BeforeRounding(double value);

}  // namespace gantry::onnx
