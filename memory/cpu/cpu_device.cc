#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "memory/device.h"

namespace gantry {
namespace {

constexpr int64_t kPageBytes = 4096;

int UsableCores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0) return 1;
  return std::max(1, CPU_COUNT(&cores));
}

// What all slabs of a device count into; outlives the device as long as a slab does.
struct Account {
  absl::Mutex mutex;
  int64_t reserved ABSL_GUARDED_BY(mutex) = 0;
};

class CpuSlab final : public Slab {
 public:
  CpuSlab(std::byte* data, int64_t bytes, int64_t mapped, std::shared_ptr<Account> account)
      : data_(data), bytes_(bytes), mapped_(mapped), account_(std::move(account)) {}
  ~CpuSlab() override {
    if (data_ != nullptr) munmap(data_, mapped_);
    absl::MutexLock lock(&account_->mutex);
    account_->reserved -= bytes_;
  }
  std::byte* data() const override { return data_; }
  int64_t size_bytes() const override { return bytes_; }

 private:
  std::byte* const data_;
  const int64_t bytes_;
  const int64_t mapped_;
  const std::shared_ptr<Account> account_;
};

absl::Status SystemError(std::string_view call, int64_t bytes) {
  return absl::ResourceExhaustedError(absl::StrFormat("cpu:0: %s of %d bytes failed: %s; the machine has no room for the "
                                                      "arena, ask for a smaller model or batch",
                                                      call, bytes, std::strerror(errno)));
}

absl::StatusOr<std::byte*> MapBacked(int64_t bytes) {
  const int file = memfd_create("gantry-arena", MFD_CLOEXEC);
  if (file < 0) return SystemError("memfd_create", bytes);
  // Allocation in advance turns a lack of memory into an error here rather than a signal in a kernel.
  if (const int error = posix_fallocate(file, 0, bytes); error != 0) {
    close(file);
    errno = error;
    return SystemError("posix_fallocate", bytes);
  }
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
  close(file);
  if (data == MAP_FAILED) return SystemError("mmap", bytes);
  return static_cast<std::byte*>(data);
}

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(const CpuDeviceOptions& options)
      : capacity_(options.capacity_bytes), threads_(options.thread_count > 0 ? options.thread_count : UsableCores()) {}
  std::string_view name() const override { return "cpu:0"; }
  int64_t capacity_bytes() const override { return capacity_; }
  int64_t reserved_bytes() const override {
    absl::MutexLock lock(&account_->mutex);
    return account_->reserved;
  }
  int thread_count() const override { return threads_; }

  absl::StatusOr<std::unique_ptr<Slab>> Reserve(int64_t bytes) override {
    if (bytes < 0) return absl::InvalidArgumentError(absl::StrFormat("cpu:0: cannot reserve %d bytes", bytes));
    {
      absl::MutexLock lock(&account_->mutex);
      if (bytes > capacity_ - account_->reserved) {
        return absl::ResourceExhaustedError(absl::StrFormat("cpu:0: %d bytes asked for, %d of a budget of %d are reserved: %d short",
                                                            bytes, account_->reserved, capacity_,
                                                            bytes - (capacity_ - account_->reserved)));
      }
      account_->reserved += bytes;
    }
    const int64_t mapped = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
    absl::StatusOr<std::byte*> data = mapped == 0 ? nullptr : MapBacked(mapped);
    if (!data.ok()) {
      absl::MutexLock lock(&account_->mutex);
      account_->reserved -= bytes;
      return data.status();
    }
    return std::make_unique<CpuSlab>(*data, bytes, mapped, account_);
  }

 private:
  const int64_t capacity_;
  const int threads_;
  const std::shared_ptr<Account> account_ = std::make_shared<Account>();
};

}  // namespace

std::unique_ptr<Device> MakeCpuDevice(const CpuDeviceOptions& options) { return std::make_unique<CpuDevice>(options); }

}  // namespace gantry
