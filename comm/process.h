// What the system knows about a process.
#pragma once

#include <cstdint>
#include <string>

namespace gantry {

// "killed by signal 9 (Killed)", "ended with exit code 1"; of a wait status.
std::string DescribeWaitStatus(int wait_status);
// The wait status of a pidfd's process, which need not be a child (Linux 6.15, once it was reaped); -1 where the system does not say.
int WaitStatusOf(int pidfd);
// The letter that /proc/PID/stat gives: 'R' runs, 'T' stopped, 't' held by a debugger, 'Z' ended; '?' unknown.
char ProcessState(int64_t pid);

}  // namespace gantry
