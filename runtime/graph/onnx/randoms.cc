// Dropout and random draws. They read the model's random state; every node has its own stream.
#include "ops/functional.h"
#include "ops/infer.h"
#include "runtime/graph/onnx/node.h"

namespace gantry::onnx {
namespace {

// Before opset 12 a Dropout node is there only if the exported model was training; since then an input says so.
absl::Status ImportDropout(Node& node) {
  GANTRY_ASSIGN_OR_RETURN(const ValueId x, node.Value(0));
  double rate = node.Float("ratio", 0.5);
  bool trains = node.opset() < 12;
  if (node.opset() >= 12) {
    if (node.HasInput(1)) {
      GANTRY_ASSIGN_OR_RETURN(rate, node.ConstantFloat(1));
    }
    if (node.HasInput(2)) {
      GANTRY_ASSIGN_OR_RETURN(const auto mode, node.Constant(2));
      trains = mode->stored() > 0 && mode->Integer(0) != 0;
    }
  }
  if (!node.Trains(trains) || rate == 0.0) return node.SetValue(0, x);
  if (!(rate > 0.0 && rate < 1.0))
    return absl::InvalidArgumentError(absl::StrFormat("its rate is %g; 0 to below 1 are possible", rate));
  Importer& importer = node.importer();
  return node.SetValue(0, ops::Dropout(node.program(), x, importer.RandomState(), importer.NextStream(), rate));
}

absl::Status ImportRandom(Node& node) {
  Shape shape(node.Ints("shape"));
  if (node.op().ends_with("Like")) {
    GANTRY_ASSIGN_OR_RETURN(const Operand* like, node.Raw(0));
    shape = node.ShapeOf(*like);
  }
  GANTRY_RETURN_IF_ERROR(infer::CheckShape(shape));
  Importer& importer = node.importer();
  Program& p = node.program();
  if (node.op().starts_with("RandomNormal")) {
    return node.SetValue(0, ops::RandomNormal(p, importer.RandomState(), node.dtype(), shape, importer.NextStream(),
                                              node.Float("mean", 0.0), node.Float("scale", 1.0)));
  }
  return node.SetValue(0, ops::RandomUniform(p, importer.RandomState(), node.dtype(), shape, importer.NextStream(),
                                             node.Float("low", 0.0), node.Float("high", 1.0)));
}

}  // namespace

std::vector<Operator> RandomOperators() {
  return {{"Dropout", ImportDropout},
          {"RandomNormal", ImportRandom},
          {"RandomNormalLike", ImportRandom},
          {"RandomUniform", ImportRandom},
          {"RandomUniformLike", ImportRandom}};
}

}  // namespace gantry::onnx
