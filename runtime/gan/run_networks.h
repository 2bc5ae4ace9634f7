// The networks of a run, built from its description.
#pragma once

#include <memory>
#include <vector>

#include "runtime/data/data_set.h"
#include "runtime/gan/gan_step.h"
#include "runtime/gan/run_config.h"

namespace gantry {

struct RunNetworks {
  std::vector<GanRole> generators, discriminators;
};

// Builds every network for the run's micro-batch: families, or ONNX files. model.channels must not be 0 where a family
// is used. Errors name the network, and the file or keys.
absl::StatusOr<RunNetworks> BuildRunNetworks(const RunConfig& config);
// Whether a network of the run is a family's.
bool UsesFamily(const RunConfig& config);

// The data set of the run, as images of [channels, image_size, image_size] where those are not 0. kInvalidArgument
// where data.path is not set.
absl::StatusOr<std::unique_ptr<DataSet>> OpenRunData(const RunConfig& config, int64_t channels, int64_t height,
                                                     int64_t width);

}  // namespace gantry
