// What a job keeps beyond the life of its ranks: a piece of memory a rank, made by the launcher, which gives all of
// them to every rank and to the ranks of a job that it starts again. Nothing of it has a name; it goes with the
// launcher.
//   GANTRY_KEEPING_FDS  one memfd a rank, in the order of ranks
//   GANTRY_RESTART      how often the job was started again; not set at first
//   GANTRY_RESUME       1: and it had begun when it was started again, so that there is something of its own to go on
//   from
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/socket.h"
#include "memory/status.h"

namespace gantry {

// How far a rank has come. Steps are those of the run, whoever did them.
struct KeptProgress {
  bool begun = false;            // the run's folder is this job's: what is found in it may be gone on from
  int64_t first_step = 0;        // done before the job began
  int64_t step = 0;              // done
  int64_t checkpoint_step = -1;  // of the newest checkpoint in files; -1: none
  int64_t resumed_step = -1;     // what the last start went on from; -1: from the beginning
  bool from_memory = false;      // and that was memory, not a file
};

// Of one rank. One thread at a time; nothing but Reserve allocates.
class Keeping {
 public:
  // For the launcher: one piece a rank, empty.
  static absl::StatusOr<std::vector<Descriptor>> Make(int ranks);
  // Of another process's piece; nothing that it says is trusted. A piece that was never written has not begun.
  static KeptProgress ReadProgress(int descriptor);

  // As the environment says; null where this process was not given any. kInvalidArgument where the variables are no
  // such thing.
  static absl::StatusOr<std::unique_ptr<Keeping>> FromEnvironment();
  ~Keeping();
  Keeping(const Keeping&) = delete;
  Keeping& operator=(const Keeping&) = delete;

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(pieces_.size()); }
  int restart() const { return restart_; }
  bool resumes() const { return resumes_; }  // the launcher has seen that the job had begun

  KeptProgress progress() const;  // this rank's, also what it was before this process
  // 20 ns; visible to the launcher as it is, also after a kill in between: every field is whole.
  void SetProgress(const KeptProgress& progress);

  // States kept in memory: the two newest, so that one is whole while the other is written.
  struct Kept {
    int64_t step = -1;
    std::span<const std::byte> bytes;
  };
  // Room for two times `bytes`. kResourceExhausted where memory is short. What was kept with another size is forgotten.
  absl::Status Reserve(int64_t bytes);
  // The place of the older one, to be written; it is not whole until Commit. Reserve comes before.
  std::span<std::byte> BeginWrite();
  void Commit(int64_t step);
  // What was kept of later steps is no more: the job went on from `step`.
  void ForgetAfter(int64_t step);
  // What `rank` has kept whole, the newest first; of this process's start at the latest, mapped until this object goes.
  absl::StatusOr<std::vector<Kept>> Read(int rank);

 private:
  struct Header;
  struct Mapping {
    std::byte* data = nullptr;
    size_t bytes = 0;
  };
  Keeping() = default;
  absl::Status MapOwn(size_t bytes);

  int rank_ = 0, restart_ = 0;
  bool resumes_ = false;
  std::vector<Descriptor> pieces_;
  Header* header_ = nullptr;
  size_t own_bytes_ = 0;
  int writing_ = 0;
  std::vector<Mapping> read_;
};

}  // namespace gantry
