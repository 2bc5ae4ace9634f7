#include "runtime/graph/onnx/fold.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "ops/infer.h"
#include "runtime/graph/onnx/importer.h"

namespace gantry::onnx {
namespace {

absl::Status CheckFoldable(const Shape& shape) {
  GANTRY_RETURN_IF_ERROR(infer::CheckShape(shape));
  if (shape.element_count() <= kMaxFoldedElements) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrFormat("the constant %s is too large to be computed at import (at most %d elements)", shape.ToString(),
                      kMaxFoldedElements));
}

// The strides with which x of `from` is read as if broadcast to `to`, right-aligned.
std::vector<int64_t> BroadcastStrides(const Shape& from, const Shape& to) {
  const std::vector<int64_t> own = from.Strides();
  std::vector<int64_t> strides(to.rank(), 0);
  const int lead = to.rank() - from.rank();
  for (int axis = 0; axis < from.rank(); ++axis) {
    if (from[axis] != 1) strides[lead + axis] = own[axis];
  }
  return strides;
}

// Calls visit(offset) for every element of `shape` in row-major order.
template <typename Visit>
void ForEachOffset(const Shape& shape, int64_t offset, const std::vector<int64_t>& strides, Visit visit) {
  const int64_t count = shape.element_count();
  std::vector<int64_t> index(shape.rank(), 0);
  for (int64_t i = 0; i < count; ++i) {
    visit(offset);
    for (int axis = shape.rank() - 1; axis >= 0; --axis) {
      offset += strides[axis];
      if (++index[axis] < shape[axis]) break;
      offset -= strides[axis] * shape[axis];
      index[axis] = 0;
    }
  }
}

int64_t Wrap(uint64_t value) { return static_cast<int64_t>(value); }

absl::StatusOr<int64_t> IntBinary(std::string_view op, int64_t a, int64_t b) {
  const auto ua = static_cast<uint64_t>(a);
  const auto ub = static_cast<uint64_t>(b);
  if (op == "Add") return Wrap(ua + ub);
  if (op == "Sub") return Wrap(ua - ub);
  if (op == "Mul") return Wrap(ua * ub);
  if (op == "Min") return std::min(a, b);
  if (op == "Max") return std::max(a, b);
  if (op == "Pow") return ToInt64(std::pow(static_cast<double>(a), static_cast<double>(b)));
  if (b == 0) return absl::InvalidArgumentError("an integer constant is divided by zero");
  if (b == -1) return op == "Div" ? Wrap(0 - ua) : 0;
  if (op == "Div") return a / b;
  const int64_t rest = a % b;  // Mod: the sign of the divisor, as in Python
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

double RealBinary(std::string_view op, double a, double b) {
  if (op == "Add") return a + b;
  if (op == "Sub") return a - b;
  if (op == "Mul") return a * b;
  if (op == "Div") return a / b;
  if (op == "Min") return std::min(a, b);
  if (op == "Max") return std::max(a, b);
  if (op == "Pow") return std::pow(a, b);
  return std::fmod(a, b);
}

bool Compare(std::string_view op, double a, double b) {
  if (op == "Equal") return a == b;
  if (op == "Greater") return a > b;
  if (op == "GreaterOrEqual") return a >= b;
  if (op == "Less") return a < b;
  if (op == "LessOrEqual") return a <= b;
  if (op == "And") return a != 0 && b != 0;
  if (op == "Or") return a != 0 || b != 0;
  return (a != 0) != (b != 0);  // Xor
}

bool IsArithmetic(std::string_view op) {
  for (std::string_view name : {"Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Mod"}) {
    if (op == name) return true;
  }
  return false;
}

const std::map<std::string_view, double (*)(double)>& UnaryFunctions() {
  static const auto* const functions = new std::map<std::string_view, double (*)(double)>{
      {"Neg", [](double x) { return -x; }},
      {"Abs", [](double x) { return std::abs(x); }},
      {"Sign", [](double x) { return static_cast<double>((x > 0) - (x < 0)); }},
      {"Sqrt", [](double x) { return std::sqrt(x); }},
      {"Exp", [](double x) { return std::exp(x); }},
      {"Log", [](double x) { return std::log(x); }},
      {"Reciprocal", [](double x) { return 1 / x; }},
      {"Floor", [](double x) { return std::floor(x); }},
      {"Ceil", [](double x) { return std::ceil(x); }},
      {"Round", [](double x) { return std::nearbyint(x); }},
      {"Erf", [](double x) { return std::erf(x); }},
      {"Sin", [](double x) { return std::sin(x); }},
      {"Cos", [](double x) { return std::cos(x); }},
      {"Tanh", [](double x) { return std::tanh(x); }},
      {"Sigmoid", [](double x) { return 1 / (1 + std::exp(-x)); }},
      {"Relu", [](double x) { return std::max(x, 0.0); }},
      {"Not", [](double x) { return static_cast<double>(x == 0); }},
  };
  return *functions;
}

// Zero elements are stored as none.
HostTensor Empty(ElementKind kind, Shape shape) { return HostTensor{kind, std::move(shape), {}, {}}; }

}  // namespace

HostTensor FoldReshape(const HostTensor& x, Shape shape) {
  HostTensor result = x;
  result.shape = std::move(shape);
  return result;
}

absl::StatusOr<HostTensor> FoldStrided(const HostTensor& x, Shape shape, int64_t offset,
                                       const std::vector<int64_t>& strides) {
  GANTRY_RETURN_IF_ERROR(infer::CheckShape(shape));
  if (shape.element_count() == 0) return Empty(x.kind, std::move(shape));
  if (x.is_splat()) return FoldReshape(x, std::move(shape));
  GANTRY_RETURN_IF_ERROR(CheckFoldable(shape));
  HostTensor result{x.kind, shape, {}, {}};
  const auto Copy = [&](const auto& from, auto& to) {
    to.reserve(shape.element_count());
    ForEachOffset(shape, offset, strides, [&](int64_t place) { to.push_back(from[place]); });
  };
  if (x.kind == ElementKind::kFloat) {
    Copy(x.floats, result.floats);
  } else {
    Copy(x.ints, result.ints);
  }
  return result;
}

absl::StatusOr<HostTensor> FoldBroadcast(const HostTensor& x, const Shape& shape) {
  return FoldStrided(x, shape, 0, BroadcastStrides(x.shape, shape));
}

absl::StatusOr<HostTensor> FoldBinary(std::string_view op, const HostTensor& a, const HostTensor& b) {
  GANTRY_ASSIGN_OR_RETURN(const Shape shape, BroadcastShapes(a.shape, b.shape));
  GANTRY_RETURN_IF_ERROR(infer::CheckShape(shape));
  const bool arithmetic = IsArithmetic(op);
  const bool both_ints = a.kind != ElementKind::kFloat && b.kind != ElementKind::kFloat;
  HostTensor result;
  result.kind = !arithmetic ? ElementKind::kBool : both_ints ? ElementKind::kInt : ElementKind::kFloat;
  result.shape = shape;
  if (shape.element_count() == 0) return result;
  const bool splat = a.is_splat() && b.is_splat();
  if (!splat) GANTRY_RETURN_IF_ERROR(CheckFoldable(shape));
  const Shape walked = splat ? Shape() : shape;
  std::vector<int64_t> places_b;
  const std::vector<int64_t> strides_a = BroadcastStrides(a.is_splat() ? Shape() : a.shape, walked);
  const std::vector<int64_t> strides_b = BroadcastStrides(b.is_splat() ? Shape() : b.shape, walked);
  places_b.reserve(walked.element_count());
  ForEachOffset(walked, 0, strides_b, [&](int64_t place) { places_b.push_back(place); });
  absl::Status status;
  size_t next = 0;
  ForEachOffset(walked, 0, strides_a, [&](int64_t place_a) {
    const int64_t place_b = places_b[next++];
    if (result.kind == ElementKind::kFloat) {
      result.floats.push_back(RealBinary(op, a.Real(place_a), b.Real(place_b)));
    } else if (arithmetic) {
      const absl::StatusOr<int64_t> value = IntBinary(op, a.Integer(place_a), b.Integer(place_b));
      if (!value.ok()) status = value.status();
      result.ints.push_back(value.ok() ? *value : 0);
    } else if (both_ints && op == "Equal") {
      result.ints.push_back(a.Integer(place_a) == b.Integer(place_b));
    } else {
      result.ints.push_back(Compare(op, a.Real(place_a), b.Real(place_b)));
    }
  });
  GANTRY_RETURN_IF_ERROR(status);
  return result;
}

bool IsFoldableUnary(std::string_view op) { return UnaryFunctions().contains(op); }

absl::StatusOr<HostTensor> FoldUnary(std::string_view op, const HostTensor& x) {
  const auto function = UnaryFunctions().find(op);
  if (function == UnaryFunctions().end()) return absl::UnimplementedError("it cannot be applied to a constant");
  HostTensor result = x;
  for (double& value : result.floats) value = function->second(value);
  for (int64_t& value : result.ints) value = ToInt64(function->second(static_cast<double>(value)));
  return result;
}

absl::StatusOr<HostTensor> FoldCast(const HostTensor& x, ElementKind kind) {
  HostTensor result{kind, x.shape, {}, {}};
  const auto stored = static_cast<int64_t>(x.stored());
  for (int64_t i = 0; i < stored; ++i) {
    if (kind == ElementKind::kFloat) {
      result.floats.push_back(x.Real(i));
    } else if (kind == ElementKind::kInt) {
      result.ints.push_back(x.Integer(i));
    } else {
      result.ints.push_back(x.Real(i) != 0);
    }
  }
  return result;
}

absl::StatusOr<HostTensor> FoldWhere(const HostTensor& condition, const HostTensor& x, const HostTensor& y) {
  if ((x.kind == ElementKind::kFloat) != (y.kind == ElementKind::kFloat)) {
    return absl::InvalidArgumentError("its two choices are of different types");
  }
  GANTRY_ASSIGN_OR_RETURN(Shape shape, BroadcastShapes(x.shape, y.shape));
  GANTRY_ASSIGN_OR_RETURN(shape, BroadcastShapes(condition.shape, shape));
  GANTRY_RETURN_IF_ERROR(CheckFoldable(shape));
  const auto Expand = [&](const HostTensor& from) { return FoldBroadcast(from, shape); };
  GANTRY_ASSIGN_OR_RETURN(const HostTensor choices, Expand(condition));
  GANTRY_ASSIGN_OR_RETURN(const HostTensor yes, Expand(x));
  GANTRY_ASSIGN_OR_RETURN(const HostTensor no, Expand(y));
  HostTensor result{x.kind, shape, {}, {}};
  const int64_t count = shape.element_count();
  for (int64_t i = 0; i < count; ++i) {
    const HostTensor& chosen = choices.Real(i) != 0 ? yes : no;
    if (x.kind == ElementKind::kFloat) {
      result.floats.push_back(chosen.Real(i));
    } else {
      result.ints.push_back(chosen.Integer(i));
    }
  }
  return result;
}

absl::StatusOr<HostTensor> FoldReduce(std::string_view op, const HostTensor& x, const std::vector<int>& axes,
                                      bool keep_dims) {
  std::vector<int64_t> kept = x.shape.dims();
  int64_t share = 1;
  for (int axis : axes) {
    share *= kept[axis];
    kept[axis] = 1;
  }
  const Shape kept_shape(kept);
  GANTRY_RETURN_IF_ERROR(CheckFoldable(x.shape));
  if (x.element_count() == 0) return absl::InvalidArgumentError("an empty constant cannot be reduced");
  std::vector<int64_t> places;
  places.reserve(x.element_count());
  ForEachOffset(x.shape, 0, BroadcastStrides(kept_shape, x.shape), [&](int64_t place) { places.push_back(place); });
  const bool real = x.kind == ElementKind::kFloat;
  std::vector<double> sums(kept_shape.element_count());
  std::vector<bool> begun(sums.size(), false);
  for (size_t i = 0; i < places.size(); ++i) {
    const double value = x.Real(static_cast<int64_t>(i));
    double& sum = sums[places[i]];
    if (!begun[places[i]]) {
      sum = value;
      begun[places[i]] = true;
    } else if (op == "ReduceMax") {
      sum = std::max(sum, value);
    } else if (op == "ReduceMin") {
      sum = std::min(sum, value);
    } else if (op == "ReduceProd") {
      sum *= value;
    } else {
      sum += value;
    }
  }
  if (op == "ReduceMean") {
    for (double& sum : sums) sum /= static_cast<double>(share);
  }
  std::vector<int64_t> dims;
  for (int axis = 0; axis < x.shape.rank(); ++axis) {
    const bool reduced = std::find(axes.begin(), axes.end(), axis) != axes.end();
    if (!reduced || keep_dims) dims.push_back(kept[axis]);
  }
  if (real) return HostTensor::Floats(Shape(dims), std::move(sums));
  HostTensor result = HostTensor::Ints(Shape(dims), {});
  for (double sum : sums) result.ints.push_back(ToInt64(sum));
  return result;
}

absl::StatusOr<HostTensor> FoldRange(const HostTensor& start, const HostTensor& limit, const HostTensor& delta) {
  if (start.element_count() != 1 || limit.element_count() != 1 || delta.element_count() != 1) {
    return absl::InvalidArgumentError("start, limit and delta must be single numbers");
  }
  const double first = start.Real(0);
  const double step = delta.Real(0);
  const double length = std::ceil((limit.Real(0) - first) / step);
  if (step == 0 || std::isnan(length)) return absl::InvalidArgumentError("its step is zero or not a number");
  if (length > static_cast<double>(kMaxFoldedElements)) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("a range of %g elements is too long (at most %d)", length, kMaxFoldedElements));
  }
  const int64_t count = std::max<int64_t>(0, ToInt64(length));
  HostTensor result{start.kind, Shape{count}, {}, {}};
  for (int64_t i = 0; i < count; ++i) {
    const double value = first + static_cast<double>(i) * step;
    if (start.kind == ElementKind::kFloat) {
      result.floats.push_back(value);
    } else {
      result.ints.push_back(ToInt64(value));
    }
  }
  return result;
}

absl::StatusOr<HostTensor> FoldConcat(const std::vector<const HostTensor*>& parts, int axis) {
  Shape shape = parts[0]->shape;
  int64_t outer = 1;
  for (int i = 0; i < axis; ++i) outer *= shape[i];
  shape[axis] = 0;
  for (const HostTensor* part : parts) {
    Shape other = part->shape;
    if (other.rank() != shape.rank() ||
        (part->kind == ElementKind::kFloat) != (parts[0]->kind == ElementKind::kFloat)) {
      return absl::InvalidArgumentError("its inputs differ in rank or type");
    }
    const int64_t extent = other[axis];
    other[axis] = shape[axis];
    if (!(other == shape)) {
      return absl::InvalidArgumentError(absl::StrFormat("%s does not fit to %s along axis %d", part->shape.ToString(),
                                                        parts[0]->shape.ToString(), axis));
    }
    shape[axis] += extent;
    GANTRY_RETURN_IF_ERROR(CheckFoldable(shape));
  }
  HostTensor result{parts[0]->kind, shape, {}, {}};
  if (shape.element_count() == 0) return result;
  for (int64_t row = 0; row < outer; ++row) {
    for (const HostTensor* part : parts) {
      const int64_t run = part->element_count() / outer;
      for (int64_t i = row * run; i < (row + 1) * run; ++i) {
        if (result.kind == ElementKind::kFloat) {
          result.floats.push_back(part->Real(i));
        } else {
          result.ints.push_back(part->Integer(i));
        }
      }
    }
  }
  return result;
}

}  // namespace gantry::onnx
