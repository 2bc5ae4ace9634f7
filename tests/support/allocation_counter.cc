#include "tests/support/allocation_counter.h"

#include <atomic>
#include <cerrno>

extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* data, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);
}

namespace {
std::atomic<bool> counting{false};
std::atomic<size_t> smallest_counted{0};  // bytes
std::atomic<int64_t> allocations{0};
void Count(size_t bytes) {
  if (bytes < smallest_counted.load(std::memory_order_relaxed)) return;
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
}
}  // namespace

extern "C" {
void* malloc(size_t bytes) {
  Count(bytes);
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  Count(count * bytes);
  return __libc_calloc(count, bytes);
}
void* realloc(void* data, size_t bytes) {
  Count(bytes);
  return __libc_realloc(data, bytes);
}
void* memalign(size_t alignment, size_t bytes) {
  Count(bytes);
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  Count(bytes);
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** data, size_t alignment, size_t bytes) {
  Count(bytes);
  *data = __libc_memalign(alignment, bytes);
  return *data == nullptr ? ENOMEM : 0;
}
}

namespace gantry::testing {

AllocationCounter::AllocationCounter(size_t smallest_bytes) {
  allocations = 0;
  smallest_counted = smallest_bytes;
  counting = true;
}

int64_t AllocationCounter::Count() {
  counting = false;
  return allocations.load();
}

}  // namespace gantry::testing
