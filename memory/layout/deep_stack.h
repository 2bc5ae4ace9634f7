// Deep recursion without regard to the caller's stack.
#pragma once

#include <cstddef>
#include <functional>

namespace gantry {

// Calls `work` on a thread of its own with a stack of so many bytes, of which only what is used takes memory, and waits for it.
// False, and nothing was called, where the machine does not give such a thread.
bool CallOnDeepStack(size_t stack_bytes, const std::function<void()>& work);

}  // namespace gantry
