// Reductions. Axes are an attribute before opset 13 (ReduceSum) and 18 (the others), an input since.
#include <algorithm>

#include "ops/functional.h"
#include "runtime/graph/onnx/fold.h"
#include "runtime/graph/onnx/node.h"

namespace gantry::onnx {
namespace {

using namespace ops;  // NOLINT: emission reads as formulas

ValueId Reduced(Program& p, std::string_view op, ValueId x, const std::vector<int64_t>& axes, bool keep) {
  if (op == "ReduceSum") return ReduceSum(p, x, axes, keep);
  if (op == "ReduceMean") return ReduceMean(p, x, axes, keep);
  if (op == "ReduceMax") return ReduceMax(p, x, axes, keep);
  if (op == "ReduceMin") return Neg(p, ReduceMax(p, Neg(p, x), axes, keep));
  if (op == "ReduceL1") return ReduceSum(p, Abs(p, x), axes, keep);
  if (op == "ReduceL2") return Sqrt(p, ReduceSum(p, Square(p, x), axes, keep));
  if (op == "ReduceSumSquare") return ReduceSum(p, Square(p, x), axes, keep);
  if (op == "ReduceLogSum") return Log(p, ReduceSum(p, x, axes, keep));
  if (op == "ReduceLogSumExp") {
    const ValueId maximum = StopGradient(p, ReduceMax(p, x, axes, true));
    const ValueId sum = Log(p, ReduceSum(p, Exp(p, Sub(p, x, maximum)), axes, keep));
    return Add(p, sum, keep ? maximum : Reshape(p, maximum, p.TypeOf(sum).shape));
  }
  p.Fail(absl::UnimplementedError("it is supported on constants only"));
  return kNoValue;
}

absl::Status ImportReduce(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(Operand x, node.Get(0));
  GANTRY_ASSIGN_OR_RETURN(const std::optional<std::vector<int64_t>> given, node.IntsFrom("axes", 1));
  const Shape shape = node.ShapeOf(x);
  std::vector<int> axes;
  for (int64_t axis : given.value_or(std::vector<int64_t>())) {
    GANTRY_ASSIGN_OR_RETURN(const int place, NormalizeAxis(axis, shape.rank()));
    axes.push_back(place);
  }
  const bool noop = axes.empty() && node.Int("noop_with_empty_axes", 0) != 0;
  if (axes.empty() && !noop) {
    for (int axis = 0; axis < shape.rank(); ++axis) axes.push_back(axis);
  }
  std::sort(axes.begin(), axes.end());
  axes.erase(std::unique(axes.begin(), axes.end()), axes.end());
  const bool keep = node.Int("keepdims", 1) != 0;
  const std::string_view op = node.op();
  const bool plain =
      op == "ReduceSum" || op == "ReduceMean" || op == "ReduceMax" || op == "ReduceMin" || op == "ReduceProd";
  if (x.constant != nullptr && plain) {
    if (axes.empty()) return node.Set(0, std::move(x));
    GANTRY_ASSIGN_OR_RETURN(HostTensor folded, FoldReduce(op, *x.constant, axes, keep));
    return node.SetConstant(0, std::move(folded));
  }
  GANTRY_ASSIGN_OR_RETURN(const ValueId value, node.ToValue(x));
  if (axes.empty() && plain) return node.SetValue(0, value);
  if (axes.empty()) return absl::UnimplementedError("it is not supported without axes to reduce");
  return node.SetValue(0, Reduced(node.program(), op, value, {axes.begin(), axes.end()}, keep));
}

}  // namespace

std::vector<Operator> ReductionOperators() {
  std::vector<Operator> list;
  for (std::string_view name : {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1",
                                "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"}) {
    list.push_back({name, ImportReduce});
  }
  return list;
}

}  // namespace gantry::onnx
