// Sockets and other descriptors: owners, addresses, and the few calls that links need.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "memory/status.h"

namespace gantry {

// Owns an open descriptor. Move-only.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& from) noexcept : number_(std::exchange(from.number_, -1)) {}
  Descriptor& operator=(Descriptor&& from) noexcept {
    if (this != &from) Reset(std::exchange(from.number_, -1));
    return *this;
  }
  ~Descriptor() { Reset(); }

  int get() const { return number_; }
  bool valid() const { return number_ >= 0; }
  int Release() { return std::exchange(number_, -1); }
  void Reset(int number = -1);

 private:
  int number_ = -1;
};

// "`what`: `the text of error number`", with the status code that the number means.
absl::Status SystemError(int error_number, std::string_view what);

// "unix:PATH" or "tcp:HOST:PORT", HOST a name or a number, IPv6 numbers in brackets.
struct SocketAddress {
  bool is_unix = true;
  std::string place;  // path or host
  uint16_t port = 0;

  static absl::StatusOr<SocketAddress> Parse(std::string_view text);
  std::string Text() const;
};

// Non-blocking and close-on-exec, as all sockets here. A UNIX socket's file has mode 0600 and must lie in a folder that only this
// user may enter; TCP listens on that one address (port 0: any free one), never on all.
absl::StatusOr<Descriptor> Listen(const SocketAddress& address);
// The connection may still be under way: writable when it is decided.
absl::StatusOr<Descriptor> StartConnect(const SocketAddress& address);
absl::StatusOr<std::pair<Descriptor, Descriptor>> MakeSocketPair();

// The port a listening socket got.
absl::StatusOr<uint16_t> LocalPort(int socket);
// The number of the own end's address; of a TCP socket.
absl::StatusOr<std::string> LocalHost(int socket);
bool IsUnixSocket(int socket);
// Who is at the other end, for messages: "uid 1000, pid 71" or "10.0.0.2:41234".
std::string DescribeOtherEnd(int socket);
// kPermissionDenied where the other end of a UNIX socket belongs to another user. OK for TCP, which cannot tell.
absl::Status CheckSameUser(int socket);

// kPermissionDenied unless `path` is a folder (no link) of this user with mode 0700.
absl::Status CheckPrivateFolder(const std::string& path);

// Reads what is there, with the descriptors that came along (close-on-exec). 0 bytes and `closed` at the end of the stream.
struct Received {
  size_t bytes = 0;
  bool closed = false;
  bool would_block = false;
};
absl::StatusOr<Received> ReceiveSome(int socket, std::span<std::byte> to, std::vector<Descriptor>& descriptors);
// Of a TCP socket: into `first`, then into `second`.
absl::StatusOr<Received> ReceiveSome(int socket, std::span<std::byte> first, std::span<std::byte> second);
// Bytes taken, 0 where the socket is full. Descriptors go with the first byte.
absl::StatusOr<size_t> SendSome(int socket, std::span<const std::byte> first, std::span<const std::byte> second,
                                std::span<const int> descriptors);

// Poll for `events` until `deadline`. kDeadlineExceeded.
absl::Status WaitFor(int descriptor, short events, absl::Time deadline);
// Milliseconds for poll and epoll_wait: rounded up, 0 in the past, -1 for ever.
int PollTimeout(absl::Time deadline);

}  // namespace gantry
