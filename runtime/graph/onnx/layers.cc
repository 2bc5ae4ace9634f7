// Convolutions and matrix products.
#include <algorithm>

#include "ops/functional.h"
#include "ops/infer.h"
#include "runtime/graph/onnx/rearrange.h"
#include "runtime/graph/onnx/windows.h"

namespace gantry::onnx {
namespace {

constexpr int64_t kLargestExtent = int64_t{1} << 20;  // of kernels, strides, pads and dilations

absl::StatusOr<std::vector<int64_t>> Extents(Node& node, std::string_view name, size_t size, int64_t fallback,
                                             int64_t least) {
  std::vector<int64_t> values = node.Ints(name, std::vector<int64_t>(size, fallback));
  if (values.size() != size) {
    return absl::InvalidArgumentError(
        absl::StrFormat("its attribute '%s' has %d entries, needed are %d", name, values.size(), size));
  }
  for (int64_t value : values) {
    if (value < least || value > kLargestExtent) {
      return absl::InvalidArgumentError(absl::StrFormat("its attribute '%s' has the entry %d; %d to %d are supported",
                                                        name, value, least, kLargestExtent));
    }
  }
  return values;
}

}  // namespace

std::pair<int64_t, int64_t> ShareOut(int64_t total, bool more_at_end) {
  const int64_t half = total / 2;
  return more_at_end ? std::pair(half, total - half) : std::pair(total - half, half);
}

absl::StatusOr<Window> ReadWindow(Node& node, const Shape& input, std::vector<int64_t> weight_kernel) {
  if (input.rank() < 3 || input.rank() > 5) {
    return absl::UnimplementedError(
        absl::StrFormat("its input must be [N,C] and 1 to 3 spatial dimensions, not %s", input.ToString()));
  }
  Window window;
  const auto rank = static_cast<size_t>(input.rank() - 2);
  if (node.HasAttribute("kernel_shape") || weight_kernel.empty()) {
    GANTRY_ASSIGN_OR_RETURN(window.kernel, Extents(node, "kernel_shape", rank, 0, 1));
  } else {
    window.kernel = weight_kernel;
  }
  if (!weight_kernel.empty() && window.kernel != weight_kernel) {
    return absl::InvalidArgumentError(absl::StrFormat("its kernel_shape %s is not that of its weight %s",
                                                      Shape(window.kernel).ToString(),
                                                      Shape(weight_kernel).ToString()));
  }
  for (int64_t extent : window.kernel) {
    if (extent < 1 || extent > kLargestExtent)
      return absl::InvalidArgumentError(absl::StrFormat("its kernel has the extent %d", extent));
  }
  GANTRY_ASSIGN_OR_RETURN(window.strides, Extents(node, "strides", rank, 1, 1));
  GANTRY_ASSIGN_OR_RETURN(window.dilations, Extents(node, "dilations", rank, 1, 1));
  GANTRY_ASSIGN_OR_RETURN(window.pads, Extents(node, "pads", 2 * rank, 0, 0));
  window.auto_pad = node.String("auto_pad", "NOTSET");
  if (window.auto_pad.empty()) window.auto_pad = "NOTSET";
  if (!window.same() && window.auto_pad != "NOTSET" && window.auto_pad != "VALID") {
    return absl::InvalidArgumentError(
        absl::StrFormat("auto_pad '%s' is none of NOTSET, VALID, SAME_UPPER, SAME_LOWER", window.auto_pad));
  }
  if (window.auto_pad == "VALID") window.pads.assign(2 * rank, 0);
  return window;
}

std::vector<int64_t> SamePads(const Window& window, const Shape& input) {
  std::vector<int64_t> pads(2 * window.kernel.size(), 0);
  for (int i = 0; i < window.rank(); ++i) {
    const int64_t output = (input[i + 2] + window.strides[i] - 1) / window.strides[i];
    const int64_t reach = (output - 1) * window.strides[i] + (window.kernel[i] - 1) * window.dilations[i] + 1;
    const auto [begin, end] = ShareOut(std::max<int64_t>(0, reach - input[i + 2]), window.auto_pad == "SAME_UPPER");
    pads[i] = begin;
    pads[window.rank() + i] = end;
  }
  return pads;
}

namespace {

// Values of a convolution's three inputs, and its window.
struct ConvolutionParts {
  ValueId x, weight, bias = kNoValue;
  Shape input, weight_shape;
  Window window;
  ops::ConvAttributes attributes;
};

absl::StatusOr<ConvolutionParts> ReadConvolution(Node& node) {
  ConvolutionParts parts;
  GANTRY_ASSIGN_OR_RETURN(parts.x, node.Value(0));
  GANTRY_ASSIGN_OR_RETURN(parts.weight, node.Value(1));
  if (node.HasInput(2)) {
    GANTRY_ASSIGN_OR_RETURN(parts.bias, node.Value(2));
  }
  parts.input = node.program().TypeOf(parts.x).shape;
  parts.weight_shape = node.program().TypeOf(parts.weight).shape;
  if (parts.weight_shape.rank() != parts.input.rank() || parts.input.rank() < 3) {
    return absl::InvalidArgumentError(absl::StrFormat("its weight %s does not fit to its input %s",
                                                      parts.weight_shape.ToString(), parts.input.ToString()));
  }
  const std::vector<int64_t> kernel(parts.weight_shape.dims().begin() + 2, parts.weight_shape.dims().end());
  GANTRY_ASSIGN_OR_RETURN(parts.window, ReadWindow(node, parts.input, kernel));
  parts.attributes.strides = parts.window.strides;
  parts.attributes.dilations = parts.window.dilations;
  parts.attributes.pads = parts.window.pads;
  parts.attributes.groups = node.Int("group", 1);
  if (parts.attributes.groups < 1)
    return absl::InvalidArgumentError(absl::StrFormat("its group is %d", parts.attributes.groups));
  return parts;
}

absl::Status ImportConv(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(ConvolutionParts parts, ReadConvolution(node));
  if (parts.window.same()) parts.attributes.pads = SamePads(parts.window, parts.input);
  return node.SetValue(0, ops::Conv(node.program(), parts.x, parts.weight, parts.bias, parts.attributes));
}

// The spatial output and pads follow the ONNX text: output_shape wins, then auto_pad SAME (input * stride), then pads.
absl::Status ImportConvTranspose(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(ConvolutionParts parts, ReadConvolution(node));
  const Window& window = parts.window;
  const auto rank = static_cast<size_t>(window.rank());
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> output_padding, Extents(node, "output_padding", rank, 0, 0));
  std::vector<int64_t> output;
  if (node.HasAttribute("output_shape")) {
    std::vector<int64_t> shape = node.Ints("output_shape");
    if (shape.size() == rank + 2) shape.erase(shape.begin(), shape.begin() + 2);  // some exporters write N and C too
    if (shape.size() != rank)
      return absl::InvalidArgumentError("its output_shape does not have one entry per spatial dimension");
    output = shape;
  } else if (window.same()) {
    for (size_t i = 0; i < rank; ++i) output.push_back(parts.input[static_cast<int>(i) + 2] * window.strides[i]);
  }
  std::vector<int64_t> natural(rank);
  for (size_t i = 0; i < rank; ++i) {
    natural[i] = (parts.input[static_cast<int>(i) + 2] - 1) * window.strides[i] + output_padding[i] +
                 (window.kernel[i] - 1) * window.dilations[i] + 1;
  }
  if (output.empty()) {
    for (size_t i = 0; i < rank; ++i) output.push_back(natural[i] - window.pads[i] - window.pads[rank + i]);
  } else {
    for (size_t i = 0; i < rank; ++i) {
      if (output[i] < 0 || output[i] > infer::kMaxElements)
        return absl::InvalidArgumentError("its output_shape is out of range");
      const int64_t total = std::max<int64_t>(0, natural[i] - output[i]);
      const auto [begin, end] = ShareOut(total, window.auto_pad == "SAME_UPPER");
      parts.attributes.pads[i] = begin;
      parts.attributes.pads[rank + i] = end;
    }
  }
  for (int64_t extent : output) {
    if (extent < 0)
      return absl::InvalidArgumentError(absl::StrFormat("its output %s is negative", Shape(output).ToString()));
  }
  return node.SetValue(0,
                       ops::ConvTranspose(node.program(), parts.x, parts.weight, parts.bias, parts.attributes, output));
}

absl::Status ImportGemm(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const ValueId a, node.Value(0));
  GANTRY_ASSIGN_OR_RETURN(const ValueId b, node.Value(1));
  Program& p = node.program();
  const double alpha = node.Float("alpha", 1.0);
  const double beta = node.Float("beta", 1.0);
  ValueId y = ops::Matmul(p, a, b, node.Int("transA", 0) != 0, node.Int("transB", 0) != 0);
  if (alpha != 1.0) y = ops::Scale(p, y, alpha);
  if (!node.HasInput(2) || beta == 0.0) return node.SetValue(0, y);
  GANTRY_ASSIGN_OR_RETURN(ValueId c, node.Value(2));
  if (beta != 1.0) c = ops::Scale(p, c, beta);
  return node.SetValue(0, ops::Add(p, y, c));
}

// As numpy.matmul: a vector is a row on the left, a column on the right, and the added dimension goes again.
absl::Status ImportMatMul(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(ValueId a, node.Value(0));
  GANTRY_ASSIGN_OR_RETURN(ValueId b, node.Value(1));
  Program& p = node.program();
  const Shape left = p.TypeOf(a).shape;
  const Shape right = p.TypeOf(b).shape;
  if (left.rank() == 0 || right.rank() == 0) return absl::InvalidArgumentError("it multiplies a scalar");
  if (left.rank() == 1) a = ops::Reshape(p, a, Shape{1, left[0]});
  if (right.rank() == 1) b = ops::Reshape(p, b, Shape{right[0], 1});
  const ValueId y = ops::Matmul(p, a, b);
  GANTRY_RETURN_IF_ERROR(p.status());
  std::vector<int64_t> dims = p.TypeOf(y).shape.dims();
  if (right.rank() == 1) dims.pop_back();
  if (left.rank() == 1) dims.erase(dims.end() - (right.rank() == 1 ? 1 : 2));
  return node.SetValue(0, ops::Reshape(p, y, Shape(dims)));
}

}  // namespace

std::vector<Operator> LayerOperators() {
  return {{"Conv", ImportConv}, {"ConvTranspose", ImportConvTranspose}, {"Gemm", ImportGemm}, {"MatMul", ImportMatMul}};
}

}  // namespace gantry::onnx
