#include "comm/copy.h"

#include <sys/types.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>

namespace gantry {

bool CopyFromProcess(std::byte* to, int64_t process_id, uint64_t address, int64_t bytes) {
  constexpr int64_t kAtATime =
      128 << 10;  // the kernel pins the pages of a call: pieces that stay in the cache are faster than one call
  while (bytes > 0) {
    const int64_t length = std::min(bytes, kAtATime);
    const iovec local = {.iov_base = to, .iov_len = static_cast<size_t>(length)};
    const iovec remote = {.iov_base = reinterpret_cast<void*>(address), .iov_len = static_cast<size_t>(length)};
    const ssize_t got = process_vm_readv(static_cast<pid_t>(process_id), &local, 1, &remote, 1, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      if (got == 0) errno = EFAULT;
      return false;
    }
    to += got, address += static_cast<uint64_t>(got), bytes -= got;
  }
  return true;
}

}  // namespace gantry
