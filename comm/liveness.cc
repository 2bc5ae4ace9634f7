#include "comm/liveness.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstring>
#include <fstream>
#include <condition_variable>
#include <map>
#include <mutex>
#include <utility>

#include "absl/strings/numbers.h"
#include "comm/channels.h"
#include "comm/frame.h"
#include "comm/process.h"

namespace gantry {
namespace {

// How many times the time-out a rank of this machine may give no sign of life while its process is there and not stopped.
constexpr int64_t kStarvedFactor = 10;

enum class Notice : uint32_t { kHeart = 1, kBeat = 2, kLost = 3, kLeave = 4 };
constexpr size_t kMaxWhyBytes = 1024;
constexpr int64_t kBeatsPerTimeout = 10;
constexpr absl::Duration kLongestPeriod = absl::Milliseconds(125);

int64_t MonotonicNs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

// One page of shared memory with a counter, which its rank moves on.
class Heart {
 public:
  Heart() = default;
  Heart(const Heart&) = delete;
  ~Heart() {
    if (word_ != nullptr) munmap(word_, kBytes);
  }
  absl::Status Map(int descriptor, int protection) {
    void* memory = mmap(nullptr, kBytes, protection, MAP_SHARED, descriptor, 0);
    if (memory == MAP_FAILED) return SystemError(errno, "mapping a heartbeat page");
    word_ = static_cast<std::atomic<uint64_t>*>(memory);
    return absl::OkStatus();
  }
  bool mapped() const { return word_ != nullptr; }
  void Beat() { word_->fetch_add(1, std::memory_order_relaxed); }
  uint64_t count() const { return word_->load(std::memory_order_relaxed); }

  static constexpr size_t kBytes = 4096;

 private:
  std::atomic<uint64_t>* word_ = nullptr;
};

class Monitor final : public Liveness {
 public:
  Monitor(Links& links, const LivenessOptions& options)
      : links_(links), timeout_ns_(absl::ToInt64Nanoseconds(options.heartbeat_timeout)), ranks_(links.size()) {
    for (auto& rank : ranks_) rank = std::make_unique<Rank>();
  }

  ~Monitor() override {
    links_.OnClosed(nullptr);
    links_.HandleChannel(kLivenessChannel, nullptr);
    if (timer_ != 0) links_.reactor().Cancel(timer_);
    for (const auto& rank : ranks_) {
      if (rank->process.valid()) links_.reactor().Remove(rank->process.get());
    }
    if (links_.job().launcher >= 0) links_.reactor().Remove(links_.job().launcher);
  }

  absl::Status Start() {
    GANTRY_RETURN_IF_ERROR(MakeHeart());
    const absl::Duration period = std::min(timeout_ns_ > 0 ? absl::Nanoseconds(timeout_ns_) / kBeatsPerTimeout : kLongestPeriod, kLongestPeriod);
    period_ns_ = std::max<int64_t>(absl::ToInt64Nanoseconds(period), 1'000'000);
    last_tick_ns_ = MonotonicNs();
    for (auto& rank : ranks_) rank->last_sign_ns = last_tick_ns_;
    // Words first: of several that have ended by now, they tell which was the first.
    links_.HandleChannel(kLivenessChannel, [this](int from, LinkMessage message) { OnNotice(from, std::move(message)); });
    links_.OnClosed([this](int rank, std::string_view why) { OnHangUp(rank, why); });
    for (int rank = 0; rank < links_.size(); ++rank) {
      if (rank == links_.rank() || !links_.peer(rank).visible) continue;
      WatchProcess(rank);
    }
    if (const int launcher = links_.job().launcher; launcher >= 0) {
      (void)links_.reactor().Add(launcher, EPOLLIN, [this, launcher](uint32_t) { ReadLauncher(launcher); });
    }
    timer_ = links_.reactor().Every(absl::Nanoseconds(period_ns_), [this] { Tick(); });
    return absl::OkStatus();
  }

  bool lost(int rank) const override { return ranks_[rank]->gone.load(std::memory_order_acquire); }
  bool has_left(int rank) const override {
    std::unique_lock lock(mutex_);
    return ranks_[rank]->left;
  }

  absl::Status status(std::string_view pending) const override {
    int first = -1;
    {
      std::unique_lock lock(mutex_);
      if (order_.empty()) return absl::OkStatus();
      first = order_.front();
    }
    return StatusOf(first, pending);
  }

  absl::Status StatusOf(int rank, std::string_view pending) const override {
    const Rank& it = *ranks_[rank];
    if (!lost(rank)) return absl::OkStatus();
    std::string why;
    bool left;
    {
      std::unique_lock lock(mutex_);
      why = it.why;
      left = it.left;
    }
    std::string text = left ? absl::StrCat(links_.peer(rank).Name(), " has left the job") : absl::StrCat(links_.peer(rank).Name(), " is lost: ", why);
    if (!pending.empty()) absl::StrAppend(&text, "; waited in ", ToAbsl(pending));
    return absl::UnavailableError(text);
  }

  void Report(int rank, std::string_view why) override { Lose(rank, std::string(why), /*tell=*/true, /*is_cause=*/true); }

  int OnLoss(std::function<void(int)> call) override {
    std::unique_lock lock(mutex_);
    calls_[++last_call_] = std::make_shared<std::function<void(int)>>(std::move(call));
    return last_call_;
  }

  void Forget(int number) override {
    std::unique_lock lock(mutex_);
    calls_.erase(number);
    if (!links_.reactor().OnOwnThread()) idle_.wait(lock, [&] { return running_ != number; });
  }

  void Leave() override {
    if (leaving_.exchange(true) || lost(links_.rank())) return;  // one that was given up does not leave, it is lost
    WireWriter notice;
    notice.U32(static_cast<uint32_t>(Notice::kLeave));
    SendToAll(notice.bytes());
  }

 private:
  struct Rank {
    std::atomic<bool> gone{false};
    bool left = false;        // mutex_
    bool why_is_cause = false;  // mutex_: `why` is no mere symptom
    std::string why;          // mutex_
    // The reactor's thread only:
    Descriptor process;
    Heart heart;
    uint64_t last_count = 0;
    int64_t last_received_bytes = 0;
    int64_t last_sign_ns = 0;
  };

  absl::Status MakeHeart() {
    Descriptor memory(memfd_create("gantry-heart", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!memory.valid() || ftruncate(memory.get(), Heart::kBytes) != 0 || fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
      return SystemError(errno, "making a heartbeat page");
    }
    GANTRY_RETURN_IF_ERROR(heart_.Map(memory.get(), PROT_READ | PROT_WRITE));
    WireWriter notice;
    notice.U32(static_cast<uint32_t>(Notice::kHeart));
    const int descriptor = memory.get();
    for (int rank = 0; rank < links_.size(); ++rank) {
      // One that cannot be reached any more shows in its hang-up.
      if (rank != links_.rank() && links_.SameNode(rank)) (void)links_.Send(rank, kLivenessChannel, notice.bytes(), std::span(&descriptor, 1));
    }
    return absl::OkStatus();
  }

  void WatchProcess(int rank) {
    Rank& it = *ranks_[rank];
    it.process.Reset(static_cast<int>(syscall(SYS_pidfd_open, links_.peer(rank).pid, 0)));
    if (!it.process.valid()) return;  // ended already, which its hang-up shows, or a kernel before 5.3
    (void)links_.reactor().Add(it.process.get(), EPOLLIN, [this, rank](uint32_t) { OnProcessEnded(rank); });
  }

  void OnProcessEnded(int rank) {
    Rank& it = *ranks_[rank];
    links_.reactor().Remove(it.process.get());
    links_.ReadNow(rank);  // its last words may be that it leaves
    LoseEnded(rank, "its process ended");
  }

  void OnHangUp(int rank, std::string_view why) { LoseEnded(rank, std::string(why)); }

  void LoseEnded(int rank, std::string symptom) {
    const int wait_status = ranks_[rank]->process.valid() ? WaitStatusOf(ranks_[rank]->process.get()) : -1;
    // Exit code 0 explains nothing: it may have ended because it was given up.
    Lose(rank, wait_status == -1 ? std::move(symptom) : DescribeWaitStatus(wait_status), /*tell=*/true, /*is_cause=*/wait_status > 0);
  }

  void OnNotice(int from, LinkMessage message) {
    Rank& it = *ranks_[from];
    if (it.gone.load(std::memory_order_relaxed)) return;  // one that was given up accuses nobody
    it.last_sign_ns = MonotonicNs();
    WireReader reader(message.bytes);
    switch (static_cast<Notice>(reader.U32())) {
      case Notice::kHeart:
        if (message.descriptors.size() != 1 || it.heart.mapped()) break;
        if (fcntl(message.descriptors[0].get(), F_GET_SEALS) < (F_SEAL_SHRINK | F_SEAL_GROW)) break;
        if (lseek(message.descriptors[0].get(), 0, SEEK_END) < static_cast<off_t>(Heart::kBytes)) break;
        (void)it.heart.Map(message.descriptors[0].get(), PROT_READ);  // without it, its process and hang-up are still watched
        break;
      case Notice::kBeat:
        break;
      case Notice::kLost: {
        const std::optional<LossNotice> notice = LossNoticeFrom(message.bytes);
        if (!notice || notice->rank >= links_.size()) break;
        if (notice->rank == links_.rank()) {
          Lose(links_.rank(), absl::StrFormat("rank %d has given it up: %s", from, notice->why), /*tell=*/false, /*is_cause=*/true);
        } else {
          links_.ReadNow(notice->rank);  // it may have lost another itself, and said so
          Lose(notice->rank, notice->why, /*tell=*/true, notice->is_cause);
        }
        break;
      }
      case Notice::kLeave: {
        {
          std::unique_lock lock(mutex_);
          it.left = true;
        }
        if (it.gone.exchange(true, std::memory_order_acq_rel)) break;
        links_.Close(from, "it has left the job");
        losses_.fetch_add(1, std::memory_order_acq_rel);
        CallAll(from);
        break;
      }
    }
  }

  // The launcher sees how a rank ended before anybody else.
  void ReadLauncher(int launcher) {
    for (;;) {
      std::byte buffer[4096];
      std::vector<Descriptor> unwanted;
      const absl::StatusOr<Received> got = ReceiveSome(launcher, buffer, unwanted);
      if (got.ok() && got->would_block) return;
      if (!got.ok() || got->closed || !launcher_frames_.Append(std::span(buffer).first(got->bytes), {}).ok()) {
        links_.reactor().Remove(launcher);
        return;
      }
      while (std::optional<Frame> frame = launcher_frames_.Next()) {
        if (frame->channel != kRankEndedChannel) continue;
        WireReader reader(frame->bytes);
        const uint32_t rank = reader.U32();
        const auto kind = static_cast<RankEndKind>(reader.U32());
        const std::string how = reader.Text(kMaxWhyBytes);
        if (!reader.ok() || rank >= ranks_.size() || static_cast<int>(rank) == links_.rank()) continue;
        links_.ReadNow(static_cast<int>(rank));
        // The launcher may see one that has lost another before it sees that one: its own words, which have been read, or its hang-up tell.
        if (kind != RankEndKind::kLostAnother) Lose(static_cast<int>(rank), how, /*tell=*/false, kind == RankEndKind::kFailed);
      }
    }
  }

  // The one place where a rank becomes lost. Any thread. `is_cause`: how it ended, or why it was given up; otherwise a symptom (its
  // connection ended), in whose place a cause may be put later.
  void Lose(int rank, std::string why, bool tell, bool is_cause) {
    if (leaving_.load()) return;
    Rank& it = *ranks_[rank];
    // The others end their links to a rank that they have given up: what it sees then says nothing about them.
    if (rank != links_.rank() && lost(links_.rank())) tell = false;
    bool first = false;
    {
      std::unique_lock lock(mutex_);
      if (it.left) return;
      first = it.why.empty();
      if (first || (is_cause && !it.why_is_cause)) {
        it.why = why;
        it.why_is_cause = is_cause;
      }
    }
    if (!first) return;
    // Before anybody here knows, who might end this process over it: the others would take it for the first.
    if (tell) SendToAll(ToBytes({rank, is_cause, why}));  // also to the lost one, which may only have been stopped
    {
      std::unique_lock lock(mutex_);
      order_.push_back(rank);
    }
    it.gone.store(true, std::memory_order_release);
    losses_.fetch_add(1, std::memory_order_acq_rel);
    const auto end = [this, rank, why] {
      links_.ReadNow(rank);  // what it said before is still to be had
      links_.Close(rank, why);
      CallAll(rank);
    };
    if (links_.reactor().OnOwnThread()) {
      end();
    } else {
      links_.reactor().Post(end);
    }
  }

  void SendToAll(std::span<const std::byte> notice) {
    for (int rank = 0; rank < links_.size(); ++rank) {
      // One that cannot be reached shows in its hang-up.
      if (rank != links_.rank()) (void)links_.Send(rank, kLivenessChannel, notice);
    }
  }

  // On the reactor's thread.
  void CallAll(int rank) {
    int after = 0;
    for (;;) {
      std::shared_ptr<std::function<void(int)>> call;
      {
        std::unique_lock lock(mutex_);
        const auto next = calls_.upper_bound(after);
        if (next == calls_.end()) return;
        after = running_ = next->first;
        call = next->second;
      }
      (*call)(rank);
      std::unique_lock lock(mutex_);
      running_ = 0;
      idle_.notify_all();
    }
  }

  void Tick() {
    heart_.Beat();
    const int64_t now = MonotonicNs();
    // While this rank stood still itself, it could not see what the others did: that time does not count.
    const int64_t since_tick_ns = now - last_tick_ns_;
    const int64_t stood_still_ns = since_tick_ns > 3 * period_ns_ ? since_tick_ns : 0;
    last_tick_ns_ = now;
    WireWriter beat;
    beat.U32(static_cast<uint32_t>(Notice::kBeat));
    for (int rank = 0; rank < links_.size(); ++rank) {
      Rank& it = *ranks_[rank];
      if (rank == links_.rank() || it.gone.load(std::memory_order_relaxed)) continue;
      if (!links_.SameNode(rank) && !leaving_.load()) (void)links_.Send(rank, kLivenessChannel, beat.bytes());
      if (it.heart.mapped()) {
        const uint64_t count = it.heart.count();
        if (count != it.last_count) it.last_sign_ns = now;
        it.last_count = count;
      }
      // A beat waits behind a long message, whose bytes are a sign of life as good.
      if (const int64_t received = links_.received_bytes(rank); received != std::exchange(it.last_received_bytes, received)) it.last_sign_ns = now;
      it.last_sign_ns = std::min(now, it.last_sign_ns + stood_still_ns);
      // Noticed within the time-out: after it less two periods, one for the other's clock and one for ours.
      const int64_t silent_ns = now - it.last_sign_ns;
      if (timeout_ns_ == 0 || silent_ns < timeout_ns_ - 2 * period_ns_) continue;
      const Peer& peer = links_.peer(rank);
      const char state = peer.visible ? ProcessState(peer.pid) : '?';
      if (state == 't') continue;  // a debugger holds it
      // On this machine a heart that stands still while its process is neither stopped nor gone lacks a core: it is given longer.
      if (peer.visible && state != 'T' && state != '?' && silent_ns < kStarvedFactor * timeout_ns_) continue;
      Lose(rank, absl::StrFormat("no sign of life for %.2f s%s", static_cast<double>(silent_ns) * 1e-9, state == 'T' ? ", its process is stopped" : ""),
           /*tell=*/true, /*is_cause=*/true);
    }
  }

  Links& links_;
  const int64_t timeout_ns_;
  int64_t period_ns_ = 0;
  int timer_ = 0;
  std::vector<std::unique_ptr<Rank>> ranks_;
  Heart heart_;
  std::atomic<bool> leaving_{false};
  int64_t last_tick_ns_ = 0;     // the reactor's thread only
  FrameReader launcher_frames_;  // the reactor's thread only
  mutable std::mutex mutex_;  // of all below
  std::condition_variable idle_;
  std::vector<int> order_;  // lost ranks, the first first
  std::map<int, std::shared_ptr<std::function<void(int)>>> calls_;
  int last_call_ = 0;
  int running_ = 0;
};

}  // namespace

std::vector<std::byte> ToBytes(const LossNotice& notice) {
  WireWriter writer;
  writer.U32(static_cast<uint32_t>(Notice::kLost));
  writer.U32(static_cast<uint32_t>(notice.rank));
  writer.U32(notice.is_cause ? 1 : 0);
  writer.Text(std::string_view(notice.why).substr(0, kMaxWhyBytes));
  const std::span<const std::byte> bytes = writer.bytes();
  return {bytes.begin(), bytes.end()};
}

std::optional<LossNotice> LossNoticeFrom(std::span<const std::byte> bytes) {
  WireReader reader(bytes);
  if (static_cast<Notice>(reader.U32()) != Notice::kLost) return std::nullopt;
  LossNotice notice{.rank = static_cast<int>(reader.U32()), .is_cause = reader.U32() != 0, .why = reader.Text(kMaxWhyBytes)};
  if (!reader.ok() || notice.rank < 0) return std::nullopt;
  return notice;
}

absl::StatusOr<LivenessOptions> LivenessOptions::FromEnvironment() {
  LivenessOptions options;
  const char* text = std::getenv("GANTRY_HEARTBEAT_TIMEOUT");
  if (text == nullptr) return options;
  double seconds = 0;
  if (!absl::SimpleAtod(text, &seconds) || !(seconds >= 0 && seconds <= 1e6) || (seconds > 0 && seconds < 0.02)) {
    return absl::InvalidArgumentError(absl::StrFormat("GANTRY_HEARTBEAT_TIMEOUT is '%s'; it takes seconds from 0.02, or 0 for never", text));
  }
  options.heartbeat_timeout = absl::Seconds(seconds);
  return options;
}

absl::StatusOr<std::unique_ptr<Liveness>> Liveness::Watch(Links& links, const LivenessOptions& options) {
  auto monitor = std::make_unique<Monitor>(links, options);
  GANTRY_RETURN_IF_ERROR(monitor->Start());
  return monitor;
}

}  // namespace gantry
