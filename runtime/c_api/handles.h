// What the opaque handles of gantry.h hold.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "comm/keeping.h"
#include "memory/device.h"
#include "runtime/data/host_array.h"
#include "runtime/gan/gan_session.h"
#include "runtime/gan/run_config.h"
#include "runtime/graph/model.h"
#include "runtime/include/gantry/gantry.h"

namespace gantry::c_api {

// What sessions share of their context, and keep alive.
struct SharedContext {
  std::unique_ptr<Device> device;
  std::unique_ptr<JobRanks> ranks;  // null for one rank; sessions go first
  std::unique_ptr<Keeping> keeping;  // null where the job is not started again
  uint64_t memory_bytes = 0;  // as configured; 0: no limit
  int thread_count = 0;       // as configured; 0: one for each core
  int log_level = GANTRY_LOG_NONE;
  gantry_log_function log = nullptr;
  void* log_payload = nullptr;

  // An error of a step that ended because a rank is gone says so.
  absl::Status FromRanks(const absl::Status& status);
  bool failed_together = false;  // the last such error is one that all ranks ended with

  void Log(int level, std::string_view message) const {
    if (log != nullptr && level <= log_level) log(level, std::string(message).c_str(), log_payload);
  }
};

// GANTRY_F32 for kF32 and so on, and back; kInvalidArgument names the number.
int32_t FromHostType(HostType type);
absl::StatusOr<HostType> ToHostType(int32_t dtype);
int32_t FromDataType(DataType type);
absl::StatusOr<DataType> ToDataType(int32_t dtype);
// `dims` of `rank`, checked: not negative, and no more bytes than 2^60.
absl::StatusOr<Shape> ToShape(DataType type, size_t rank, const int64_t* dims);

// The configuration of a run file with overrides, as gantry_run_open reads it. What is wrong in it is the file's fault: GANTRY_BAD_DATA.
absl::StatusOr<RunConfig> ReadRun(const char* path, size_t override_count, const char* const* overrides);

// A line for the log about ops that run on reference kernels; empty where there is none.
std::string FallbackMessage(const Plan& plan);
gantry_plan_info PlanInfo(const Plan& plan);
absl::Status WritePlan(const std::string& path, const Plan& plan);
absl::Status WriteTierInfo(const GanSession& session, size_t index, gantry_tier_info* info);

}  // namespace gantry::c_api

struct gantry_context {
  std::shared_ptr<gantry::c_api::SharedContext> shared;
  std::string text;
};

struct gantry_array {
  gantry::HostArray array;
};

struct gantry_network {
  gantry::Model model;
  std::string text;
};

struct gantry_gan {
  std::shared_ptr<gantry::c_api::SharedContext> context;
  gantry::GanSessionOptions options;
  std::string machine;  // gantry_memory.machine
  std::vector<gantry::GanRole> generators, discriminators;  // moved into the session by the plan
  std::unique_ptr<gantry::GanSession> session;              // null before the plan; it must go before the context
  bool stopped = false;                                     // a step ended with a NaN or infinity
  std::vector<std::string> scalar_names, state_names;
  std::string text;
};
