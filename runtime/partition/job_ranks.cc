#include "runtime/partition/job_ranks.h"

#include "comm/job.h"

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

JobRanks::~JobRanks() {
  if (liveness_ != nullptr) liveness_->Leave();
}

}  // namespace gantry
