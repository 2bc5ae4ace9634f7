#include "comm/arguments.h"

namespace gantry {
namespace {

absl::Status CheckParts(std::string_view what, std::span<const int64_t> parts, int ranks) {
  if (static_cast<int>(parts.size()) != ranks) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %d parts for %d ranks", what, parts.size(), ranks));
  }
  int64_t left = int64_t{1} << 47;  // an address space
  for (const int64_t part : parts) {
    if (part < 0 || part > left) return absl::InvalidArgumentError(absl::StrFormat("%s: a part of %d", what, part));
    left -= part;
  }
  return absl::OkStatus();
}

}  // namespace

int64_t TotalOf(std::span<const int64_t> parts) {
  int64_t total = 0;
  for (const int64_t part : parts) total += part;
  return total;
}

// FNV-1a over words.
uint64_t HashParts(std::span<const int64_t> parts) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const int64_t part : parts) hash = (hash ^ static_cast<uint64_t>(part)) * 0x100000001b3u;
  return hash ^ hash >> 29;
}

absl::Status CheckCount(std::string_view what, int64_t count, const void* data) {
  if (count < 0 || count > int64_t{1} << 44)
    return absl::InvalidArgumentError(absl::StrFormat("%s of %d elements", what, count));
  if (count > 0 && data == nullptr)
    return absl::InvalidArgumentError(absl::StrFormat("%s of %d elements at a null pointer", what, count));
  return absl::OkStatus();
}

absl::Status CheckRank(std::string_view what, int rank, int ranks) {
  if (rank >= 0 && rank < ranks) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("%s: rank %d of a group of %d", what, rank, ranks));
}

absl::Status CheckReduceScatter(const void* from, const void* to, std::span<const int64_t> counts, int rank,
                                int ranks) {
  GANTRY_RETURN_IF_ERROR(CheckParts("reduce_scatter", counts, ranks));
  GANTRY_RETURN_IF_ERROR(CheckCount("reduce_scatter", TotalOf(counts), from));
  return CheckCount("reduce_scatter", counts[rank], to);
}

absl::Status CheckAllGather(const void* from, const void* to, std::span<const int64_t> bytes, int rank, int ranks) {
  GANTRY_RETURN_IF_ERROR(CheckParts("all_gather", bytes, ranks));
  GANTRY_RETURN_IF_ERROR(CheckCount("all_gather", bytes[rank], from));
  return CheckCount("all_gather", TotalOf(bytes), to);
}

absl::Status CheckAllToAll(const void* from, std::span<const int64_t> from_bytes, const void* to,
                           std::span<const int64_t> to_bytes, int rank, int ranks) {
  GANTRY_RETURN_IF_ERROR(CheckParts("all_to_all, from", from_bytes, ranks));
  GANTRY_RETURN_IF_ERROR(CheckParts("all_to_all, to", to_bytes, ranks));
  GANTRY_RETURN_IF_ERROR(CheckCount("all_to_all", TotalOf(from_bytes), from));
  GANTRY_RETURN_IF_ERROR(CheckCount("all_to_all", TotalOf(to_bytes), to));
  if (from_bytes[rank] == to_bytes[rank]) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "all_to_all: this rank sends %d bytes to itself and receives %d", from_bytes[rank], to_bytes[rank]));
}

absl::Status CheckHalo(std::span<const HaloExchange> dimensions, int rank, int ranks) {
  if (dimensions.size() > kMaxHaloDimensions) {
    return absl::InvalidArgumentError(
        absl::StrFormat("exchange_halo: %d dimensions, at most %d", dimensions.size(), kMaxHaloDimensions));
  }
  for (const HaloExchange& halo : dimensions) {
    for (const int neighbour : {halo.before, halo.behind}) {
      if (neighbour != -1) GANTRY_RETURN_IF_ERROR(CheckRank("exchange_halo", neighbour, ranks));
    }
    if ((halo.before == rank || halo.behind == rank) &&
        (halo.before != halo.behind || halo.to_before.size() != halo.from_behind.size() ||
         halo.to_behind.size() != halo.from_before.size())) {
      return absl::InvalidArgumentError(
          "exchange_halo: a rank that is its own neighbour is so on both sides, with equal sizes");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSendReceive(const void* data, int64_t bytes, int from, int to, int rank, int ranks) {
  const bool takes_part = rank == from || rank == to;
  GANTRY_RETURN_IF_ERROR(CheckCount("send_receive", bytes, takes_part ? data : &data));
  GANTRY_RETURN_IF_ERROR(CheckRank("send_receive", from, ranks));
  GANTRY_RETURN_IF_ERROR(CheckRank("send_receive", to, ranks));
  if (from != to) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("send_receive from rank %d to itself", from));
}

}  // namespace gantry
