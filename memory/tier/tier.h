// Where values go that leave the device. A tier is a kind of memory with a budget; a slab is one rank's part of it,
// reserved once. Plain bytes: what lies where is the plan's business, and copy_lanes.h moves the bytes beside compute.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "memory/status.h"

namespace gantry {

enum class TierKind : uint8_t {
  kHost,
  kFile,
  kPeer,        // what another rank's plan leaves of its device's budget
  kRemoteHost,  // host memory of a rank on another node
};
// "host", "file", "peer", "remote": in options, machine files and reports.
std::string_view Name(TierKind kind);
// Memory of another rank: its slabs are comm/pool_slab.h.
inline bool IsLent(TierKind kind) { return kind == TierKind::kPeer || kind == TierKind::kRemoteHost; }

// What a copy between the device and the tier costs beyond the machine's own speed: a link that one does not have is
// run for real. CopyLanes holds copies to it; a slab by itself goes as fast as it can.
struct Throttle {
  double bytes_per_second = 0.0;  // 0: as fast as it goes
  double latency_seconds = 0.0;   // of each copy
  double jitter_seconds = 0.0;    // up to this much more per copy, drawn from `seed`
  uint64_t seed = 0;

  // What so many bytes take at least, jitter left out.
  double Seconds(int64_t bytes) const { return latency_seconds + (bytes_per_second > 0 ? static_cast<double>(bytes) / bytes_per_second : 0.0); }
};

struct TierOptions {
  std::string name;  // "host", "nvme": in errors and reports
  TierKind kind = TierKind::kHost;
  int64_t budget_bytes = INT64_MAX;
  int lender = -1;        // kPeer, kRemoteHost: the rank whose memory it is; -1: any that has some to lend
  bool far = false;       // that rank is on another node
  std::string directory;  // kFile: where the file is made; it has no name there that outlives the process
  bool direct_io = true;  // kFile: O_DIRECT where the file system has it, else buffered, and DescribePath says which
  bool io_uring = true;   // kFile: io_uring where the kernel and the build have it, else pread/pwrite
  Throttle out, in;       // device -> tier, tier -> device
};

// One rank's slab in a tier: reserved once at exact size, never grows, freed with the object. Write and Read may be
// called at once from two threads for disjoint ranges; two Writes, or two Reads, of a kFile slab take turns.
class TierSlab {
 public:
  // Ranges in a kFile slab start at multiples of this, and nobody else uses the rest of a range's last block: Write may
  // fill it with zeros.
  static constexpr int64_t kFileBlockBytes = 4096;

  virtual ~TierSlab() = default;
  // What was asked for; kFile: rounded up to kFileBlockBytes. Zero-filled at first.
  virtual int64_t size_bytes() const = 0;
  // Null where the tier is not addressable (all but kHost), or where it has 0 bytes.
  virtual std::byte* data() const = 0;
  // As Slab::descriptor (memory/device.h); -1 where the tier is not addressable, or has 0 bytes.
  virtual int descriptor() const { return -1; }
  // Blocking; they allocate nothing unless they fail. The memory need not be aligned.
  // kInvalidArgument  the range is not inside the slab, or does not start at a block
  // kUnavailable      (Write) a transfer failed or came out short, and did so again when it was retried; (both) the rank
  //                   whose memory it is is lost
  // kDataLoss         (Read) the same; what `to` then holds is undefined
  virtual absl::Status Write(int64_t offset, std::span<const std::byte> from) = 0;
  virtual absl::Status Read(int64_t offset, std::span<std::byte> to) = 0;
  // "memory", "io_uring, direct", "pread/pwrite, buffered (tmpfs has no direct I/O)"
  virtual std::string DescribePath() const = 0;
  // TierOptions::name.
  virtual std::string_view name() const { return "unnamed"; }
  // Transfers that failed or came out short and were done again, with or without success. Any thread.
  virtual int64_t retry_count() const { return 0; }
};

// All `bytes` (>= 0) are there when it returns: memory is faulted in, file blocks are allocated.
// kInvalidArgument    bytes < 0, a kFile tier names no directory, or the memory is another rank's
// kResourceExhausted  the budget, the machine or the file system does not have the bytes
// kFailedPrecondition under GANTRY_STRICT: io_uring or direct I/O was asked for and is not had (memory/fallback.h)
// kNotFound, kPermissionDenied  the directory is missing, or no file can be made in it
absl::StatusOr<std::unique_ptr<TierSlab>> ReserveTier(const TierOptions& options, int64_t bytes);

}  // namespace gantry
