#include "runtime/gan/metrics_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cmath>
#include <vector>

#include "runtime/data/file.h"

namespace gantry {
namespace {

constexpr size_t kReadBytes = 1 << 16;

// The step of a line "{"step":12,...": -1 where it has none.
int64_t StepOf(std::string_view line) {
  constexpr std::string_view kBegin = "{\"step\":";
  int64_t step = -1;
  if (line.starts_with(kBegin)) std::from_chars(line.data() + kBegin.size(), line.data() + line.size(), step);
  return step;
}

// How many bytes from the file's start on are whole lines of steps up to `last_step`.
absl::StatusOr<int64_t> BytesToKeep(const std::string& path, int descriptor, int64_t last_step) {
  std::vector<char> buffer(kReadBytes);
  std::string head;  // the beginning of the current line
  int64_t line_begin = 0, offset = 0;
  for (;;) {
    const ssize_t got = pread(descriptor, buffer.data(), buffer.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, absl::StrCat(path, ": cannot read"));
    if (got == 0) return line_begin;  // a line without its end is dropped
    for (ssize_t i = 0; i < got; ++i) {
      if (buffer[i] != '\n') {
        if (head.size() < 64) head.push_back(buffer[i]);
        continue;
      }
      const int64_t step = StepOf(head);
      if (step < 0 || step > last_step) return line_begin;
      line_begin = offset + i + 1;
      head.clear();
    }
    offset += got;
  }
}

}  // namespace

void MetricsLine::Begin(std::string_view name) {
  // Names are of networks and outputs: letters, digits, dots, '_' and '-', which need no quoting.
  absl::StrAppend(&text_, text_.size() > 1 ? "," : "", "\"", ToAbsl(name), "\":");
}

void MetricsLine::Add(std::string_view name, double value) {
  Begin(name);
  if (!std::isfinite(value)) {
    text_ += "null";
    return;
  }
  char buffer[32];
  text_.append(buffer, std::to_chars(buffer, buffer + sizeof(buffer), value).ptr);
}

void MetricsLine::Add(std::string_view name, int64_t value) {
  Begin(name);
  absl::StrAppend(&text_, value);
}

absl::StatusOr<std::unique_ptr<MetricsLog>> MetricsLog::Open(const std::string& path, int64_t last_step) {
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (descriptor < 0) return ErrnoStatus(errno, absl::StrCat(path, ": cannot open"));
  std::unique_ptr<MetricsLog> log(new MetricsLog(path, descriptor, 0));
  GANTRY_ASSIGN_OR_RETURN(log->bytes_, BytesToKeep(path, descriptor, last_step));
  if (ftruncate(descriptor, log->bytes_) != 0)
    return ErrnoStatus(errno, absl::StrCat(path, ": cannot cut off later lines"));
  return log;
}

MetricsLog::~MetricsLog() { close(descriptor_); }

absl::Status MetricsLog::Append(std::string_view line) {
  for (size_t done = 0; done < line.size();) {
    const ssize_t put =
        pwrite(descriptor_, line.data() + done, line.size() - done, bytes_ + static_cast<int64_t>(done));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) {
      const int error = errno;
      // The part of a line goes; where even that fails, the next Open drops it.
      if (ftruncate(descriptor_, bytes_) != 0)
        return ErrnoStatus(error, absl::StrCat(path_, ": cannot write, and ends with half a line"));
      return ErrnoStatus(error, absl::StrCat(path_, ": cannot write"));
    }
    done += static_cast<size_t>(put);
  }
  bytes_ += static_cast<int64_t>(line.size());
  return absl::OkStatus();
}

absl::Status MetricsLog::Sync() {
  if (fdatasync(descriptor_) != 0 && errno != EINVAL && errno != ENOTSUP)
    return ErrnoStatus(errno, absl::StrCat(path_, ": cannot sync it to the disk"));
  return absl::OkStatus();
}

}  // namespace gantry
