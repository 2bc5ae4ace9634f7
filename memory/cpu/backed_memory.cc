#include "memory/cpu/backed_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <utility>

#include "memory/cpu/huge_pages.h"

namespace gantry {
namespace {

absl::Status SystemError(std::string_view owner, std::string_view call, int64_t bytes, int error,
                         std::string_view advice) {
  return absl::ResourceExhaustedError(
      absl::StrFormat("%s: %s of %d bytes failed: %s; %s", owner, call, bytes, std::strerror(error), advice));
}

// Bytes that the machine, or the container, can still give; INT64_MAX where that cannot be told. posix_fallocate does
// not ask: it takes pages until the kernel ends the process.
int64_t AvailableBytes() {
  int64_t memory = -1, swap = 0;  // KiB
  std::ifstream machine("/proc/meminfo");
  for (std::string word; machine >> word;) {
    if (word == "MemAvailable:") machine >> memory;
    if (word == "SwapFree:") machine >> swap;
  }
  int64_t available = memory < 0 ? std::numeric_limits<int64_t>::max() : 1024 * (memory + swap);
  // Control groups, version 2: the limit of the container that sees itself as the root.
  int64_t limit = 0;
  if (std::ifstream container("/sys/fs/cgroup/memory.max"); container >> limit) available = std::min(available, limit);
  return available;
}

// 0, or the error. Every page of `file`, mapped at `data`, is there afterwards. `file` is -1 for private memory.
int Populate(int file, void* data, size_t bytes) {
#if defined(MADV_POPULATE_WRITE)
  // Only faults make huge pages, and only where asked for; a lack of memory is an error here too, not a signal.
  madvise(data, bytes, MADV_HUGEPAGE);
  if (file >= 0) PutPagesTogether(data, bytes);
  if (madvise(data, bytes, MADV_POPULATE_WRITE) == 0) return 0;
  if (errno != EINVAL) return errno == EFAULT ? ENOMEM : errno;
#endif
  if (file < 0) {  // kernels before 5.14
    for (size_t at = 0; at < bytes; at += BackedMemory::kPageBytes) static_cast<volatile char*>(data)[at] = 0;
    return 0;
  }
  int error = 0;
  do {
    error = posix_fallocate(file, 0, static_cast<off_t>(bytes));
  } while (error == EINTR);
  if (error == 0) madvise(data, bytes, MADV_WILLNEED);
  return error;
}

}  // namespace

absl::StatusOr<BackedMemory> BackedMemory::Map(std::string_view owner, int64_t bytes, std::string_view advice, bool shared) {
  if (bytes == 0) return BackedMemory();
  if (bytes < 0 || bytes > std::numeric_limits<int64_t>::max() - kPageBytes) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: cannot map %d bytes", owner, bytes));
  }
  const int64_t mapped = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  if (const int64_t available = AvailableBytes(); mapped > available) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%s: %d bytes asked for, the machine has %d available: %d short; %s", owner, mapped, available,
                        mapped - available, advice));
  }
  const size_t size = static_cast<size_t>(mapped);
  if (!shared) {
    void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return SystemError(owner, "mmap", mapped, errno, advice);
    if (const int error = Populate(-1, data, size); error != 0) {
      munmap(data, size);
      return SystemError(owner, "backing with memory", mapped, error, advice);
    }
    return BackedMemory(static_cast<std::byte*>(data), mapped, -1);
  }
  const int file = memfd_create("gantry-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (file < 0) return SystemError(owner, "memfd_create", mapped, errno, advice);
  if (ftruncate(file, mapped) != 0) {
    const int error = errno;
    close(file);
    return SystemError(owner, "ftruncate", mapped, error, advice);
  }
  void* data = MapShared(size, PROT_READ | PROT_WRITE, file);
  if (data == MAP_FAILED) {
    const int error = errno;
    close(file);
    return SystemError(owner, "mmap", mapped, error, advice);
  }
  if (const int error = Populate(file, data, size); error != 0) {
    munmap(data, size);
    close(file);
    return SystemError(owner, "backing with memory", mapped, error, advice);
  }
  // Whoever maps it may rely on its size: no SIGBUS.
  if (fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    const int error = errno;
    munmap(data, size);
    close(file);
    return SystemError(owner, "sealing", mapped, error, advice);
  }
  return BackedMemory(static_cast<std::byte*>(data), mapped, file);
}

BackedMemory::BackedMemory(BackedMemory&& from) noexcept
    : data_(std::exchange(from.data_, nullptr)),
      mapped_bytes_(std::exchange(from.mapped_bytes_, 0)),
      descriptor_(std::exchange(from.descriptor_, -1)) {}

BackedMemory& BackedMemory::operator=(BackedMemory&& from) noexcept {
  std::swap(data_, from.data_);
  std::swap(mapped_bytes_, from.mapped_bytes_);
  std::swap(descriptor_, from.descriptor_);
  return *this;
}

BackedMemory::~BackedMemory() {
  if (data_ == nullptr) return;
  munmap(data_, static_cast<size_t>(mapped_bytes_));
  if (descriptor_ >= 0) close(descriptor_);
}

}  // namespace gantry
