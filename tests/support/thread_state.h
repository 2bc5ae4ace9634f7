// What a thread of this process does, by the kernel: so that a test goes on once another thread waits, and not after some time.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <thread>

#include "comm/process.h"

namespace gantry {

// Until the thread sleeps; false where it ends instead, or is still awake after a minute.
inline bool AwaitSleep(pid_t thread) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  for (;;) {
    const char state = ProcessState(thread);  // /proc/ID is there for threads, too
    if (state == 'S') return true;
    if (state == '?' || state == 'Z' || state == 'X' || std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace gantry
