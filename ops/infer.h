// Checks that shape inference is made of. Errors name attributes, types and shapes; the caller puts the op's name before them.
// The number of inputs lies within the definition's bounds when `infer` is called.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>
#include <vector>

#include "ops/op_definition.h"

namespace gantry::infer {

// Limits of every tensor, so that no product of dimensions overflows and no hostile attribute allocates without bound.
inline constexpr int kMaxRank = 8;
inline constexpr int64_t kMaxElements = int64_t{1} << 40;

using Inputs = std::span<const TensorType>;
using Outputs = absl::StatusOr<std::vector<TensorType>>;

// One plain output, once its shape is checked.
Outputs One(DataType dtype, Shape shape);
// Rank at most kMaxRank, no negative dimension, and at most kMaxElements elements (zeros counted as ones).
absl::Status CheckShape(const Shape& shape);

// Every input is f32 or f64.
absl::Status RequireFloat(Inputs inputs);
// All inputs have the element type of the first.
absl::Status RequireSameDataType(Inputs inputs);
// Both of the above.
absl::Status RequireSameFloat(Inputs inputs);
// All inputs have the shape of the first.
absl::Status RequireSameShape(Inputs inputs);
// `type` ("what it is", for the error) has between min_rank and max_rank dimensions.
absl::Status RequireRank(const TensorType& type, std::string_view what, int min_rank, int max_rank);
// `type` has exactly `shape`.
absl::Status RequireShape(const TensorType& type, std::string_view what, const Shape& shape);
// The broadcast of all shapes.
absl::StatusOr<Shape> Broadcast(Inputs inputs);

// Attributes that must be there, of the right kind, within [min, max].
inline constexpr int64_t kNoLimit = INT64_MAX, kNoMinimum = INT64_MIN;
absl::StatusOr<int64_t> IntAttribute(const Attributes& attributes, std::string_view name, int64_t min = kNoMinimum,
                                     int64_t max = kNoLimit);
// An int64 counts as a double too. Infinite only where `finite` is false; never a NaN.
absl::StatusOr<double> FloatAttribute(const Attributes& attributes, std::string_view name, bool finite = true);
absl::StatusOr<std::string> StringAttribute(const Attributes& attributes, std::string_view name,
                                            std::initializer_list<std::string_view> allowed);
// `size` entries, or any number up to 2 * kMaxRank where size is -1.
absl::StatusOr<std::vector<int64_t>> IntsAttribute(const Attributes& attributes, std::string_view name, int size = -1,
                                                   int64_t min = kNoMinimum, int64_t max = kNoLimit);
// Dimensions that pass CheckShape.
absl::StatusOr<Shape> ShapeAttribute(const Attributes& attributes, std::string_view name);
absl::StatusOr<DataType> DataTypeAttribute(const Attributes& attributes, std::string_view name);
// An axis of `rank` dimensions, counted from the front.
absl::StatusOr<int> AxisAttribute(const Attributes& attributes, std::string_view name, int rank);
// Axes of `rank` dimensions, each once, sorted; all of them where the attribute is empty.
absl::StatusOr<std::vector<int>> AxesAttribute(const Attributes& attributes, std::string_view name, int rank);

}  // namespace gantry::infer
