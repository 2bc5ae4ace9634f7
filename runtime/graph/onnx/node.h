// One ONNX node during import, as the operator handlers see it, and the table of handlers.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/graph/onnx/importer.h"

namespace gantry::onnx {

class Node;

// Imports one node: reads its inputs and attributes, emits ops or computes constants, and sets its outputs. An output
// left unset is an error where another node reads it.
using Handler = absl::Status (*)(Node& node);
struct Operator {
  std::string_view name;
  Handler handler;
};

// Null where it is not supported.
const Operator* FindOperator(std::string_view name);
// The names of all operators, sorted: "Abs, Add, ...".
std::string SupportedOperators();

// One list per file.
std::vector<Operator> ElementwiseOperators();
std::vector<Operator> ActivationOperators();
std::vector<Operator> ReductionOperators();
std::vector<Operator> ShapeOperators();
std::vector<Operator> IndexOperators();
std::vector<Operator> LayerOperators();
std::vector<Operator> NormalizationOperators();
std::vector<Operator> PoolingOperators();
std::vector<Operator> ResizeOperators();
std::vector<Operator> RandomOperators();

class Node {
 public:
  Node(Importer& importer, const NodeProto& proto) : importer_(importer), proto_(proto) {}

  // Runs the handler; the first error of it, of an attribute or of the program.
  absl::Status Run(const Operator& op);

  std::string_view op() const { return proto_.op_type(); }
  int64_t opset() const { return importer_.opset(); }
  Importer& importer() { return importer_; }
  Program& program() { return importer_.program(); }
  DataType dtype() const { return importer_.options().dtype; }
  // Whether batch norm or dropout trains, given what the file says.
  bool Trains(bool file_trains) const {
    return importer_.options().force_training || (importer_.options().training && file_trains);
  }

  // Inputs. An optional input that is left out is absent or has an empty name.
  int input_count() const { return proto_.input_size(); }
  bool HasInput(int index) const { return index < proto_.input_size() && !proto_.input(index).empty(); }
  const std::string& input_name(int index) const { return proto_.input(index); }
  // The operand behind an input that must be there.
  absl::StatusOr<Operand*> Raw(int index);
  // As a value of the program.
  absl::StatusOr<ValueId> Value(int index);
  // As a constant where it is one, unless it is too large to be folded; else as a value.
  absl::StatusOr<Operand> Get(int index);
  // The elements of an input that only sets up the op: a constant, or an initializer of any role.
  absl::StatusOr<std::shared_ptr<const HostTensor>> Constant(int index);
  absl::StatusOr<std::vector<int64_t>> ConstantInts(int index);
  // The one element of such an input, as BeforeRounding gives it.
  absl::StatusOr<double> ConstantFloat(int index);
  Shape ShapeOf(const Operand& operand) { return importer_.ShapeOf(operand); }
  // The operand as a value of the program; a constant made for this node becomes a state named after its first output.
  absl::StatusOr<ValueId> ToValue(Operand& operand);

  // Attributes. Where one has the wrong type, Run fails and the fallback is returned.
  bool HasAttribute(std::string_view name) const { return FindAttribute(name) != nullptr; }
  int64_t Int(std::string_view name, int64_t fallback);
  double Float(std::string_view name, double fallback);
  std::string String(std::string_view name, std::string fallback);
  std::vector<int64_t> Ints(std::string_view name, std::vector<int64_t> fallback = {});
  std::vector<float> RawFloats(std::string_view name);
  absl::StatusOr<HostTensor> Tensor(std::string_view name);
  // The integers of input `index` where given (later opsets), else of the attribute (earlier ones); nullopt where
  // neither is.
  absl::StatusOr<std::optional<std::vector<int64_t>>> IntsFrom(std::string_view attribute, int index);

  int output_count() const { return proto_.output_size(); }
  bool HasOutput(int index) const { return index < proto_.output_size() && !proto_.output(index).empty(); }
  absl::Status SetValue(int index, ValueId value);
  absl::Status SetConstant(int index, HostTensor constant);
  // A constant or value as output `index`.
  absl::Status Set(int index, Operand operand);

  void Fail(absl::Status error) {
    if (status_.ok()) status_ = std::move(error);
  }

 private:
  const AttributeProto* FindAttribute(std::string_view name) const;
  // The attribute if it is there and of `type`; sets the status if it is of another.
  const AttributeProto* Typed(std::string_view name, int32_t type, std::string_view type_name);

  Importer& importer_;
  const NodeProto& proto_;
  absl::Status status_;
};

// The operand that holds `constant`, or `value`.
Operand MakeConstant(HostTensor constant);
inline Operand MakeValue(ValueId value) { return Operand{.value = value}; }

}  // namespace gantry::onnx
