#include "runtime/c_api/call.h"
#include "runtime/c_api/handles.h"
#include "runtime/gan/session_checkpoint.h"

using namespace gantry;
using namespace gantry::c_api;

namespace {

absl::Status RequireSession(const gantry_gan* gan, const char* path) {
  GANTRY_RETURN_IF_ERROR(RequireNonNull("gan, path", gan, path));
  if (gan->session != nullptr) return absl::OkStatus();
  return Error(GANTRY_FAILED_PRECONDITION, "the session is not planned yet: call gantry_gan_plan first");
}

}  // namespace

extern "C" {

gantry_status gantry_gan_save(gantry_gan* gan, const char* path) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireSession(gan, path));
    GANTRY_RETURN_IF_ERROR(ToFile(SaveSession(*gan->session, path)));
    gan->context->Log(GANTRY_LOG_INFO, absl::StrFormat("wrote %s at step %d", path, gan->session->progress().steps));
    return absl::OkStatus();
  });
}

gantry_status gantry_gan_resume(gantry_gan* gan, const char* path) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireSession(gan, path));
    GANTRY_RETURN_IF_ERROR(FromFile(LoadSession(path, *gan->session)));
    gan->stopped = false;
    return absl::OkStatus();
  });
}

}  // extern "C"
