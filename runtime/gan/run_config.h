// A run as one TOML file describes it: networks, data, training and what is written. docs/reference/run-file.md lists
// every key.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/status.h"
#include "runtime/gan/gan_step.h"
#include "runtime/gan/rate_schedule.h"
#include "runtime/plan/exchange_options.h"
#include "runtime/plan/memory_options.h"
#include "runtime/plan/plan.h"

namespace gantry {

// How one network learns.
struct NetworkTraining {
  OptimizerConfig optimizer;
  RateSchedule schedule;
};

// One generator or discriminator of the run.
struct NetworkConfig {
  std::string name;    // unique among all networks; begins the names of its states
  std::string file;    // an ONNX file; empty: the family's network
  std::string family;  // where `file` is empty
  NetworkTraining training;
};

// Members have the names of the keys where one holds one key. Paths are relative to the working directory.
struct RunConfig {
  struct ModelSection {
    std::string family = "dcgan";
    std::string generator, discriminator;                         // ONNX files; empty: the family's
    int64_t image_size = 0, channels = 0, width = 0, latent = 0;  // 0 only without a family; channels: as the data's
    int64_t frames = 0;                                           // of clips; 0: as the data's
  } model;
  struct DataSection {
    std::string path, tensor, split = "train";
    int64_t image_size = 0;
    double padding = -1.0;
    bool channels_last = false, shuffle = true, drop_tail = false;
    int64_t read_ahead = 4, threads = 1, max_memory_mib = 4096;
  } data;
  int64_t batch = 64;  // samples per update; each network is made for batch / step.accumulate
  int64_t steps = 0;   // 0: only train.images counts
  int64_t images = 0;  // 0: only train.steps counts
  double minutes = 0;  // 0: no limit
  uint64_t seed = 0;
  int64_t threads = 0;
  GanStepConfig step;
  PlanOptions plan;      // its memory as `memory` says
  MemoryOptions memory;
  std::string plan_file;  // memory.plan
  std::string parallel;   // parallel.split
  ExchangeOptions exchanges;  // the rest of [parallel]
  NetworkTraining generator, discriminator;               // [generator.optimizer], [discriminator.optimizer]
  std::vector<NetworkConfig> generators, discriminators;  // at least one of each once loaded
  struct OutputSection {
    std::string directory;
    int64_t log_every = 50, sample_every = 1000, checkpoint_every = 1000, keep_checkpoints = 3, sample_count = 64;
    int64_t checkpoint_memory = 0;  // steps between copies of the states in memory; 0: none
  } output;

  int64_t micro_batch() const { return batch / step.accumulate; }
  int64_t images_per_step() const { return batch * step.n_critic; }
};

// Where settings come from, weakest first: the family's defaults, the file, the environment, overrides.
struct RunConfigSources {
  std::string name = "run.toml";         // of the file, for errors and the default of output.directory
  std::string folder;                    // that paths in the file are relative to; empty: the working directory
  std::vector<std::string> environment;  // "NAME=value"; only GANTRY_<SECTION>_<KEY> is looked at
  std::vector<std::string> overrides;    // "train.batch=32"
};

// kInvalidArgument names the file and line (or the variable, or the override), the key, its value and what is allowed;
// for an unknown key the nearest right one.
absl::StatusOr<RunConfig> ParseRunConfig(std::string_view toml, const RunConfigSources& sources = {});
// The same from the file at `path`, of at most 1 MiB; name and folder of `sources` are those of the path.
absl::StatusOr<RunConfig> LoadRunConfig(const std::string& path, RunConfigSources sources = {});
// "NAME=value" of this process for every GANTRY_ variable.
std::vector<std::string> GantryEnvironment();

// A TOML file with every key of the run, from which ParseRunConfig makes an equal one. Paths are absolute.
std::string ToToml(const RunConfig& config);

// One key of a run file, for documentation and completion.
struct RunKey {
  std::string name;      // "train.batch"; "generators[].file" stands in every [[generators]] table
  std::string type;      // "integer", "number", "boolean", "text"
  std::string allowed;   // "1 to 1048576", "\"adam\", \"adamw\" or \"sgd\""; empty: anything of the type
  std::string fallback;  // as TOML, the value without a family's defaults
  std::string help;      // one line
};
// All of them, in the order of ToToml.
std::vector<RunKey> RunKeys();
// The tables of the reference page.
std::string RunKeysMarkdown();

// The keys whose values differ, as "train.batch: 64 -> 32".
std::vector<std::string> Differences(const RunConfig& from, const RunConfig& to);

}  // namespace gantry
