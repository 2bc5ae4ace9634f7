#include "comm/link_rate.h"

#include <ifaddrs.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>
#include <fstream>

#include "absl/strings/str_format.h"

namespace gantry {
namespace {

bool IsSameHost(const sockaddr& one, const sockaddr& other) {
  if (one.sa_family != other.sa_family) return false;
  if (one.sa_family == AF_INET) {
    return reinterpret_cast<const sockaddr_in&>(one).sin_addr.s_addr ==
           reinterpret_cast<const sockaddr_in&>(other).sin_addr.s_addr;
  }
  return one.sa_family == AF_INET6 &&
         std::memcmp(&reinterpret_cast<const sockaddr_in6&>(one).sin6_addr,
                     &reinterpret_cast<const sockaddr_in6&>(other).sin6_addr, sizeof(in6_addr)) == 0;
}

std::string InterfaceOf(int socket) {
  sockaddr_storage own = {};
  socklen_t size = sizeof(own);
  ifaddrs* all = nullptr;
  std::string name;
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&own), &size) != 0 || getifaddrs(&all) != 0) return name;
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr != nullptr && IsSameHost(*one->ifa_addr, reinterpret_cast<const sockaddr&>(own)))
      name = one->ifa_name;
  }
  freeifaddrs(all);
  return name;
}

}  // namespace

std::string DescribeLinkRate(int socket) {
  const std::string name = InterfaceOf(socket);
  int64_t megabits = -1;  // loopback and tunnels have none, and some say -1
  std::ifstream("/sys/class/net/" + name + "/speed") >> megabits;
  if (megabits <= 0) return (name.empty() ? "its interface" : name) + " names no rate";
  return absl::StrFormat("%.3g GB/s expected of %s", 1.25e-4 * static_cast<double>(megabits), name);
}

}  // namespace gantry
