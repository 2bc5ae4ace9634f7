#include <algorithm>
#include <charconv>
#include <cstdio>
#include <unordered_map>

#include "memory/layout/layout_check.h"
#include "memory/layout/layout_csv.h"
#include "memory/layout/layout_solver.h"
#include "runtime/c_api/call.h"
#include "runtime/data/file.h"

using namespace gantry;
using namespace gantry::c_api;

namespace {

constexpr uint64_t kMaxFileBytes = uint64_t{4} << 30;

// The cells of one line, quoted ones as in RFC 4180.
std::vector<std::string> Cells(std::string_view line) {
  std::vector<std::string> cells(1);
  bool quoted = false;
  for (size_t i = 0; i < line.size(); ++i) {
    if (quoted && line[i] == '"' && i + 1 < line.size() && line[i + 1] == '"') {
      cells.back() += line[i++];
    } else if (line[i] == '"' && (quoted || cells.back().empty())) {
      quoted = !quoted;
    } else if (line[i] == ',' && !quoted) {
      cells.emplace_back();
    } else if (quoted || (line[i] != ' ' && line[i] != '\t' && line[i] != '\r')) {
      cells.back() += line[i];
    }
  }
  return cells;
}

// The columns id (may be missing) and offset of a file, which is not checked further: whether the placement is right is the
// checker's to say.
struct Placement {
  std::vector<std::string> ids;
  std::vector<int64_t> offsets;
};

absl::StatusOr<Placement> ReadPlacement(const std::string& path) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadFile(path, kMaxFileBytes));
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  Placement result;
  std::ptrdiff_t id_column = -1, offset_column = -1;
  for (int64_t line_number = 1; !text.empty(); ++line_number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::vector<std::string> cells = Cells(line);
    if (line_number == 1) {
      const auto Column = [&](std::string_view name) {
        const auto place = std::find(cells.begin(), cells.end(), name);
        return place == cells.end() ? std::ptrdiff_t{-1} : place - cells.begin();
      };
      id_column = Column("id");
      offset_column = Column("offset");
      if (offset_column < 0) return absl::InvalidArgumentError("line 1: a placement needs a column 'offset'");
      continue;
    }
    if (cells.size() == 1 && cells[0].empty()) continue;
    if (static_cast<std::ptrdiff_t>(cells.size()) <= std::max(id_column, offset_column)) {
      return absl::InvalidArgumentError(absl::StrFormat("line %d: %d cells are too few", line_number, cells.size()));
    }
    const std::string& cell = cells[offset_column];
    int64_t offset = 0;
    const auto [stop, error] = std::from_chars(cell.data(), cell.data() + cell.size(), offset);
    if (error != std::errc() || stop != cell.data() + cell.size()) {
      return absl::InvalidArgumentError(absl::StrFormat("line %d: the offset is no 64-bit integer", line_number));
    }
    result.offsets.push_back(offset);
    if (id_column >= 0) result.ids.push_back(cells[id_column]);
  }
  return result;
}

// The offsets in the problem's order: by name where every name is there once, else by position.
absl::StatusOr<std::vector<int64_t>> Match(const LayoutProblem& problem, const Placement& placement) {
  const size_t count = problem.buffers.size();
  if (placement.offsets.size() != count) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d offsets for the problem's %d buffers", placement.offsets.size(), count));
  }
  if (placement.ids.empty() || problem.names.empty()) return placement.offsets;
  std::unordered_map<std::string_view, size_t> places;
  for (size_t i = 0; i < count; ++i) places.emplace(placement.ids[i], i);
  if (places.size() != count) return placement.offsets;
  std::vector<int64_t> offsets;
  for (size_t i = 0; i < count; ++i) {
    const auto place = places.find(problem.names[i]);
    if (place == places.end()) return absl::InvalidArgumentError(absl::StrFormat("no offset for buffer '%s'", problem.names[i]));
    offsets.push_back(placement.offsets[place->second]);
  }
  return offsets;
}

absl::StatusOr<LayoutProblem> ReadProblem(const char* path) {
  const absl::StatusOr<std::vector<std::byte>> bytes = ReadFile(path, kMaxFileBytes);
  if (!bytes.ok()) return FromFile(bytes.status());
  absl::StatusOr<LayoutProblem> problem = ParseLayoutCsv({reinterpret_cast<const char*>(bytes->data()), bytes->size()});
  if (!problem.ok()) return FromFile(Annotate(problem.status(), path));
  return problem;
}

}  // namespace

extern "C" {

gantry_status gantry_layout_solve(const char* problem_path, const gantry_layout_config* config, const char* placed_path,
                                  gantry_layout_result* result) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("problem_path, result", problem_path, result));
    GANTRY_RETURN_IF_ERROR(CheckStruct(result, result->struct_size, sizeof(*result), "gantry_layout_result"));
    GANTRY_ASSIGN_OR_RETURN(const gantry_layout_config given,
                            ReadStruct(config, gantry_layout_config GANTRY_LAYOUT_CONFIG_INIT, "gantry_layout_config"));
    if (given.work_limit < 0) return Error(GANTRY_INVALID_ARGUMENT, "work_limit is negative");
    LayoutOptions options;
    if (given.capacity_bytes > 0) options.capacity = static_cast<int64_t>(std::min<uint64_t>(given.capacity_bytes, INT64_MAX));
    if (given.work_limit > 0) options.work_limit = given.work_limit;
    options.seed = given.seed;
    GANTRY_ASSIGN_OR_RETURN(const LayoutProblem problem, ReadProblem(problem_path));
    absl::StatusOr<Layout> layout = SolveLayout(problem, options);
    if (!layout.ok()) return FromFile(Annotate(layout.status(), problem_path));
    const absl::Status checked = CheckLayout(problem, *layout);
    if (!checked.ok()) return absl::InternalError(absl::StrCat("the solver's placement is wrong: ", checked.message()));
    gantry_layout_result out = GANTRY_LAYOUT_RESULT_INIT;
    out.buffer_count = problem.buffers.size();
    out.height_bytes = static_cast<uint64_t>(layout->height);
    out.lower_bound_bytes = static_cast<uint64_t>(layout->lower_bound);
    out.optimal = layout->optimal ? 1 : 0;
    out.fits = given.capacity_bytes == 0 || out.height_bytes <= given.capacity_bytes ? 1 : 0;
    std::snprintf(out.method, sizeof(out.method), "%s", layout->method.c_str());
    if (placed_path != nullptr && out.fits != 0) {
      const std::string text = FormatLayoutCsv(problem, layout->offsets);
      GANTRY_RETURN_IF_ERROR(ToFile(WriteFileAtomically(placed_path, std::as_bytes(std::span(text.data(), text.size())))));
    }
    return WriteStruct(result, out, "gantry_layout_result");
  });
}

gantry_status gantry_layout_check(const char* problem_path, const char* placed_path, uint64_t capacity_bytes, int32_t* valid,
                                  gantry_layout_result* result) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("problem_path, placed_path, valid", problem_path, placed_path, valid));
    if (result != nullptr) GANTRY_RETURN_IF_ERROR(CheckStruct(result, result->struct_size, sizeof(*result), "gantry_layout_result"));
    GANTRY_ASSIGN_OR_RETURN(const LayoutProblem problem, ReadProblem(problem_path));
    const absl::StatusOr<Placement> placement = ReadPlacement(placed_path);
    if (!placement.ok()) return FromFile(Annotate(placement.status(), placed_path));
    const absl::StatusOr<std::vector<int64_t>> offsets = Match(problem, *placement);
    if (!offsets.ok()) return FromFile(Annotate(offsets.status(), placed_path));
    std::optional<int64_t> capacity;
    if (capacity_bytes > 0) capacity = static_cast<int64_t>(std::min<uint64_t>(capacity_bytes, INT64_MAX));
    GANTRY_ASSIGN_OR_RETURN(const int64_t lower_bound, LowerBound(problem));
    const absl::Status right = CheckLayoutOffsets(problem, *offsets, capacity);
    gantry_layout_result out = GANTRY_LAYOUT_RESULT_INIT;
    out.buffer_count = problem.buffers.size();
    out.lower_bound_bytes = static_cast<uint64_t>(lower_bound);
    if (right.ok()) {
      for (size_t i = 0; i < offsets->size(); ++i) {
        if (problem.buffers[i].size == 0) continue;
        out.height_bytes = std::max(out.height_bytes, static_cast<uint64_t>((*offsets)[i] + problem.buffers[i].size));
      }
      out.optimal = out.height_bytes == out.lower_bound_bytes ? 1 : 0;
      out.fits = 1;
    }
    if (result != nullptr) GANTRY_RETURN_IF_ERROR(WriteStruct(result, out, "gantry_layout_result"));
    *valid = right.ok() ? 1 : 0;
    if (!right.ok()) Report(right);
    return absl::OkStatus();
  });
}

}  // extern "C"
