#include "comm/links.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <limits>
#include <map>
#include <mutex>
#include <utility>

#include "absl/time/clock.h"
#include "comm/channels.h"
#include "comm/frame.h"
#include "comm/liveness.h"
#include "comm/meeting.h"
#include "comm/process.h"

namespace gantry {
namespace {

constexpr int64_t kMaxUnread = int64_t{128} << 20;   // a peer whose messages nobody takes is not read further
constexpr int64_t kMaxUnsent = int64_t{1} << 20;    // a sender waits while so much is on its way to one peer
constexpr size_t kQueuePiece = size_t{256} << 10;
constexpr absl::Duration kReadToEnd = absl::Seconds(5);  // for what came before an end
constexpr absl::Duration kSendTime = absl::Seconds(30);
constexpr absl::Duration kFlushTime = absl::Seconds(2);
constexpr absl::Duration kFirstEndTime = absl::Seconds(5);  // for the launcher to say which rank ended first
constexpr size_t kReadAtOnce = size_t{1} << 20;
constexpr size_t kMaxNameBytes = 256;

std::string HostName() {
  char name[HOST_NAME_MAX + 1] = "";
  gethostname(name, sizeof(name) - 1);
  return name;
}

// Whether `ready` holds before `deadline`.
template <typename Ready>
bool WaitUntil(std::unique_lock<std::mutex>& lock, std::condition_variable& changed, absl::Time deadline, const Ready& ready) {
  const absl::Time latest = absl::Now() + absl::Hours(24 * 365);  // the clock's arithmetic does not know infinity
  return changed.wait_until(lock, absl::ToChronoTime(std::min(deadline, latest)), ready);
}

class SocketLinks final : public Links {
 public:
  SocketLinks(Job job, std::vector<Descriptor> sockets) : job_(std::move(job)), peers_(job_.size) {
    for (int rank = 0; rank < job_.size; ++rank) {
      links_.push_back(std::make_unique<Link>());
      links_[rank]->socket = std::move(sockets[rank]);
      peers_[rank].rank = rank;
    }
  }

  ~SocketLinks() override {
    for (int rank = 0; rank < size(); ++rank) {
      Link& link = *links_[rank];
      std::unique_lock lock(link.mutex);
      link.changed.wait_for(lock, absl::ToChronoMilliseconds(kFlushTime), [&] { return link.output.empty() || link.closed; });
    }
    if (reactor_ != nullptr) reactor_->Stop();
  }

  absl::Status Start(absl::Time deadline) {
    GANTRY_ASSIGN_OR_RETURN(reactor_, Reactor::Start());
    for (int rank = 0; rank < size(); ++rank) {
      if (rank == this->rank()) continue;
      GANTRY_RETURN_IF_ERROR(reactor_->Add(links_[rank]->socket.get(), EPOLLIN, [this, rank](uint32_t events) { OnEvents(rank, events); }));
    }
    return ExchangeMembers(deadline);
  }

  const Job& job() const override { return job_; }
  const Peer& peer(int rank) const override { return peers_[rank]; }
  int descriptor(int rank) const override { return links_[rank]->socket.get(); }
  Reactor& reactor() override { return *reactor_; }

  absl::Status Send(int to, uint32_t channel, std::span<const std::byte> bytes, std::span<const int> descriptors) override {
    GANTRY_RETURN_IF_ERROR(CheckPeer(to));
    if (static_cast<int64_t>(bytes.size()) > kMaxMessageBytes) {
      return absl::InvalidArgumentError(absl::StrFormat("a message of %d bytes to rank %d; links carry %d at most", bytes.size(), to, kMaxMessageBytes));
    }
    if (descriptors.size() > kMaxFrameDescriptors) {
      return absl::InvalidArgumentError(absl::StrFormat("%d descriptors in one message; %d are possible", descriptors.size(), kMaxFrameDescriptors));
    }
    Link& link = *links_[to];
    if (!descriptors.empty() && !IsUnixSocket(link.socket.get())) {
      return absl::FailedPreconditionError(absl::StrFormat("descriptors cannot be sent to %s, which is on another machine", Name(to)));
    }
    const auto header = EncodeFrameHeader({.channel = channel, .descriptor_count = static_cast<uint32_t>(descriptors.size()), .bytes = bytes.size()});
    if (reactor_->OnOwnThread()) return SendFromReactor(to, header, bytes, descriptors);
    // One message at a time; piece by piece, so that the reactor is never kept waiting for a long copy.
    const std::unique_lock turn(link.turn);
    std::unique_lock lock(link.mutex);
    const size_t total = header.size() + bytes.size();
    for (size_t sent = 0; sent < total;) {
      const auto room = [&] { return link.closed || link.unsent_bytes < kMaxUnsent; };
      if (!WaitUntil(lock, link.changed, absl::Now() + kSendTime, room)) {
        const std::string why = absl::StrFormat("it has not read its messages for %s", absl::FormatDuration(kSendTime));
        if (sent == 0) return absl::DeadlineExceededError(absl::StrFormat("rank %d: %s", to, why));
        EndLink(link, to, why);  // in the middle of a message
      }
      if (link.closed) return ClosedError(to, link);
      link.in_message = true;
      const std::span<const std::byte> head = std::span(header).subspan(std::min(sent, header.size()));
      const std::span<const std::byte> rest = bytes.subspan(sent < header.size() ? 0 : sent - header.size());
      const std::span<const int> numbers = sent == 0 ? descriptors : std::span<const int>();
      size_t count = 0;
      if (link.output.empty()) {
        const absl::StatusOr<size_t> taken = SendSome(link.socket.get(), head, rest, numbers);
        if (!taken.ok()) {
          // The reader learns it as well. What the rank said before it ended, such as whom it had lost itself, is known once the reader has
          // come to the end: whoever is told of this error then finds the cause at the monitor.
          if (WaitUntil(lock, link.changed, absl::Now() + kReadToEnd, [&] { return link.closed; })) return ClosedError(to, link);
          if (sent == 0) {  // it is there, and can be told the next thing
            EndMessage(link);
            return Annotate(taken.status(), absl::StrFormat("a message to %s", Name(to)));
          }
          EndLink(link, to, Message(taken.status()));
          return ClosedError(to, link);
        }
        count = *taken;
      }
      if (count == 0) count = Queue(link, head, rest.first(std::min(rest.size(), kQueuePiece)), numbers);
      sent += count;
    }
    EndMessage(link);
    return absl::OkStatus();
  }

  absl::StatusOr<LinkMessage> Receive(int from, uint32_t channel, absl::Duration timeout) override {
    GANTRY_RETURN_IF_ERROR(CheckPeer(from));
    Link& link = *links_[from];
    const absl::Time deadline = absl::Now() + timeout;
    std::unique_lock lock(link.mutex);
    std::deque<LinkMessage>& queue = link.messages[channel];
    if (!WaitUntil(lock, link.changed, deadline, [&] { return link.closed || !queue.empty(); })) {
      return absl::DeadlineExceededError(absl::StrFormat("%s sent nothing on channel %d within %s", Name(from), channel, absl::FormatDuration(timeout)));
    }
    if (queue.empty()) return ClosedError(from, link);
    LinkMessage message = std::move(queue.front());
    queue.pop_front();
    link.unread_bytes -= static_cast<int64_t>(message.bytes.size());
    UpdateEvents(link);
    return message;
  }

  void HandleChannel(uint32_t channel, std::function<void(int, LinkMessage)> call) override {
    RunOnReactor([&] {
      if (call == nullptr) {
        handlers_.erase(channel);
        return;
      }
      handlers_[channel] = call;
      for (int rank = 0; rank < size(); ++rank) {
        std::deque<LinkMessage> waiting;
        {
          std::unique_lock lock(links_[rank]->mutex);
          waiting.swap(links_[rank]->messages[channel]);
          for (const LinkMessage& message : waiting) links_[rank]->unread_bytes -= static_cast<int64_t>(message.bytes.size());
        }
        for (LinkMessage& message : waiting) call(rank, std::move(message));
      }
    });
  }

  void OnClosed(std::function<void(int, std::string_view)> call) override {
    RunOnReactor([&] {
      on_closed_ = call;
      if (call == nullptr) return;
      for (int rank = 0; rank < size(); ++rank) {  // those that ended before anybody asked
        std::string why;
        {
          std::unique_lock lock(links_[rank]->mutex);
          if (!links_[rank]->closed || !links_[rank]->closed_by_peer) continue;
          why = links_[rank]->why;
        }
        call(rank, why);
      }
    });
  }

  void ReadNow(int rank) override {
    if (rank != this->rank()) ReadAll(rank, std::numeric_limits<size_t>::max());
  }

  int64_t received_bytes(int rank) const override { return links_[rank]->received_bytes; }

  void Close(int rank, std::string_view why) override {
    if (rank == this->rank()) return;
    Link& link = *links_[rank];
    std::unique_lock lock(link.mutex);
    if (!link.closed) EndLink(link, rank, why);
  }

 private:
  struct Output {
    std::vector<std::byte> bytes;
    std::vector<Descriptor> descriptors;
  };
  struct Link {
    Descriptor socket;
    std::mutex turn;   // of the threads that send
    std::mutex mutex;  // of all below, but for `reader`
    std::condition_variable changed;
    std::map<uint32_t, std::deque<LinkMessage>> messages;
    int64_t unread_bytes = 0;
    std::deque<Output> output;
    std::deque<Output> deferred;  // the reactor's, while a thread is in the middle of a message
    bool in_message = false;
    size_t output_offset = 0;  // of the first
    int64_t unsent_bytes = 0;
    uint32_t events = EPOLLIN;
    bool closed = false;
    bool closed_by_peer = false;
    std::string why;
    // The reactor's thread only:
    FrameReader reader;
    int64_t received_bytes = 0;
  };

  std::string Name(int rank) const { return peers_[rank].Name(); }

  absl::Status CheckPeer(int rank) const {
    if (rank >= 0 && rank < size() && rank != this->rank()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrFormat("rank %d has no link to rank %d; the job has %d ranks", this->rank(), rank, size()));
  }

  absl::Status ClosedError(int rank, const Link& link) const {
    return absl::UnavailableError(absl::StrFormat("%s is lost: %s", Name(rank), link.why));
  }

  // The reactor may send again; what it had to say meanwhile goes first.
  void EndMessage(Link& link) {
    link.in_message = false;
    for (Output& output : link.deferred) {
      link.unsent_bytes += static_cast<int64_t>(output.bytes.size());
      link.output.push_back(std::move(output));
    }
    link.deferred.clear();
    UpdateEvents(link);
  }

  // Puts both behind what waits already. The bytes it took.
  size_t Queue(Link& link, std::span<const std::byte> first, std::span<const std::byte> second, std::span<const int> descriptors) {
    Output output = MakeOutput(first, second, descriptors);
    const size_t count = output.bytes.size();
    link.unsent_bytes += static_cast<int64_t>(count);
    link.output.push_back(std::move(output));
    UpdateEvents(link);
    return count;
  }

  static Output MakeOutput(std::span<const std::byte> first, std::span<const std::byte> second, std::span<const int> descriptors) {
    Output output;
    output.bytes.reserve(first.size() + second.size());
    output.bytes.insert(output.bytes.end(), first.begin(), first.end());
    output.bytes.insert(output.bytes.end(), second.begin(), second.end());
    for (int descriptor : descriptors) output.descriptors.emplace_back(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
    return output;
  }

  // Never waits: what the socket does not take goes out later.
  absl::Status SendFromReactor(int to, std::span<const std::byte> header, std::span<const std::byte> bytes, std::span<const int> descriptors) {
    Link& link = *links_[to];
    std::unique_lock lock(link.mutex);
    if (link.closed) return ClosedError(to, link);
    if (link.in_message) {
      link.deferred.push_back(MakeOutput(header, bytes, descriptors));
      return absl::OkStatus();
    }
    size_t sent = 0;
    if (link.output.empty()) {
      GANTRY_ASSIGN_OR_RETURN(sent, SendSome(link.socket.get(), header, bytes, descriptors));
    }
    if (sent < header.size() + bytes.size()) {
      Queue(link, header.subspan(std::min(sent, header.size())), bytes.subspan(sent < header.size() ? 0 : sent - header.size()),
            sent == 0 ? descriptors : std::span<const int>());
    }
    return absl::OkStatus();
  }

  void EndLink(Link& link, int rank, std::string_view why) {
    link.closed = true;
    link.why = std::string(why);
    shutdown(link.socket.get(), SHUT_WR);  // what the kernel has taken still arrives
    reactor_->Post([this, rank] { reactor_->Remove(links_[rank]->socket.get()); });
    link.changed.notify_all();
  }

  void UpdateEvents(Link& link) {
    if (link.closed) return;
    uint32_t events = 0;
    if (link.unread_bytes <= kMaxUnread) events |= EPOLLIN;
    if (!link.output.empty()) events |= EPOLLOUT;
    if (events == link.events) return;
    link.events = events;
    reactor_->Modify(link.socket.get(), events);
  }

  // Runs `call` on the reactor's thread and waits for it.
  void RunOnReactor(const std::function<void()>& call) {
    if (reactor_->OnOwnThread()) return call();
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
    reactor_->Post([&] {
      call();
      std::unique_lock lock(mutex);
      done = true;
      changed.notify_one();  // under the lock: what waits frees both
    });
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return done; });
  }

  void OnEvents(int rank, uint32_t events) {
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) ReadAll(rank, kReadAtOnce);
    if ((events & EPOLLOUT) != 0) Flush(rank);
  }

  // At most about `limit` bytes: what is left calls again, after the timers and the other links had their turn.
  void ReadAll(int rank, size_t limit) {
    Link& link = *links_[rank];
    std::string why;
    for (size_t count = 0;;) {
      if (count >= limit) return;
      {
        std::unique_lock lock(link.mutex);
        if (link.closed || link.unread_bytes > kMaxUnread) return;
      }
      std::vector<Descriptor> descriptors;
      const absl::StatusOr<Received> got = ReceiveSome(link.socket.get(), buffer_, descriptors);
      if (!got.ok()) {
        why = std::string(Message(got.status()));
        break;
      }
      if (got->would_block) return;
      if (got->closed) {
        why = "its connection ended";
        break;
      }
      if (const absl::Status status = link.reader.Append(std::span(buffer_).first(got->bytes), std::move(descriptors)); !status.ok()) {
        why = std::string(Message(status));
        break;
      }
      link.received_bytes += static_cast<int64_t>(got->bytes);
      Deliver(rank, link);
      count += got->bytes;
    }
    {
      std::unique_lock lock(link.mutex);
      link.closed = link.closed_by_peer = true;
      link.why = why;
      link.output.clear();
      link.changed.notify_all();
    }
    reactor_->Remove(link.socket.get());
    if (on_closed_ != nullptr) on_closed_(rank, why);
  }

  void Deliver(int rank, Link& link) {
    while (std::optional<Frame> frame = link.reader.Next()) {
      LinkMessage message{std::move(frame->bytes), std::move(frame->descriptors)};
      if (const auto handler = handlers_.find(frame->channel); handler != handlers_.end()) {
        handler->second(rank, std::move(message));
        continue;
      }
      std::unique_lock lock(link.mutex);
      link.unread_bytes += static_cast<int64_t>(message.bytes.size());
      link.messages[frame->channel].push_back(std::move(message));
      UpdateEvents(link);
      link.changed.notify_all();
    }
  }

  void Flush(int rank) {
    Link& link = *links_[rank];
    std::unique_lock lock(link.mutex);
    while (!link.output.empty() && !link.closed) {
      Output& output = link.output.front();
      std::vector<int> numbers;
      if (link.output_offset == 0) {
        for (const Descriptor& descriptor : output.descriptors) numbers.push_back(descriptor.get());
      }
      const absl::StatusOr<size_t> count = SendSome(link.socket.get(), std::span(output.bytes).subspan(link.output_offset), {}, numbers);
      if (!count.ok() || *count == 0) break;  // an error shows when reading, too
      link.output_offset += *count;
      link.unsent_bytes -= static_cast<int64_t>(*count);
      if (link.output_offset < output.bytes.size()) continue;
      link.output.pop_front();
      link.output_offset = 0;
    }
    UpdateEvents(link);
    link.changed.notify_all();
  }

  // This process will end over `status`. Others may be further on, and would take its end for the first; it may itself have taken one for
  // the first that has said whom it had lost.
  absl::Status TellLost(int lost, const absl::Status& status) {
    if (!absl::IsUnavailable(status)) return status;
    LossNotice notice{.rank = lost, .why = std::string(Message(status))};
    for (int rank = 0; rank < size(); ++rank) {
      std::unique_lock lock(links_[rank]->mutex);
      for (const LinkMessage& message : links_[rank]->messages[kLivenessChannel]) {
        const std::optional<LossNotice> told = LossNoticeFrom(message.bytes);
        if (told && told->rank < size() && told->rank != this->rank() && notice.rank == lost) notice = *told;
      }
    }
    for (int rank = 0; rank < size(); ++rank) {
      if (rank != this->rank() && rank != notice.rank) (void)Send(rank, kLivenessChannel, ToBytes(notice), {});
    }
    return notice.rank == lost ? status : absl::UnavailableError(absl::StrFormat("rank %d is lost: %s", notice.rank, notice.why));
  }

  absl::Status ExchangeMembers(absl::Time deadline) {
    WireWriter mine;
    const std::string machine = MachineIdentity();
    mine.U64(static_cast<uint64_t>(getpid()));
    mine.Text(HostName());
    mine.Text(machine);
    const std::string processes = NamespaceOf("pid");
    mine.Text(processes);
    for (int rank = 0; rank < size(); ++rank) {
      if (rank == this->rank()) continue;
      if (const absl::Status sent = Send(rank, kMemberChannel, mine.bytes(), {}); !sent.ok()) return TellLost(rank, sent);
    }
    std::vector<std::string> machines;
    for (int rank = 0; rank < size(); ++rank) {
      Peer& peer = peers_[rank];
      std::string its_machine = machine;
      if (rank == this->rank()) {
        peer.pid = getpid();
        peer.host = HostName();
        peer.visible = true;
      } else {
        const absl::StatusOr<LinkMessage> message = Receive(rank, kMemberChannel, deadline - absl::Now());
        if (!message.ok()) return TellLost(rank, message.status());
        WireReader reader(message->bytes);
        peer.pid = static_cast<int64_t>(reader.U64());
        peer.host = reader.Text(kMaxNameBytes);
        its_machine = reader.Text(kMaxNameBytes);
        peer.visible = its_machine == machine && reader.Text(kMaxNameBytes) == processes;
        if (!reader.ok()) return absl::DataLossError(absl::StrFormat("what rank %d says about itself is damaged", rank));
      }
      const auto known = std::find(machines.begin(), machines.end(), its_machine);
      peer.node = static_cast<int>(known - machines.begin());
      if (known == machines.end()) machines.push_back(its_machine);
    }
    job_.local_rank = job_.local_size = 0;
    for (const Peer& peer : peers_) {
      if (peer.node != peers_[rank()].node) continue;
      ++job_.local_size;
      if (peer.rank < rank()) ++job_.local_rank;
    }
    return absl::OkStatus();
  }

  Job job_;
  std::vector<Peer> peers_;
  std::vector<std::unique_ptr<Link>> links_;
  std::unique_ptr<Reactor> reactor_;
  // The reactor's thread only:
  std::map<uint32_t, std::function<void(int, LinkMessage)>> handlers_;
  std::function<void(int, std::string_view)> on_closed_;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(size_t{64} << 10);
};

}  // namespace

namespace {

// A rank that ends while the job starts takes others with it; the launcher says which was the first.
absl::Status WithFirstEnd(const absl::Status& status, int launcher) {
  if (launcher < 0 || absl::IsDeadlineExceeded(status)) return status;
  FrameReader frames;
  const absl::Time deadline = absl::Now() + kFirstEndTime;
  while (WaitFor(launcher, POLLIN, deadline).ok()) {
    std::byte buffer[4096];
    std::vector<Descriptor> unwanted;
    const absl::StatusOr<Received> got = ReceiveSome(launcher, buffer, unwanted);
    if (!got.ok() || got->closed || !frames.Append(std::span(buffer).first(got->bytes), {}).ok()) break;
    while (std::optional<Frame> frame = frames.Next()) {
      WireReader reader(frame->bytes);
      const uint32_t rank = reader.U32();
      const auto kind = static_cast<RankEndKind>(reader.U32());
      const std::string how = reader.Text(kMaxNameBytes);
      if (frame->channel != kRankEndedChannel || !reader.ok() || kind != RankEndKind::kFailed) continue;
      return absl::UnavailableError(absl::StrFormat("rank %d is lost: %s; waited in the job's start: %s", rank, how, std::string(Message(status))));
    }
  }
  return status;
}

}  // namespace

std::string Peer::Name() const {
  if (pid == 0) return absl::StrFormat("rank %d", rank);
  return absl::StrFormat("rank %d (host %s, pid %d)", rank, host, pid);
}

absl::StatusOr<std::unique_ptr<Links>> Links::Connect(Job job, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  if (job.size < 1 || job.rank < 0 || job.rank >= job.size) {
    return absl::InvalidArgumentError(absl::StrFormat("rank %d of a job with %d ranks", job.rank, job.size));
  }
  const std::string context = absl::StrFormat("rank %d of %d", job.rank, job.size);
  const int launcher = job.launcher;
  absl::StatusOr<std::vector<Descriptor>> sockets = MeetOthers(job, deadline);
  if (!sockets.ok()) return Annotate(WithFirstEnd(sockets.status(), launcher), context);
  auto links = std::make_unique<SocketLinks>(std::move(job), *std::move(sockets));
  if (absl::Status status = links->Start(deadline); !status.ok()) return Annotate(WithFirstEnd(status, launcher), context);
  return links;
}

absl::StatusOr<std::vector<LinkMessage>> Links::Gather(std::span<const int> ranks, uint32_t channel, std::span<const std::byte> mine,
                                                       absl::Duration timeout, std::span<const int> descriptors) {
  const absl::Time deadline = absl::Now() + timeout;
  if (std::find(ranks.begin(), ranks.end(), rank()) == ranks.end()) {
    return absl::InvalidArgumentError(absl::StrFormat("rank %d gathers among ranks that it is not one of", rank()));
  }
  for (int to : ranks) {
    if (to != rank()) GANTRY_RETURN_IF_ERROR(Send(to, channel, mine, descriptors));
  }
  std::vector<LinkMessage> messages;
  for (int from : ranks) {
    if (from == rank()) {
      LinkMessage& own = messages.emplace_back();
      own.bytes.assign(mine.begin(), mine.end());
      for (int descriptor : descriptors) own.descriptors.emplace_back(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
    } else {
      GANTRY_ASSIGN_OR_RETURN(LinkMessage message, Receive(from, channel, deadline - absl::Now()));
      messages.push_back(std::move(message));
    }
  }
  return messages;
}

}  // namespace gantry
