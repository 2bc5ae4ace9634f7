// Copies past the caches.
#pragma once

#include <cstddef>

namespace gantry {

// memcpy for a destination that is not read soon: on x86 the destination is not loaded first and takes no cache from
// what is computed meanwhile. Visible to other threads as memcpy's stores are, through whatever orders the two threads.
void StreamCopy(std::byte* to, const std::byte* from, size_t bytes);
// The same for a destination that is read soon: what is small stays in the caches.
void StreamCopyIn(std::byte* to, const std::byte* from, size_t bytes);

}  // namespace gantry
