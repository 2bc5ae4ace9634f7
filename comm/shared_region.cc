#include "comm/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

// Newer than some C libraries' headers.
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace gantry {
namespace {

absl::Status SystemError(std::string_view owner, std::string_view call, int64_t bytes) {
  const int error = errno;
  const std::string message = absl::StrFormat("%s: %s of %d bytes of shared memory failed: %s", owner, call, bytes, std::strerror(error));
  if (error == EPERM || error == EACCES) return absl::PermissionDeniedError(message);
  return absl::ResourceExhaustedError(message);
}

// Faults in what the file has already, so that no first touch falls into a step.
void Touch(void* data, size_t bytes, Access access) {
  madvise(data, bytes, MADV_HUGEPAGE);
#if defined(MADV_POPULATE_WRITE)
  if (madvise(data, bytes, access == Access::kReadWrite ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) == 0) return;
#else
  (void)access;
#endif
  madvise(data, bytes, MADV_WILLNEED);
}

}  // namespace

absl::StatusOr<SharedRegion> SharedRegion::Create(std::string_view owner, int64_t bytes) {
  if (bytes <= 0) return absl::InvalidArgumentError(absl::StrFormat("%s: cannot share %d bytes", owner, bytes));
  const int file = memfd_create("gantry-shared", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (file < 0) return SystemError(owner, "memfd_create", bytes);
  int error = 0;
  do {
    error = posix_fallocate(file, 0, static_cast<off_t>(bytes));
  } while (error == EINTR);
  errno = error;
  if (error != 0 || fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    const absl::Status status = SystemError(owner, error != 0 ? "posix_fallocate" : "sealing", bytes);
    close(file);
    return status;
  }
  return Map(owner, file, bytes, Access::kReadWrite);
}

absl::StatusOr<SharedRegion> SharedRegion::Map(std::string_view owner, int descriptor, int64_t bytes, Access access) {
  struct stat file = {};
  const int seals = fcntl(descriptor, F_GET_SEALS);
  absl::Status status;
  if (bytes <= 0) {
    status = absl::InvalidArgumentError(absl::StrFormat("%s: cannot map %d bytes", owner, bytes));
  } else if (seals < 0 || fstat(descriptor, &file) != 0) {
    status = absl::FailedPreconditionError(absl::StrFormat("%s: what was sent is no shared memory: %s", owner, std::strerror(errno)));
  } else if (file.st_size < bytes || (seals & F_SEAL_SHRINK) == 0) {
    status = absl::FailedPreconditionError(absl::StrFormat("%s: shared memory of %d bytes was announced, the file has %d and its size is %s",
                                                           owner, bytes, file.st_size,
                                                           (seals & F_SEAL_SHRINK) != 0 ? "sealed" : "not sealed"));
  } else if (access == Access::kReadWrite && (seals & F_SEAL_FUTURE_WRITE) != 0) {
    status = absl::PermissionDeniedError(absl::StrFormat("%s: this memory is lent to be read only", owner));
  }
  if (!status.ok()) {
    close(descriptor);
    return status;
  }
  const int protection = access == Access::kReadWrite ? PROT_READ | PROT_WRITE : PROT_READ;
  void* data = mmap(nullptr, static_cast<size_t>(bytes), protection, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED) {
    status = SystemError(owner, "mmap", bytes);
    close(descriptor);
    return status;
  }
  Touch(data, static_cast<size_t>(bytes), access);
  return SharedRegion(static_cast<std::byte*>(data), bytes, descriptor);
}

absl::Status SharedRegion::LendReadOnly(int descriptor) {
  if (fcntl(descriptor, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat("this kernel cannot lend memory to be read only: ", std::strerror(errno)));
}

SharedRegion::SharedRegion(SharedRegion&& from) noexcept
    : data_(std::exchange(from.data_, nullptr)), bytes_(std::exchange(from.bytes_, 0)), descriptor_(std::exchange(from.descriptor_, -1)) {}

SharedRegion& SharedRegion::operator=(SharedRegion&& from) noexcept {
  std::swap(data_, from.data_);
  std::swap(bytes_, from.bytes_);
  std::swap(descriptor_, from.descriptor_);
  return *this;
}

SharedRegion::~SharedRegion() {
  if (data_ == nullptr) return;
  munmap(data_, static_cast<size_t>(bytes_));
  close(descriptor_);
}

}  // namespace gantry
