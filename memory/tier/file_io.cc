#include "memory/tier/file_io.h"

#include <fcntl.h>
#include <linux/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#ifdef GANTRY_WITH_IO_URING
#include <liburing.h>
#endif

namespace gantry {
namespace {

int64_t WriteNow(int file, std::span<const std::byte> memory, int64_t offset) {
  ssize_t moved = 0;
  do {
    moved = pwrite(file, memory.data(), memory.size(), offset);
  } while (moved < 0 && errno == EINTR);
  return moved < 0 ? -errno : moved;
}

int64_t ReadNow(int file, std::span<std::byte> memory, int64_t offset) {
  ssize_t moved = 0;
  do {
    moved = pread(file, memory.data(), memory.size(), offset);
  } while (moved < 0 && errno == EINTR);
  return moved < 0 ? -errno : moved;
}

class PositionedIo final : public FileIo {
 public:
  explicit PositionedIo(int file) : file_(file) {}
  void BeginWrite(int slot, std::span<const std::byte> memory, int64_t offset) override {
    results_[slot] = WriteNow(file_, memory, offset);
  }
  void BeginRead(int slot, std::span<std::byte> memory, int64_t offset) override {
    results_[slot] = ReadNow(file_, memory, offset);
  }
  int64_t Finish(int slot) override { return results_[slot]; }

 private:
  const int file_;
  std::array<int64_t, kSlots> results_{};
};

#ifdef GANTRY_WITH_IO_URING

class RingIo final : public FileIo {
 public:
  explicit RingIo(int file) : file_(file) {}
  // 0 or minus an errno.
  int Open() {
    const int result = io_uring_queue_init(2 * kSlots, &ring_, 0);
    open_ = result == 0;
    return result;
  }
  ~RingIo() override {
    if (!open_) return;
    for (int slot = 0; slot < kSlots; ++slot) Finish(slot);
    io_uring_queue_exit(&ring_);
  }

  void BeginWrite(int slot, std::span<const std::byte> memory, int64_t offset) override {
    if (io_uring_sqe* entry = NextEntry(); entry != nullptr) {
      io_uring_prep_write(entry, file_, memory.data(), static_cast<unsigned>(memory.size()),
                          static_cast<uint64_t>(offset));
      Submit(entry, slot);
    } else {
      slots_[slot] = {.under_way = false, .result = WriteNow(file_, memory, offset)};
    }
  }
  void BeginRead(int slot, std::span<std::byte> memory, int64_t offset) override {
    if (io_uring_sqe* entry = NextEntry(); entry != nullptr) {
      io_uring_prep_read(entry, file_, memory.data(), static_cast<unsigned>(memory.size()),
                         static_cast<uint64_t>(offset));
      Submit(entry, slot);
    } else {
      slots_[slot] = {.under_way = false, .result = ReadNow(file_, memory, offset)};
    }
  }
  int64_t Finish(int slot) override {
    while (slots_[slot].under_way) {
      io_uring_cqe* completion = nullptr;
      const int error = io_uring_wait_cqe(&ring_, &completion);
      if (error == -EINTR || error == -EAGAIN) continue;
      if (error != 0) {  // not of the transfer but of the ring
        stuck_ = true;
        slots_[slot] = {.under_way = false, .result = error};
        break;
      }
      Slot& done = slots_[completion->user_data];
      done = {.under_way = false, .result = completion->res};
      io_uring_cqe_seen(&ring_, completion);
    }
    return slots_[slot].result;
  }

 private:
  struct Slot {
    bool under_way = false;
    int64_t result = 0;
  };

  io_uring_sqe* NextEntry() { return stuck_ ? nullptr : io_uring_get_sqe(&ring_); }

  void Submit(io_uring_sqe* entry, int slot) {
    entry->user_data = static_cast<uint64_t>(slot);
    int submitted = 0;
    do {
      submitted = io_uring_submit(&ring_);
    } while (submitted == -EINTR);
    if (submitted == 1) {
      slots_[slot].under_way = true;
      return;
    }
    // The entry stays in the queue and would go out with the next one, so there is no next one: plain calls from here
    // on.
    stuck_ = true;
    slots_[slot] = {.under_way = false, .result = submitted < 0 ? submitted : -EBUSY};
  }

  const int file_;
  io_uring ring_{};
  bool open_ = false;
  bool stuck_ = false;
  std::array<Slot, kSlots> slots_{};
};

#endif  // GANTRY_WITH_IO_URING

}  // namespace

std::unique_ptr<FileIo> MakePositionedIo(int file) { return std::make_unique<PositionedIo>(file); }

absl::StatusOr<std::unique_ptr<FileIo>> MakeRingIo([[maybe_unused]] int file) {
#ifdef GANTRY_WITH_IO_URING
  auto ring = std::make_unique<RingIo>(file);
  if (const int result = ring->Open(); result != 0) return absl::UnavailableError(std::strerror(-result));
  return ring;
#else
  return absl::UnavailableError("built without liburing");
#endif
}

int64_t DirectMemoryAlignment([[maybe_unused]] int file, int64_t block_bytes) {
#ifdef STATX_DIOALIGN
  struct statx facts {};
  if (syscall(SYS_statx, file, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts) == 0 &&
      (facts.stx_mask & STATX_DIOALIGN) != 0) {
    return facts.stx_dio_offset_align <= block_bytes ? facts.stx_dio_mem_align : 0;
  }
#endif
  return block_bytes;
}

}  // namespace gantry
