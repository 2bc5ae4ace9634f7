// How the C functions are made: Call turns what is inside into a status code, ReadStruct and WriteStruct carry the public
// structs over versions.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "memory/status.h"
#include "runtime/include/gantry/gantry.h"

namespace gantry::c_api {

// `status` with the code that the C function shall return instead of the usual one for its absl code.
absl::Status WithCode(const absl::Status& status, gantry_status code);
// An error with this code.
absl::Status Error(gantry_status code, std::string_view message);
// `status` with "context: " before its message, and its code.
absl::Status WithContext(const absl::Status& status, std::string_view context);
// For what reads a file: what is wrong with its content becomes GANTRY_BAD_DATA.
absl::Status FromFile(const absl::Status& status);
// For what writes a file: a full disk becomes GANTRY_NO_SPACE, a path that cannot be made GANTRY_CANNOT_CREATE.
absl::Status ToFile(const absl::Status& status);

// The code for `status`, whose message becomes this thread's last error unless it is OK.
gantry_status Report(const absl::Status& status) noexcept;
gantry_status ReportException(gantry_status code, const char* message) noexcept;

// The one place that turns a Status, or an exception, into a code.
template <typename Function>
gantry_status Call(Function&& function) noexcept {
  try {
    return Report(function());
  } catch (const std::bad_alloc&) {
    return ReportException(GANTRY_OUT_OF_MEMORY, "out of memory; free some, or ask for less");
  } catch (const std::length_error&) {
    return ReportException(GANTRY_OUT_OF_MEMORY, "more was asked for than memory can hold");
  } catch (const std::exception& error) {
    return ReportException(GANTRY_INTERNAL, error.what());
  } catch (...) {
    return ReportException(GANTRY_INTERNAL, "unknown exception");
  }
}

// kInvalidArgument where one of the pointers is null; `names` are the arguments' names, separated by ", ".
template <typename... Pointers>
absl::Status RequireNonNull(std::string_view names, const Pointers*... pointers) {
  if ((... && (pointers != nullptr))) return absl::OkStatus();
  return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("none of these arguments may be NULL: %s", names));
}

// struct_size of a caller's struct, checked: not absurd, and nothing but zero where this library knows no field.
absl::Status CheckStruct(const void* given, size_t struct_size, size_t known_size, std::string_view name);

// The caller's struct in this library's form: fields that the caller's header lacks are as in `defaults`. NULL: `defaults`.
template <typename T>
absl::StatusOr<T> ReadStruct(const T* given, const T& defaults, std::string_view name) {
  T result = defaults;
  if (given == nullptr) return result;
  size_t size;
  std::memcpy(&size, given, sizeof(size));
  GANTRY_RETURN_IF_ERROR(CheckStruct(given, size, sizeof(T), name));
  std::memcpy(static_cast<void*>(&result), given, std::min(size, sizeof(T)));
  result.struct_size = sizeof(T);
  return result;
}

// Fills the caller's struct as far as it goes. Call CheckStruct first where other work comes between.
template <typename T>
absl::Status WriteStruct(T* to, T value, std::string_view name) {
  size_t size;
  std::memcpy(&size, to, sizeof(size));
  GANTRY_RETURN_IF_ERROR(CheckStruct(to, size, sizeof(T), name));
  value.struct_size = size;
  std::memcpy(static_cast<void*>(to), &value, std::min(size, sizeof(T)));
  return absl::OkStatus();
}

// The caller's text; empty for NULL.
inline std::string_view Text(const char* text) { return text == nullptr ? std::string_view() : std::string_view(text); }

// The entry of `names` nearest to `name`, as " (did you mean 'x'?)"; empty where none is near.
std::string NearestName(std::string_view name, const std::vector<std::string>& names);

}  // namespace gantry::c_api
