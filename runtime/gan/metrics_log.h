// metrics.jsonl: one JSON object a line, appended.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "memory/status.h"

namespace gantry {

// A line under construction: {"step":3,"loss":0.5}. Numbers are the shortest text that reads back equal; null where not
// finite.
class MetricsLine {
 public:
  void Add(std::string_view name, double value);
  void Add(std::string_view name, int64_t value);
  std::string Text() const { return text_ + "}\n"; }

 private:
  void Begin(std::string_view name);
  std::string text_ = "{";
};

// Used by one thread.
class MetricsLog {
 public:
  // Opens `path` for appending, makes it where it is missing, and cuts off a line that was not finished and everything
  // from the first line of a later step than `last_step` on (lines begin {"step":<n>).
  static absl::StatusOr<std::unique_ptr<MetricsLog>> Open(const std::string& path, int64_t last_step);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  // kResourceExhausted where the disk is full; the file then ends with the line before.
  absl::Status Append(std::string_view line);
  // On the disk when it returns.
  absl::Status Sync();
  const std::string& path() const { return path_; }

 private:
  MetricsLog(std::string path, int descriptor, int64_t bytes)
      : path_(std::move(path)), descriptor_(descriptor), bytes_(bytes) {}
  std::string path_;
  int descriptor_;
  int64_t bytes_;  // of whole lines
};

}  // namespace gantry
