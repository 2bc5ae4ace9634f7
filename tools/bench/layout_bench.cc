// Times SolveLayout on CSV files: layout_bench [--json] [--capacity BYTES] [--work UNITS] [--seed N] [--greedy]
// [--repeat N] FILE...; a FILE may also be uniform:COUNT or training:COUNT, made on the spot (MakeProblem). One row a file:
// buffers, lower bound, height, gap over the bound and CPU seconds (least of the repeats) of the process, which solves on one
// thread at a time. Every layout is checked before its time is reported.
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <random>
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
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// `count` buffers of [1, 2^20] bytes, live for 1, 2, 4, ... or 512 steps from a random one of `count` steps on.
LayoutProblem MakeUniform(int64_t count) {
  std::mt19937_64 random(7);
  LayoutProblem problem;
  for (int64_t i = 0; i < count; ++i) {
    const auto lower = static_cast<int64_t>(random() % count);
    problem.buffers.push_back({lower, lower + (int64_t{1} << random() % 10), static_cast<int64_t>(1 + random() % (1 << 20))});
  }
  return problem;
}

// A chain of count / 10 layers, forwards and backwards. A layer has a value saved from its forward to its backward step, a mask
// of a quarter of it beside three of ten, and eight short-lived values of its own size, twice or half of it or little.
LayoutProblem MakeTraining(int64_t count) {
  std::mt19937_64 random(7);
  const auto pick = [&](std::initializer_list<int64_t> values) { return values.begin()[random() % values.size()]; };
  LayoutProblem problem;
  const int64_t layers = std::max<int64_t>(1, count / 10);
  for (int64_t layer = 0; layer < layers; ++layer) {
    const int64_t forward = 4 * layer, backward = 4 * (2 * layers - layer);
    const int64_t bytes = pick({1 << 12, 1 << 14, 1 << 16, 1 << 18, 3 << 14, 5 << 15});
    problem.buffers.push_back({forward, backward + 1, bytes});
    if (random() % 10 < 3) problem.buffers.push_back({forward + 1, backward + 2, bytes / 4});
    for (int k = 0; k < 8; ++k) {
      const int64_t lower = (k < 4 ? forward : backward) + static_cast<int64_t>(random() % 4);
      const int64_t size = pick({bytes, bytes / 2, 256, 4096, 2 * bytes});
      problem.buffers.push_back({lower, lower + pick({1, 1, 2, 3, 8}), size});
    }
  }
  return problem;
}

// The file's problem, or the one that `path` describes.
absl::StatusOr<LayoutProblem> MakeProblem(const std::string& path) {
  const size_t colon = path.find(':');
  const std::string kind = path.substr(0, colon);
  if (colon == std::string::npos || (kind != "uniform" && kind != "training")) return ReadLayoutCsvFile(path);
  const int64_t count = std::strtoll(path.c_str() + colon + 1, nullptr, 10);
  if (count < 1 || count > 100'000'000) return absl::InvalidArgumentError(path + ": the count is not in [1, 100000000]");
  return kind == "uniform" ? MakeUniform(count) : MakeTraining(count);
}

absl::StatusOr<Row> BenchFile(const std::string& path, const BenchOptions& options) {
  GANTRY_ASSIGN_OR_RETURN(const LayoutProblem problem, MakeProblem(path));
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
