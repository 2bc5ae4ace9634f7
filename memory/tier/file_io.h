// Transfers between memory and a file, a few at once: what the file tier stands on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "memory/status.h"

namespace gantry {

// Used by one thread at a time. Nothing here allocates once it is made.
class FileIo {
 public:
  static constexpr int kSlots = 2;  // transfers that can be under way

  virtual ~FileIo() = default;
  // Starts, or makes, one transfer in `slot`, which has none under way. `memory` must stay until it is finished.
  virtual void BeginWrite(int slot, std::span<const std::byte> memory, int64_t offset) = 0;
  virtual void BeginRead(int slot, std::span<std::byte> memory, int64_t offset) = 0;
  // Ends what was begun in `slot`: bytes moved, or minus an errno.
  virtual int64_t Finish(int slot) = 0;
};

// `file` stays the caller's and must outlive it. Transfers happen within Begin.
std::unique_ptr<FileIo> MakePositionedIo(int file);

// Transfers go on while the caller does something else. kUnavailable, saying why, where the build or the kernel has no
// io_uring, or something on the way (seccomp, a limit) refuses it.
absl::StatusOr<std::unique_ptr<FileIo>> MakeRingIo(int file);

// Multiple of bytes at which memory must start for direct I/O on `file` in blocks of `block_bytes`; 0 where the file is
// known to have no such direct I/O.
int64_t DirectMemoryAlignment(int file, int64_t block_bytes);

}  // namespace gantry
