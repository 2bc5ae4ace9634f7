// Resize (opset 10 on) and Upsample (before).
#include <cmath>

#include "ops/functional.h"
#include "ops/infer.h"
#include "runtime/graph/onnx/node.h"

namespace gantry::onnx {
namespace {

// What a Resize asks for, per axis of the input.
struct Wanted {
  std::vector<float> scales;  // as given; empty where sizes are
  std::vector<int64_t> sizes;
};

absl::StatusOr<std::vector<float>> ReadScales(Node& node, int input) {
  GANTRY_ASSIGN_OR_RETURN(const auto host, node.Constant(input));
  if (host->shape.rank() != 1 || host->element_count() > infer::kMaxRank) {
    return absl::InvalidArgumentError(absl::StrFormat("its scales are %s", host->shape.ToString()));
  }
  std::vector<float> scales;
  for (int64_t i = 0; i < host->element_count(); ++i) scales.push_back(static_cast<float>(host->Real(i)));
  return scales;
}

absl::StatusOr<Wanted> ReadWanted(Node& node, const Shape& shape) {
  Wanted wanted;
  if (node.op() == "Upsample") {
    if (node.HasAttribute("scales")) {
      wanted.scales = node.RawFloats("scales");
    } else {
      GANTRY_ASSIGN_OR_RETURN(wanted.scales, ReadScales(node, 1));
    }
  } else if (node.opset() == 10) {
    GANTRY_ASSIGN_OR_RETURN(wanted.scales, ReadScales(node, 1));
  } else {
    // Some exporters give empty scales beside sizes.
    if (node.HasInput(2)) {
      GANTRY_ASSIGN_OR_RETURN(wanted.scales, ReadScales(node, 2));
    }
    if (wanted.scales.empty() && node.HasInput(3)) {
      GANTRY_ASSIGN_OR_RETURN(wanted.sizes, node.ConstantInts(3));
    }
  }
  const size_t count = wanted.scales.size() + wanted.sizes.size();
  if (count == 0) return absl::InvalidArgumentError("neither scales nor sizes are given");
  const std::vector<int64_t> axes = node.Ints("axes");
  if (axes.empty()) {
    if (count != static_cast<size_t>(shape.rank())) {
      return absl::InvalidArgumentError(absl::StrFormat("it has %d scales or sizes for %s", count, shape.ToString()));
    }
    return wanted;
  }
  if (axes.size() != count) return absl::InvalidArgumentError("its axes are not as many as its scales or sizes");
  Wanted full;
  if (wanted.sizes.empty()) full.scales.assign(shape.rank(), 1.0f);
  if (wanted.scales.empty()) full.sizes = shape.dims();
  for (size_t i = 0; i < axes.size(); ++i) {
    GANTRY_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(axes[i], shape.rank()));
    if (wanted.sizes.empty()) {
      full.scales[axis] = wanted.scales[i];
    } else {
      full.sizes[axis] = wanted.sizes[i];
    }
  }
  return full;
}

// The ops' name of a coordinate mode; changes `rounding` where that expresses the mode.
absl::StatusOr<std::string> Coordinates(Node& node, std::string& rounding, bool exact) {
  if (node.op() == "Upsample" || node.opset() == 10) return "asymmetric";
  const std::string mode = node.String("coordinate_transformation_mode", "half_pixel");
  if (mode == "half_pixel" || mode == "asymmetric" || mode == "align_corners" || mode == "pytorch_half_pixel")
    return mode;
  // Equal to half_pixel where no part of an output pixel is cut off.
  if (mode == "half_pixel_symmetric" && exact) return "half_pixel";
  if (mode == "tf_half_pixel_for_nn" && rounding == "floor") {
    rounding = "round_prefer_ceil";  // floor(c + 1/2)
    return "half_pixel";
  }
  return absl::UnimplementedError(
      absl::StrFormat("the coordinate_transformation_mode '%s' is not supported here", mode));
}

absl::Status ImportResize(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const ValueId x, node.Value(0));
  Program& p = node.program();
  const Shape shape = p.TypeOf(x).shape;
  if (shape.rank() < 3 || shape.rank() > 5) {
    return absl::UnimplementedError(
        absl::StrFormat("its input must be [N,C] and 1 to 3 spatial dimensions, not %s", shape.ToString()));
  }
  GANTRY_ASSIGN_OR_RETURN(const Wanted wanted, ReadWanted(node, shape));
  std::string mode = node.String("mode", "nearest");
  if (mode == "bilinear" || mode == "trilinear") mode = "linear";
  if (mode != "nearest" && mode != "linear") {
    return absl::UnimplementedError(absl::StrFormat("the mode '%s' is not supported; use nearest or linear", mode));
  }
  if (node.String("keep_aspect_ratio_policy", "stretch") != "stretch") {
    return absl::UnimplementedError("only the keep_aspect_ratio_policy 'stretch' is supported");
  }
  std::vector<int64_t> output;
  std::vector<double> scales;
  bool exact = true;
  bool shrinks = false;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    const auto extent = static_cast<float>(shape[axis]);
    if (wanted.sizes.empty() && !(wanted.scales[axis] > 0.0f && wanted.scales[axis] * extent < 0x1p40f)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("its scale %g of axis %d is out of range", wanted.scales[axis], axis));
    }
    const int64_t size =
        wanted.sizes.empty() ? static_cast<int64_t>(std::floor(extent * wanted.scales[axis])) : wanted.sizes[axis];
    if (axis < 2) {
      if (size != shape[axis])
        return absl::UnimplementedError("only spatial dimensions can be resized, not batch or channels");
      continue;
    }
    output.push_back(size);
    scales.push_back(wanted.sizes.empty() ? wanted.scales[axis]
                                          : static_cast<double>(size) / static_cast<double>(shape[axis]));
    exact = exact && scales.back() * static_cast<double>(shape[axis]) == static_cast<double>(size);
    shrinks = shrinks || size < shape[axis];
  }
  if (node.Int("antialias", 0) != 0 && shrinks) {
    return absl::UnimplementedError("antialias is not supported where an image shrinks; average-pool it instead");
  }
  std::string rounding = "floor";
  if (node.op() == "Resize" && node.opset() >= 11) rounding = node.String("nearest_mode", "round_prefer_floor");
  if (mode == "nearest" && rounding != "floor" && rounding != "ceil" && rounding != "round_prefer_floor" &&
      rounding != "round_prefer_ceil") {
    return absl::InvalidArgumentError(absl::StrFormat("its nearest_mode is '%s'", rounding));
  }
  GANTRY_ASSIGN_OR_RETURN(const std::string coordinates, Coordinates(node, rounding, exact || !wanted.sizes.empty()));
  Attributes attributes = {{"mode", mode}, {"coordinates", coordinates}, {"rounding", rounding}};
  if (!exact && wanted.sizes.empty()) attributes.Set("scales", scales);
  return node.SetValue(0, ops::Resize(p, x, output, std::move(attributes)));
}

}  // namespace

std::vector<Operator> ResizeOperators() { return {{"Resize", ImportResize}, {"Upsample", ImportResize}}; }

}  // namespace gantry::onnx
