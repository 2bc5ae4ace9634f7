#include "runtime/graph/onnx/importer.h"

#include <algorithm>
#include <fstream>
#include <unordered_map>

#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"
#include "ops/functional.h"
#include "ops/infer.h"
#include "runtime/graph/onnx/node.h"

namespace gantry::onnx {
namespace {

constexpr int64_t kOldestOpset = 7;
constexpr int64_t kNewestOpset = 21;
constexpr int kMaxNodes = 200000;
constexpr int kMaxTensors = 50000;                         // initializers, and inputs and outputs of the graph, each
constexpr size_t kMaxOps = 500000;                         // that one import may emit
constexpr int64_t kMaxFields = 4000000;                    // of the file, not counting the elements of tensors
constexpr int64_t kMaxFileBytes = (int64_t{1} << 31) - 1;  // what protobuf can parse

bool IsStandardDomain(std::string_view domain) { return domain.empty() || domain == "ai.onnx"; }

// How a node reads one of its inputs, where it bears on training.
enum class Use { kArithmetic, kWeight, kStatistic };

Use UseOf(std::string_view op, int input) {
  if (op == "Gemm" || op == "MatMul") return Use::kWeight;
  if (op == "Conv" || op == "ConvTranspose" || op == "PRelu") return input >= 1 ? Use::kWeight : Use::kArithmetic;
  if (op == "InstanceNormalization" || op == "LayerNormalization" || op == "GroupNormalization") {
    return input >= 1 ? Use::kWeight : Use::kArithmetic;
  }
  if (op == "BatchNormalization") return input >= 3 ? Use::kStatistic : input >= 1 ? Use::kWeight : Use::kArithmetic;
  return Use::kArithmetic;
}

bool IsAnonymous(std::string_view name) {
  if (name.empty() || name.starts_with("onnx::") || name[0] == '/' || name[0] == '_') return true;
  if (name.find('.') != std::string_view::npos) return false;
  const size_t last = name.find_last_not_of("0123456789");
  return last == std::string_view::npos || (last + 1 < name.size() && name[last] == '_');
}

// "val_12": what the newer PyTorch exporter calls constants that it computed itself.
bool NamesExporterConstant(std::string_view name) {
  return name.starts_with("val_") && name.size() > 4 &&
         name.find_first_not_of("0123456789", 4) == std::string_view::npos;
}

bool NamesStatistic(std::string_view name) {
  for (std::string_view ending : {"running_mean", "running_var", ".weight_u", ".weight_v", "._u", "._v"}) {
    if (name.ends_with(ending)) return true;
  }
  return false;
}

// "node '/3/Conv' (Conv)", or by its output where it has no name.
std::string Describe(const NodeProto& node) {
  if (!node.name().empty()) return absl::StrFormat("ONNX node '%s' (%s)", node.name(), node.op_type());
  return absl::StrFormat("ONNX node %s that makes '%s'", node.op_type(),
                         node.output_size() > 0 ? node.output(0) : "nothing");
}

}  // namespace

Operand* Importer::Find(std::string_view name) {
  const auto place = operands_.find(ToAbsl(name));
  return place == operands_.end() ? nullptr : &place->second;
}

absl::Status Importer::Define(Operand operand) {
  std::string name = operand.name;
  if (!operands_.emplace(name, std::move(operand)).second) {
    return absl::InvalidArgumentError(absl::StrFormat("'%s' is defined twice in the graph", name));
  }
  return absl::OkStatus();
}

Shape Importer::ShapeOf(const Operand& operand) {
  if (operand.weight != nullptr) return operand.weight->header.shape;
  return operand.constant != nullptr ? operand.constant->shape : program().TypeOf(operand.value).shape;
}

absl::StatusOr<std::shared_ptr<const HostTensor>> Importer::ToHost(const Operand& operand) {
  if (operand.constant != nullptr) return operand.constant;
  if (operand.weight == nullptr) {
    return absl::UnimplementedError(absl::StrFormat(
        "'%s' must be known when the model is imported, but it depends on the model's inputs", operand.name));
  }
  Weight& weight = *operand.weight;
  if (weight.read == nullptr) {
    absl::StatusOr<HostTensor> read = ReadTensor(*weight.proto, folder_);
    if (!read.ok()) return Annotate(read.status(), absl::StrFormat("initializer '%s'", weight.proto->name()));
    read->CollapseSplat();
    weight.read = std::make_shared<const HostTensor>(*std::move(read));
  }
  return weight.read;
}

std::string Importer::UniqueStateName(const std::string& wanted) {
  std::string name = wanted.empty() ? "constant" : wanted;
  for (int suffix = 2; program().FindState(name) != nullptr; ++suffix) name = absl::StrFormat("%s_%d", wanted, suffix);
  return name;
}

absl::StatusOr<ValueId> Importer::ToValue(Operand& operand) {
  if (operand.value != kNoValue) return operand.value;
  if (operand.sequence != nullptr) {
    return absl::UnimplementedError(
        absl::StrFormat("'%s' is a sequence of tensors; only SequenceAt can read it", operand.name));
  }
  if (operand.weight != nullptr && operand.weight->current != kNoValue) return operand.weight->current;
  GANTRY_ASSIGN_OR_RETURN(const std::shared_ptr<const HostTensor> host, ToHost(operand));
  const bool is_state = operand.weight != nullptr && !operand.weight->is_constant;
  const DataType dtype = host->kind == ElementKind::kInt ? DataType::kI64 : options_.dtype;
  if (host->is_splat() && !is_state) {
    double value = host->Real(0);
    if (host->kind == ElementKind::kFloat) value = BeforeRounding(value);
    operand.value = ops::Fill(program(), dtype, host->shape, value);
    return operand.value;
  }
  Initializer initializer{.kind = Initializer::Kind::kData};
  if (is_state && host->is_splat()) {
    initializer = {.kind = Initializer::Kind::kConstant, .a = host->Real(0)};
  } else {
    const int64_t count = host->element_count();
    initializer.data.resize(count);
    for (int64_t i = 0; i < count; ++i) initializer.data[i] = host->Real(i);
  }
  const StateRole role = is_state ? operand.weight->role : StateRole::kStatistic;
  const std::string name = is_state ? operand.weight->proto->name() : UniqueStateName(operand.name);
  const ValueId value = program().AddState(name, "", role, TensorType{dtype, host->shape}, std::move(initializer));
  if (operand.weight != nullptr) {
    operand.weight->current = value;
    operand.weight->read.reset();
  } else {
    operand.value = value;
  }
  return value;
}

ValueId Importer::RandomState() {
  const ValueId state = program().FindInput(kRandomState);
  return state != kNoValue ? state : program().AddInput(std::string(kRandomState), {DataType::kI64, Shape{2}});
}

absl::Status Importer::ChargeFolded(const HostTensor& constant) {
  folded_elements_ += static_cast<int64_t>(constant.stored());
  if (folded_elements_ <= kMaxFoldedTotal) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrFormat(
      "the constants of the graph need more than %d elements; simplify the model before import", kMaxFoldedTotal));
}

absl::Status Importer::ReadOpset(const ModelProto& model) {
  for (const OperatorSetIdProto& opset : model.opset_import()) {
    if (IsStandardDomain(opset.domain())) opset_ = opset.version();
  }
  if (opset_ < kOldestOpset || opset_ > kNewestOpset) {
    return absl::UnimplementedError(absl::StrFormat("ONNX opset %d is not supported; export with opset %d to %d",
                                                    opset_, kOldestOpset, kNewestOpset));
  }
  return absl::OkStatus();
}

absl::Status Importer::ReadInputs(const GraphProto& graph) {
  absl::flat_hash_set<std::string> initialized;
  for (const TensorProto& tensor : graph.initializer()) initialized.insert(tensor.name());
  for (const ValueInfoProto& input : graph.input()) {
    if (initialized.contains(input.name())) continue;  // files before IR version 4 list weights as inputs
    if (!input.type().has_tensor_type() || !input.type().tensor_type().has_shape()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("ONNX input '%s' is no tensor with a shape; export it with one", input.name()));
    }
    int element_bytes = 0;
    const int32_t onnx_type = input.type().tensor_type().elem_type();
    const absl::StatusOr<ElementKind> kind = KindOf(onnx_type, &element_bytes);
    if (!kind.ok()) return Annotate(kind.status(), absl::StrFormat("ONNX input '%s'", input.name()));
    Shape shape;
    std::vector<int64_t> dims;
    for (const DimensionProto& dim : input.type().tensor_type().shape().dim()) {
      const bool is_batch = dims.empty();
      if (dim.has_dim_value()) {
        if (is_batch && options_.batch != 0 && dim.dim_value() != options_.batch) {
          return absl::InvalidArgumentError(absl::StrFormat(
              "ONNX input '%s' was exported for batches of %d, asked for is %d; export it with a dynamic dimension 0",
              input.name(), dim.dim_value(), options_.batch));
        }
        dims.push_back(dim.dim_value());
      } else if (is_batch && options_.batch > 0) {
        dims.push_back(options_.batch);
      } else if (is_batch) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "ONNX input '%s' has the symbolic batch dimension '%s'; set the batch", input.name(), dim.dim_param()));
      } else {
        return absl::InvalidArgumentError(absl::StrFormat(
            "ONNX input '%s' has the symbolic dimension '%s' at axis %d; only the batch (axis 0) may be "
            "symbolic, export the others as numbers",
            input.name(), dim.dim_param(), dims.size()));
      }
      if (dims.size() > static_cast<size_t>(infer::kMaxRank)) break;
    }
    shape = Shape(std::move(dims));
    const absl::Status checked = infer::CheckShape(shape);
    if (!checked.ok()) return Annotate(checked, absl::StrFormat("ONNX input '%s'", input.name()));
    DataType dtype = options_.dtype;
    if (*kind == ElementKind::kInt) dtype = element_bytes == 4 ? DataType::kI32 : DataType::kI64;
    Operand operand{.name = input.name()};
    operand.value = program().AddInput(input.name(), {dtype, shape});
    GANTRY_RETURN_IF_ERROR(Define(std::move(operand)));
  }
  return program().status();
}

absl::Status Importer::ReadInitializers(const GraphProto& graph) {
  std::unordered_map<std::string_view, std::string_view> alias;  // the output of an Identity, and what it stands for
  std::unordered_map<std::string_view, Use> uses;
  for (const NodeProto& node : graph.node()) {
    if (node.op_type() == "Identity" && node.input_size() == 1 && node.output_size() == 1) {
      const auto source = alias.find(node.input(0));
      alias[node.output(0)] = source == alias.end() ? std::string_view(node.input(0)) : source->second;
    }
    for (int i = 0; i < node.input_size(); ++i) {
      const auto source = alias.find(node.input(i));
      Use& use = uses[source == alias.end() ? std::string_view(node.input(i)) : source->second];
      use = std::max(use, UseOf(node.op_type(), i));
    }
  }
  const absl::flat_hash_set<std::string> frozen(options_.frozen.begin(), options_.frozen.end());
  for (const std::string& name : options_.frozen) {
    const auto Matches = [&](const TensorProto& tensor) { return tensor.name() == name; };
    if (std::none_of(graph.initializer().begin(), graph.initializer().end(), Matches)) {
      return absl::InvalidArgumentError(absl::StrFormat("there is no initializer '%s' to be frozen", name));
    }
  }
  for (const TensorProto& tensor : graph.initializer()) {
    const std::string& name = tensor.name();
    auto weight = std::make_unique<Weight>(Weight{.proto = &tensor});
    absl::StatusOr<TensorHeader> header = ReadHeader(tensor);
    if (!header.ok()) return Annotate(header.status(), absl::StrFormat("initializer '%s'", name));
    weight->header = *std::move(header);
    const auto use = uses.find(name);
    const Use strongest = use == uses.end() ? Use::kArithmetic : use->second;
    const Shape& shape = weight->header.shape;
    const bool has_dot = name.find('.') != std::string::npos;
    const bool trains = (strongest == Use::kWeight && shape.rank() >= 1 && !NamesExporterConstant(name)) ||
                        (!IsAnonymous(name) && (has_dot || shape.element_count() > 1));
    if (weight->header.kind != ElementKind::kFloat) {
      weight->is_constant = true;
    } else if (strongest == Use::kStatistic || NamesStatistic(name) || frozen.contains(name)) {
      weight->role = StateRole::kStatistic;
    } else {
      weight->is_constant = !trains;
    }
    GANTRY_RETURN_IF_ERROR(Define(Operand{.name = name, .weight = weight.get()}));
    weights_.push_back(std::move(weight));
  }
  return absl::OkStatus();
}

absl::Status Importer::ImportNodes(const GraphProto& graph) {
  // Only what the outputs need, found backwards: a file lists nodes in an order in which they can run.
  absl::flat_hash_set<std::string> wanted;
  for (const ValueInfoProto& output : graph.output()) wanted.insert(output.name());
  std::vector<int> needed;
  for (int i = graph.node_size() - 1; i >= 0; --i) {
    const NodeProto& node = graph.node(i);
    const auto IsWanted = [&](const std::string& output) { return !output.empty() && wanted.contains(output); };
    if (std::none_of(node.output().begin(), node.output().end(), IsWanted)) continue;
    wanted.insert(node.input().begin(), node.input().end());
    needed.push_back(i);
  }
  std::reverse(needed.begin(), needed.end());
  for (int index : needed) {
    const NodeProto* proto = &graph.node(index);
    for (const std::string& input : proto->input()) {
      if (input.empty() || Find(input) != nullptr) continue;
      for (int other = 0; other < graph.node_size(); ++other) {
        const NodeProto& maker = graph.node(other);
        if (std::find(maker.output().begin(), maker.output().end(), input) == maker.output().end()) continue;
        if (other < index) {
          return absl::UnimplementedError(absl::StrFormat("%s reads '%s', an output of %s that is not supported",
                                                          Describe(*proto), input, Describe(maker)));
        }
        return absl::InvalidArgumentError(
            absl::StrFormat("%s reads '%s', which is made only later, by %s: the graph has a cycle or is out of order",
                            Describe(*proto), input, Describe(maker)));
      }
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s reads '%s', which no node, input or initializer of the graph makes", Describe(*proto), input));
    }
    absl::Status status;
    if (!IsStandardDomain(proto->domain())) {
      status = absl::UnimplementedError(absl::StrFormat(
          "operators of the domain '%s' are not supported; export with standard operators", proto->domain()));
    } else if (const Operator* op = FindOperator(proto->op_type()); op == nullptr) {
      status = absl::UnimplementedError(absl::StrFormat("the operator '%s' is not supported; supported are %s",
                                                        proto->op_type(), SupportedOperators()));
    } else {
      Node node(*this, *proto);
      status = node.Run(*op);
    }
    if (status.ok() && program().ops().size() > kMaxOps) {
      status = absl::ResourceExhaustedError(absl::StrFormat("the graph needs more than %d ops", kMaxOps));
    }
    if (!status.ok()) return Annotate(status, Describe(*proto));
  }
  return absl::OkStatus();
}

absl::Status Importer::WriteOutputs(const GraphProto& graph) {
  if (graph.output_size() == 0) return absl::InvalidArgumentError("the ONNX graph has no output");
  for (const ValueInfoProto& output : graph.output()) {
    Operand* operand = Find(output.name());
    if (operand == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrFormat("no node of the ONNX graph makes its output '%s'", output.name()));
    }
    GANTRY_ASSIGN_OR_RETURN(const ValueId value, ToValue(*operand));
    program().AddOutput(output.name(), value);
  }
  return program().status();
}

absl::StatusOr<Model> Importer::Import(const ModelProto& model) {
  if (!IsFloat(options_.dtype)) {
    return absl::InvalidArgumentError(absl::StrFormat("a model computes in f32 or f64, not %s", Name(options_.dtype)));
  }
  if (options_.batch < 0) return absl::InvalidArgumentError(absl::StrFormat("the batch is %d", options_.batch));
  if (!model.has_graph()) return absl::InvalidArgumentError("the bytes are no ONNX model: they have no graph");
  const GraphProto& graph = model.graph();
  if (graph.node_size() > kMaxNodes || graph.initializer_size() > kMaxTensors || graph.input_size() > kMaxTensors ||
      graph.output_size() > kMaxTensors) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the ONNX graph has %d nodes, %d initializers, %d inputs and %d outputs; at most %d nodes and %d of the others "
        "are "
        "supported",
        graph.node_size(), graph.initializer_size(), graph.input_size(), graph.output_size(), kMaxNodes, kMaxTensors));
  }
  model_.name = options_.name;
  GANTRY_RETURN_IF_ERROR(ReadOpset(model));
  GANTRY_RETURN_IF_ERROR(ReadInputs(graph));
  GANTRY_RETURN_IF_ERROR(ReadInitializers(graph));
  GANTRY_RETURN_IF_ERROR(ImportNodes(graph));
  GANTRY_RETURN_IF_ERROR(WriteOutputs(graph));
  return std::move(model_);
}

namespace {

// The messages whose fields are counted before anything is built from the file: an empty message takes two bytes there
// and a hundred in memory.
enum class Nesting { kModel, kGraph, kNode, kAttribute, kTensor, kOther };

Nesting Inside(Nesting outer, int field) {
  switch (outer) {
    case Nesting::kModel:
      return field == 7 ? Nesting::kGraph : Nesting::kOther;
    case Nesting::kGraph:
      return field == 1 ? Nesting::kNode : field == 5 ? Nesting::kTensor : Nesting::kOther;
    case Nesting::kNode:
      return field == 5 ? Nesting::kAttribute : Nesting::kOther;
    case Nesting::kAttribute:
      return field == 5 ? Nesting::kTensor : Nesting::kOther;
    default:
      return Nesting::kOther;
  }
}

// One number of a list, which takes no more room in memory than in the file.
bool IsElement(Nesting message, int field) {
  if (message == Nesting::kAttribute) return field == 7 || field == 8;
  return message == Nesting::kTensor && field != 13;
}

// False where there are more than kMaxFields. Stops at what the parser will find wrong.
bool FieldCountIsFine(google::protobuf::io::CodedInputStream& stream, Nesting message, int64_t& count) {
  using google::protobuf::internal::WireFormatLite;
  while (const uint32_t tag = stream.ReadTag()) {
    const int field = WireFormatLite::GetTagFieldNumber(tag);
    if (!IsElement(message, field) && ++count > kMaxFields) return false;
    const Nesting inner = Inside(message, field);
    if (inner == Nesting::kOther || WireFormatLite::GetTagWireType(tag) != WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      if (!WireFormatLite::SkipField(&stream, tag)) return true;
      continue;
    }
    uint32_t length = 0;
    if (!stream.ReadVarint32(&length) || length > static_cast<uint32_t>(kMaxFileBytes)) return true;
    const auto limit = stream.PushLimit(static_cast<int>(length));
    if (!FieldCountIsFine(stream, inner, count)) return false;
    stream.PopLimit(limit);
  }
  return true;
}

absl::StatusOr<Model> ImportBytes(std::string_view bytes, const OnnxOptions& options, std::filesystem::path folder) {
  const std::string what = options.name.empty() ? "ONNX model" : absl::StrFormat("ONNX model '%s'", options.name);
  if (bytes.size() > static_cast<size_t>(kMaxFileBytes)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: %d bytes are more than the format allows; store the weights as external data", what, bytes.size()));
  }
  google::protobuf::io::CodedInputStream stream(reinterpret_cast<const uint8_t*>(bytes.data()),
                                                static_cast<int>(bytes.size()));
  int64_t fields = 0;
  if (!FieldCountIsFine(stream, Nesting::kModel, fields)) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: the file has more than %d parts", what, kMaxFields));
  }
  ModelProto proto;
  if (!proto.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: the %d bytes are no ONNX model, or are cut short", what, bytes.size()));
  }
  absl::StatusOr<Model> model = Importer(options, std::move(folder)).Import(proto);
  if (!model.ok()) return Annotate(model.status(), what);
  return model;
}

}  // namespace
}  // namespace gantry::onnx

namespace gantry {

absl::StatusOr<Model> ImportOnnx(std::span<const std::byte> bytes, const OnnxOptions& options) {
  return onnx::ImportBytes({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, options, {});
}

absl::StatusOr<Model> ImportOnnxFile(const std::filesystem::path& path, const OnnxOptions& options) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::NotFoundError(absl::StrFormat("ONNX model '%s' is no file", path.string()));
  }
  const auto file_bytes = std::filesystem::file_size(path, error);
  if (error || file_bytes > static_cast<uintmax_t>(onnx::kMaxFileBytes)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("ONNX model '%s' has %d bytes, more than the format allows; store the weights as external data",
                        path.string(), file_bytes));
  }
  std::ifstream stream(path, std::ios::binary);
  std::string bytes(file_bytes, '\0');
  if (!stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
    return absl::DataLossError(absl::StrFormat("ONNX model '%s' cannot be read", path.string()));
  }
  std::filesystem::path folder = std::filesystem::absolute(path, error).parent_path();
  absl::StatusOr<Model> model = onnx::ImportBytes(bytes, options, std::move(folder));
  if (!model.ok()) return Annotate(model.status(), path.string());
  return model;
}

}  // namespace gantry
