#include "absl/strings/str_cat.h"
#include "runtime/c_api/call.h"
#include "runtime/c_api/handles.h"

using namespace gantry;
using namespace gantry::c_api;

namespace gantry::c_api {

absl::Status SharedContext::FromRanks(const absl::Status& status) {
  failed_together = status.GetPayload(kAgreedPayload).has_value();
  return ranks != nullptr && absl::IsUnavailable(status) && ranks->liveness().losses() > 0 ? WithCode(status, GANTRY_PEER_LOST) : status;
}

}  // namespace gantry::c_api

extern "C" {

gantry_status gantry_context_create(const gantry_context_config* config, gantry_context** context) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("context", context));
    GANTRY_ASSIGN_OR_RETURN(const gantry_context_config given,
                            ReadStruct(config, GANTRY_CONTEXT_CONFIG_INIT, "gantry_context_config"));
    if (given.device != nullptr && Text(given.device) != "cpu") {
      return Error(GANTRY_UNSUPPORTED, absl::StrFormat("no device '%s'; this build has: cpu", given.device));
    }
    if (given.thread_count < 0 || given.thread_count > 4096) {
      return Error(GANTRY_INVALID_ARGUMENT,
                   absl::StrFormat("thread_count is %d; it must be 1 to 4096, or 0 for one thread a core", given.thread_count));
    }
    auto shared = std::make_shared<SharedContext>();
    shared->memory_bytes = given.memory_bytes;
    shared->thread_count = given.thread_count;
    shared->log_level = given.log_level;
    shared->log = given.log;
    shared->log_payload = given.log_payload;
    CpuDeviceOptions options;
    if (given.memory_bytes != 0 && given.memory_bytes < static_cast<uint64_t>(INT64_MAX)) {
      options.capacity_bytes = static_cast<int64_t>(given.memory_bytes);
    }
    options.thread_count = given.thread_count;
    if (given.join_job != 0) {
      GANTRY_ASSIGN_OR_RETURN(shared->ranks, JobRanks::Join());
      GANTRY_ASSIGN_OR_RETURN(shared->keeping, Keeping::FromEnvironment());
      if (shared->ranks != nullptr) {
        shared->Log(GANTRY_LOG_INFO, absl::StrFormat("rank %d of %d, found by %s", shared->ranks->rank(), shared->ranks->size(),
                                                     shared->ranks->links().job().found_by));
        GANTRY_ASSIGN_OR_RETURN(const int threads, shared->ranks->ShareOfCores());
        if (given.thread_count == 0) options.thread_count = threads;
      }
    }
    options.shared = shared->ranks != nullptr;
    shared->device = MakeCpuDevice(options);
    shared->Log(GANTRY_LOG_DEBUG, absl::StrFormat("device %s, %d threads", shared->device->name(), shared->device->thread_count()));
    *context = new gantry_context{std::move(shared)};
    return absl::OkStatus();
  });
}

int32_t gantry_context_rank(const gantry_context* context) {
  return context == nullptr || context->shared->ranks == nullptr ? 0 : context->shared->ranks->rank();
}
int32_t gantry_context_rank_count(const gantry_context* context) {
  return context == nullptr ? 0 : context->shared->ranks == nullptr ? 1 : context->shared->ranks->size();
}

int32_t gantry_context_failed_together(const gantry_context* context) { return context != nullptr && context->shared->failed_together ? 1 : 0; }

void gantry_context_destroy(gantry_context* context) { delete context; }

int32_t gantry_context_thread_count(const gantry_context* context) {
  return context == nullptr ? 0 : context->shared->device->thread_count();
}

uint64_t gantry_context_reserved_bytes(const gantry_context* context) {
  return context == nullptr ? 0 : static_cast<uint64_t>(context->shared->device->reserved_bytes());
}

}  // extern "C"
