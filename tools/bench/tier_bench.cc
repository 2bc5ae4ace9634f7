// tier_bench [--json] [--directory DIR] [--rounds N] [--total BYTES]: bandwidth between device memory and the tiers,
// out and in, for copies of 64 KiB, 1 MiB and 64 MiB, through a copy lane as a step makes them; "both" has an out and
// an in lane at work at once, its rate is their sum. DIR (default: the current directory) holds the file tier. What
// comes back is compared before anything is timed; the candidates take turns, the fastest of the rounds counts. The
// last rows are a throttled host tier: how far its copies are from the asked rate (`percent_off`).
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "memory/device.h"
#include "memory/status.h"
#include "memory/tier/copy_lanes.h"
#include "memory/tier/tier.h"

namespace gantry {
namespace {

constexpr int64_t kSizes[] = {64 << 10, 1 << 20, 64 << 20};
constexpr int64_t kLargest = 64 << 20;
enum class Direction { kOut, kIn, kBoth };
constexpr const char* kDirectionNames[] = {"out", "in", "both"};

struct BenchOptions {
  bool json = false;
  std::string directory = ".";
  int rounds = 5;
  int64_t total_bytes = 256 << 20;  // moved in each round of each row
};

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Moves `total` bytes, `bytes` at a time, and returns the seconds it took. Device and tier have kLargest bytes for each
// direction: out copies use the first half of both, in copies the second.
absl::StatusOr<double> Move(CopyLanes& lanes, std::byte* device, Direction direction, int64_t bytes, int64_t total) {
  const double start = Now();
  int64_t position = 0;
  for (int64_t moved = 0; moved < total; moved += bytes) {
    if (direction != Direction::kIn) {
      lanes.Start({.out = true, .device = device + position, .tier_offset = position, .bytes = bytes});
    }
    if (direction != Direction::kOut) {
      const int64_t place = kLargest + position;
      lanes.Start({.out = false, .device = device + place, .tier_offset = place, .bytes = bytes});
    }
    position = (position + bytes) % kLargest;
  }
  GANTRY_RETURN_IF_ERROR(lanes.Drain());
  return Now() - start;
}

absl::Status CheckRoundTrip(CopyLanes& lanes, std::byte* device, std::string_view name) {
  for (int64_t i = 0; i < 2 * kLargest; ++i) device[i] = static_cast<std::byte>(i * 31 + i / 4096);
  for (const int64_t start : {int64_t{0}, kLargest}) {
    GANTRY_RETURN_IF_ERROR(
        lanes.Wait(0, lanes.Start({.out = true, .device = device + start, .tier_offset = start, .bytes = kLargest})));
  }
  std::memset(device, 0, 2 * kLargest);
  for (const int64_t start : {int64_t{0}, kLargest}) {
    GANTRY_RETURN_IF_ERROR(
        lanes.Wait(1, lanes.Start({.out = false, .device = device + start, .tier_offset = start, .bytes = kLargest})));
  }
  for (int64_t i = 0; i < 2 * kLargest; ++i) {
    if (device[i] == static_cast<std::byte>(i * 31 + i / 4096)) continue;
    return absl::DataLossError(absl::StrFormat("tier %s: byte %d came back wrong", name, i));
  }
  return absl::OkStatus();
}

struct Candidate {
  std::unique_ptr<TierSlab> slab;
  std::unique_ptr<CopyLanes> lanes;
  double best_seconds[std::size(kSizes)][3];
};

absl::StatusOr<Candidate> MakeCandidate(const TierOptions& options, std::byte* device) {
  Candidate candidate;
  GANTRY_ASSIGN_OR_RETURN(candidate.slab, ReserveTier(options, 2 * kLargest));
  GANTRY_ASSIGN_OR_RETURN(candidate.lanes,
                          CopyLanes::Create({candidate.slab.get()}, {options.out}, {options.in}, {.max_pending = 64}));
  GANTRY_RETURN_IF_ERROR(CheckRoundTrip(*candidate.lanes, device, options.name));
  for (auto& row : candidate.best_seconds) std::fill_n(row, 3, std::numeric_limits<double>::max());
  return candidate;
}

void Print(const BenchOptions& options, const Candidate& candidate, int size, int direction) {
  const double moved = static_cast<double>(options.total_bytes) * (direction == 2 ? 2 : 1);
  const double rate = moved / candidate.best_seconds[size][direction] / 1e9;
  const std::string name(candidate.slab->name()), path = candidate.slab->DescribePath();
  if (options.json) {
    std::printf("{\"tier\":\"%s\",\"path\":\"%s\",\"direction\":\"%s\",\"bytes\":%lld,\"gb_per_s\":%.3f}\n",
                name.c_str(), path.c_str(), kDirectionNames[direction], static_cast<long long>(kSizes[size]), rate);
  } else {
    std::printf("%-9s %-5s %9lld %9.3f  %s\n", name.c_str(), kDirectionNames[direction],
                static_cast<long long>(kSizes[size]), rate, path.c_str());
  }
}

// Copies one after another through a throttle: the time they took against the time they were to take.
absl::Status BenchThrottle(const BenchOptions& options, std::byte* device, const Throttle& throttle, int64_t bytes) {
  GANTRY_ASSIGN_OR_RETURN(const Candidate candidate, MakeCandidate({.name = "throttled", .out = throttle}, device));
  const double seconds_each = throttle.latency_seconds + static_cast<double>(bytes) / throttle.bytes_per_second;
  const auto count = std::max<int64_t>(static_cast<int64_t>(0.5 / seconds_each), 1);
  GANTRY_ASSIGN_OR_RETURN(const double seconds, Move(*candidate.lanes, device, Direction::kOut, bytes, count * bytes));
  const double percent_off = 100 * (seconds / (static_cast<double>(count) * seconds_each) - 1);
  const char* const form = options.json
                               ? "{\"tier\":\"throttled\",\"asked_gb_per_s\":%.3f,\"latency_us\":%.1f,\"bytes\":%lld,"
                                 "\"copies\":%lld,\"percent_off\":%.2f}\n"
                               : "throttled %.3f GB/s, %.1f us, %lld bytes, %lld copies: %.2f %% off\n";
  std::printf(form, throttle.bytes_per_second / 1e9, 1e6 * throttle.latency_seconds, static_cast<long long>(bytes),
              static_cast<long long>(count), percent_off);
  return absl::OkStatus();
}

absl::Status Run(const BenchOptions& options) {
  const std::unique_ptr<Device> machine = MakeCpuDevice({});
  GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<Slab> arena, machine->Reserve(2 * kLargest));
  std::byte* const device = arena->data();
  std::vector<Candidate> candidates;
  for (const TierOptions& tier :
       {TierOptions{.name = "host"},
        TierOptions{.name = "file", .kind = TierKind::kFile, .directory = options.directory},
        TierOptions{.name = "file", .kind = TierKind::kFile, .directory = options.directory, .io_uring = false},
        TierOptions{.name = "file",
        .kind = TierKind::kFile,
        .directory = options.directory,
        .direct_io = false,
        .io_uring = false}}) {
    GANTRY_ASSIGN_OR_RETURN(Candidate candidate, MakeCandidate(tier, device));
    candidates.push_back(std::move(candidate));
  }
  for (int round = 0; round < options.rounds; ++round) {
    for (size_t size = 0; size < std::size(kSizes); ++size) {
      for (int direction = 0; direction < 3; ++direction) {
        for (Candidate& candidate : candidates) {
          GANTRY_ASSIGN_OR_RETURN(
              const double seconds,
              Move(*candidate.lanes, device, static_cast<Direction>(direction), kSizes[size], options.total_bytes));
          double& best = candidate.best_seconds[size][direction];
          best = std::min(best, seconds);
        }
      }
    }
  }
  if (!options.json) std::printf("%-9s %-5s %9s %9s  %s\n", "tier", "", "bytes", "GB/s", "path");
  for (const Candidate& candidate : candidates) {
    for (size_t size = 0; size < std::size(kSizes); ++size) {
      for (int direction = 0; direction < 3; ++direction) Print(options, candidate, static_cast<int>(size), direction);
    }
  }
  for (const int64_t bytes : kSizes) {
    GANTRY_RETURN_IF_ERROR(BenchThrottle(options, device, {.bytes_per_second = 1e9, .latency_seconds = 1e-5}, bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<BenchOptions> ParseArguments(int count, char** arguments) {
  BenchOptions options;
  for (int i = 1; i < count; ++i) {
    const std::string_view argument = arguments[i];
    const auto number = [&]() -> absl::StatusOr<int64_t> {
      char* end = nullptr;
      const long long value = i + 1 < count ? std::strtoll(arguments[i + 1], &end, 10) : -1;
      if (end == nullptr || *end != '\0' || value < 1) {
        return absl::InvalidArgumentError(absl::StrFormat("%s needs a number from 1 on", argument));
      }
      ++i;
      return value;
    };
    if (argument == "--json") {
      options.json = true;
    } else if (argument == "--directory" && i + 1 < count) {
      options.directory = arguments[++i];
    } else if (argument == "--rounds") {
      GANTRY_ASSIGN_OR_RETURN(const int64_t rounds, number());
      options.rounds = static_cast<int>(std::min<int64_t>(rounds, 1000));
    } else if (argument == "--total") {
      GANTRY_ASSIGN_OR_RETURN(const int64_t bytes, number());
      options.total_bytes = (std::min<int64_t>(bytes, int64_t{1} << 40) + kLargest - 1) / kLargest * kLargest;
    } else {
      return absl::InvalidArgumentError("usage: tier_bench [--json] [--directory DIR] [--rounds N] [--total BYTES]");
    }
  }
  return options;
}

int Main(int count, char** arguments) {
  const absl::StatusOr<BenchOptions> options = ParseArguments(count, arguments);
  if (!options.ok()) {
    std::fprintf(stderr, "%s\n", options.status().ToString().c_str());
    return 2;
  }
  if (const absl::Status status = Run(*options); !status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace gantry

int main(int count, char** arguments) { return gantry::Main(count, arguments); }
