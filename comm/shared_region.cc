#include "comm/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "memory/cpu/huge_pages.h"

// Newer than some C libraries' headers.
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace gantry {
namespace {

// The error of a call about shared memory of `bytes`.
absl::Status MemoryError(std::string_view owner, std::string_view call, int64_t bytes, int error) {
  return SystemError(error, absl::StrFormat("%s: %s of %d bytes of shared memory", owner, call, bytes));
}

// Faults in what the file has already, so that no first touch falls into a step.
void Touch(void* data, size_t bytes, Access access) {
  madvise(data, bytes, MADV_HUGEPAGE);
  // Where the owner has huge pages, they are mapped as such here, too.
  PutPagesTogether(data, bytes);
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
  Descriptor file(memfd_create("gantry-shared", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file.valid()) return MemoryError(owner, "memfd_create", bytes, errno);
  if (ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) return MemoryError(owner, "ftruncate", bytes, errno);
  if (fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
    return MemoryError(owner, "sealing", bytes, errno);
  // Mapping faults in what it can, in huge pages; only then is made sure that nothing is missing.
  GANTRY_ASSIGN_OR_RETURN(SharedRegion region, Map(owner, std::move(file), bytes, Access::kReadWrite));
  int error = 0;
  do {
    error = posix_fallocate(region.descriptor(), 0, static_cast<off_t>(bytes));
  } while (error == EINTR);
  if (error != 0) return MemoryError(owner, "posix_fallocate", bytes, error);
  return region;
}

absl::StatusOr<SharedRegion> SharedRegion::Map(std::string_view owner, Descriptor descriptor, int64_t bytes,
                                               Access access) {
  struct stat file = {};
  if (bytes <= 0) return absl::InvalidArgumentError(absl::StrFormat("%s: cannot map %d bytes", owner, bytes));
  const int seals = fcntl(descriptor.get(), F_GET_SEALS);
  if (seals < 0 || fstat(descriptor.get(), &file) != 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("%s: what was sent is no shared memory: %s", owner, std::strerror(errno)));
  }
  if (file.st_size < bytes || (seals & F_SEAL_SHRINK) == 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("%s: shared memory of %d bytes was announced, the file has %d and its size is %s", owner, bytes,
                        file.st_size, (seals & F_SEAL_SHRINK) != 0 ? "sealed" : "not sealed"));
  }
  if (access == Access::kReadWrite && (seals & F_SEAL_FUTURE_WRITE) != 0) {
    return absl::PermissionDeniedError(absl::StrFormat("%s: this memory is lent to be read only", owner));
  }
  const int protection = access == Access::kReadWrite ? PROT_READ | PROT_WRITE : PROT_READ;
  void* data = MapShared(static_cast<size_t>(bytes), protection, descriptor.get());
  if (data == MAP_FAILED) return MemoryError(owner, "mmap", bytes, errno);
  Touch(data, static_cast<size_t>(bytes), access);
  return SharedRegion(static_cast<std::byte*>(data), bytes, std::move(descriptor));
}

absl::Status SharedRegion::LendReadOnly(int descriptor) {
  if (fcntl(descriptor, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("this kernel cannot lend memory to be read only: ", std::strerror(errno)));
}

SharedRegion::~SharedRegion() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
}

}  // namespace gantry
