// The file tier: one unnamed file per slab, its blocks allocated up front, moved by direct I/O where there is any.
#pragma once

#include <functional>
#include <memory>

#include "memory/tier/file_io.h"
#include "memory/tier/tier.h"

namespace gantry {

// Where tests put faults between the file tier and the operating system.
struct FileTierSeam {
  std::function<int(int file, int64_t bytes)> allocate;                       // posix_fallocate
  std::function<std::unique_ptr<FileIo>(std::unique_ptr<FileIo>)> around_io;  // of each direction, once it works
  bool unnamed_files = true;  // false: as on a file system without O_TMPFILE
};

// ReserveTier for TierKind::kFile.
absl::StatusOr<std::unique_ptr<TierSlab>> ReserveFileTier(const TierOptions& options, int64_t bytes,
                                                          const FileTierSeam& seam = {});

}  // namespace gantry
