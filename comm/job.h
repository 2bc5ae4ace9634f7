// Who this process is in its job: rank, number of ranks, where the others are found, and the key that proves membership.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "memory/status.h"

namespace gantry {

// 256 bits that every rank of a job knows and nobody else. Wiped when it goes. Move-only.
class JobKey {
 public:
  static constexpr int kBytes = 32;

  static absl::StatusOr<JobKey> Generate();
  // kPermissionDenied where others may read the file (mode beyond 0600, another owner), kDataLoss where it is not 64 hex digits.
  static absl::StatusOr<JobKey> FromFile(const std::string& path);
  // Reads kBytes raw bytes from an inherited descriptor and closes it.
  static absl::StatusOr<JobKey> FromDescriptor(int descriptor);

  JobKey() = default;  // all zero: of a job of one rank, which never connects
  JobKey(JobKey&& from) noexcept;
  JobKey& operator=(JobKey&& from) noexcept;
  ~JobKey();

  std::span<const uint8_t, kBytes> bytes() const { return bytes_; }

 private:
  std::array<uint8_t, kBytes> bytes_ = {};
};

struct Job {
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 1;  // among the ranks of this machine, as far as the launcher says; rendezvous finds out for sure
  std::string found_by = "single process";  // which discovery won: "GANTRY_*", "torchrun", "PMIx", "Slurm", "Open MPI"
  // Where rank 0 listens: "unix:/run/dir/socket" or "tcp:HOST:PORT"; empty for one rank.
  std::string rendezvous;
  // A folder of this job on this machine, "/tmp/gantry-1000/slurm-71.0". Not empty: rank 0 makes it and a key in it, from which the others
  // take theirs; both are gone once all are connected.
  std::string run_folder;
  // Connected sockets that the launcher made before the ranks started, by rank; -1: none, connect through `rendezvous`.
  std::vector<int> inherited;
  int launcher = -1;  // a socket to the launcher; -1: none
  JobKey key;

  std::string Describe() const;  // "rank 1 of 4 (found by Slurm, meeting at unix:...)"; for the log of a program's start
};

// Order: GANTRY_*, the torchrun set, PMIx, Slurm, Open MPI, single process; who knows better fills a Job of its own instead. The winner
// is Job::found_by. A set that is there in part is kInvalidArgument and names what is missing. Reads the environment, and descriptors
// that it names; changes nothing in it (docs/reference/starting-ranks.md).
absl::StatusOr<Job> DiscoverJob();

}  // namespace gantry
