#include "comm/process.h"

#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "absl/strings/str_format.h"

namespace gantry {
namespace {

// The first version of the kernel's struct pidfd_info (include/uapi/linux/pidfd.h), which the distribution's headers may lack.
struct PidfdInfo {
  uint64_t mask;
  uint64_t cgroup_id;
  uint32_t pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
  int32_t exit_code;
};
static_assert(sizeof(PidfdInfo) == 64);
constexpr unsigned long kGetInfo = _IOWR(0xFF, 11, PidfdInfo);
constexpr uint64_t kWithExit = 1 << 3;

}  // namespace

std::string DescribeWaitStatus(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    const int number = WTERMSIG(wait_status);
    const char* name = strsignal(number);
    return absl::StrFormat("killed by signal %d (%s)", number, name != nullptr ? name : "unknown");
  }
  return absl::StrFormat("ended with exit code %d", WEXITSTATUS(wait_status));
}

int WaitStatusOf(int pidfd) {
  PidfdInfo info{.mask = kWithExit};
  if (ioctl(pidfd, kGetInfo, &info) != 0 || (info.mask & kWithExit) == 0) return -1;
  return info.exit_code;
}

char ProcessState(int64_t pid) {
  char state = '?';
  if (std::FILE* file = std::fopen(absl::StrFormat("/proc/%d/stat", pid).c_str(), "r"); file != nullptr) {
    char line[512] = "";
    // The name in brackets may hold anything; the state follows the last bracket.
    if (std::fgets(line, sizeof(line), file) != nullptr) {
      const char* bracket = strrchr(line, ')');
      if (bracket != nullptr && bracket[1] == ' ') state = bracket[2];
    }
    std::fclose(file);
  }
  return state;
}

std::string NamespaceOf(const char* kind) {
  char name[64] = "";
  (void)!readlink(absl::StrFormat("/proc/self/ns/%s", kind).c_str(), name, sizeof(name) - 1);
  return name;
}

std::string BootIdentity() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  return boot;
}

std::string MachineIdentity() {
  const char* node = std::getenv("GANTRY_NODE");
  return absl::StrFormat("%s %s %s", BootIdentity(), NamespaceOf("net"), node != nullptr ? node : "");
}

}  // namespace gantry
