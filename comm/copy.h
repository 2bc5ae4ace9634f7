// Copies between ranks of a node.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "memory/tier/stream_copy.h"

namespace gantry {

// `past_caches`: for what is larger than the caches anyway, so that the destination is not loaded first.
inline void CopyBytes(std::byte* to, const std::byte* from, int64_t bytes, bool past_caches) {
  if (bytes <= 0) return;
  if (past_caches) {
    StreamCopy(to, from, static_cast<size_t>(bytes));
  } else {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
}

// From the memory of another process of this machine, by process_vm_readv. False, with errno, where it could not be
// read.
bool CopyFromProcess(std::byte* to, int64_t process_id, uint64_t address, int64_t bytes);

}  // namespace gantry
