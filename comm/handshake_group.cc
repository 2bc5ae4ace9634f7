#include "comm/handshake_group.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "absl/time/clock.h"

namespace gantry {

void HandshakeGroup::Add(Descriptor socket, Handshake::Role role, int peer, std::string address, absl::Time deadline) {
  entries_.push_back({.socket = std::move(socket),
                      .handshake = std::make_unique<Handshake>(role, job_.key, job_.rank, job_.size, peer),
                      .peer = peer,
                      .address = std::move(address),
                      .deadline = deadline});
}

void HandshakeGroup::Accept(int listener, std::vector<Outcome>& outcomes) {
  while (entries_.size() < max_unproved_) {
    Descriptor socket(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) return;  // nobody there, or gone again
    std::string address = DescribeOtherEnd(socket.get());
    // Another user's connection is closed before a byte of it is read.
    if (absl::Status status = CheckSameUser(socket.get()); !status.ok()) {
      outcomes.push_back({.status = std::move(status), .address = std::move(address)});
      continue;
    }
    const int on = 1;
    setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));  // refused by UNIX sockets, which have no delay
    Add(std::move(socket), Handshake::Role::kAcceptor, -1, std::move(address), absl::Now() + kStrangerTime);
  }
}

bool HandshakeGroup::Advance(Entry& entry, absl::Status& status) {
  Handshake& handshake = *entry.handshake;
  const int socket = entry.socket.get();
  const auto flush = [&]() -> absl::Status {
    while (!handshake.output().empty()) {
      GANTRY_ASSIGN_OR_RETURN(const size_t count, SendSome(socket, handshake.output(), {}, {}));
      if (count == 0) break;
      handshake.Sent(count);
    }
    return absl::OkStatus();
  };
  status = flush();
  while (status.ok() && handshake.wanted() > 0) {
    std::array<std::byte, Handshake::kHelloBytes> buffer;
    std::vector<Descriptor> unwanted;  // closed here: nobody has a right to send any yet
    absl::StatusOr<Received> got = ReceiveSome(socket, std::span(buffer).first(handshake.wanted()), unwanted);
    if (!got.ok()) {
      status = got.status();
    } else if (got->would_block) {
      return false;
    } else if (got->closed) {
      status = absl::UnauthenticatedError("it closed the connection before it had proved the job's key; if it is a rank of this job, it has another key or found ours wrong");
    } else {
      status = handshake.Received(std::span(buffer).first(got->bytes));
      const absl::Status sent = flush();
      if (status.ok()) status = sent;
    }
  }
  return !status.ok() || handshake.done();
}

std::vector<HandshakeGroup::Outcome> HandshakeGroup::Step(absl::Time until) {
  std::vector<Outcome> outcomes;
  while (outcomes.empty()) {
    absl::Time wake = until;
    std::vector<pollfd> polls;
    for (const Entry& entry : entries_) {
      const bool reading = entry.handshake->output().empty();
      polls.push_back({.fd = entry.socket.get(), .events = static_cast<short>(reading ? POLLIN : POLLOUT)});
      wake = std::min(wake, entry.deadline);
    }
    const size_t first_listener = polls.size();
    if (entries_.size() < max_unproved_) {
      for (const int listener : listeners_) polls.push_back({.fd = listener, .events = POLLIN});
    }
    const int ready = poll(polls.data(), polls.size(), PollTimeout(wake));
    if (ready < 0 && errno != EINTR) {
      outcomes.push_back({.status = SystemError(errno, "waiting for connections")});
      return outcomes;
    }
    const absl::Time now = absl::Now();
    std::vector<Entry> left;
    for (size_t i = 0; i < entries_.size(); ++i) {
      Entry& entry = entries_[i];
      absl::Status status;
      bool decided = ready > 0 && polls[i].revents != 0 && Advance(entry, status);
      if (!decided && now >= entry.deadline) {
        decided = true;
        status = absl::DeadlineExceededError("it did not prove the job's key in time");
      }
      if (!decided) {
        left.push_back(std::move(entry));
        continue;
      }
      const int peer = status.ok() ? entry.handshake->peer() : entry.peer;
      outcomes.push_back({std::move(status), peer, std::move(entry.socket), std::move(entry.address)});
    }
    entries_ = std::move(left);
    for (size_t i = first_listener; i < polls.size() && ready > 0; ++i) {
      if (polls[i].revents != 0) Accept(polls[i].fd, outcomes);
    }
    if (now >= until) break;
  }
  return outcomes;
}

}  // namespace gantry
