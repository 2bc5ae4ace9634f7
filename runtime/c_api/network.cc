#include <algorithm>
#include <cmath>

#include "ops/functional.h"
#include "runtime/c_api/call.h"
#include "runtime/c_api/handles.h"

using namespace gantry;
using namespace gantry::c_api;

namespace {

constexpr size_t kMaxNameBytes = 1024;
constexpr size_t kMaxOpInputs = 4096;

absl::Status CheckName(std::string_view what, const char* name) {
  const std::string_view text = Text(name);
  if (!text.empty() && text.size() <= kMaxNameBytes) return absl::OkStatus();
  return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("%s needs a name of 1 to %d bytes", what, kMaxNameBytes));
}

absl::Status CheckValue(const Program& program, gantry_value value, std::string_view what) {
  if (value >= 0 && value < static_cast<gantry_value>(program.values().size())) return absl::OkStatus();
  return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("%s: %d is not a value of this network", what, value));
}

absl::StatusOr<Attributes> ReadAttributes(size_t count, const gantry_attribute* attributes) {
  Attributes result;
  if (count == 0) return result;
  GANTRY_RETURN_IF_ERROR(RequireNonNull("attributes", attributes));
  const size_t stride = attributes->struct_size;
  for (size_t i = 0; i < count; ++i) {
    const auto* place = reinterpret_cast<const gantry_attribute*>(reinterpret_cast<const char*>(attributes) + i * stride);
    GANTRY_ASSIGN_OR_RETURN(const gantry_attribute given,
                            ReadStruct(place, gantry_attribute GANTRY_ATTRIBUTE_INIT, "gantry_attribute"));
    GANTRY_RETURN_IF_ERROR(CheckName("an attribute", given.name));
    const std::string name = given.name;
    switch (given.kind) {
      case GANTRY_ATTRIBUTE_INT: result.Set(name, given.int_value); break;
      case GANTRY_ATTRIBUTE_FLOAT: result.Set(name, given.float_value); break;
      case GANTRY_ATTRIBUTE_STRING: result.Set(name, std::string(Text(given.string_value))); break;
      case GANTRY_ATTRIBUTE_INTS:
        if (given.count > 0) GANTRY_RETURN_IF_ERROR(RequireNonNull("ints", given.ints));
        result.Set(name, std::vector<int64_t>(given.ints, given.ints + given.count));
        break;
      case GANTRY_ATTRIBUTE_FLOATS:
        if (given.count > 0) GANTRY_RETURN_IF_ERROR(RequireNonNull("floats", given.floats));
        result.Set(name, std::vector<double>(given.floats, given.floats + given.count));
        break;
      default:
        return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("attribute '%s': %d is no gantry_attribute_kind", name, given.kind));
    }
  }
  return result;
}

// Emits `op`, or one of the two names that stand for others.
std::vector<ValueId> EmitNamed(Program& program, std::string_view op, const std::vector<ValueId>& inputs, const Attributes& attributes) {
  if (op == "relu" && inputs.size() == 1) return {ops::Relu(program, inputs[0])};
  if (op == "linear" && (inputs.size() == 2 || inputs.size() == 3)) {
    return {ops::Linear(program, inputs[0], inputs[1], inputs.size() == 3 ? inputs[2] : kNoValue)};
  }
  return program.Emit(op, inputs, attributes);
}

absl::StatusOr<Initializer> ReadInitializer(const gantry_initializer& given, const TensorType& type) {
  Initializer result;
  result.a = given.a;
  result.b = given.b;
  switch (given.kind) {
    case GANTRY_CONSTANT: break;
    case GANTRY_NORMAL: result.kind = Initializer::Kind::kNormal; break;
    case GANTRY_UNIFORM: result.kind = Initializer::Kind::kUniform; break;
    case GANTRY_DATA: {
      result.kind = Initializer::Kind::kData;
      if (static_cast<int64_t>(given.data_count) != type.element_count()) {
        return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("%s has %d elements, the initializer %d", type.ToString(),
                                                              type.element_count(), given.data_count));
      }
      GANTRY_RETURN_IF_ERROR(RequireNonNull("data", given.data));
      result.data.assign(given.data, given.data + given.data_count);
      break;
    }
    default: return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("%d is no gantry_initializer_kind", given.kind));
  }
  if (!std::isfinite(given.a) || !std::isfinite(given.b)) {
    return Error(GANTRY_INVALID_ARGUMENT, "a and b of an initializer must be finite");
  }
  return result;
}

}  // namespace

extern "C" {

size_t gantry_op_count(void) {
  size_t count = 0;
  const gantry_status status = Call([&] {
    count = AllOps().size();
    return absl::OkStatus();
  });
  return status == GANTRY_OK ? count : 0;
}

gantry_status gantry_op_get(size_t index, gantry_op_info* info) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("info", info));
    const std::vector<const OpDefinition*> all = AllOps();
    if (index >= all.size()) return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("there are %d ops, asked for %d", all.size(), index));
    const OpDefinition& op = *all[index];
    gantry_op_info result = GANTRY_OP_INFO_INIT;
    result.name = op.name.data();  // definitions and their names live as long as the process
    result.min_inputs = op.min_inputs;
    result.max_inputs = op.max_inputs;
    result.differentiable = op.differentiate != nullptr || op.decompose != nullptr ? 1 : 0;
    return WriteStruct(info, result, "gantry_op_info");
  });
}

gantry_status gantry_network_create(const char* name, gantry_network** network) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("network", network));
    auto made = std::make_unique<gantry_network>();
    made->model.name = name == nullptr ? "network" : name;
    *network = made.release();
    return absl::OkStatus();
  });
}

void gantry_network_destroy(gantry_network* network) { delete network; }

gantry_status gantry_network_add_input(gantry_network* network, const char* name, int32_t dtype, size_t rank,
                                       const int64_t* dims, gantry_value* value) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("network, value", network, value));
    GANTRY_RETURN_IF_ERROR(CheckName("an input", name));
    GANTRY_ASSIGN_OR_RETURN(const DataType type, ToDataType(dtype));
    GANTRY_ASSIGN_OR_RETURN(Shape shape, ToShape(type, rank, dims));
    Program& program = network->model.program;
    if (name == kRandomState && !(type == DataType::kI64 && shape == Shape{2})) {
      return Error(GANTRY_INVALID_ARGUMENT, "the input 'random_state' must be GANTRY_I64 of shape [2]");
    }
    if (program.FindInput(name) != kNoValue) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("the network already has an input '%s'", name));
    }
    *value = program.AddInput(name, TensorType{type, std::move(shape)});
    return program.status();
  });
}

gantry_status gantry_network_add_parameter(gantry_network* network, const char* name, int32_t dtype, size_t rank,
                                           const int64_t* dims, const gantry_initializer* initializer, gantry_value* value) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("network, value", network, value));
    GANTRY_RETURN_IF_ERROR(CheckName("a parameter", name));
    GANTRY_ASSIGN_OR_RETURN(const gantry_initializer given,
                            ReadStruct(initializer, gantry_initializer GANTRY_INITIALIZER_INIT, "gantry_initializer"));
    GANTRY_ASSIGN_OR_RETURN(const DataType data_type, ToDataType(dtype));
    if (!IsFloat(data_type)) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("parameter '%s': type %s is not f32 or f64", name, gantry_dtype_name(dtype)));
    }
    GANTRY_ASSIGN_OR_RETURN(Shape shape, ToShape(data_type, rank, dims));
    const TensorType type{data_type, std::move(shape)};
    absl::StatusOr<Initializer> first = ReadInitializer(given, type);
    if (!first.ok()) return WithContext(first.status(), absl::StrFormat("parameter '%s'", name));
    Program& program = network->model.program;
    if (program.FindState(name) != nullptr) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("the network already has a parameter '%s'", name));
    }
    const StateRole role = given.statistic != 0 ? StateRole::kStatistic : StateRole::kParameter;
    *value = program.AddState(name, "", role, type, *std::move(first));
    return program.status();
  });
}

gantry_status gantry_network_add_op(gantry_network* network, const char* op, size_t input_count, const gantry_value* inputs,
                                    size_t attribute_count, const gantry_attribute* attributes, size_t output_capacity,
                                    gantry_value* outputs) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("network, op, outputs", network, op, outputs));
    if (input_count > 0) GANTRY_RETURN_IF_ERROR(RequireNonNull("inputs", inputs));
    if (input_count > kMaxOpInputs || attribute_count > kMaxOpInputs) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("%s: more than %d inputs or attributes", op, kMaxOpInputs));
    }
    const std::string_view name = op;
    if ((FindOp(name) == nullptr || FindOp(name)->moves) && name != "relu" && name != "linear") {
      std::vector<std::string> names = {"relu", "linear"};
      for (const OpDefinition* definition : AllOps()) names.emplace_back(definition->name);
      return Error(GANTRY_NOT_FOUND, absl::StrFormat("there is no op '%s'%s; gantry_op_get and `gantry ops` list them", name,
                                                     NearestName(name, names)));
    }
    GANTRY_ASSIGN_OR_RETURN(const Attributes read, ReadAttributes(attribute_count, attributes));
    // Tried on a program of its own first: an error would stick to the network.
    Program& program = network->model.program;
    Program trial;
    std::vector<ValueId> trial_inputs;
    for (size_t i = 0; i < input_count; ++i) {
      GANTRY_RETURN_IF_ERROR(CheckValue(program, inputs[i], name));
      trial_inputs.push_back(trial.AddInput(absl::StrCat("input", i), program.TypeOf(inputs[i])));
    }
    const std::vector<ValueId> trial_outputs = EmitNamed(trial, name, trial_inputs, read);
    if (!trial.status().ok()) return WithCode(trial.status(), GANTRY_INVALID_ARGUMENT);
    if (trial_outputs.size() > output_capacity) {
      return Error(GANTRY_INVALID_ARGUMENT,
                   absl::StrFormat("%s has %d outputs, there is room for %d", name, trial_outputs.size(), output_capacity));
    }
    const std::vector<ValueId> made = EmitNamed(program, name, std::vector<ValueId>(inputs, inputs + input_count), read);
    GANTRY_RETURN_IF_ERROR(program.status());
    std::copy(made.begin(), made.end(), outputs);
    return absl::OkStatus();
  });
}

gantry_status gantry_network_update(gantry_network* network, const char* name, gantry_value value) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("network, name", network, name));
    Program& program = network->model.program;
    GANTRY_RETURN_IF_ERROR(CheckValue(program, value, name));
    const State* state = program.FindState(name);
    if (state == nullptr) return Error(GANTRY_NOT_FOUND, absl::StrFormat("the network has no statistic '%s'", name));
    if (state->role != StateRole::kStatistic) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("'%s' is trained by the optimizer; only a statistic can be updated", name));
    }
    if (!(program.TypeOf(state->first) == program.TypeOf(value))) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("statistic '%s' is %s, its new content %s", name,
                                                            program.TypeOf(state->first).ToString(), program.TypeOf(value).ToString()));
    }
    program.UpdateState(name, value);
    return program.status();
  });
}

gantry_status gantry_network_set_output(gantry_network* network, const char* name, gantry_value value) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("network", network));
    GANTRY_RETURN_IF_ERROR(CheckName("an output", name));
    Program& program = network->model.program;
    GANTRY_RETURN_IF_ERROR(CheckValue(program, value, name));
    if (program.FindOutput(name) != kNoValue) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("the network already has an output '%s'", name));
    }
    program.AddOutput(name, value);
    return program.status();
  });
}

gantry_status gantry_network_shape(const gantry_network* network, gantry_value value, size_t capacity, int64_t* dims, size_t* rank) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("network, rank", network, rank));
    if (capacity > 0) GANTRY_RETURN_IF_ERROR(RequireNonNull("dims", dims));
    GANTRY_RETURN_IF_ERROR(CheckValue(network->model.program, value, "shape"));
    const std::vector<int64_t>& shape = network->model.program.TypeOf(value).shape.dims();
    std::copy_n(shape.begin(), std::min(capacity, shape.size()), dims);
    *rank = shape.size();
    return absl::OkStatus();
  });
}

uint64_t gantry_network_parameter_count(const gantry_network* network) {
  if (network == nullptr) return 0;
  uint64_t count = 0;
  const Program& program = network->model.program;
  for (const State& state : program.states()) {
    if (state.role == StateRole::kParameter) count += static_cast<uint64_t>(program.TypeOf(state.first).element_count());
  }
  return count;
}

gantry_status gantry_network_text(gantry_network* network, const char** text) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("network, text", network, text));
    network->text = network->model.program.Dump();
    *text = network->text.c_str();
    return absl::OkStatus();
  });
}

}  // extern "C"
