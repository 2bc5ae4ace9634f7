#include "memory/cpu/parallel.h"

#include <omp.h>

#include <algorithm>

#if defined(__SANITIZE_THREAD__)
// libgomp's barriers are not instrumented; these two calls tell ThreadSanitizer of the order that they make.
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#define GANTRY_TSAN_ACQUIRE(address) __tsan_acquire(address)
#define GANTRY_TSAN_RELEASE(address) __tsan_release(address)
#define GANTRY_NO_TSAN __attribute__((no_sanitize("thread")))
#else
#define GANTRY_NO_TSAN
#define GANTRY_TSAN_ACQUIRE(address) (void)(address)
#define GANTRY_TSAN_RELEASE(address) (void)(address)
#endif

namespace gantry {
namespace {

struct Region {
  int64_t count;
  const TaskRef* task;
  char entry;
  char exit;
};

__attribute__((noinline)) void RunShare(Region* region, int thread, int thread_count) {
  GANTRY_TSAN_ACQUIRE(&region->entry);
  const int64_t first = region->count * thread / thread_count;
  const int64_t last = region->count * (thread + 1) / thread_count;
  for (int64_t index = first; index < last; ++index) (*region->task)(index);
  GANTRY_TSAN_RELEASE(&region->exit);
}

// Apart, since the hand-over of `region` to the team is libgomp's, which ThreadSanitizer cannot see.
GANTRY_NO_TSAN __attribute__((noinline)) void RunTeam(Region* region, int threads) {
#pragma omp parallel num_threads(threads) firstprivate(region)
  RunShare(region, omp_get_thread_num(), omp_get_num_threads());
}

}  // namespace

void ParallelFor(int thread_count, int64_t count, TaskRef task) {
  const int threads = static_cast<int>(std::min<int64_t>(std::max(thread_count, 1), count));
  if (threads <= 1) {
    for (int64_t index = 0; index < count; ++index) task(index);
    return;
  }
  Region storage{count, &task, 0, 0};
  Region* region = &storage;
  GANTRY_TSAN_RELEASE(&region->entry);
  RunTeam(region, threads);
  GANTRY_TSAN_ACQUIRE(&region->exit);
}

}  // namespace gantry
