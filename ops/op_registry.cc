#include <map>

#include "ops/op_definition.h"

namespace gantry {
namespace {

using Registry = std::map<std::string_view, OpDefinition>;

const Registry& Ops() {
  static const Registry* const registry = [] {
    auto* ops = new Registry();
    for (const std::vector<OpDefinition>& family :
         {ElementwiseOps(), ReductionOps(), ShapeOps(), MatmulOps(), ConvolutionOps(), PoolingOps(), ResizeOps(),
          NormalizationOps(), IndexOps(), RandomOps(), OptimizerOps(), ControlOps(), PanelOps(), BatchPartsOps(), WeightRowsOps(), ConvBandsOps(),
          EncodeOps(), ExchangeOps()}) {
      for (const OpDefinition& op : family) ops->emplace(op.name, op);
    }
    return ops;
  }();
  return *registry;
}

}  // namespace

const OpDefinition* FindOp(std::string_view name) {
  const auto op = Ops().find(name);
  return op == Ops().end() ? nullptr : &op->second;
}

std::vector<const OpDefinition*> AllOps() {
  std::vector<const OpDefinition*> ops;
  for (const auto& [name, op] : Ops()) {
    if (!op.moves && !op.communicates && !op.planner_only) ops.push_back(&op);
  }
  return ops;
}

}  // namespace gantry
