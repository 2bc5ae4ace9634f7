#include "comm/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <limits>

#include "absl/time/clock.h"

namespace gantry {
namespace {

// As many as one message may carry; the kernel's own limit is 253.
constexpr size_t kMaxDescriptors = 64;

absl::StatusCode CodeOf(int error_number) {
  switch (error_number) {
    case EACCES:
    case EPERM:
      return absl::StatusCode::kPermissionDenied;
    case ENOENT:
      return absl::StatusCode::kNotFound;
    case EEXIST:
    case EADDRINUSE:
      return absl::StatusCode::kAlreadyExists;
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case ENOBUFS:
    case ENOSPC:
    case EAGAIN:
      return absl::StatusCode::kResourceExhausted;
    case EINVAL:
    case EBADF:
    case ENOTSOCK:
      return absl::StatusCode::kInvalidArgument;
    case ETIMEDOUT:
      return absl::StatusCode::kDeadlineExceeded;
    default:
      return absl::StatusCode::kUnavailable;
  }
}

absl::Status FillUnixAddress(const std::string& path, sockaddr_un& address) {
  address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrFormat("the socket path '%s' has %d bytes; 1 to %d are possible", path, path.size(),
                                                      sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return absl::OkStatus();
}

struct ResolvedAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
  int family = 0;
};

absl::StatusOr<ResolvedAddress> Resolve(const SocketAddress& address) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(address.place.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::NotFoundError(absl::StrFormat("the host '%s' is not known: %s", address.place, gai_strerror(error)));
  }
  ResolvedAddress result;
  std::memcpy(&result.storage, found->ai_addr, found->ai_addrlen);
  result.size = found->ai_addrlen;
  result.family = found->ai_family;
  freeaddrinfo(found);
  return result;
}

absl::Status RefuseAllAddresses(const ResolvedAddress& address, const std::string& text) {
  const bool any_v4 = address.family == AF_INET &&
                      reinterpret_cast<const sockaddr_in&>(address.storage).sin_addr.s_addr == htonl(INADDR_ANY);
  const bool any_v6 = address.family == AF_INET6 &&
                      IN6_IS_ADDR_UNSPECIFIED(&reinterpret_cast<const sockaddr_in6&>(address.storage).sin6_addr);
  if (!any_v4 && !any_v6) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "'%s' means all addresses of this machine; name the one that the other ranks reach it by", text));
}

void NoDelay(int socket) {
  const int on = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

}  // namespace

void Descriptor::Reset(int number) {
  if (number_ >= 0) close(number_);
  number_ = number;
}

absl::Status SystemError(int error_number, std::string_view what) {
  return absl::Status(CodeOf(error_number), absl::StrCat(ToAbsl(what), ": ", std::strerror(error_number)));
}

absl::StatusOr<SocketAddress> SocketAddress::Parse(std::string_view text) {
  const auto wrong = [&](std::string_view why) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "'%s' is not an address: %s; addresses are unix:/PATH and tcp:HOST:PORT", std::string(text), std::string(why)));
  };
  SocketAddress address;
  if (text.substr(0, 5) == "unix:") {
    address.place = std::string(text.substr(5));
    if (address.place.empty() || address.place[0] != '/') return wrong("the path must be absolute");
    if (address.place.find('\0') != std::string::npos) return wrong("the path has a zero byte");
    sockaddr_un fits;
    GANTRY_RETURN_IF_ERROR(FillUnixAddress(address.place, fits));
    return address;
  }
  if (text.substr(0, 4) != "tcp:") return wrong("it has no kind");
  address.is_unix = false;
  const std::string_view rest = text.substr(4);
  const size_t colon = rest.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return wrong("host or port is missing");
  std::string_view host = rest.substr(0, colon), port = rest.substr(colon + 1);
  if (host.front() == '[') {
    if (host.size() < 3 || host.back() != ']') return wrong("the bracket is not closed");
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return wrong("IPv6 numbers stand in brackets");
  }
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), address.port);
  if (error != std::errc() || end != port.data() + port.size()) return wrong("the port is not a number from 0 to 65535");
  if (host.size() > 255 || host.find('\0') != std::string_view::npos) return wrong("the host is not a name");
  address.place = std::string(host);
  return address;
}

std::string SocketAddress::Text() const {
  if (is_unix) return absl::StrCat("unix:", place);
  if (place.find(':') != std::string::npos) return absl::StrFormat("tcp:[%s]:%d", place, port);
  return absl::StrFormat("tcp:%s:%d", place, port);
}

absl::Status CheckPrivateFolder(const std::string& path) {
  struct stat facts {};
  if (lstat(path.c_str(), &facts) != 0) return SystemError(errno, absl::StrFormat("the folder '%s'", path));
  if (!S_ISDIR(facts.st_mode)) return absl::PermissionDeniedError(absl::StrFormat("'%s' is not a folder", path));
  if (facts.st_uid != geteuid()) {
    return absl::PermissionDeniedError(
        absl::StrFormat("the folder '%s' belongs to user %d, not to %d, who runs this", path, facts.st_uid, geteuid()));
  }
  if ((facts.st_mode & 077) != 0) {
    return absl::PermissionDeniedError(absl::StrFormat(
        "others may enter the folder '%s' (mode %04o); sockets and keys need mode 0700", path, facts.st_mode & 07777));
  }
  return absl::OkStatus();
}

absl::StatusOr<Descriptor> Listen(const SocketAddress& address) {
  const std::string text = address.Text();
  const std::string what = absl::StrFormat("listening on %s", text);
  Descriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (address.is_unix) {
    const size_t slash = address.place.rfind('/');
    GANTRY_RETURN_IF_ERROR(Annotate(CheckPrivateFolder(address.place.substr(0, std::max<size_t>(slash, 1))), what));
    sockaddr_un place;
    GANTRY_RETURN_IF_ERROR(FillUnixAddress(address.place, place));
    if (!socket.valid()) return SystemError(errno, what);
    if (bind(socket.get(), reinterpret_cast<sockaddr*>(&place), sizeof(place)) != 0) return SystemError(errno, what);
    if (chmod(address.place.c_str(), 0600) != 0) return SystemError(errno, what);
  } else {
    GANTRY_ASSIGN_OR_RETURN(const ResolvedAddress place, Resolve(address));
    GANTRY_RETURN_IF_ERROR(RefuseAllAddresses(place, text));
    socket.Reset(::socket(place.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket.valid()) return SystemError(errno, what);
    const int on = 1;
    setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(socket.get(), reinterpret_cast<const sockaddr*>(&place.storage), place.size) != 0) return SystemError(errno, what);
  }
  if (listen(socket.get(), 1024) != 0) return SystemError(errno, what);
  return socket;
}

absl::StatusOr<Descriptor> StartConnect(const SocketAddress& address) {
  const std::string what = absl::StrFormat("connecting to %s", address.Text());
  if (address.is_unix) {
    Descriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un place;
    GANTRY_RETURN_IF_ERROR(FillUnixAddress(address.place, place));
    if (!socket.valid()) return SystemError(errno, what);
    if (connect(socket.get(), reinterpret_cast<sockaddr*>(&place), sizeof(place)) != 0) return SystemError(errno, what);
    return socket;
  }
  GANTRY_ASSIGN_OR_RETURN(const ResolvedAddress place, Resolve(address));
  Descriptor socket(::socket(place.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return SystemError(errno, what);
  NoDelay(socket.get());
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&place.storage), place.size) != 0 && errno != EINPROGRESS) {
    return SystemError(errno, what);
  }
  return socket;
}

absl::StatusOr<std::pair<Descriptor, Descriptor>> MakeSocketPair() {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0) return SystemError(errno, "making a socket pair");
  return std::pair(Descriptor(pair[0]), Descriptor(pair[1]));
}

absl::StatusOr<uint16_t> LocalPort(int socket) {
  sockaddr_storage place{};
  socklen_t size = sizeof(place);
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&place), &size) != 0) return SystemError(errno, "the socket's address");
  if (place.ss_family == AF_INET) return ntohs(reinterpret_cast<sockaddr_in&>(place).sin_port);
  if (place.ss_family == AF_INET6) return ntohs(reinterpret_cast<sockaddr_in6&>(place).sin6_port);
  return absl::InvalidArgumentError("the socket has no port");
}

absl::StatusOr<std::string> LocalHost(int socket) {
  sockaddr_storage place{};
  socklen_t size = sizeof(place);
  char host[NI_MAXHOST];
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&place), &size) != 0) return SystemError(errno, "the socket's address");
  if (const int error = getnameinfo(reinterpret_cast<sockaddr*>(&place), size, host, sizeof(host), nullptr, 0, NI_NUMERICHOST); error != 0) {
    return absl::InvalidArgumentError(absl::StrCat("the socket's address: ", gai_strerror(error)));
  }
  return std::string(host);
}

bool IsUnixSocket(int socket) {
  sockaddr_storage place{};
  socklen_t size = sizeof(place);
  return getsockname(socket, reinterpret_cast<sockaddr*>(&place), &size) == 0 && place.ss_family == AF_UNIX;
}

std::string DescribeOtherEnd(int socket) {
  if (IsUnixSocket(socket)) {
    ucred who{};
    socklen_t size = sizeof(who);
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) return "a UNIX socket";
    return absl::StrFormat("uid %d, pid %d", who.uid, who.pid);
  }
  sockaddr_storage place{};
  socklen_t size = sizeof(place);
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (getpeername(socket, reinterpret_cast<sockaddr*>(&place), &size) != 0 ||
      getnameinfo(reinterpret_cast<sockaddr*>(&place), size, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "a TCP socket";
  }
  return absl::StrCat(host, ":", port);
}

absl::Status CheckSameUser(int socket) {
  if (!IsUnixSocket(socket)) return absl::OkStatus();
  ucred who{};
  socklen_t size = sizeof(who);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) return SystemError(errno, "asking for the other end's user");
  if (who.uid == geteuid()) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrFormat("the other end belongs to user %d (pid %d), not to %d", who.uid, who.pid, geteuid()));
}

namespace {

template <typename Call>
absl::StatusOr<Received> ReceiveBy(Call&& call) {
  ssize_t count = 0;
  do {
    count = call();
  } while (count < 0 && errno == EINTR);
  if (count < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) return Received{.would_block = true};
    return SystemError(errno, "receiving");
  }
  return Received{.bytes = static_cast<size_t>(count), .closed = count == 0};
}

}  // namespace

absl::StatusOr<Received> ReceiveSome(int socket, std::span<std::byte> to, std::vector<Descriptor>& descriptors) {
  iovec piece{.iov_base = to.data(), .iov_len = to.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))];
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  GANTRY_ASSIGN_OR_RETURN(const Received received, ReceiveBy([&] { return recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT); }));
  if (received.would_block) return received;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t number_count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < number_count; ++i) {
      int number;
      std::memcpy(&number, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
      descriptors.emplace_back(number);
    }
  }
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    return absl::ResourceExhaustedError("descriptors were lost on the way: this process may not open more (ulimit -n), or more than one message may carry were sent");
  }
  return received;
}

absl::StatusOr<Received> ReceiveSome(int socket, std::span<std::byte> first, std::span<std::byte> second) {
  const iovec pieces[2] = {{first.data(), first.size()}, {second.data(), second.size()}};
  return ReceiveBy([&] { return readv(socket, pieces, 2); });
}

absl::StatusOr<size_t> SendSome(int socket, std::span<const std::byte> first, std::span<const std::byte> second,
                                std::span<const int> descriptors) {
  iovec pieces[2] = {{const_cast<std::byte*>(first.data()), first.size()}, {const_cast<std::byte*>(second.data()), second.size()}};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))];
  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = 2;
  if (!descriptors.empty()) {
    if (descriptors.size() > kMaxDescriptors) return absl::InvalidArgumentError("more descriptors than one message may carry");
    std::memset(control, 0, sizeof(control));
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(part), descriptors.data(), descriptors.size_bytes());
  }
  ssize_t count = 0;
  do {
    count = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (count < 0 && errno == EINTR);
  if (count >= 0) return static_cast<size_t>(count);
  if (errno == EAGAIN || errno == EWOULDBLOCK) return size_t{0};
  return SystemError(errno, "sending");
}

int PollTimeout(absl::Time deadline) {
  if (deadline == absl::InfiniteFuture()) return -1;
  const absl::Duration left = deadline - absl::Now();
  if (left <= absl::ZeroDuration()) return 0;
  return static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(left) + 1, std::numeric_limits<int>::max()));
}

absl::Status WaitFor(int descriptor, short events, absl::Time deadline) {
  for (;;) {
    pollfd entry{.fd = descriptor, .events = events};
    const int ready = poll(&entry, 1, PollTimeout(deadline));
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return SystemError(errno, "waiting for a descriptor");
    if (ready == 0 && absl::Now() >= deadline) return absl::DeadlineExceededError("the time is over");
  }
}

}  // namespace gantry
