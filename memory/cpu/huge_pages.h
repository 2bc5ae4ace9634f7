// Shared memory in huge pages. Linux gives them to a memfd only where an administrator has said so
// (/sys/kernel/mm/transparent_hugepage/shmem_enabled), but puts together what it is asked to (MADV_COLLAPSE, Linux 6.1).
#pragma once

#include <cstddef>

namespace gantry {

inline constexpr size_t kHugePageBytes = size_t{2} << 20;

// As mmap of all of `file` with MAP_SHARED, at an address where huge pages of the file can be mapped as such. MAP_FAILED and errno.
void* MapShared(size_t bytes, int protection, int file);

// Makes huge pages of shared memory wherever a whole one fits into [data, data + bytes), of small pages that are there and of nothing.
// Before anything is faulted in it is quick; small pages have to be copied (256 MiB: 15 ms against 230 to 700). What the kernel does
// not put together stays as it is.
void PutPagesTogether(void* data, size_t bytes);

}  // namespace gantry
