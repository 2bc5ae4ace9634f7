#include <sched.h>

#include <algorithm>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "memory/cpu/backed_memory.h"
#include "memory/device.h"

namespace gantry {
namespace {

int UsableCores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0) return 1;
  return std::max(1, CPU_COUNT(&cores));
}

// What all slabs of a device count into; outlives the device as long as a slab does.
struct Account {
  std::mutex mutex;  // not absl::Mutex, which ThreadSanitizer does not see through where Abseil comes without instrumentation
  int64_t reserved ABSL_GUARDED_BY(mutex) = 0;
};

class CpuSlab final : public Slab {
 public:
  CpuSlab(BackedMemory memory, int64_t bytes, std::shared_ptr<Account> account)
      : memory_(std::move(memory)), bytes_(bytes), account_(std::move(account)) {}
  ~CpuSlab() override {
    memory_ = BackedMemory();
    const std::lock_guard lock(account_->mutex);
    account_->reserved -= bytes_;
  }
  std::byte* data() const override { return memory_.data(); }
  int64_t size_bytes() const override { return bytes_; }
  int descriptor() const override { return memory_.descriptor(); }

 private:
  BackedMemory memory_;
  const int64_t bytes_;
  const std::shared_ptr<Account> account_;
};

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(const CpuDeviceOptions& options)
      : capacity_(options.capacity_bytes), threads_(options.thread_count > 0 ? options.thread_count : UsableCores()),
        shared_(options.shared) {}
  std::string_view name() const override { return "cpu:0"; }
  int64_t capacity_bytes() const override { return capacity_; }
  int64_t reserved_bytes() const override {
    const std::lock_guard lock(account_->mutex);
    return account_->reserved;
  }
  int thread_count() const override { return threads_; }

  absl::StatusOr<std::unique_ptr<Slab>> Reserve(int64_t bytes) override {
    if (bytes < 0) return absl::InvalidArgumentError(absl::StrFormat("cpu:0: cannot reserve %d bytes", bytes));
    {
      const std::lock_guard lock(account_->mutex);
      if (bytes > capacity_ - account_->reserved) {
        return absl::ResourceExhaustedError(absl::StrFormat("cpu:0: %d bytes asked for, %d of a budget of %d are reserved: %d short",
                                                            bytes, account_->reserved, capacity_,
                                                            bytes - (capacity_ - account_->reserved)));
      }
      account_->reserved += bytes;
    }
    absl::StatusOr<BackedMemory> memory =
        BackedMemory::Map("cpu:0", bytes, "the machine has no room for the arena, ask for a smaller model or batch", shared_);
    if (!memory.ok()) {
      const std::lock_guard lock(account_->mutex);
      account_->reserved -= bytes;
      return memory.status();
    }
    return std::make_unique<CpuSlab>(*std::move(memory), bytes, account_);
  }

 private:
  const int64_t capacity_;
  const int threads_;
  const bool shared_;
  const std::shared_ptr<Account> account_ = std::make_shared<Account>();
};

}  // namespace

std::unique_ptr<Device> MakeCpuDevice(const CpuDeviceOptions& options) { return std::make_unique<CpuDevice>(options); }

}  // namespace gantry
