#include "tools/cli/support.h"

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <utility>

namespace gantry::cli {
namespace {

void PrintMessage(int32_t level, const char* message, void*) {
  std::fprintf(stderr, "gantry: %s%s\n", level == GANTRY_LOG_WARNING ? "warning: " : "", message);
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

}  // namespace

ExitCode ExitCodeOf(gantry_status status) {
  switch (status) {
    case GANTRY_OK: return kExitOk;
    case GANTRY_INVALID_ARGUMENT:
    case GANTRY_BAD_DATA:
    case GANTRY_UNSUPPORTED: return kExitBadData;
    case GANTRY_NOT_FOUND:
    case GANTRY_PERMISSION_DENIED: return kExitMissingInput;
    case GANTRY_OUT_OF_MEMORY:
    case GANTRY_TIMED_OUT: return kExitUnavailable;
    case GANTRY_NO_SPACE:
    case GANTRY_IO_ERROR: return kExitInputOutput;
    case GANTRY_CANNOT_CREATE:
    case GANTRY_FAILED_PRECONDITION: return kExitCannotCreate;  // a run's folder that belongs to another run or process
    case GANTRY_NOT_FINITE: return kExitNegative;
    default: return kExitInternal;
  }
}

void Require(gantry_status status, std::string_view context) {
  if (status == GANTRY_OK) return;
  std::string message(context);
  if (!message.empty()) message += ": ";
  throw Failure(ExitCodeOf(status), message + gantry_last_error());
}

Context MakeContext(int thread_count, int32_t log_level) {
  gantry_context_config config = GANTRY_CONTEXT_CONFIG_INIT;
  config.thread_count = thread_count;
  config.log = PrintMessage;
  config.log_level = log_level;
  gantry_context* context = nullptr;
  Require(gantry_context_create(&config, &context));
  return Context(context);
}

std::string BytesText(uint64_t bytes) {
  std::string digits = std::to_string(bytes);
  for (size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, 1, ',');
  return Format("%s bytes (%.1f MiB)", digits.c_str(), static_cast<double>(bytes) / (1 << 20));
}

std::string Nearest(std::string_view name, const std::vector<std::string>& names) {
  std::string nearest;
  size_t smallest = std::max<size_t>(name.size() / 3, 2) + 1;
  for (const std::string& candidate : names) {
    const size_t distance = EditDistance(name, candidate);
    if (distance < smallest) {
      smallest = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string Format(const char* format, ...) {
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, format, arguments);
  va_end(arguments);
  std::string text(static_cast<size_t>(std::max(length, 0)) + 1, '\0');
  std::vsnprintf(text.data(), text.size(), format, again);
  va_end(again);
  text.pop_back();
  return text;
}

std::string ReadTextFile(const std::string& path, size_t max_bytes) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (file == nullptr) {
    throw Failure(errno == ENOENT || errno == ENOTDIR || errno == EACCES ? kExitMissingInput : kExitInputOutput,
                  path + ": " + std::strerror(errno));
  }
  std::string text;
  char buffer[65536];
  while (const size_t count = std::fread(buffer, 1, sizeof(buffer), file.get())) {
    if (text.size() + count > max_bytes) {
      throw Failure(kExitBadData, Format("%s has more than %zu bytes", path.c_str(), max_bytes));
    }
    text.append(buffer, count);
  }
  if (std::ferror(file.get()) != 0) throw Failure(kExitInputOutput, path + ": " + std::strerror(errno));
  return text;
}

void FlushOutput() {
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  if (errno == EPIPE) return;
  throw Failure(kExitInputOutput, std::string("cannot write to stdout: ") + std::strerror(errno));
}

}  // namespace gantry::cli
