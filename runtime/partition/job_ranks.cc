#include "runtime/partition/job_ranks.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <numeric>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "comm/channels.h"
#include "comm/job.h"
#include "comm/socket.h"

namespace gantry {

absl::StatusOr<std::unique_ptr<JobRanks>> JobRanks::Join(absl::Duration timeout) {
  GANTRY_ASSIGN_OR_RETURN(Job job, DiscoverJob());
  return Join(std::move(job), timeout);
}

absl::StatusOr<std::unique_ptr<JobRanks>> JobRanks::Join(Job job, absl::Duration timeout) {
  if (job.size == 1) return std::unique_ptr<JobRanks>();
  GANTRY_ASSIGN_OR_RETURN(const LivenessOptions options, LivenessOptions::FromEnvironment());
  std::unique_ptr<JobRanks> ranks(new JobRanks());
  GANTRY_ASSIGN_OR_RETURN(ranks->links_, Links::Connect(std::move(job), timeout));
  GANTRY_ASSIGN_OR_RETURN(ranks->liveness_, Liveness::Watch(*ranks->links_, options));
  return ranks;
}

namespace {

// Planning may take long, and a rank that is lost meanwhile is noticed by itself.
constexpr absl::Duration kPlanningTimeout = absl::Hours(1);

// "0 " and a text, or the code of an error and its message.
std::vector<std::byte> BytesOf(const absl::StatusOr<std::string>& given) {
  const std::string text =
      given.ok() ? absl::StrCat("0 ", *given) : absl::StrCat(static_cast<int>(given.status().code()), " ", given.status().message());
  const auto* const data = reinterpret_cast<const std::byte*>(text.data());
  return {data, data + text.size()};
}

absl::StatusOr<std::string> TextOf(std::span<const std::byte> bytes) {
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const size_t space = std::min(text.find(' '), text.size());
  std::string rest = text.substr(std::min(space + 1, text.size()));
  int code = 0;
  if (!absl::SimpleAtoi(text.substr(0, space), &code) || code < 0 || code > 16) return absl::InternalError("a rank told how its planning ended in a way that is not known");
  if (code == 0) return rest;
  return absl::Status(static_cast<absl::StatusCode>(code), rest);
}

}  // namespace

absl::Status JobRanks::FirstLoss(const absl::Status& status) const {
  const absl::Status lost = absl::IsUnavailable(status) ? liveness_->status("an agreement of all ranks") : absl::OkStatus();
  return lost.ok() ? status : lost;
}

absl::StatusOr<std::vector<std::string>> JobRanks::Gather(const absl::StatusOr<std::string>& mine) {
  std::vector<int> everyone(static_cast<size_t>(size()));
  std::iota(everyone.begin(), everyone.end(), 0);
  const absl::StatusOr<std::vector<LinkMessage>> gathered = links_->Gather(everyone, kAgreementChannel, BytesOf(mine), kPlanningTimeout);
  if (!gathered.ok()) return FirstLoss(gathered.status());
  const std::vector<LinkMessage>& told = *gathered;
  std::vector<std::string> all;
  for (size_t rank = 0; rank < told.size(); ++rank) {
    absl::StatusOr<std::string> theirs = TextOf(told[rank].bytes);
    if (theirs.ok()) {
      all.push_back(*std::move(theirs));
      continue;
    }
    absl::Status agreed(theirs.status().code(), absl::StrFormat("rank %d of %d: %s", rank, size(), Message(theirs.status())));
    // Most often all ranks have the same error, whose payloads say more than its code.
    if (mine.status().code() == theirs.status().code()) {
      mine.status().ForEachPayload([&](absl::string_view name, const absl::Cord& content) { agreed.SetPayload(name, content); });
    }
    agreed.SetPayload(kAgreedPayload, absl::Cord());
    return agreed;
  }
  return all;
}

absl::Status JobRanks::Agree(const absl::Status& mine) {
  return Gather(mine.ok() ? absl::StatusOr<std::string>("") : mine).status();
}

absl::StatusOr<std::string> JobRanks::FromFirst(const absl::StatusOr<std::string>& mine) {
  if (rank() == 0) {
    for (int to = 1; to < size(); ++to) {
      if (absl::Status sent = links_->Send(to, kAgreementChannel, BytesOf(mine)); !sent.ok()) return FirstLoss(sent);
    }
    return mine;
  }
  const absl::StatusOr<LinkMessage> told = links_->Receive(0, kAgreementChannel, kPlanningTimeout);
  if (!told.ok()) return FirstLoss(told.status());
  return TextOf(told->bytes);
}

int JobRanks::RanksOfMachine() const {
  std::map<int, int> ranks;
  int most = 0;
  for (int rank = 0; rank < size(); ++rank) most = std::max(most, ++ranks[links_->peer(rank).node]);
  return most;
}

absl::StatusOr<int> JobRanks::ShareOfCores() {
  const auto MyCores = []() -> absl::StatusOr<std::string> {
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof(cores), &cores) != 0) return SystemError(errno, "asking for the cores that may be used");
    std::string list;
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &cores)) absl::StrAppend(&list, core, " ");
    }
    return list;
  };
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::string> of_ranks, Gather(MyCores()));
  const std::string& mine = of_ranks[static_cast<size_t>(rank())];
  int sharing = 0;
  for (int other = 0; other < size(); ++other) {
    sharing += (other == rank() || links_->SameNode(other)) && of_ranks[static_cast<size_t>(other)] == mine;
  }
  return std::max(1, static_cast<int>(std::count(mine.begin(), mine.end(), ' ')) / sharing);
}

JobRanks::~JobRanks() {
  if (liveness_ != nullptr) liveness_->Leave();
}

}  // namespace gantry
