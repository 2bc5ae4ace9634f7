#include "ops/infer.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_join.h"

namespace gantry::infer {
namespace {

absl::Status Missing(std::string_view name, std::string_view kind) {
  return absl::InvalidArgumentError(absl::StrFormat("attribute '%s' (%s) is missing or of another kind", name, kind));
}

template <typename T>
const T* FindTyped(const Attributes& attributes, std::string_view name) {
  const AttributeValue* value = attributes.Find(name);
  return value == nullptr ? nullptr : std::get_if<T>(value);
}

absl::Status CheckRange(std::string_view name, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  if (max == kNoLimit)
    return absl::InvalidArgumentError(
        absl::StrFormat("attribute '%s' is %d; it must be at least %d", name, value, min));
  return absl::InvalidArgumentError(
      absl::StrFormat("attribute '%s' is %d; it must be from %d to %d", name, value, min, max));
}

std::string Describe(Inputs inputs) {
  std::string text;
  const size_t shown = std::min<size_t>(inputs.size(), 8);
  for (size_t i = 0; i < shown; ++i) absl::StrAppend(&text, i == 0 ? "" : ", ", inputs[i].ToString());
  if (shown < inputs.size()) absl::StrAppend(&text, ", ... (", inputs.size(), " in all)");
  return text;
}

}  // namespace

absl::Status CheckShape(const Shape& shape) {
  if (shape.rank() > kMaxRank) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a shape of %d dimensions; at most %d are supported", shape.rank(), kMaxRank));
  }
  int64_t count = 1;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (shape[axis] < 0) {
      return absl::InvalidArgumentError(absl::StrFormat("shape %s has a negative dimension", shape.ToString()));
    }
    const int64_t dim = std::max<int64_t>(shape[axis], 1);
    if (dim > kMaxElements / count) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "shape %s has more than %d elements, the most a tensor may have", shape.ToString(), kMaxElements));
    }
    count *= dim;
  }
  return absl::OkStatus();
}

Outputs One(DataType dtype, Shape shape) {
  GANTRY_RETURN_IF_ERROR(CheckShape(shape));
  return std::vector<TensorType>{TensorType{dtype, std::move(shape)}};
}

absl::Status RequireFloat(Inputs inputs) {
  for (const TensorType& input : inputs) {
    if (!IsFloat(input.dtype)) {
      return absl::InvalidArgumentError(absl::StrFormat("inputs must be f32 or f64, got %s", Describe(inputs)));
    }
  }
  return absl::OkStatus();
}

absl::Status RequireSameDataType(Inputs inputs) {
  for (const TensorType& input : inputs) {
    if (input.dtype != inputs[0].dtype) {
      return absl::InvalidArgumentError(absl::StrFormat("inputs must have one element type, got %s", Describe(inputs)));
    }
  }
  return absl::OkStatus();
}

absl::Status RequireSameFloat(Inputs inputs) {
  GANTRY_RETURN_IF_ERROR(RequireFloat(inputs));
  return RequireSameDataType(inputs);
}

absl::Status RequireSameShape(Inputs inputs) {
  for (const TensorType& input : inputs) {
    if (input.shape != inputs[0].shape) {
      return absl::InvalidArgumentError(absl::StrFormat("inputs must have one shape, got %s", Describe(inputs)));
    }
  }
  return absl::OkStatus();
}

absl::Status RequireRank(const TensorType& type, std::string_view what, int min_rank, int max_rank) {
  if (type.shape.rank() >= min_rank && type.shape.rank() <= max_rank) return absl::OkStatus();
  const std::string wanted = min_rank == max_rank ? absl::StrCat(min_rank) : absl::StrCat(min_rank, " to ", max_rank);
  return absl::InvalidArgumentError(
      absl::StrFormat("%s must have %s dimensions, got %s", what, wanted, type.ToString()));
}

absl::Status RequireShape(const TensorType& type, std::string_view what, const Shape& shape) {
  if (type.shape == shape) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s must have shape %s, got %s", what, shape.ToString(), type.ToString()));
}

absl::StatusOr<Shape> Broadcast(Inputs inputs) {
  Shape shape;
  for (const TensorType& input : inputs) {
    GANTRY_ASSIGN_OR_RETURN(shape, BroadcastShapes(shape, input.shape));
  }
  return shape;
}

absl::StatusOr<int64_t> IntAttribute(const Attributes& attributes, std::string_view name, int64_t min, int64_t max) {
  const auto* value = FindTyped<int64_t>(attributes, name);
  if (value == nullptr) return Missing(name, "an integer");
  GANTRY_RETURN_IF_ERROR(CheckRange(name, *value, min, max));
  return *value;
}

absl::StatusOr<double> FloatAttribute(const Attributes& attributes, std::string_view name, bool finite) {
  if (FindTyped<int64_t>(attributes, name) == nullptr && FindTyped<double>(attributes, name) == nullptr) {
    return Missing(name, "a number");
  }
  const double value = attributes.Float(name);
  if (std::isnan(value) || (finite && std::isinf(value))) {
    return absl::InvalidArgumentError(absl::StrFormat("attribute '%s' is %g; it must be a finite number", name, value));
  }
  return value;
}

absl::StatusOr<std::string> StringAttribute(const Attributes& attributes, std::string_view name,
                                            std::initializer_list<std::string_view> allowed) {
  const auto* value = FindTyped<std::string>(attributes, name);
  if (value == nullptr) return Missing(name, "a string");
  if (std::find(allowed.begin(), allowed.end(), *value) != allowed.end()) return *value;
  std::string names;
  for (std::string_view one : allowed) absl::StrAppend(&names, names.empty() ? "" : ", ", ToAbsl(one));
  return absl::InvalidArgumentError(
      absl::StrFormat("attribute '%s' is '%s'; known are %s", name, value->substr(0, 64), names));
}

absl::StatusOr<std::vector<int64_t>> IntsAttribute(const Attributes& attributes, std::string_view name, int size,
                                                   int64_t min, int64_t max) {
  const auto* values = FindTyped<std::vector<int64_t>>(attributes, name);
  if (values == nullptr) return Missing(name, "a list of integers");
  const auto count = static_cast<int>(std::min<size_t>(values->size(), 1000));
  if (size >= 0 ? count != size : count > 2 * kMaxRank) {
    return absl::InvalidArgumentError(absl::StrFormat("attribute '%s' has %d entries; it must have %s%d", name,
                                                      values->size(), size >= 0 ? "" : "at most ",
                                                      size >= 0 ? size : 2 * kMaxRank));
  }
  for (int64_t value : *values) GANTRY_RETURN_IF_ERROR(CheckRange(name, value, min, max));
  return *values;
}

absl::StatusOr<Shape> ShapeAttribute(const Attributes& attributes, std::string_view name) {
  GANTRY_ASSIGN_OR_RETURN(std::vector<int64_t> dims, IntsAttribute(attributes, name));
  Shape shape(std::move(dims));
  GANTRY_RETURN_IF_ERROR(Annotate(CheckShape(shape), name));
  return shape;
}

absl::StatusOr<DataType> DataTypeAttribute(const Attributes& attributes, std::string_view name) {
  const auto* value = FindTyped<std::string>(attributes, name);
  if (value == nullptr) return Missing(name, "the name of an element type");
  return ParseDataType(std::string_view(*value).substr(0, 64));
}

absl::StatusOr<int> AxisAttribute(const Attributes& attributes, std::string_view name, int rank) {
  GANTRY_ASSIGN_OR_RETURN(const int64_t axis, IntAttribute(attributes, name));
  return NormalizeAxis(axis, rank);
}

absl::StatusOr<std::vector<int>> AxesAttribute(const Attributes& attributes, std::string_view name, int rank) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> given, IntsAttribute(attributes, name));
  std::vector<int> axes;
  for (int64_t axis : given) {
    GANTRY_ASSIGN_OR_RETURN(const int normalized, NormalizeAxis(axis, rank));
    axes.push_back(normalized);
  }
  if (given.empty()) {
    for (int axis = 0; axis < rank; ++axis) axes.push_back(axis);
  }
  std::sort(axes.begin(), axes.end());
  if (std::adjacent_find(axes.begin(), axes.end()) != axes.end()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("attribute '%s' names an axis twice: [%s]", name, absl::StrJoin(given, ",")));
  }
  return axes;
}

}  // namespace gantry::infer
