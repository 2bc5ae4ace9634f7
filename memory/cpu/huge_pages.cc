#include "memory/cpu/huge_pages.h"

#include <sys/mman.h>

#include <cstdint>

// Newer than some C libraries' headers.
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace gantry {

void* MapShared(size_t bytes, int protection, int file) {
  if (bytes < kHugePageBytes) return mmap(nullptr, bytes, protection, MAP_SHARED, file, 0);
  const size_t reserved = bytes + kHugePageBytes;
  void* const space = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (space == MAP_FAILED) return MAP_FAILED;
  auto* const begin = static_cast<char*>(space);
  const size_t before = (kHugePageBytes - reinterpret_cast<uintptr_t>(begin) % kHugePageBytes) % kHugePageBytes;
  void* const data = mmap(begin + before, bytes, protection, MAP_SHARED | MAP_FIXED, file, 0);
  if (data == MAP_FAILED) {
    munmap(space, reserved);
    return MAP_FAILED;
  }
  // What is left over of the space on either side.
  constexpr size_t kPageBytes = 4096;
  const size_t end = before + (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  if (before > 0) munmap(begin, before);
  if (end < reserved) munmap(begin + end, reserved - end);
  return data;
}

void PutPagesTogether(void* data, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  const uintptr_t last = (begin + bytes) / kHugePageBytes * kHugePageBytes;
  if (first >= last) return;
  // The kernel leaves alone what has no page at all.
  for (uintptr_t page = first; page < last; page += kHugePageBytes) madvise(reinterpret_cast<void*>(page), 1, MADV_POPULATE_READ);
  madvise(reinterpret_cast<void*>(first), last - first, MADV_COLLAPSE);
}

}  // namespace gantry
