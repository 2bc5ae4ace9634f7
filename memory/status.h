// Status and StatusOr as Gantry uses them: absl::Status is the one error currency inside the library, and the C API turns
// it into a code (docs/decisions/0001-status-not-exceptions.md). An error says what happened, to what, with which numbers,
// and what to do about it.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

// Leaves the function with the error of `expression` if it has one.
#define GANTRY_RETURN_IF_ERROR(expression)                                            \
  do {                                                                                \
    if (::absl::Status gantry_status_ = (expression); !gantry_status_.ok()) {         \
      return gantry_status_;                                                          \
    }                                                                                 \
  } while (false)

#define GANTRY_CONCAT_INNER_(a, b) a##b
#define GANTRY_CONCAT_(a, b) GANTRY_CONCAT_INNER_(a, b)

// GANTRY_ASSIGN_OR_RETURN(auto x, MakeX()): x is the value, or the function is left with the error.
#define GANTRY_ASSIGN_OR_RETURN(declaration, expression) \
  GANTRY_ASSIGN_OR_RETURN_IMPL_(GANTRY_CONCAT_(gantry_status_or_, __COUNTER__), declaration, expression)
#define GANTRY_ASSIGN_OR_RETURN_IMPL_(result, declaration, expression) \
  auto result = (expression);                                          \
  if (!result.ok()) return std::move(result).status();                 \
  declaration = *std::move(result)

namespace gantry {

// Debian's Abseil has its own string_view, upstream's is std's; these two compile under both.
inline absl::string_view ToAbsl(std::string_view text) { return absl::string_view(text.data(), text.size()); }
inline std::string_view ToStd(absl::string_view text) { return std::string_view(text.data(), text.size()); }

// The message of `status` as std::string_view; valid as long as `status`.
inline std::string_view Message(const absl::Status& status) { return ToStd(status.message()); }

// A payload of kResourceExhausted: what is short is room in a file system, not memory.
inline constexpr char kStoragePayload[] = "gantry/storage";

// `status` with "`context`: " put before its message, payloads kept; OK stays OK.
inline absl::Status Annotate(const absl::Status& status, std::string_view context) {
  if (status.ok()) return status;
  absl::Status annotated(status.code(), absl::StrCat(ToAbsl(context), ": ", status.message()));
  status.ForEachPayload([&](absl::string_view url, const auto& payload) { annotated.SetPayload(url, payload); });
  return annotated;
}

}  // namespace gantry
