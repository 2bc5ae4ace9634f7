#include "comm/meeting.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <span>
#include <string>

#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "comm/channels.h"
#include "comm/frame.h"
#include "comm/handshake_group.h"
#include "comm/process.h"
#include "comm/run_folder.h"

namespace gantry {
namespace {

std::string NameRanks(const std::vector<int>& ranks) {
  return absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", absl::StrJoin(ranks, ", "));
}

std::vector<int> Missing(const Job& job, const std::vector<Descriptor>& connected) {
  std::vector<int> ranks;
  for (int rank = 0; rank < job.size; ++rank) {
    if (rank != job.rank && !connected[rank].valid()) ranks.push_back(rank);
  }
  return ranks;
}

// The launcher connected the ranks before they started; what is left is that both ends prove the key.
absl::Status UseInherited(Job& job, absl::Time deadline, std::vector<Descriptor>& connected) {
  HandshakeGroup group(job);
  for (int rank = 0; rank < job.size; ++rank) {
    if (rank == job.rank) continue;
    const auto role = rank < job.rank ? Handshake::Role::kInitiator : Handshake::Role::kAcceptor;
    group.Add(Descriptor(std::exchange(job.inherited[rank], -1)), role, rank, absl::StrFormat("the launcher's socket to rank %d", rank), deadline);
  }
  while (!group.empty()) {
    for (HandshakeGroup::Outcome& outcome : group.Step(deadline)) {
      if (outcome.status.ok()) {
        connected[outcome.peer] = std::move(outcome.socket);
      } else if (outcome.status.code() != absl::StatusCode::kDeadlineExceeded) {
        return Annotate(outcome.status, outcome.address);
      }
    }
  }
  if (const std::vector<int> missing = Missing(job, connected); !missing.empty()) {
    return absl::DeadlineExceededError(absl::StrFormat("%s did not come in time", NameRanks(missing)));
  }
  return absl::OkStatus();
}

// What a rank tells about itself before the others have connected.
struct Member {
  std::string machine;
  std::string unix_address, tcp_address;  // where it listens; empty: nowhere
};
constexpr size_t kMaxAddressBytes = 512;

void Write(WireWriter& to, const Member& member) {
  to.Text(member.machine);
  to.Text(member.unix_address);
  to.Text(member.tcp_address);
}

Member ReadMember(WireReader& from) {
  Member member;
  member.machine = from.Text(kMaxAddressBytes);
  member.unix_address = from.Text(kMaxAddressBytes);
  member.tcp_address = from.Text(kMaxAddressBytes);
  return member;
}

absl::Status SendFrame(int socket, std::span<const std::byte> bytes, absl::Time deadline) {
  const auto header = EncodeFrameHeader({.channel = kMemberChannel, .bytes = bytes.size()});
  for (size_t sent = 0; sent < header.size() + bytes.size();) {
    GANTRY_RETURN_IF_ERROR(WaitFor(socket, POLLOUT, deadline));
    GANTRY_ASSIGN_OR_RETURN(const size_t count, SendSome(socket, std::span(header).subspan(std::min(sent, header.size())),
                                                         bytes.subspan(sent < header.size() ? 0 : sent - header.size()), {}));
    sent += count;
  }
  return absl::OkStatus();
}

absl::Status ReceiveExactly(int socket, std::span<std::byte> to, absl::Time deadline) {
  while (!to.empty()) {
    GANTRY_RETURN_IF_ERROR(WaitFor(socket, POLLIN, deadline));
    std::vector<Descriptor> unwanted;
    GANTRY_ASSIGN_OR_RETURN(const Received got, ReceiveSome(socket, to, unwanted));
    if (got.closed) return absl::UnavailableError("it ended while the job started");
    to = to.subspan(got.bytes);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::byte>> ReceiveFrame(int socket, size_t max_bytes, absl::Time deadline) {
  std::array<std::byte, kFrameHeaderBytes> header_bytes;
  GANTRY_RETURN_IF_ERROR(ReceiveExactly(socket, header_bytes, deadline));
  GANTRY_ASSIGN_OR_RETURN(const FrameHeader header, DecodeFrameHeader(header_bytes));
  if (header.bytes > max_bytes) return absl::DataLossError("it sent more than a description of ranks");
  std::vector<std::byte> bytes(header.bytes);
  GANTRY_RETURN_IF_ERROR(ReceiveExactly(socket, bytes, deadline));
  return bytes;
}

// Connects all ranks when only the place where rank 0 listens is known.
class Meeting {
 public:
  Meeting(Job& job, absl::Time deadline) : job_(job), deadline_(deadline), connected_(job.size), members_(job.size) {}

  ~Meeting() {
    if (unix_listener_.valid()) unlink(unix_path_.c_str());
    if (job_.run_folder.empty()) return;
    if (job_.rank == 0) RemoveRunFolderKey(job_.run_folder);
    rmdir(job_.run_folder.c_str());  // by the last that is done
    rmdir(std::filesystem::path(job_.run_folder).parent_path().c_str());
  }

  absl::StatusOr<std::vector<Descriptor>> Run() {
    GANTRY_ASSIGN_OR_RETURN(rendezvous_, SocketAddress::Parse(job_.rendezvous));
    GANTRY_RETURN_IF_ERROR(job_.rank == 0 ? GatherAtRankZero() : JoinRankZero());
    GANTRY_RETURN_IF_ERROR(ConnectPairs());
    return std::move(connected_);
  }

 private:
  absl::Status GatherAtRankZero() {
    if (!job_.run_folder.empty()) {
      GANTRY_ASSIGN_OR_RETURN(job_.key, MakeRunFolder(job_.run_folder));
    }
    if (rendezvous_.is_unix) {
      GANTRY_RETURN_IF_ERROR(ListenAtPath(rendezvous_.place));
    } else {
      GANTRY_ASSIGN_OR_RETURN(tcp_listener_, Listen(rendezvous_));
      GANTRY_RETURN_IF_ERROR(ListenInTemporaryFolder());
      members_[0].unix_address = SocketAddress{.is_unix = true, .place = unix_path_}.Text();
    }
    members_[0].machine = MachineIdentity();
    GANTRY_RETURN_IF_ERROR(AcceptUntil([this] { return Missing(job_, connected_).empty(); }));
    for (int rank = 1; rank < job_.size; ++rank) {
      const auto bytes = ReceiveFrame(connected_[rank].get(), 4 * kMaxAddressBytes, deadline_);
      if (!bytes.ok()) return Annotate(bytes.status(), NameRanks({rank}));
      WireReader reader(*bytes);
      members_[rank] = ReadMember(reader);
      if (!reader.ok()) return absl::DataLossError(absl::StrFormat("what rank %d says about itself is damaged", rank));
    }
    WireWriter table;
    for (const Member& member : members_) Write(table, member);
    for (int rank = 1; rank < job_.size; ++rank) {
      GANTRY_RETURN_IF_ERROR(Annotate(SendFrame(connected_[rank].get(), table.bytes(), deadline_), NameRanks({rank})));
    }
    return absl::OkStatus();
  }

  absl::Status JoinRankZero() {
    GANTRY_RETURN_IF_ERROR(ConnectToRankZero());
    const int socket = connected_[0].get();
    Member& own = members_[job_.rank];
    own.machine = MachineIdentity();
    if (job_.rank + 1 < job_.size) {  // ranks above connect to this one
      if (rendezvous_.is_unix) {
        GANTRY_RETURN_IF_ERROR(ListenAtPath(absl::StrFormat("%s.%d", rendezvous_.place, job_.rank)));
      } else {
        GANTRY_RETURN_IF_ERROR(ListenInTemporaryFolder());
        // Where rank 0 sees this machine, the others do, too.
        GANTRY_ASSIGN_OR_RETURN(const std::string host, LocalHost(socket));
        GANTRY_ASSIGN_OR_RETURN(tcp_listener_, Listen({.is_unix = false, .place = host}));
        GANTRY_ASSIGN_OR_RETURN(const uint16_t port, LocalPort(tcp_listener_.get()));
        own.tcp_address = SocketAddress{.is_unix = false, .place = host, .port = port}.Text();
      }
      own.unix_address = SocketAddress{.is_unix = true, .place = unix_path_}.Text();
    }
    WireWriter mine;
    Write(mine, own);
    GANTRY_RETURN_IF_ERROR(Annotate(SendFrame(socket, mine.bytes(), deadline_), "rank 0"));
    const auto table = ReceiveFrame(socket, static_cast<size_t>(job_.size) * 4 * kMaxAddressBytes, deadline_);
    if (!table.ok()) {
      if (absl::IsDeadlineExceeded(table.status())) return absl::DeadlineExceededError("rank 0 has not seen all ranks in time");
      return Annotate(table.status(), "rank 0");
    }
    WireReader reader(*table);
    for (Member& member : members_) member = ReadMember(reader);
    if (!reader.ok()) return absl::DataLossError("rank 0's table of ranks is damaged");
    return absl::OkStatus();
  }

  // Rank 0 may come later, and the key with it.
  absl::Status ConnectToRankZero() {
    absl::Duration pause = absl::Milliseconds(1);
    absl::Status last = absl::UnavailableError("nothing is there yet");
    while (absl::Now() < deadline_) {
      bool ready = true;
      if (!job_.run_folder.empty()) {
        absl::StatusOr<JobKey> key = ReadRunFolderKey(job_.run_folder);
        if (key.ok()) {
          job_.key = *std::move(key);
        } else if (absl::IsNotFound(key.status())) {
          ready = false;
          last = key.status();
        } else {
          return key.status();
        }
      }
      if (ready) {
        last = TryConnect(rendezvous_, 0);
        if (last.ok()) return last;
        // A key that a killed job of the same name left behind is replaced when rank 0 comes.
        const bool hopeless = last.code() == absl::StatusCode::kFailedPrecondition || last.code() == absl::StatusCode::kInvalidArgument ||
                              (absl::IsUnauthenticated(last) && job_.run_folder.empty());
        if (hopeless) return last;
      }
      absl::SleepFor(std::min(pause, deadline_ - absl::Now()));
      pause = std::min(pause * 2, absl::Milliseconds(50));
    }
    return absl::DeadlineExceededError(
        absl::StrFormat("rank 0 was not found at %s: %s", rendezvous_.Text(), std::string(Message(last))));
  }

  absl::Status TryConnect(const SocketAddress& address, int rank) {
    absl::StatusOr<Descriptor> socket = StartConnect(address);
    if (!socket.ok()) return socket.status();
    GANTRY_RETURN_IF_ERROR(Annotate(CheckSameUser(socket->get()), address.Text()));
    HandshakeGroup group(job_);
    group.Add(*std::move(socket), Handshake::Role::kInitiator, rank, address.Text(), deadline_);
    while (!group.empty()) {
      for (HandshakeGroup::Outcome& outcome : group.Step(deadline_)) {
        if (!outcome.status.ok()) return Annotate(outcome.status, outcome.address);
        connected_[rank] = std::move(outcome.socket);
      }
    }
    return absl::OkStatus();
  }

  // Lower ranks listen, higher ones connect: through UNIX sockets on one machine, by TCP between machines.
  absl::Status ConnectPairs() {
    const auto together = [&](int rank) { return members_[rank].machine == members_[job_.rank].machine; };
    // Links to rank 0 stand already, but for those by TCP on one machine.
    const auto again = [&](int rank) { return !rendezvous_.is_unix && together(rank); };
    for (int rank = 0; rank < job_.rank; ++rank) {
      if (rank == 0 && !again(rank)) continue;
      const std::string& text = together(rank) ? members_[rank].unix_address : members_[rank].tcp_address;
      const absl::StatusOr<SocketAddress> address = SocketAddress::Parse(text);
      if (!address.ok() || (address->is_unix && !together(rank))) {
        return absl::DataLossError(absl::StrFormat("rank %d listens nowhere that this rank could reach: '%s'", rank, text));
      }
      GANTRY_RETURN_IF_ERROR(Annotate(TryConnect(*address, rank), NameRanks({rank})));
    }
    if (job_.rank == 0) {
      for (int rank = 1; rank < job_.size; ++rank) {
        if (again(rank)) connected_[rank].Reset();
      }
    }
    return AcceptUntil([this] { return Missing(job_, connected_).empty(); });
  }

  absl::Status AcceptUntil(const std::function<bool()>& done) {
    HandshakeGroup group(job_);
    for (const Descriptor* listener : {&unix_listener_, &tcp_listener_}) {
      if (listener->valid()) group.ListenTo(*listener);
    }
    int strangers = 0;
    std::string last_stranger;
    while (!done()) {
      if (absl::Now() >= deadline_) {
        std::string text = absl::StrFormat("%s did not come in time", NameRanks(Missing(job_, connected_)));
        if (strangers > 0) absl::StrAppend(&text, "; connections that failed: ", strangers, ", the last ", last_stranger);
        return absl::DeadlineExceededError(text);
      }
      for (HandshakeGroup::Outcome& outcome : group.Step(deadline_)) {
        if (outcome.status.ok() && !connected_[outcome.peer].valid() && outcome.peer > job_.rank) {
          connected_[outcome.peer] = std::move(outcome.socket);
          continue;
        }
        ++strangers;
        last_stranger = outcome.status.ok() ? absl::StrFormat("%s: rank %d came twice", outcome.address, outcome.peer)
                                            : absl::StrFormat("%s: %s", outcome.address, std::string(Message(outcome.status)));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ListenInTemporaryFolder() {
    GANTRY_ASSIGN_OR_RETURN(temporary_, TemporaryFolder::Make());
    return ListenAtPath(absl::StrCat(temporary_.path(), "/socket"));
  }

  absl::Status ListenAtPath(const std::string& path) {
    const SocketAddress address{.is_unix = true, .place = path};
    absl::StatusOr<Descriptor> listener = Listen(address);
    if (absl::IsAlreadyExists(listener.status())) {
      // Of a rank that was killed while it started: nobody listens there.
      if (StartConnect(address).ok()) return absl::AlreadyExistsError(absl::StrFormat("another job listens at %s", address.Text()));
      unlink(path.c_str());
      listener = Listen(address);
    }
    GANTRY_RETURN_IF_ERROR(listener.status());
    unix_listener_ = *std::move(listener);
    unix_path_ = path;
    return absl::OkStatus();
  }

  Job& job_;
  const absl::Time deadline_;
  SocketAddress rendezvous_;
  std::vector<Descriptor> connected_;
  std::vector<Member> members_;
  TemporaryFolder temporary_;
  Descriptor unix_listener_, tcp_listener_;
  std::string unix_path_;
};

}  // namespace

absl::StatusOr<std::vector<Descriptor>> MeetOthers(Job& job, absl::Time deadline) {
  std::vector<Descriptor> connected(job.size);
  if (job.size == 1) return connected;
  const bool all_inherited = static_cast<int>(job.inherited.size()) == job.size &&
                             std::count(job.inherited.begin(), job.inherited.end(), -1) == 1 && job.inherited[job.rank] == -1;
  if (all_inherited) {
    GANTRY_RETURN_IF_ERROR(UseInherited(job, deadline, connected));
    return connected;
  }
  const bool has_key = std::any_of(job.key.bytes().begin(), job.key.bytes().end(), [](uint8_t byte) { return byte != 0; });
  if (!has_key && job.run_folder.empty()) return absl::InvalidArgumentError("the job has no key: GANTRY_KEY_FILE names one");
  return Meeting(job, deadline).Run();
}

}  // namespace gantry
