#include "tools/cli/case_session.h"

namespace gantry::cli {
namespace {

// What is wrong inside a case is the case's fault, a missing file included.
void RequireCase(gantry_status status, const std::string& context) {
  if (status == GANTRY_OK) return;
  const ExitCode code = status == GANTRY_NOT_FOUND || status == GANTRY_PERMISSION_DENIED ? kExitBadData : ExitCodeOf(status);
  throw Failure(code, context + ": " + gantry_last_error());
}

Network LoadNetwork(const ReferenceCase& reference, const char* file, int32_t dtype) {
  gantry_onnx_config config = GANTRY_ONNX_CONFIG_INIT;
  config.batch_size = reference.batch;
  config.dtype = dtype;
  gantry_network* network = nullptr;
  const std::string path = reference.folder + "/" + file;
  RequireCase(gantry_network_load_onnx(path.c_str(), &config, &network), path);
  return Network(network);
}

}  // namespace

Gan MakeCaseSession(gantry_context* context, const ReferenceCase& reference, int32_t dtype, gantry_gan_config config) {
  config.dtype = dtype;
  const Network generator = LoadNetwork(reference, "generator.onnx", dtype);
  const Network discriminator = LoadNetwork(reference, "discriminator.onnx", dtype);
  gantry_gan* made = nullptr;
  RequireCase(gantry_gan_create(context, &config, &made), reference.folder);
  Gan gan(made);
  RequireCase(gantry_gan_add_generator(made, "generator", generator.get(), &reference.generator), reference.folder);
  RequireCase(gantry_gan_add_discriminator(made, "discriminator", discriminator.get(), &reference.discriminator), reference.folder);
  return gan;
}

}  // namespace gantry::cli
