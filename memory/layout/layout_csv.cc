#include "memory/layout/layout_csv.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "memory/status.h"

namespace gantry {
namespace {

enum Column { kId, kLower, kUpper, kSize, kAlignment, kGroup, kOffset, kStart, kEnd, kColumnCount };
constexpr std::array<std::string_view, kColumnCount> kColumnNames = {"id",    "lower",  "upper", "size", "alignment",
                                                                     "group", "offset", "start", "end"};
constexpr int64_t kMaxFileBytes = int64_t{4} << 30;

// A cell as shown in a message: its printable start.
std::string Quote(std::string_view cell) {
  std::string shown = "`";
  for (const char c : cell.substr(0, 40)) shown += c >= ' ' && c <= '~' ? c : '?';
  return shown + (cell.size() > 40 ? "...`" : "`");
}

std::string_view Trim(std::string_view cell) {
  while (!cell.empty() && (cell.front() == ' ' || cell.front() == '\t')) cell.remove_prefix(1);
  while (!cell.empty() && (cell.back() == ' ' || cell.back() == '\t')) cell.remove_suffix(1);
  return cell;
}

// One line of the text, without its end.
std::string_view NextLine(std::string_view& text) {
  const size_t end = text.find('\n');
  std::string_view line = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
  return line;
}

class Parser {
 public:
  explicit Parser(std::string_view text) : rest_(text) {}

  absl::StatusOr<LayoutProblem> Parse() {
    if (rest_.substr(0, 3) == "\xEF\xBB\xBF") rest_.remove_prefix(3);
    GANTRY_RETURN_IF_ERROR(ReadHeader());
    while (!rest_.empty()) {
      const std::string_view line = NextLine(rest_);
      ++line_number_;
      if (Trim(line).empty()) continue;
      GANTRY_RETURN_IF_ERROR(SplitCells(line));
      if (cells_.size() != columns_.size()) {
        return Error(absl::StrFormat("%d cells where the header names %d columns", cells_.size(), columns_.size()));
      }
      GANTRY_RETURN_IF_ERROR(ReadBuffer());
    }
    GANTRY_RETURN_IF_ERROR(ValidateLayoutProblem(problem_));
    return std::move(problem_);
  }

 private:
  absl::Status Error(const std::string& what) const {
    return absl::InvalidArgumentError(absl::StrFormat("layout CSV line %d: %s", line_number_, what));
  }

  bool Has(Column column) const { return std::find(columns_.begin(), columns_.end(), column) != columns_.end(); }

  absl::Status ReadHeader() {
    line_number_ = 1;
    GANTRY_RETURN_IF_ERROR(SplitCells(NextLine(rest_)));
    for (const std::string& cell : cells_) {
      const auto name = std::find(kColumnNames.begin(), kColumnNames.end(), cell);
      if (name == kColumnNames.end()) {
        return Error(absl::StrFormat(
            "unknown column %s; known are id, lower, upper, size, alignment, group, offset, start and end", Quote(cell)));
      }
      const auto column = static_cast<Column>(name - kColumnNames.begin());
      if (Has(column)) return Error(absl::StrFormat("column %s is named twice", Quote(cell)));
      columns_.push_back(column);
    }
    const bool half_open = Has(kLower) && Has(kUpper) && !Has(kStart) && !Has(kEnd);
    const bool inclusive = Has(kStart) && Has(kEnd) && !Has(kLower) && !Has(kUpper);
    if (!Has(kSize) || (!half_open && !inclusive)) {
      return Error("the header needs `lower`, `upper` and `size` (or `start`, `end` and `size`)");
    }
    return absl::OkStatus();
  }

  absl::Status SplitCells(std::string_view line) {
    cells_.clear();
    size_t at = 0;
    while (true) {
      if (cells_.size() == kColumnCount) {
        return Error(absl::StrFormat("more than %d cells", static_cast<int>(kColumnCount)));
      }
      std::string cell;
      if (at < line.size() && line[at] == '"') {
        for (++at;; ++at) {
          if (at >= line.size()) return Error(absl::StrFormat("cell %d: the quote is not closed", cells_.size() + 1));
          if (line[at] != '"') {
            cell += line[at];
          } else if (at + 1 < line.size() && line[at + 1] == '"') {
            cell += line[at++];
          } else {
            break;
          }
        }
        ++at;
        if (at < line.size() && line[at] != ',') {
          return Error(absl::StrFormat("cell %d: text after the closing quote", cells_.size() + 1));
        }
      } else {
        const size_t comma = std::min(line.find(',', at), line.size());
        cell = Trim(line.substr(at, comma - at));
        at = comma;
      }
      cells_.push_back(std::move(cell));
      if (at >= line.size()) return absl::OkStatus();
      ++at;
    }
  }

  absl::StatusOr<int64_t> ReadInteger(size_t cell) const {
    const std::string& text = cells_[cell];
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc::result_out_of_range) {
      return Error(absl::StrFormat("%s: %s does not fit 64 bits", kColumnNames[columns_[cell]], Quote(text)));
    }
    if (error != std::errc() || end != text.data() + text.size()) {
      return Error(absl::StrFormat("%s: %s is not an integer", kColumnNames[columns_[cell]], Quote(text)));
    }
    return value;
  }

  absl::Status ReadBuffer() {
    LayoutBuffer buffer;
    std::string name = absl::StrCat(problem_.buffers.size());
    for (size_t cell = 0; cell < cells_.size(); ++cell) {
      const Column column = columns_[cell];
      if (column == kId) {
        name = std::move(cells_[cell]);
        continue;
      }
      if (cells_[cell].empty() && (column == kAlignment || column == kGroup || column == kOffset)) continue;
      GANTRY_ASSIGN_OR_RETURN(const int64_t value, ReadInteger(cell));
      if (column == kGroup && (value < -1 || value > std::numeric_limits<int32_t>::max())) {
        return Error(absl::StrFormat("group: %d is not in [-1, 2^31)", value));
      }
      if (column == kEnd && value == std::numeric_limits<int64_t>::max()) return Error("end: 2^63 - 1 is too large");
      SetField(column, value, buffer);
    }
    const LayoutProblem row = {{buffer}, {name}};
    if (const absl::Status status = ValidateLayoutProblem(row); !status.ok()) return Error(std::string(Message(status)));
    problem_.buffers.push_back(buffer);
    problem_.names.push_back(std::move(name));
    return absl::OkStatus();
  }

  static void SetField(Column column, int64_t value, LayoutBuffer& buffer) {
    switch (column) {
      case kLower:
      case kStart:
        buffer.lower = value;
        break;
      case kUpper:
        buffer.upper = value;
        break;
      case kEnd:
        buffer.upper = value + 1;
        break;
      case kSize:
        buffer.size = value;
        break;
      case kAlignment:
        buffer.alignment = value;
        break;
      case kGroup:
        buffer.alias_group = static_cast<int32_t>(value);
        break;
      case kOffset:
        buffer.fixed_offset = value;
        break;
      case kId:
      case kColumnCount:
        break;
    }
  }

  std::string_view rest_;
  int64_t line_number_ = 0;
  std::vector<Column> columns_;
  std::vector<std::string> cells_;
  LayoutProblem problem_;
};

std::string QuotedName(const std::string& name) {
  std::string clean = name;
  for (char& c : clean) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  const bool plain = clean.find_first_of(",\"") == std::string::npos && Trim(clean).size() == clean.size();
  if (plain) return clean;
  std::string quoted = "\"";
  for (const char c : clean) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + '"';
}

absl::Status FileError(const std::string& path, const char* action) {
  return absl::ErrnoToStatus(errno, absl::StrFormat("layout CSV: cannot %s `%s`", action, path));
}

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

}  // namespace

absl::StatusOr<LayoutProblem> ParseLayoutCsv(std::string_view text) { return Parser(text).Parse(); }

std::string FormatLayoutCsv(const LayoutProblem& problem, std::span<const int64_t> offsets) {
  bool has_alignment = false, has_group = false, has_offset = !offsets.empty();
  for (const LayoutBuffer& buffer : problem.buffers) {
    has_alignment = has_alignment || buffer.alignment != 1;
    has_group = has_group || buffer.alias_group >= 0;
    has_offset = has_offset || buffer.fixed_offset.has_value();
  }
  std::string text = absl::StrCat("id,lower,upper,size", has_alignment ? ",alignment" : "", has_group ? ",group" : "",
                                  has_offset ? ",offset" : "", "\n");
  for (size_t i = 0; i < problem.buffers.size(); ++i) {
    const LayoutBuffer& buffer = problem.buffers[i];
    absl::StrAppend(&text, problem.names.empty() ? absl::StrCat(i) : QuotedName(problem.names[i]), ",", buffer.lower, ",",
                    buffer.upper, ",", buffer.size);
    if (has_alignment) absl::StrAppend(&text, ",", buffer.alignment);
    if (has_group) absl::StrAppend(&text, ",", buffer.alias_group >= 0 ? absl::StrCat(buffer.alias_group) : "");
    const std::optional<int64_t> offset = offsets.empty() ? buffer.fixed_offset : std::optional(offsets[i]);
    if (has_offset) absl::StrAppend(&text, ",", offset ? absl::StrCat(*offset) : "");
    text += '\n';
  }
  return text;
}

absl::StatusOr<LayoutProblem> ReadLayoutCsvFile(const std::string& path) {
  const File file(std::fopen(path.c_str(), "rb"));
  if (!file) return FileError(path, "open");
  std::string text;
  std::vector<char> block(1 << 16);
  while (const size_t count = std::fread(block.data(), 1, block.size(), file.get())) {
    text.append(block.data(), count);
    if (static_cast<int64_t>(text.size()) > kMaxFileBytes) {
      return absl::ResourceExhaustedError(absl::StrFormat("layout CSV: `%s` is larger than 4 GiB", path));
    }
  }
  if (std::ferror(file.get())) return FileError(path, "read");
  absl::StatusOr<LayoutProblem> problem = ParseLayoutCsv(text);
  if (!problem.ok()) return Annotate(problem.status(), path);
  return problem;
}

absl::Status WriteLayoutCsvFile(const std::string& path, const LayoutProblem& problem, std::span<const int64_t> offsets) {
  File file(std::fopen(path.c_str(), "wb"));
  if (!file) return FileError(path, "create");
  const std::string text = FormatLayoutCsv(problem, offsets);
  const bool written = std::fwrite(text.data(), 1, text.size(), file.get()) == text.size();
  if (!written || std::fflush(file.get()) != 0) return FileError(path, "write");
  return absl::OkStatus();
}

}  // namespace gantry
