// Pooling.
#include <numeric>

#include "ops/functional.h"
#include "runtime/graph/onnx/windows.h"

namespace gantry::onnx {
namespace {

absl::Status ImportPool(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const ValueId x, node.Value(0));
  Program& p = node.program();
  const Shape input = p.TypeOf(x).shape;
  GANTRY_ASSIGN_OR_RETURN(const Window window, ReadWindow(node, input, {}));
  if (node.Int("storage_order", 0) != 0) return absl::UnimplementedError("storage_order 1 is not supported");
  ops::PoolAttributes attributes;
  attributes.kernel = window.kernel;
  attributes.strides = window.strides;
  attributes.dilations = window.dilations;
  attributes.pads = window.same() ? SamePads(window, input) : window.pads;
  attributes.ceil_mode = node.Int("ceil_mode", 0) != 0 && !window.same();
  attributes.count_include_pad = node.Int("count_include_pad", 0) != 0;
  return node.SetValue(0, node.op() == "MaxPool" ? ops::MaxPool(p, x, attributes) : ops::AvgPool(p, x, attributes));
}

absl::Status ImportGlobalPool(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const ValueId x, node.Value(0));
  Program& p = node.program();
  const int rank = p.TypeOf(x).shape.rank();
  if (rank < 2) return absl::InvalidArgumentError("its input has no channels");
  if (rank == 2) return node.SetValue(0, x);
  std::vector<int64_t> axes(rank - 2);
  std::iota(axes.begin(), axes.end(), 2);
  return node.SetValue(
      0, node.op() == "GlobalMaxPool" ? ops::ReduceMax(p, x, axes, true) : ops::ReduceMean(p, x, axes, true));
}

}  // namespace

std::vector<Operator> PoolingOperators() {
  return {{"AveragePool", ImportPool},
          {"MaxPool", ImportPool},
          {"GlobalAveragePool", ImportGlobalPool},
          {"GlobalMaxPool", ImportGlobalPool}};
}

}  // namespace gantry::onnx
