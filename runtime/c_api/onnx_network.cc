#include "runtime/c_api/call.h"
#include "runtime/c_api/handles.h"
#include "runtime/graph/onnx.h"

using namespace gantry;
using namespace gantry::c_api;

namespace {

absl::StatusOr<OnnxOptions> ReadOptions(const gantry_onnx_config* config) {
  GANTRY_ASSIGN_OR_RETURN(const gantry_onnx_config given,
                          ReadStruct(config, gantry_onnx_config GANTRY_ONNX_CONFIG_INIT, "gantry_onnx_config"));
  OnnxOptions options;
  options.name = Text(given.name);
  if (given.batch_size < 0) {
    return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("batch_size is %d; it must be 1 or more, or 0 for the file's own", given.batch_size));
  }
  options.batch = given.batch_size;
  GANTRY_ASSIGN_OR_RETURN(options.dtype, ToDataType(given.dtype));
  if (!IsFloat(options.dtype)) return Error(GANTRY_INVALID_ARGUMENT, "dtype must be GANTRY_F32 or GANTRY_F64");
  options.training = given.inference == 0;
  if (given.frozen_count > 0) GANTRY_RETURN_IF_ERROR(RequireNonNull("frozen", given.frozen));
  for (size_t i = 0; i < given.frozen_count; ++i) {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("frozen", given.frozen[i]));
    options.frozen.emplace_back(given.frozen[i]);
  }
  return options;
}

absl::Status Keep(absl::StatusOr<Model> model, gantry_network** network) {
  if (!model.ok()) return FromFile(model.status());
  auto made = std::make_unique<gantry_network>();
  made->model = *std::move(model);
  *network = made.release();
  return absl::OkStatus();
}

}  // namespace

extern "C" {

gantry_status gantry_network_load_onnx(const char* path, const gantry_onnx_config* config, gantry_network** network) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("path, network", path, network));
    GANTRY_ASSIGN_OR_RETURN(OnnxOptions options, ReadOptions(config));
    if (options.name.empty()) options.name = path;
    return Keep(ImportOnnxFile(path, options), network);
  });
}

gantry_status gantry_network_load_onnx_memory(const void* bytes, size_t size_bytes, const gantry_onnx_config* config,
                                              gantry_network** network) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("bytes, network", bytes, network));
    GANTRY_ASSIGN_OR_RETURN(OnnxOptions options, ReadOptions(config));
    if (options.name.empty()) options.name = "ONNX model in memory";
    return Keep(ImportOnnx({static_cast<const std::byte*>(bytes), size_bytes}, options), network);
  });
}

}  // extern "C"
