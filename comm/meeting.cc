#include "comm/meeting.h"

#include <algorithm>

#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "comm/handshake_group.h"

namespace gantry {
namespace {

std::string NameRanks(const std::vector<int>& ranks) {
  return absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", absl::StrJoin(ranks, ", "));
}

std::vector<int> Missing(const Job& job, const std::vector<Descriptor>& connected) {
  std::vector<int> ranks;
  for (int rank = 0; rank < job.size; ++rank) {
    if (rank != job.rank && !connected[rank].valid()) ranks.push_back(rank);
  }
  return ranks;
}

// The launcher connected the ranks before they started; what is left is that both ends prove the key.
absl::Status UseInherited(Job& job, absl::Time deadline, std::vector<Descriptor>& connected) {
  HandshakeGroup group(job);
  for (int rank = 0; rank < job.size; ++rank) {
    if (rank == job.rank) continue;
    const auto role = rank < job.rank ? Handshake::Role::kInitiator : Handshake::Role::kAcceptor;
    group.Add(Descriptor(std::exchange(job.inherited[rank], -1)), role, rank, absl::StrFormat("the launcher's socket to rank %d", rank), deadline);
  }
  while (!group.empty()) {
    for (HandshakeGroup::Outcome& outcome : group.Step(deadline)) {
      if (outcome.status.ok()) {
        connected[outcome.peer] = std::move(outcome.socket);
      } else if (outcome.status.code() != absl::StatusCode::kDeadlineExceeded) {
        return Annotate(outcome.status, outcome.address);
      }
    }
  }
  if (const std::vector<int> missing = Missing(job, connected); !missing.empty()) {
    return absl::DeadlineExceededError(absl::StrFormat("%s did not come in time", NameRanks(missing)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<Descriptor>> MeetOthers(Job& job, absl::Time deadline) {
  std::vector<Descriptor> connected(job.size);
  if (job.size == 1) return connected;
  const bool all_inherited = static_cast<int>(job.inherited.size()) == job.size &&
                             std::count(job.inherited.begin(), job.inherited.end(), -1) == 1 && job.inherited[job.rank] == -1;
  if (all_inherited) {
    GANTRY_RETURN_IF_ERROR(UseInherited(job, deadline, connected));
    return connected;
  }
  return absl::UnimplementedError("rendezvous");
}

}  // namespace gantry
