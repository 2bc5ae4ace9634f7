#include "memory/tier/file_tier.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <utility>

#include "absl/strings/cord.h"
#include "memory/cpu/backed_memory.h"
#include "memory/fallback.h"
#include "memory/tier/tier_checks.h"

namespace gantry {
namespace {

constexpr int64_t kBlockBytes = TierSlab::kFileBlockBytes;
constexpr int64_t kChunkBytes = 1 << 20;  // of one transfer; while one is under way the next one's bytes are copied

int64_t RoundUp(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

class OpenFile {
 public:
  explicit OpenFile(int file = -1) : file_(file) {}
  OpenFile(OpenFile&& from) noexcept : file_(std::exchange(from.file_, -1)) {}
  OpenFile& operator=(OpenFile&&) = delete;
  ~OpenFile() {
    if (file_ >= 0) close(file_);
  }
  int get() const { return file_; }

 private:
  int file_;
};

// Bytes free to this process in the file system of `directory`; -1 where that cannot be told.
int64_t FreeBytes(const std::string& directory) {
  struct statfs facts;
  if (statfs(directory.c_str(), &facts) != 0) return -1;
  const auto blocks = static_cast<int64_t>(geteuid() == 0 ? facts.f_bfree : facts.f_bavail);
  const auto block_bytes = std::max<int64_t>(facts.f_bsize, 1);
  return blocks > std::numeric_limits<int64_t>::max() / block_bytes ? std::numeric_limits<int64_t>::max()
                                                                    : blocks * block_bytes;
}

std::string FileSystemName(int file) {
  struct statfs facts;
  if (fstatfs(file, &facts) != 0) return "its file system";
  switch (static_cast<uint32_t>(facts.f_type)) {
    case TMPFS_MAGIC:
      return "tmpfs";
    case RAMFS_MAGIC:
      return "ramfs";
    case OVERLAYFS_SUPER_MAGIC:
      return "overlayfs";
    case NFS_SUPER_MAGIC:
      return "NFS";
    case FUSE_SUPER_MAGIC:
      return "FUSE";
    default:
      return "its file system";
  }
}

absl::Status FileError(const TierOptions& options, std::string_view action, int64_t bytes, int error) {
  absl::StatusCode code = absl::StatusCode::kUnavailable;
  std::string_view advice = "name another directory";
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      code = absl::StatusCode::kNotFound;
      advice = "make the directory first, or name another";
      break;
    case EACCES:
    case EPERM:
    case EROFS:
      code = absl::StatusCode::kPermissionDenied;
      advice = "name a directory that this user may write to";
      break;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      code = absl::StatusCode::kResourceExhausted;
      advice = "free space there, name a directory with more, or let less leave the device";
      break;
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      code = absl::StatusCode::kResourceExhausted;
      advice = "close other files or raise the limit";
      break;
    default:
      break;
  }
  const int64_t free = FreeBytes(options.directory);
  absl::Status status(code, absl::StrFormat("tier %s: cannot %s of %d bytes in '%s': %s; %s; %s", options.name, action, bytes,
                                            options.directory, std::strerror(error),
                                            free < 0 ? "how much is free there is not known"
                                                     : absl::StrFormat("%d bytes are free there", free),
                                            advice));
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) status.SetPayload(kStoragePayload, absl::Cord());
  return status;
}

absl::StatusOr<OpenFile> MakeFile(const TierOptions& options, int64_t bytes, bool unnamed) {
  if (unnamed) {
    const int file = open(options.directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL, 0600);
    if (file >= 0) return OpenFile(file);
    // EISDIR: a kernel that does not know O_TMPFILE.
    if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)
      return FileError(options, "make a file", bytes, errno);
  }
  std::string path = options.directory + "/gantry-tier-XXXXXX";
  const int file = mkostemp(path.data(), O_CLOEXEC);
  if (file < 0) return FileError(options, "make a file", bytes, errno);
  unlink(path.c_str());
  return OpenFile(file);
}

// 0 or an errno.
int AllocateBlocks(int file, int64_t bytes) {
  rlimit largest;  // beyond it the process would get a signal
  if (getrlimit(RLIMIT_FSIZE, &largest) == 0 && static_cast<uint64_t>(bytes) > largest.rlim_cur) return EFBIG;
  int error = 0;
  do {
    error = posix_fallocate(file, 0, bytes);
  } while (error == EINTR);
  return error;
}

// One direction of a slab: its way to the file and its bounce buffers.
struct Direction {
  std::mutex mutex;
  std::unique_ptr<FileIo> io;
  std::array<std::byte*, FileIo::kSlots> bounce{};
};

// How the file is moved.
struct FilePath {
  bool direct = false;
  int64_t memory_alignment = 1;  // direct: memory at a multiple of this needs no bounce buffer
  std::string text;
  std::string why_buffered, why_no_ring;  // where that is not what was asked for
};

class FileSlab final : public TierSlab {
 public:
  FileSlab(std::string name, std::string directory, OpenFile file, int64_t bytes)
      : name_(std::move(name)), directory_(std::move(directory)), file_(std::move(file)), bytes_(bytes) {}

  absl::Status Open(const TierOptions& options, const FileTierSeam& seam);

  int64_t size_bytes() const override { return bytes_; }
  std::byte* data() const override { return nullptr; }
  absl::Status Write(int64_t offset, std::span<const std::byte> from) override {
    return Move(out_, /*write=*/true, offset, const_cast<std::byte*>(from.data()), static_cast<int64_t>(from.size()));
  }
  absl::Status Read(int64_t offset, std::span<std::byte> to) override {
    return Move(in_, /*write=*/false, offset, to.data(), static_cast<int64_t>(to.size()));
  }
  std::string DescribePath() const override { return path_.text; }
  std::string_view name() const override { return name_; }
  int64_t retry_count() const override { return retries_.load(std::memory_order_relaxed); }

 private:
  // A piece of a move, in one slot.
  struct Chunk {
    std::byte* memory = nullptr;    // the caller's
    std::byte* transfer = nullptr;  // what the transfer uses: `memory` or the slot's bounce buffer
    int64_t offset = 0;
    int64_t bytes = 0;           // of the caller
    int64_t transfer_bytes = 0;  // >= bytes, whole blocks where I/O is direct
  };

  absl::Status OpenIo(const TierOptions& options, const std::string& buffering);
  absl::Status NoteFallbacks() const;
  absl::Status Move(Direction& direction, bool write, int64_t offset, std::byte* memory, int64_t bytes);
  Chunk NextChunk(std::byte* bounce, int64_t offset, std::byte* memory, int64_t bytes) const;
  static void Begin(FileIo& io, bool write, int slot, const Chunk& chunk);
  absl::Status Finish(FileIo& io, bool write, int slot, const Chunk& chunk);

  const std::string name_, directory_;
  const OpenFile file_;
  const int64_t bytes_;
  BackedMemory bounce_memory_;
  FilePath path_;
  std::atomic<int64_t> retries_{0};
  Direction out_, in_;  // last: their transfers end before the memory goes
};

absl::Status FileSlab::Open(const TierOptions& options, const FileTierSeam& seam) {
  const int64_t bounce_bytes = std::min(kChunkBytes, std::max(bytes_, kBlockBytes));
  GANTRY_ASSIGN_OR_RETURN(
      bounce_memory_, BackedMemory::Map(absl::StrCat("tier ", name_, ": buffers"), 2 * FileIo::kSlots * bounce_bytes,
                                        "end other programs or use a smaller batch"));
  std::byte* next = bounce_memory_.data();
  for (Direction* direction : {&out_, &in_}) {
    for (std::byte*& bounce : direction->bounce) bounce = std::exchange(next, next + bounce_bytes);
  }

  std::string buffering = "buffered (as asked)";
  if (options.direct_io) {
    const std::string system = FileSystemName(file_.get());
    path_.memory_alignment = DirectMemoryAlignment(file_.get(), kBlockBytes);
    // tmpfs takes the flag, but its file is memory all the same.
    path_.direct = system != "tmpfs" && system != "ramfs" && path_.memory_alignment > 0 &&
                   fcntl(file_.get(), F_SETFL, O_RDWR | O_DIRECT) == 0;
    if (!path_.direct) path_.why_buffered = absl::StrFormat("%s has no direct I/O", system);
    buffering = path_.direct ? "direct" : absl::StrFormat("buffered (%s)", path_.why_buffered);
  }
  absl::Status opened = OpenIo(options, buffering);
  if (!opened.ok() && path_.direct && fcntl(file_.get(), F_SETFL, O_RDWR) == 0) {
    path_.direct = false;
    path_.why_buffered =
        absl::StrFormat("%s refuses direct I/O in blocks of %d", FileSystemName(file_.get()), kBlockBytes);
    opened = OpenIo(options, absl::StrFormat("buffered (%s)", path_.why_buffered));
  }
  GANTRY_RETURN_IF_ERROR(opened);
  GANTRY_RETURN_IF_ERROR(NoteFallbacks());
  for (Direction* direction : {&out_, &in_}) {
    if (seam.around_io) direction->io = seam.around_io(std::move(direction->io));
  }
  return absl::OkStatus();
}

absl::Status FileSlab::NoteFallbacks() const {
  const std::string what = absl::StrCat("tier ", name_);
  if (!path_.why_no_ring.empty()) {
    GANTRY_RETURN_IF_ERROR(NoteFallback({.what = what,
                                         .wanted = "io_uring",
                                         .got = "pread and pwrite",
                                         .why = path_.why_no_ring,
                                         .remedy = "allow io_uring (kernel.io_uring_disabled, the container's seccomp "
                                                   "rules, a build with liburing), or ask for none"}));
  }
  if (path_.why_buffered.empty()) return absl::OkStatus();
  return NoteFallback({.what = what,
                       .wanted = "direct I/O",
                       .got = "buffered I/O",
                       .why = path_.why_buffered,
                       .remedy = absl::StrFormat("put the tier on a disk's own file system instead of '%s', or ask for "
                                                 "buffered I/O",
                                                 directory_)});
}

// Makes both directions' io and reads a block with each, so that a refusal shows here and not in mid-step.
absl::Status FileSlab::OpenIo(const TierOptions& options, const std::string& buffering) {
  std::string calls = options.io_uring ? "io_uring" : "pread/pwrite";
  path_.why_no_ring.clear();
  bool ring = options.io_uring;
  for (Direction* direction : {&out_, &in_}) {
    const std::span<std::byte> block(direction->bounce[0], static_cast<size_t>(std::min(bytes_, kBlockBytes)));
    if (ring) {
      absl::StatusOr<std::unique_ptr<FileIo>> io = MakeRingIo(file_.get());
      absl::Status status = io.status();
      if (io.ok()) {
        (*io)->BeginRead(0, block, 0);
        const int64_t moved = (*io)->Finish(0);
        if (moved == std::ssize(block)) {
          direction->io = *std::move(io);
          continue;
        }
        status = absl::UnavailableError(moved < 0 ? std::strerror(static_cast<int>(-moved)) : "a short read");
      }
      ring = false;
      path_.why_no_ring = Message(status);
      calls = absl::StrFormat("pread/pwrite (no io_uring: %s)", path_.why_no_ring);
      out_.io = MakePositionedIo(file_.get());
    }
    direction->io = MakePositionedIo(file_.get());
    direction->io->BeginRead(0, block, 0);
    if (const int64_t moved = direction->io->Finish(0); moved != std::ssize(block)) {
      return FileError(options, "read from a file", bytes_, moved < 0 ? static_cast<int>(-moved) : EIO);
    }
  }
  path_.text = absl::StrCat(calls, ", ", buffering);
  return absl::OkStatus();
}

FileSlab::Chunk FileSlab::NextChunk(std::byte* bounce, int64_t offset, std::byte* memory, int64_t bytes) const {
  Chunk chunk{.memory = memory, .transfer = memory, .offset = offset, .bytes = std::min(bytes, kChunkBytes)};
  if (path_.direct) {
    const bool aligned = reinterpret_cast<uintptr_t>(memory) % static_cast<uintptr_t>(path_.memory_alignment) == 0;
    if (aligned && chunk.bytes >= kBlockBytes) {
      chunk.bytes = chunk.bytes / kBlockBytes * kBlockBytes;  // what is left of the last block is a chunk of its own
    } else {
      chunk.transfer = bounce;
    }
  }
  chunk.transfer_bytes = path_.direct ? RoundUp(chunk.bytes, kBlockBytes) : chunk.bytes;
  return chunk;
}

void FileSlab::Begin(FileIo& io, bool write, int slot, const Chunk& chunk) {
  const std::span<std::byte> transfer(chunk.transfer, static_cast<size_t>(chunk.transfer_bytes));
  if (write) {
    io.BeginWrite(slot, transfer, chunk.offset);
  } else {
    io.BeginRead(slot, transfer, chunk.offset);
  }
}

absl::Status FileSlab::Finish(FileIo& io, bool write, int slot, const Chunk& chunk) {
  int64_t moved = io.Finish(slot);
  if (moved == chunk.transfer_bytes) return absl::OkStatus();
  retries_.fetch_add(1, std::memory_order_relaxed);
  Begin(io, write, slot, chunk);
  moved = io.Finish(slot);
  if (moved == chunk.transfer_bytes) return absl::OkStatus();
  const std::string why =
      moved < 0 ? std::strerror(static_cast<int>(-moved)) : absl::StrFormat("only %d bytes came through", moved);
  return absl::Status(
      write ? absl::StatusCode::kUnavailable : absl::StatusCode::kDataLoss,
      absl::StrFormat("tier %s: %s of %d bytes at offset %d of its file in '%s' failed twice: %s; check the "
                      "device and the space there, then resume from the last checkpoint",
                      name_, write ? "write" : "read", chunk.transfer_bytes, chunk.offset, directory_, why));
}

absl::Status FileSlab::Move(Direction& direction, bool write, int64_t offset, std::byte* memory, int64_t bytes) {
  const std::string_view action = write ? "write" : "read";
  GANTRY_RETURN_IF_ERROR(CheckTierRange(*this, action, offset, static_cast<size_t>(bytes)));
  if (offset % kBlockBytes != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "tier %s: %s of %d bytes at offset %d, which is no multiple of %d", name_, action, bytes, offset, kBlockBytes));
  }
  const std::lock_guard lock(direction.mutex);
  FileIo& io = *direction.io;
  std::array<Chunk, FileIo::kSlots> chunks;
  absl::Status status;
  int64_t begun = 0, finished = 0;  // chunks; chunk i is in slot i % kSlots
  int64_t position = 0;
  while (finished < begun || (status.ok() && position < bytes)) {
    if (status.ok() && position < bytes && begun - finished < FileIo::kSlots) {
      const int slot = static_cast<int>(begun++ % FileIo::kSlots);
      Chunk& chunk = chunks[slot] =
          NextChunk(direction.bounce[slot], offset + position, memory + position, bytes - position);
      if (write && chunk.transfer != chunk.memory) {
        std::memcpy(chunk.transfer, chunk.memory, chunk.bytes);
        std::memset(chunk.transfer + chunk.bytes, 0, chunk.transfer_bytes - chunk.bytes);
      }
      Begin(io, write, slot, chunk);
      position += chunk.bytes;
      continue;
    }
    const int slot = static_cast<int>(finished++ % FileIo::kSlots);
    const Chunk& chunk = chunks[slot];
    const absl::Status done = Finish(io, write, slot, chunk);
    if (status.ok()) status = done;
    if (done.ok() && !write && chunk.transfer != chunk.memory) std::memcpy(chunk.memory, chunk.transfer, chunk.bytes);
  }
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TierSlab>> ReserveFileTier(const TierOptions& options, int64_t bytes,
                                                          const FileTierSeam& seam) {
  if (options.directory.empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tier %s: a file tier needs a directory for its file of %d bytes", options.name, bytes));
  }
  if (bytes < 0 || bytes > std::numeric_limits<int64_t>::max() - kBlockBytes) {
    return absl::InvalidArgumentError(absl::StrFormat("tier %s: cannot reserve %d bytes", options.name, bytes));
  }
  const int64_t file_bytes = RoundUp(bytes, kBlockBytes);
  GANTRY_RETURN_IF_ERROR(CheckTierBudget(options, file_bytes));
  GANTRY_ASSIGN_OR_RETURN(OpenFile file, MakeFile(options, file_bytes, seam.unnamed_files));
  if (file_bytes > 0) {
    // Asked first: a file system fills up before it says no.
    const int64_t free = FreeBytes(options.directory);
    const int error = free >= 0 && file_bytes > free ? ENOSPC
                      : seam.allocate                ? seam.allocate(file.get(), file_bytes)
                                                     : AllocateBlocks(file.get(), file_bytes);
    if (error != 0) return FileError(options, "make a file", file_bytes, error);
  }
  auto slab = std::make_unique<FileSlab>(options.name, options.directory, std::move(file), file_bytes);
  GANTRY_RETURN_IF_ERROR(slab->Open(options, seam));
  return slab;
}

}  // namespace gantry
