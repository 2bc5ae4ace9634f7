// Groups come into being: at the start, by Split, and by Shrink after a loss.

#include <cstring>
#include <numeric>

#include "comm/channels.h"
#include "comm/shm/shm_communicator.h"

namespace gantry::shm {

absl::StatusOr<std::unique_ptr<ShmCommunicator>> ShmCommunicator::Create(ShmNode& node, std::span<const int> ranks,
                                                                         std::string_view name, uint64_t id,
                                                                         absl::Duration timeout,
                                                                         std::vector<int> labels) {
  const int count = static_cast<int>(ranks.size());
  const int self = node.links().rank();
  if (count < 1 || count > kMaxRanks) {
    return absl::InvalidArgumentError(
        absl::StrFormat("group \"%s\" of %d ranks: shared memory carries 1 to %d", name, count, kMaxRanks));
  }
  const std::string owner = absl::StrFormat("group \"%s\"", name);
  SharedRegion region;
  if (ranks.front() == self) {
    GANTRY_ASSIGN_OR_RETURN(region, SharedRegion::Create(owner, RegionBytes(count)));
    const int descriptor = region.descriptor();
    for (const int rank : ranks) {
      if (rank == self) continue;
      GANTRY_RETURN_IF_ERROR(
          node.links().Send(rank, GroupChannel(id), std::as_bytes(std::span(&id, 1)), std::span(&descriptor, 1)));
    }
  } else {
    GANTRY_ASSIGN_OR_RETURN(LinkMessage message, node.links().Receive(ranks.front(), GroupChannel(id), timeout));
    if (message.descriptors.size() != 1 || message.bytes.size() != sizeof(id) ||
        std::memcmp(message.bytes.data(), &id, sizeof(id)) != 0) {
      return absl::DataLossError(
          absl::StrFormat("%s: rank %d sent something else than the group's memory", owner, ranks.front()));
    }
    GANTRY_ASSIGN_OR_RETURN(region, SharedRegion::Map(owner, std::move(message.descriptors.front()), RegionBytes(count),
                                                      Access::kReadWrite));
  }
  std::vector<int> slots(ranks.size());
  std::iota(slots.begin(), slots.end(), 0);
  if (labels.empty()) labels = slots;
  return std::unique_ptr<ShmCommunicator>(
      new ShmCommunicator(node, std::make_shared<const SharedRegion>(std::move(region)), count, 0,
                          std::vector<int>(ranks.begin(), ranks.end()), std::move(slots), std::move(labels), name, id));
}

absl::StatusOr<std::unique_ptr<Communicator>> ShmCommunicator::Make(std::span<const int> ranks, std::string_view name,
                                                                    uint64_t id, absl::Duration timeout) {
  return Create(node_, ranks, name, id, timeout);
}

absl::StatusOr<std::unique_ptr<Communicator>> ShmCommunicator::Shrink(absl::Duration timeout) {
  if (generation_ + 1 >= kGenerations) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("group \"%s\" has shrunk %d times, which is as often as it may", name_, generation_));
  }
  const WaitClock::time_point deadline =
      WaitClock::now() + absl::ToChronoNanoseconds(std::min(timeout, absl::Hours(24 * 365)));
  // From here on this rank moves nothing of the old group any more.
  if (!Abandon(absl::UnavailableError(
                   absl::StrFormat("group \"%s\" has shrunk; the group that Shrink returned goes on", name_)),
               deadline)) {
    return absl::DeadlineExceededError("shrink: another thread is in an operation of the group");
  }
  lines(rank_).came_to_shrink.store(1, std::memory_order_seq_cst);
  RingOthers();

  uint64_t absent = 0;
  const bool decided = WaitUntil(
      node_.own_bell(), node_.policy(), deadline,
      [&](bool) {
        if (block_.survivors.load(std::memory_order_seq_cst) != 0) return true;
        uint64_t came = 0;
        absent = 0;
        for (int rank = 0; rank < size(); ++rank) {
          if (node_.liveness().lost(ranks_[rank])) continue;
          (lines(rank).came_to_shrink.load(std::memory_order_seq_cst) != 0 ? came : absent) |= uint64_t{1} << rank;
        }
        if (absent != 0) return false;
        uint64_t nobody = 0;
        block_.survivors.compare_exchange_strong(nobody, came, std::memory_order_seq_cst);
        RingOthers();
        return true;
      },
      [this] { return SharesCore(); });
  if (!decided) {
    std::string missing;
    for (int rank = 0; rank < size(); ++rank) {
      if ((absent >> rank & 1) != 0) absl::StrAppend(&missing, missing.empty() ? "" : ", ", ranks_[rank]);
    }
    return absl::DeadlineExceededError(
        absl::StrFormat("shrinking group \"%s\": rank %s neither came nor is lost", name_, missing));
  }
  const uint64_t survivors = block_.survivors.load(std::memory_order_seq_cst);
  if ((survivors >> rank_ & 1) == 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("group \"%s\" went on without this rank, which the others took for lost", name_));
  }
  std::vector<int> ranks, slots;
  for (int rank = 0; rank < size(); ++rank) {
    if ((survivors >> rank & 1) == 0) continue;
    ranks.push_back(ranks_[rank]);
    slots.push_back(slots_[rank]);
  }
  std::vector<int> labels(ranks.size());
  std::iota(labels.begin(), labels.end(), 0);
  return std::unique_ptr<Communicator>(new ShmCommunicator(node_, region_, first_size_, generation_ + 1,
                                                           std::move(ranks), std::move(slots), std::move(labels), name_,
                                                           MixIds(id_, survivors)));
}

}  // namespace gantry::shm
