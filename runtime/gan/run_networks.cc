#include "runtime/gan/run_networks.h"

#include <algorithm>

#include "runtime/gan/families.h"
#include "runtime/graph/onnx.h"

namespace gantry {
namespace {

absl::StatusOr<GanRole> BuildRole(const RunConfig& config, const NetworkConfig& network, bool is_generator) {
  GanRole role{.name = network.name, .optimizer = network.training.optimizer};
  if (!network.file.empty()) {
    GANTRY_ASSIGN_OR_RETURN(
        role.model, ImportOnnxFile(network.file,
                                   {.name = network.name, .batch = config.micro_batch(), .dtype = config.step.dtype}));
    return role;
  }
  absl::StatusOr<Family> family = BuildFamily(network.family, {.image_size = config.model.image_size,
                                                               .frames = network.family == kVideoFamily ? config.model.frames : 0,
                                                               .channels = config.model.channels,
                                                               .width = config.model.width,
                                                               .latent_size = config.model.latent,
                                                               .batch = config.micro_batch(),
                                                               .dtype = config.step.dtype});
  if (!family.ok()) return Annotate(family.status(), absl::StrFormat("network '%s' (see [model])", network.name));
  role.model = std::move(is_generator ? family->generator : family->discriminator);
  return role;
}

}  // namespace

absl::StatusOr<RunNetworks> BuildRunNetworks(const RunConfig& config) {
  RunNetworks networks;
  for (const NetworkConfig& network : config.generators) {
    GANTRY_ASSIGN_OR_RETURN(GanRole role, BuildRole(config, network, true));
    networks.generators.push_back(std::move(role));
  }
  for (const NetworkConfig& network : config.discriminators) {
    GANTRY_ASSIGN_OR_RETURN(GanRole role, BuildRole(config, network, false));
    networks.discriminators.push_back(std::move(role));
  }
  return networks;
}

bool UsesFamily(const RunConfig& config) {
  const auto from_family = [](const NetworkConfig& network) { return network.file.empty(); };
  return std::any_of(config.generators.begin(), config.generators.end(), from_family) ||
         std::any_of(config.discriminators.begin(), config.discriminators.end(), from_family);
}

absl::StatusOr<std::unique_ptr<DataSet>> OpenRunData(const RunConfig& config, int64_t channels, int64_t height,
                                                     int64_t width) {
  const RunConfig::DataSection& data = config.data;
  if (data.path.empty()) {
    return absl::InvalidArgumentError(
        "data.path is not set: name a file or folder of samples in the run file's [data], or with data.path=PATH");
  }
  absl::StatusOr<std::unique_ptr<DataSet>> opened =
      OpenDataSet(data.path, {.tensor = data.tensor,
                              .split = data.split,
                              .height = data.image_size > 0 ? data.image_size : height,
                              .width = data.image_size > 0 ? data.image_size : width,
                              .padding = static_cast<float>(data.padding),
                              .channels = channels == 1 || channels == 3 ? channels : 0,
                              .channels_last = data.channels_last,
                              .max_memory_bytes = static_cast<uint64_t>(data.max_memory_mib) << 20});
  if (!opened.ok()) return Annotate(opened.status(), "data.path");
  return opened;
}

}  // namespace gantry
