// Times SolveLayout on CSV files: layout_bench [--json] [--capacity BYTES] [--work UNITS] [--seed N] [--greedy]
// [--repeat N] FILE...; one row a file: buffers, lower bound, height, gap over the bound and CPU seconds (least of the
// repeats) of this one thread. Every layout is checked before its time is reported.
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "memory/layout/layout_check.h"
#include "memory/layout/layout_csv.h"
#include "memory/layout/layout_solver.h"
#include "memory/status.h"

namespace gantry {
namespace {

struct BenchOptions {
  bool json = false;
  int repeat = 1;
  LayoutOptions layout;
  std::vector<std::string> files;
};

struct Row {
  std::string input;
  size_t buffers;
  Layout layout;
  double cpu_seconds;
};

double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

absl::StatusOr<Row> BenchFile(const std::string& path, const BenchOptions& options) {
  GANTRY_ASSIGN_OR_RETURN(const LayoutProblem problem, ReadLayoutCsvFile(path));
  Row row{path.substr(path.rfind('/') + 1), problem.buffers.size(), {}, std::numeric_limits<double>::max()};
  for (int i = 0; i < options.repeat; ++i) {
    const double start = CpuSeconds();
    GANTRY_ASSIGN_OR_RETURN(row.layout, SolveLayout(problem, options.layout));
    row.cpu_seconds = std::min(row.cpu_seconds, CpuSeconds() - start);
    GANTRY_RETURN_IF_ERROR(Annotate(CheckLayout(problem, row.layout), path));
  }
  return row;
}

void Print(const Row& row, bool json) {
  const Layout& layout = row.layout;
  if (json) {
    std::string input;
    for (const char c : row.input) {
      if (c == '"' || c == '\\') input += '\\';
      input += static_cast<unsigned char>(c) < ' ' ? '?' : c;
    }
    std::printf("{\"input\":\"%s\",\"buffers\":%zu,\"lower_bound\":%lld,\"height\":%lld,\"gap\":%.6f,\"optimal\":%s,"
                "\"cpu_seconds\":%.4f,\"work\":%lld,\"method\":\"%s\"}\n",
                input.c_str(), row.buffers, static_cast<long long>(layout.lower_bound),
                static_cast<long long>(layout.height), layout.gap(), layout.optimal ? "true" : "false", row.cpu_seconds,
                static_cast<long long>(layout.work), layout.method.c_str());
  } else {
    std::printf("%-22s %9zu %16lld %16lld %8.3f %%%s %9.3f %14lld  %s\n", row.input.c_str(), row.buffers,
                static_cast<long long>(layout.lower_bound), static_cast<long long>(layout.height), 100 * layout.gap(),
                layout.optimal ? " =" : "  ", row.cpu_seconds, static_cast<long long>(layout.work), layout.method.c_str());
  }
  std::fflush(stdout);
}

absl::StatusOr<BenchOptions> ParseArguments(int count, char** arguments) {
  BenchOptions options;
  for (int i = 1; i < count; ++i) {
    const std::string_view argument = arguments[i];
    const auto number = [&]() -> absl::StatusOr<int64_t> {
      char* end = nullptr;
      const long long value = i + 1 < count ? std::strtoll(arguments[i + 1], &end, 10) : -1;
      if (end == nullptr || *end != '\0' || value < 0) {
        return absl::InvalidArgumentError(absl::StrFormat("%s needs a number", argument));
      }
      ++i;
      return value;
    };
    if (argument == "--json") {
      options.json = true;
    } else if (argument == "--greedy") {
      options.layout.exact_search = false;
    } else if (argument == "--capacity") {
      GANTRY_ASSIGN_OR_RETURN(options.layout.capacity, number());
    } else if (argument == "--work") {
      GANTRY_ASSIGN_OR_RETURN(options.layout.work_limit, number());
    } else if (argument == "--seed") {
      GANTRY_ASSIGN_OR_RETURN(options.layout.seed, number());
    } else if (argument == "--repeat") {
      GANTRY_ASSIGN_OR_RETURN(options.repeat, number());
    } else if (argument.substr(0, 2) == "--") {
      return absl::InvalidArgumentError(absl::StrFormat("unknown option %s", argument));
    } else {
      options.files.emplace_back(argument);
    }
  }
  if (options.files.empty() || options.repeat < 1) {
    return absl::InvalidArgumentError(
        "usage: layout_bench [--json] [--capacity BYTES] [--work UNITS] [--seed N] [--greedy] [--repeat N] FILE...");
  }
  return options;
}

int Main(int count, char** arguments) {
  const absl::StatusOr<BenchOptions> options = ParseArguments(count, arguments);
  if (!options.ok()) {
    std::fprintf(stderr, "%s\n", options.status().ToString().c_str());
    return 2;
  }
  if (!options->json) {
    std::printf("%-22s %9s %16s %16s %10s   %9s %14s  %s\n", "input", "buffers", "lower bound", "height", "gap", "CPU s",
                "work", "method (= after the gap: proved optimal)");
  }
  for (const std::string& file : options->files) {
    const absl::StatusOr<Row> row = BenchFile(file, *options);
    if (!row.ok()) {
      std::fprintf(stderr, "%s\n", row.status().ToString().c_str());
      return 1;
    }
    Print(*row, options->json);
  }
  return 0;
}

}  // namespace
}  // namespace gantry

int main(int count, char** arguments) { return gantry::Main(count, arguments); }
