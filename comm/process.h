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

// Names a namespace of this process: "net:[4026531840]".
std::string NamespaceOf(const char* kind);
// Names this boot of the machine, alike in all of its containers and namespaces; empty where it cannot be read.
std::string BootIdentity();
// Two processes with the same text run under one kernel and one network stack, and may connect through UNIX sockets. GANTRY_NODE tells
// processes apart that share a machine, to try a job of several nodes on one.
std::string MachineIdentity();

}  // namespace gantry
