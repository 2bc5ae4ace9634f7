// Collectives against plain loops. A check fills memory with numbers that follow from (seed, rank of the job, index),
// so that every rank knows what all others have, calls the collective, and compares each byte of the result.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "tests/support/thread_job.h"

namespace gantry {

enum class Where : uint8_t { kPool, kPrivate, kMixed };  // kMixed: some ranks so, some so

struct CheckOptions {
  Where where = Where::kPool;
  bool in_place = true;  // where the collective knows both
  CollectiveOptions collective = {};
};

// `memory` is a rank's part of the arena to work in, for one check at a time.
class CollectiveCheck {
 public:
  CollectiveCheck(int rank, std::span<std::byte> memory) : rank_(rank), memory_(memory) {}

  absl::Status AllReduce(Communicator& group, ElementType type, ReduceOp op, int64_t count, uint64_t seed,
                         const CheckOptions& options);
  absl::Status Reduce(Communicator& group, ElementType type, ReduceOp op, int64_t count, int root, uint64_t seed,
                      const CheckOptions& options);
  absl::Status ReduceScatter(Communicator& group, ElementType type, ReduceOp op, std::span<const int64_t> counts,
                             uint64_t seed, const CheckOptions& options);
  absl::Status AllGather(Communicator& group, std::span<const int64_t> bytes, uint64_t seed,
                         const CheckOptions& options);
  absl::Status Broadcast(Communicator& group, int64_t bytes, int root, uint64_t seed, const CheckOptions& options);
  // parts[i * size + j]: bytes from rank i to rank j.
  absl::Status AllToAll(Communicator& group, std::span<const int64_t> parts, uint64_t seed,
                        const CheckOptions& options);
  // A mesh of `shape` ranks, rings in every dimension if `periodic`; bytes[d] for each face of dimension d.
  absl::Status ExchangeHalo(Communicator& group, std::span<const int> shape, bool periodic,
                            std::span<const int64_t> bytes, uint64_t seed, const CheckOptions& options);
  absl::Status SendReceive(Communicator& group, int64_t bytes, int from, int to, uint64_t seed,
                           const CheckOptions& options);

  // One of them, drawn from `shared`, which is in the same state on all ranks of the group. At most `largest_bytes` for
  // a rank.
  absl::Status Random(Communicator& group, std::mt19937_64& shared, int64_t largest_bytes);

 private:
  std::byte* Place(const Communicator& group, Where where, uint64_t seed, int which, int64_t bytes);

  int rank_;
  std::span<std::byte> memory_;
  std::vector<std::byte> private_[2];
};

}  // namespace gantry
