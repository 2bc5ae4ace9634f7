#include "runtime/graph/onnx/node.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_join.h"

namespace gantry::onnx {
namespace {

// AttributeProto.AttributeType of ONNX.
constexpr int32_t kFloatAttribute = 1;
constexpr int32_t kIntAttribute = 2;
constexpr int32_t kStringAttribute = 3;
constexpr int32_t kTensorAttribute = 4;
constexpr int32_t kFloatsAttribute = 6;
constexpr int32_t kIntsAttribute = 7;

const std::map<std::string_view, Operator>& Table() {
  static const auto* const table = [] {
    auto* result = new std::map<std::string_view, Operator>();
    for (const std::vector<Operator>& list :
         {ElementwiseOperators(), ActivationOperators(), ReductionOperators(), ShapeOperators(), IndexOperators(),
          LayerOperators(), NormalizationOperators(), PoolingOperators(), ResizeOperators(), RandomOperators()}) {
      for (const Operator& op : list) result->emplace(op.name, op);
    }
    return result;
  }();
  return *table;
}

}  // namespace

const Operator* FindOperator(std::string_view name) {
  const auto place = Table().find(name);
  return place == Table().end() ? nullptr : &place->second;
}

std::string SupportedOperators() {
  return absl::StrJoin(Table(), ", ", [](std::string* out, const auto& entry) { out->append(entry.first); });
}

Operand MakeConstant(HostTensor constant) {
  return Operand{.constant = std::make_shared<const HostTensor>(std::move(constant))};
}

absl::Status Node::Run(const Operator& op) {
  const absl::Status handled = op.handler(*this);
  if (!program().status().ok()) return program().status();
  if (!status_.ok()) return status_;
  return handled;
}

absl::StatusOr<Operand*> Node::Raw(int index) {
  if (!HasInput(index)) {
    return absl::InvalidArgumentError(absl::StrFormat("input %d is missing; it has %d inputs", index, input_count()));
  }
  return importer_.Find(proto_.input(index));
}

absl::StatusOr<ValueId> Node::Value(int index) {
  GANTRY_ASSIGN_OR_RETURN(Operand * operand, Raw(index));
  return importer_.ToValue(*operand);
}

absl::StatusOr<Operand> Node::Get(int index) {
  GANTRY_ASSIGN_OR_RETURN(Operand * operand, Raw(index));
  const bool constant_weight = operand->weight != nullptr && operand->weight->is_constant;
  if (operand->constant != nullptr || constant_weight) {
    GANTRY_ASSIGN_OR_RETURN(const std::shared_ptr<const HostTensor> host, importer_.ToHost(*operand));
    if (static_cast<int64_t>(host->stored()) <= kMaxFoldedElements)
      return Operand{.name = operand->name, .constant = host};
  }
  GANTRY_ASSIGN_OR_RETURN(const ValueId value, importer_.ToValue(*operand));
  return MakeValue(value);
}

absl::StatusOr<ValueId> Node::ToValue(Operand& operand) {
  if (operand.value == kNoValue && operand.weight == nullptr) {
    if (Operand* original = importer_.Find(operand.name); original != nullptr) return importer_.ToValue(*original);
    if (operand.name.empty() && HasOutput(0)) operand.name = proto_.output(0);
  }
  return importer_.ToValue(operand);
}

absl::StatusOr<std::shared_ptr<const HostTensor>> Node::Constant(int index) {
  GANTRY_ASSIGN_OR_RETURN(const Operand* operand, Raw(index));
  return importer_.ToHost(*operand);
}

absl::StatusOr<std::vector<int64_t>> Node::ConstantInts(int index) {
  GANTRY_ASSIGN_OR_RETURN(const std::shared_ptr<const HostTensor> host, Constant(index));
  const int64_t count = host->element_count();
  if (host->kind == ElementKind::kFloat || host->shape.rank() > 1 || count > kMaxFoldedElements) {
    return absl::InvalidArgumentError(absl::StrFormat("input '%s' of shape %s must be a list of integers",
                                                      input_name(index), host->shape.ToString()));
  }
  std::vector<int64_t> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = host->Integer(i);
  return values;
}

absl::StatusOr<double> Node::ConstantFloat(int index) {
  GANTRY_ASSIGN_OR_RETURN(const std::shared_ptr<const HostTensor> host, Constant(index));
  if (host->element_count() != 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("input '%s' of shape %s must be a single number", input_name(index), host->shape.ToString()));
  }
  return BeforeRounding(host->Real(0));
}

const AttributeProto* Node::FindAttribute(std::string_view name) const {
  for (const AttributeProto& attribute : proto_.attribute()) {
    if (attribute.name() == name) return &attribute;
  }
  return nullptr;
}

const AttributeProto* Node::Typed(std::string_view name, int32_t type, std::string_view type_name) {
  const AttributeProto* attribute = FindAttribute(name);
  if (attribute == nullptr || attribute->type() == type) return attribute;
  Fail(absl::InvalidArgumentError(absl::StrFormat("its attribute '%s' must be %s", name, type_name)));
  return nullptr;
}

int64_t Node::Int(std::string_view name, int64_t fallback) {
  const AttributeProto* attribute = Typed(name, kIntAttribute, "an integer");
  return attribute == nullptr ? fallback : attribute->i();
}

double Node::Float(std::string_view name, double fallback) {
  const AttributeProto* attribute = Typed(name, kFloatAttribute, "a number");
  return attribute == nullptr ? fallback : BeforeRounding(attribute->f());
}

std::string Node::String(std::string_view name, std::string fallback) {
  const AttributeProto* attribute = Typed(name, kStringAttribute, "a string");
  return attribute == nullptr ? fallback : attribute->s();
}

std::vector<int64_t> Node::Ints(std::string_view name, std::vector<int64_t> fallback) {
  const AttributeProto* attribute = Typed(name, kIntsAttribute, "a list of integers");
  if (attribute == nullptr) return fallback;
  return {attribute->ints().begin(), attribute->ints().end()};
}

std::vector<float> Node::RawFloats(std::string_view name) {
  const AttributeProto* attribute = Typed(name, kFloatsAttribute, "a list of numbers");
  if (attribute == nullptr) return {};
  return {attribute->floats().begin(), attribute->floats().end()};
}

absl::StatusOr<HostTensor> Node::Tensor(std::string_view name) {
  const AttributeProto* attribute = Typed(name, kTensorAttribute, "a tensor");
  if (attribute == nullptr) return absl::InvalidArgumentError(absl::StrFormat("its attribute '%s' is missing", name));
  absl::StatusOr<HostTensor> tensor = importer_.ReadConstant(attribute->t());
  if (!tensor.ok()) return Annotate(tensor.status(), absl::StrFormat("attribute '%s'", name));
  return tensor;
}

absl::StatusOr<std::optional<std::vector<int64_t>>> Node::IntsFrom(std::string_view attribute, int index) {
  if (HasInput(index)) {
    GANTRY_ASSIGN_OR_RETURN(std::vector<int64_t> values, ConstantInts(index));
    return std::optional(std::move(values));
  }
  if (!HasAttribute(attribute)) return std::optional<std::vector<int64_t>>();
  return std::optional(Ints(attribute));
}

absl::Status Node::Set(int index, Operand operand) {
  if (!HasOutput(index)) return absl::OkStatus();
  operand.name = proto_.output(index);
  // What others hold too has been counted.
  if (operand.constant.use_count() == 1) GANTRY_RETURN_IF_ERROR(importer_.ChargeFolded(*operand.constant));
  if (operand.sequence.use_count() == 1) {
    for (const Operand& part : *operand.sequence) {
      if (part.constant != nullptr) GANTRY_RETURN_IF_ERROR(importer_.ChargeFolded(*part.constant));
    }
  }
  if (operand.value != kNoValue) program().NameValue(operand.value, operand.name);
  return importer_.Define(std::move(operand));
}

absl::Status Node::SetValue(int index, ValueId value) {
  if (value == kNoValue) return program().status();
  return Set(index, MakeValue(value));
}

absl::Status Node::SetConstant(int index, HostTensor constant) { return Set(index, MakeConstant(std::move(constant))); }

}  // namespace gantry::onnx
