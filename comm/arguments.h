// What is wrong with the arguments of a collective, before anything moves: the same for every kind of group. All of it
// kInvalidArgument.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "comm/communicator.h"
#include "memory/status.h"

namespace gantry {

constexpr size_t kMaxHaloDimensions = 3;

int64_t TotalOf(std::span<const int64_t> parts);
// So that ranks can compare what each has been given.
uint64_t HashParts(std::span<const int64_t> parts);

absl::Status CheckCount(std::string_view what, int64_t count, const void* data);
absl::Status CheckRank(std::string_view what, int rank, int ranks);
absl::Status CheckReduceScatter(const void* from, const void* to, std::span<const int64_t> counts, int rank, int ranks);
absl::Status CheckAllGather(const void* from, const void* to, std::span<const int64_t> bytes, int rank, int ranks);
absl::Status CheckAllToAll(const void* from, std::span<const int64_t> from_bytes, const void* to,
                           std::span<const int64_t> to_bytes, int rank, int ranks);
absl::Status CheckHalo(std::span<const HaloExchange> dimensions, int rank, int ranks);
absl::Status CheckSendReceive(const void* data, int64_t bytes, int from, int to, int rank, int ranks);

}  // namespace gantry
