#include "tools/cli/support.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include <unistd.h>

namespace gantry::cli {
namespace {

std::atomic<bool> quiet = false;

void PrintMessage(int32_t level, const char* message, void*) {
  if (quiet) return;
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
    case GANTRY_PEER_LOST:
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

namespace {

Context NewContext(int thread_count, int32_t log_level, bool join_job) {
  gantry_context_config config = GANTRY_CONTEXT_CONFIG_INIT;
  config.thread_count = thread_count;
  config.log = PrintMessage;
  config.log_level = log_level;
  config.join_job = join_job ? 1 : 0;
  gantry_context* context = nullptr;
  Require(gantry_context_create(&config, &context));
  return Context(context);
}

}  // namespace

Context MakeContext(int thread_count, int32_t log_level) { return NewContext(thread_count, log_level, false); }

bool IsQuiet() { return quiet; }

Context JoinRanks(int thread_count) {
  Context context = NewContext(thread_count, GANTRY_LOG_INFO, true);
  quiet = gantry_context_rank(context.get()) > 0;
  if (quiet && std::freopen("/dev/null", "w", stdout) == nullptr) throw Failure(kExitInputOutput, "cannot open /dev/null");
  return context;
}

void StartRanks(int ranks, int restarts) {
  if (ranks <= 1 && restarts == 0) return;
  if (restarts > 0 && std::getenv("GANTRY_RANK") != nullptr) {
    throw Failure(kExitUsage, "--restarts: this is a rank of a job already; give it to the gantry run that started it");
  }
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> given;
  for (std::string argument; std::getline(file, argument, '\0');) given.push_back(argument);
  std::error_code unknown;
  const std::string program = std::filesystem::read_symlink("/proc/self/exe", unknown).string();
  if (given.empty() || program.empty()) throw Failure(kExitUnavailable, "--ranks needs /proc");
  std::vector<std::string> arguments = {given[0], "run", "-n", std::to_string(ranks)};
  if (restarts > 0) arguments.insert(arguments.end(), {"--restarts", std::to_string(restarts)});
  arguments.insert(arguments.end(), {"--", program});
  for (size_t i = 1; i < given.size(); ++i) {
    if (given[i] == "--ranks" || given[i] == "--restarts") {
      ++i;
    } else if (!given[i].starts_with("--ranks=") && !given[i].starts_with("--restarts=")) {
      arguments.push_back(given[i]);
    }
  }
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  execv(program.c_str(), pointers.data());
  throw Failure(kExitUnavailable, program + ": cannot be started anew: " + std::strerror(errno));
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
  // Whoever reads has left early, or an earlier write failed and its reason is gone.
  if (errno == EPIPE || errno == 0) throw Failure(kExitInputOutput, "cannot write all of the result: who reads stdout has left");
  throw Failure(kExitInputOutput, std::string("cannot write to stdout: ") + std::strerror(errno));
}

}  // namespace gantry::cli
