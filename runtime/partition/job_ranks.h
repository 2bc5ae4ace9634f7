// This process as a rank of its job: links to the others, and who of them is alive.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "comm/links.h"
#include "comm/liveness.h"
#include "memory/status.h"

namespace gantry {

// Payload of errors that all ranks end with: one of them need tell.
inline constexpr char kAgreedPayload[] = "gantry/agreed";

// Leaves the job in order when it goes.
class JobRanks {
 public:
  // The job that the environment describes (comm/job.h); null where it has one rank.
  static absl::StatusOr<std::unique_ptr<JobRanks>> Join(absl::Duration timeout = absl::Seconds(30));
  static absl::StatusOr<std::unique_ptr<JobRanks>> Join(Job job, absl::Duration timeout = absl::Seconds(30));
  ~JobRanks();

  // Calls of all ranks, in the same order. Each ends as `mine` does where that is so on all ranks; else all of them end with the error of the
  // first rank that has one, named, with kAgreedPayload. kUnavailable names a rank that is lost meanwhile.
  absl::Status Agree(const absl::Status& mine);
  // The same, and what all ranks give, by rank.
  absl::StatusOr<std::vector<std::string>> Gather(const absl::StatusOr<std::string>& mine);
  // What rank 0 gives, or the error that it has; others give nothing.
  absl::StatusOr<std::string> FromFirst(const absl::StatusOr<std::string>& mine);

  // A call of all ranks. How many threads this one may run without taking cores from others: the cores that it may use, shared out among
  // the ranks of its machine that may use the same; at least 1.
  absl::StatusOr<int> ShareOfCores();

  // The most ranks that a machine of the job has: the same on all of them.
  int RanksOfMachine() const;

  int rank() const { return links_->rank(); }
  int size() const { return links_->size(); }
  Links& links() { return *links_; }
  Liveness& liveness() { return *liveness_; }

 private:
  JobRanks() = default;
  // Who was lost first, where somebody was: it need not be the one that a message came from, or did not come from.
  absl::Status FirstLoss(const absl::Status& status) const;
  std::unique_ptr<Links> links_;
  std::unique_ptr<Liveness> liveness_;
};

}  // namespace gantry
