// The subcommands: each takes what its options said and returns the exit code. They throw Failure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gantry::cli {

// A budget, as --device-memory and its companions say: the keys of the section [memory] that were given.
struct MemoryFlags {
  std::string device, offload, host, file, directory, link, plan, machine, stash;
  bool recompute = true, encode = true, checksums = false;
  bool any() const {
    return !device.empty() || !offload.empty() || !host.empty() || !file.empty() || !directory.empty() || !link.empty() || !plan.empty() ||
           !machine.empty() || !stash.empty() || !recompute || !encode || checksums;
  }
};

// Several ranks, as --ranks and --parallel say.
struct RankFlags {
  int ranks = 1;
  int restarts = 0;
  std::string parallel;
  std::string overlap;  // "on", "across", "off" or empty: as the run file says, or on
  std::string link;     // of exchanges
};

struct CheckOptions {
  RankFlags ranks;
  MemoryFlags memory;
  std::string folder;
  std::string kernels = "reference";
  std::string dtype;  // empty: f64 with reference kernels, f32 with fast ones
  int threads = 0;    // 0: one for each core
  bool winograd = true;
  bool json = false;
};
int RunCheck(const CheckOptions& options);

struct LayoutOptions {
  std::string problem, placed;
  int64_t capacity_bytes = 0;   // 0: none
  int64_t work_limit = 0;       // 0: the library's
  int64_t seed = 1;
};
int RunLayoutSolve(const LayoutOptions& options);
int RunLayoutCheck(const LayoutOptions& options);

struct LaunchCommand {
  std::vector<std::string> program;  // with its arguments
  int ranks = 1;
  int nodes = 1;  // that the ranks take themselves to be on, evenly
  bool bind = true, prefix = true;
  double grace_seconds = 5, timeout_seconds = 0, hang_seconds = 60;
  std::string recorder_file;
  int restarts = 0;  // how often a job that lost a rank is started again
};
int RunLaunch(const LaunchCommand& command);

struct RecorderCommand {
  std::string source;  // a process's number, or a file
  bool json = false;
};
int RunRecorder(const RecorderCommand& command);

struct TopologyCommand {
  std::string machine;  // described; empty: this one
  int nodes = 0;
  bool json = false;
};
int RunTopology(const TopologyCommand& command);

int RunBackends();
int RunOps();

// A run file with overrides, or a reference case.
struct ModelOptions {
  MemoryFlags memory;
  std::string source;
  std::vector<std::string> settings;
  std::string dtype, kernels;   // of a reference case; empty: f32, fast
  bool executed = false;        // the program as it runs
  bool gradient_norms = false;  // of a reference case
};
int RunProgramShow(const ModelOptions& options);
int RunPlanShow(const ModelOptions& options);

struct PlanOptions {
  ModelOptions model;      // of what to plan
  std::string out;         // file to write
  RankFlags ranks{.ranks = 0};
  int nodes = 0;
  bool json = false;
  bool of_ranks() const { return ranks.ranks > 0 || nodes > 0 || !ranks.parallel.empty(); }
  std::string first, second;  // plan files to look at
};
int RunPlanMake(const PlanOptions& options);
int RunPlanDiff(const PlanOptions& options);
int RunPlanVerify(const PlanOptions& options);

struct WhatIfOptions {
  ModelOptions model;
  bool json = false;
};
int RunPlanWhatIf(const WhatIfOptions& options);

struct CalibrateOptions {
  RankFlags ranks;
  std::string run;       // a run file to measure as well
  std::vector<std::string> settings;
  std::string out;       // machine file; empty: where later plans look
  std::string directory; // of a file tier
  int threads = 0;       // 0: one for each core
  int steps = 3;
};
int RunCalibrate(const CalibrateOptions& options);

struct TrainOptions {
  RankFlags ranks;
  MemoryFlags memory;
  std::string run_file;
  std::vector<std::string> settings;
  std::string resume;   // empty, "latest" or a file
  int64_t steps = 0;    // stop after so many; 0: at the run's end
  int64_t checkpoint_memory = -1;  // steps between copies of the states in memory; -1: as the run file says
};
int RunTrain(const TrainOptions& options);

struct SampleOptions {
  std::string source;  // a checkpoint, a run's folder, or a run file
  std::string out;
  int64_t count = 64;
  int64_t columns = 0;
  int64_t seed = 0;
  bool average = true;
};
int RunSample(const SampleOptions& options);

}  // namespace gantry::cli
