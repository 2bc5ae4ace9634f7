// What a thread of this process does, by the kernel: so that a test goes on once another thread waits, and not after some time.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <fstream>
#include <string>
#include <thread>

namespace gantry {

// 'R' runs or would like to, 'S' sleeps, 'D' sleeps in the kernel; '?' there is no such thread.
inline char ThreadState(pid_t thread) {
  std::ifstream file("/proc/self/task/" + std::to_string(thread) + "/stat");
  std::string line;
  std::getline(file, line);
  const size_t name_end = line.rfind(')');  // names may hold spaces
  return name_end == std::string::npos || name_end + 2 >= line.size() ? '?' : line[name_end + 2];
}

// Until the thread sleeps; false where it ends instead, or is still awake after a minute.
inline bool AwaitSleep(pid_t thread) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  for (;;) {
    const char state = ThreadState(thread);
    if (state == 'S') return true;
    if (state == '?' || state == 'Z' || state == 'X' || std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace gantry
