// A reference case: a folder with an adversarial training run of another framework, step by step.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tools/cli/support.h"

namespace gantry::cli {

// case.json, checked. Failure with kExitBadData names the field.
struct ReferenceCase {
  std::string folder, name;
  int64_t steps = 0, batch = 0;
  gantry_gan_config config = GANTRY_GAN_CONFIG_INIT;  // loss, penalties, n_critic, ema
  gantry_optimizer generator = GANTRY_OPTIMIZER_INIT, discriminator = GANTRY_OPTIMIZER_INIT;
  std::vector<std::string> columns;           // scalars of the log
  std::vector<std::vector<double>> log;       // a row a step, float64
  std::vector<double> drift;                  // of float32 from float64, a step each; empty where the case has none
  std::map<std::string, double> gradient_norms;  // of the first step, by tensor
};

ReferenceCase ReadCase(const std::string& folder);

// The settings of case.json without what was computed: enough to build the step program.
ReferenceCase ReadCaseSettings(const std::string& folder);

}  // namespace gantry::cli
