#include "runtime/c_api/call.h"

#include <cstdint>

#include "absl/strings/cord.h"
#include "memory/nearest.h"

namespace gantry::c_api {
namespace {

constexpr char kCodePayload[] = "gantry/status";

std::string& LastError() {
  thread_local std::string message;
  return message;
}
// Where there is no memory for the message itself.
thread_local const char* last_error_fallback = nullptr;

gantry_status UsualCode(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk: return GANTRY_OK;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kOutOfRange: return GANTRY_INVALID_ARGUMENT;
    case absl::StatusCode::kNotFound: return GANTRY_NOT_FOUND;
    case absl::StatusCode::kFailedPrecondition: return GANTRY_FAILED_PRECONDITION;
    case absl::StatusCode::kUnimplemented: return GANTRY_UNSUPPORTED;
    case absl::StatusCode::kDataLoss: return GANTRY_BAD_DATA;
    case absl::StatusCode::kResourceExhausted: return GANTRY_OUT_OF_MEMORY;
    case absl::StatusCode::kPermissionDenied: return GANTRY_PERMISSION_DENIED;
    case absl::StatusCode::kUnavailable: return GANTRY_IO_ERROR;
    case absl::StatusCode::kDeadlineExceeded: return GANTRY_TIMED_OUT;
    default: return GANTRY_INTERNAL;
  }
}

gantry_status CodeOf(const absl::Status& status) {
  if (const auto payload = status.GetPayload(kCodePayload); payload.has_value()) {
    int code = 0;
    if (absl::SimpleAtoi(std::string(*payload), &code)) return static_cast<gantry_status>(code);
  }
  if (status.GetPayload(kStoragePayload).has_value()) return GANTRY_NO_SPACE;
  return UsualCode(status.code());
}

}  // namespace

absl::Status WithCode(const absl::Status& status, gantry_status code) {
  if (status.ok()) return status;
  absl::Status result = status;
  result.SetPayload(kCodePayload, absl::Cord(std::to_string(static_cast<int>(code))));
  return result;
}

absl::Status Error(gantry_status code, std::string_view message) {
  return WithCode(absl::UnknownError(ToAbsl(message)), code);
}

absl::Status WithContext(const absl::Status& status, std::string_view context) {
  return status.ok() ? status : WithCode(Annotate(status, context), CodeOf(status));
}

absl::Status FromFile(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kDataLoss: return WithCode(status, GANTRY_BAD_DATA);
    default: return status;
  }
}

absl::Status ToFile(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied: return WithCode(status, GANTRY_CANNOT_CREATE);
    case absl::StatusCode::kResourceExhausted: return WithCode(status, GANTRY_NO_SPACE);
    default: return status;
  }
}

gantry_status Report(const absl::Status& status) noexcept {
  if (status.ok()) return GANTRY_OK;
  try {
    const gantry_status code = CodeOf(status);
    LastError() = std::string(Message(status));
    last_error_fallback = nullptr;
    return code;
  } catch (...) {
    last_error_fallback = "a call failed, and there was no memory left to keep its message";
    return UsualCode(status.code());
  }
}

gantry_status ReportException(gantry_status code, const char* message) noexcept {
  try {
    LastError() = message;
    last_error_fallback = nullptr;
  } catch (...) {
    last_error_fallback = "out of memory";
  }
  return code;
}

absl::Status CheckStruct(const void* given, size_t struct_size, size_t known_size, std::string_view name) {
  if (struct_size <= sizeof(size_t) || struct_size > size_t{1} << 16) {
    return Error(GANTRY_INVALID_ARGUMENT,
                 absl::StrFormat("%s.struct_size is %d; start from its INIT macro, which sets it", name, struct_size));
  }
  const auto* bytes = static_cast<const unsigned char*>(given);
  for (size_t i = known_size; i < struct_size; ++i) {
    if (bytes[i] != 0) {
      return Error(GANTRY_VERSION_MISMATCH,
                   absl::StrFormat("%s has %d bytes and sets byte %d, but this library (%s) knows %d: install a newer "
                                   "libgantry, or leave the new fields 0",
                                   name, struct_size, i, gantry_version(), known_size));
    }
  }
  return absl::OkStatus();
}

std::string NearestName(std::string_view name, const std::vector<std::string>& names) {
  const std::string_view nearest = Nearest(name, names);
  return nearest.empty() ? std::string() : absl::StrFormat(" (did you mean '%s'?)", nearest);
}

}  // namespace gantry::c_api

extern "C" {

const char* gantry_last_error(void) {
  if (gantry::c_api::last_error_fallback != nullptr) return gantry::c_api::last_error_fallback;
  return gantry::c_api::LastError().c_str();
}

const char* gantry_status_name(gantry_status status) {
  switch (static_cast<int>(status)) {
    case GANTRY_OK: return "GANTRY_OK";
    case GANTRY_INVALID_ARGUMENT: return "GANTRY_INVALID_ARGUMENT";
    case GANTRY_NOT_FOUND: return "GANTRY_NOT_FOUND";
    case GANTRY_FAILED_PRECONDITION: return "GANTRY_FAILED_PRECONDITION";
    case GANTRY_UNSUPPORTED: return "GANTRY_UNSUPPORTED";
    case GANTRY_VERSION_MISMATCH: return "GANTRY_VERSION_MISMATCH";
    case GANTRY_BAD_DATA: return "GANTRY_BAD_DATA";
    case GANTRY_OUT_OF_MEMORY: return "GANTRY_OUT_OF_MEMORY";
    case GANTRY_PERMISSION_DENIED: return "GANTRY_PERMISSION_DENIED";
    case GANTRY_NO_SPACE: return "GANTRY_NO_SPACE";
    case GANTRY_IO_ERROR: return "GANTRY_IO_ERROR";
    case GANTRY_CANNOT_CREATE: return "GANTRY_CANNOT_CREATE";
    case GANTRY_TIMED_OUT: return "GANTRY_TIMED_OUT";
    case GANTRY_NOT_FINITE: return "GANTRY_NOT_FINITE";
    case GANTRY_PEER_LOST: return "GANTRY_PEER_LOST";
    case GANTRY_INTERNAL: return "GANTRY_INTERNAL";
    default: return "unknown status";
  }
}

}  // extern "C"
