#include "runtime/plan/memory_options.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/strings/str_split.h"

namespace gantry {
namespace {

std::string_view Trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

// The number that `text` begins with, and takes it away.
bool TakeNumber(std::string_view& text, double& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || !std::isfinite(number)) return false;
  text = Trimmed(text.substr(static_cast<size_t>(end - text.data())));
  return true;
}

absl::Status Wrong(std::string_view key, std::string_view text, std::string_view allowed) {
  return absl::InvalidArgumentError(absl::StrFormat("%s is \"%s\"; it must be %s", key, text, allowed));
}

struct Unit {
  std::string_view name;
  double factor;
};

bool TakeUnit(std::string_view text, std::span<const Unit> units, double& number) {
  for (const Unit& unit : units) {
    if (text != unit.name) continue;
    number *= unit.factor;
    return true;
  }
  return false;
}

constexpr Unit kByteUnits[] = {{"", 1},     {"B", 1},           {"kB", 1e3},       {"KB", 1e3},       {"MB", 1e6},      {"GB", 1e9},
                               {"TB", 1e12}, {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0}};
constexpr Unit kSecondUnits[] = {{"s", 1}, {"ms", 1e-3}, {"us", 1e-6}, {"ns", 1e-9}};

absl::Status ReadBudget(std::string_view key, std::string_view text, int64_t& bytes) {
  if (text.empty()) return absl::OkStatus();
  const absl::StatusOr<int64_t> read = ParseBytes(text);
  if (!read.ok() || *read <= 0) return Wrong(key, text, "a size above 0, as \"64MiB\", \"1.5GB\" or \"4096\"");
  bytes = *read;
  return absl::OkStatus();
}

absl::Status ReadLink(std::string_view text, Throttle& out, Throttle& in) {
  constexpr std::string_view kAllowed =
      "a list of out=RATE, in=RATE, latency=TIME and jitter=TIME, as \"out=2GB/s,in=2GB/s,latency=10us\"";
  for (std::string_view rest = text; !rest.empty();) {
    const size_t comma = std::min(rest.find(','), rest.size());
    std::string_view part = Trimmed(rest.substr(0, comma));
    rest = comma < rest.size() ? rest.substr(comma + 1) : std::string_view();
    const size_t equals = part.find('=');
    if (equals == std::string_view::npos) return Wrong("memory.link", text, kAllowed);
    const std::string_view name = Trimmed(part.substr(0, equals));
    std::string_view value = Trimmed(part.substr(equals + 1));
    double number = 0;
    if (!TakeNumber(value, number) || number < 0) return Wrong("memory.link", text, kAllowed);
    if (name == "out" || name == "in") {
      if (!value.ends_with("/s") || !TakeUnit(Trimmed(value.substr(0, value.size() - 2)), kByteUnits, number) || number < 1) {
        return Wrong("memory.link", text, kAllowed);
      }
      (name == "out" ? out : in).bytes_per_second = number;
    } else if (name == "latency" || name == "jitter") {
      if (!TakeUnit(value, kSecondUnits, number) || number > 60) return Wrong("memory.link", text, kAllowed);
      (name == "latency" ? out.latency_seconds : out.jitter_seconds) = number;
      (name == "latency" ? in.latency_seconds : in.jitter_seconds) = number;
    } else {
      return Wrong("memory.link", text, kAllowed);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int64_t> ParseBytes(std::string_view text) {
  std::string_view rest = Trimmed(text);
  double number = 0;
  if (!TakeNumber(rest, number) || number < 0 || !TakeUnit(rest, kByteUnits, number) || number >= 9.2e18) {
    return absl::InvalidArgumentError(absl::StrFormat("\"%s\" is no size; write it as \"64MiB\", \"1.5GB\" or \"4096\"", text));
  }
  return static_cast<int64_t>(std::llround(number));
}

absl::StatusOr<double> ParseRate(std::string_view text) {
  std::string_view rest = Trimmed(text);
  double number = 0;
  if (!TakeNumber(rest, number) || !rest.ends_with("/s") || !TakeUnit(Trimmed(rest.substr(0, rest.size() - 2)), kByteUnits, number) ||
      number < 1 || number > 1e18) {
    return absl::InvalidArgumentError(absl::StrFormat("\"%s\" is no rate; write it as \"2GB/s\" or \"500MiB/s\"", text));
  }
  return number;
}

absl::StatusOr<double> ParseSeconds(std::string_view text) {
  std::string_view rest = Trimmed(text);
  double number = 0;
  if (!TakeNumber(rest, number) || number < 0 || !TakeUnit(rest, kSecondUnits, number) || number > 1e6) {
    return absl::InvalidArgumentError(absl::StrFormat("\"%s\" is no time; write it as \"10us\" or \"1.5ms\"", text));
  }
  return number;
}

namespace {

std::vector<std::string> Split(std::string_view text, char separator) {
  return absl::StrSplit(absl::string_view(text.data(), text.size()), separator);
}

// "64MiB" or "1/4".
absl::StatusOr<MemoryBudget> ReadDeviceBudget(std::string_view device) {
  constexpr std::string_view kDevice =
      "a size, as \"64MiB\", or a share of what the step takes with nothing offloaded, as \"1/4\" or \"0.25\"; of several ranks one each, "
      "\"none\" for no limit, as \"64MiB,128MiB,none\"";
  MemoryBudget budget;
  std::string_view rest = Trimmed(device);
  double number = 0, below = 1;
  const bool share = rest.find('/') != std::string_view::npos;
  if (share) {
    if (!TakeNumber(rest, number) || !rest.starts_with('/')) return Wrong("memory.device", device, kDevice);
    rest = Trimmed(rest.substr(1));
    if (!TakeNumber(rest, below) || !rest.empty() || below <= 0) return Wrong("memory.device", device, kDevice);
  }
  const double fraction = number / below;
  double plain = 0;
  std::string_view text = Trimmed(device);
  if (share) {
    if (!(fraction > 0 && fraction <= 1)) return Wrong("memory.device", device, kDevice);
    budget.fraction = fraction;
  } else if (TakeNumber(text, plain) && text.empty() && plain > 0 && plain <= 1) {
    budget.fraction = plain;
  } else {
    const absl::StatusOr<int64_t> bytes = ParseBytes(device);
    if (!bytes.ok() || *bytes <= 0) return Wrong("memory.device", device, kDevice);
    budget.bytes = *bytes;
  }
  return budget;
}

// One budget, or one a rank.
absl::Status SetDeviceBudgets(std::string_view text, PlanOptions& options) {
  options.device_memory = {};
  options.rank_memory.clear();
  if (text.empty()) return absl::OkStatus();
  const std::vector<std::string> parts = Split(text, ',');
  if (parts.size() == 1) {
    GANTRY_ASSIGN_OR_RETURN(options.device_memory, ReadDeviceBudget(text));
    return absl::OkStatus();
  }
  for (const std::string& part : parts) {
    MemoryBudget budget;
    if (Trimmed(part) != "none") {
      GANTRY_ASSIGN_OR_RETURN(budget, ReadDeviceBudget(Trimmed(part)));
    }
    options.rank_memory.push_back(budget);
  }
  return absl::OkStatus();
}

// The places of "host+file", nearest first.
absl::StatusOr<std::vector<TierKind>> ReadOffload(std::string_view text) {
  std::vector<TierKind> places;
  if (text == "none") return places;
  const std::vector<std::string> words = Split(text, '+');
  for (const TierKind kind : {TierKind::kPeer, TierKind::kHost, TierKind::kRemoteHost, TierKind::kFile}) {
    if (std::count(words.begin(), words.end(), Name(kind)) == 1) places.push_back(kind);
  }
  if (places.size() == words.size()) return places;
  return Wrong("memory.offload", text, "\"none\", or different ones of \"peer\", \"host\", \"remote\" and \"file\", joined with \"+\"");
}

}  // namespace

absl::Status SetMemory(const MemoryOptions& memory, PlanOptions& options) {
  options.tiers.clear();
  options.recompute = memory.recompute;
  options.encode = memory.encode;
  options.checksums = memory.checksums;
  if (memory.stash != "f32" && memory.stash != "bf16") return Wrong("memory.stash", memory.stash, "\"f32\" or \"bf16\"");
  options.stash_dtype = memory.stash == "bf16" ? StashDtype::kBf16 : StashDtype::kF32;
  GANTRY_RETURN_IF_ERROR(SetDeviceBudgets(memory.device, options));
  Throttle out, in;
  GANTRY_RETURN_IF_ERROR(ReadLink(memory.link, out, in));
  in.seed = 1;
  GANTRY_ASSIGN_OR_RETURN(const std::vector<TierKind> places, ReadOffload(memory.offload));
  for (const TierKind kind : places) {
    TierOptions tier{.name = std::string(Name(kind)), .kind = kind, .out = out, .in = in};
    if (kind == TierKind::kHost || kind == TierKind::kRemoteHost) GANTRY_RETURN_IF_ERROR(ReadBudget("memory.host", memory.host, tier.budget_bytes));
    if (kind == TierKind::kFile) {
      if (memory.directory.empty()) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "memory.offload is \"%s\", but memory.directory is empty: name a folder on a fast disk", memory.offload));
      }
      tier.directory = memory.directory;
      GANTRY_RETURN_IF_ERROR(ReadBudget("memory.file", memory.file, tier.budget_bytes));
    }
    options.tiers.push_back(std::move(tier));
  }
  return absl::OkStatus();
}

bool HasBudget(const PlanOptions& options) {
  return options.device_memory.bytes > 0 || options.device_memory.fraction > 0 || !options.rank_memory.empty();
}

PlanOptions WithoutBudgets(PlanOptions options) {
  options.device_memory = {};
  options.rank_memory.clear();
  options.tiers.clear();
  return options;
}

absl::Status TakeRankMemory(int rank, int ranks, PlanOptions& options) {
  if (options.rank_memory.empty()) return absl::OkStatus();
  if (std::ssize(options.rank_memory) != ranks) {
    return absl::InvalidArgumentError(absl::StrFormat("memory.device has budgets of %d ranks, the job has %d: give one a rank, or one for all",
                                                      options.rank_memory.size(), ranks));
  }
  options.device_memory = options.rank_memory[static_cast<size_t>(rank)];
  options.rank_memory.clear();
  return absl::OkStatus();
}

}  // namespace gantry
