#include "comm/shm/shm_node.h"

#include <pthread.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <random>
#include <utility>

#include "comm/channels.h"
#include "memory/cpu/short_slices.h"
#include "memory/fallback.h"

namespace gantry::shm {
namespace {

struct Hello {
  CoreSet cores;
  int64_t process_id;
  uint64_t probe_address;
  uint64_t probe_value;
};

// Of one core's last cache as the kernel has it: the C library counts all of a socket's together.
int64_t HalfOfLastCache() {
  int64_t kibibytes = 0;
  if (std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size"); file >> kibibytes && kibibytes > 0)
    return kibibytes * 512;
  return int64_t{16} << 20;
}

bool CanRead(const Hello& peer) {
  uint64_t value = 0;
  const iovec local = {.iov_base = &value, .iov_len = sizeof(value)};
  const iovec remote = {.iov_base = reinterpret_cast<void*>(peer.probe_address), .iov_len = sizeof(value)};
  const ssize_t got = process_vm_readv(static_cast<pid_t>(peer.process_id), &local, 1, &remote, 1, 0);
  return got == sizeof(value) && value == peer.probe_value;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ShmNode>> ShmNode::Open(Links& links, Liveness& liveness, const Pool& pool,
                                                       const NodeOptions& options, absl::Duration timeout) {
  auto node = std::unique_ptr<ShmNode>(new ShmNode(links, liveness, pool));
  GANTRY_RETURN_IF_ERROR(Annotate(node->Join(options, timeout), "meeting the other ranks of this node"));
  return node;
}

absl::Status ShmNode::Join(const NodeOptions& options, absl::Duration timeout) {
  const int self = links_.rank();
  recorder_ = options.recorder;
  index_.assign(links_.size(), -1);
  process_ids_.assign(links_.size(), 0);
  for (int rank = 0; rank < links_.size(); ++rank) {
    if (rank != self && !links_.SameNode(rank)) continue;
    index_[rank] = static_cast<int>(ranks_.size());
    ranks_.push_back(rank);
  }
  stream_bytes_ = HalfOfLastCache();
  std::random_device random;
  probe_ = static_cast<uint64_t>(random()) << 32 | random();
  Hello mine{.cores = CoreSet::OfThisProcess(),
             .process_id = getpid(),
             .probe_address = reinterpret_cast<uint64_t>(&probe_),
             .probe_value = probe_};
  process_ids_[self] = mine.process_id;

  // The first rank makes the doorbells and sends them along.
  const int64_t bytes = static_cast<int64_t>(ranks_.size() * sizeof(Doorbell));
  const bool first = ranks_.front() == self;
  if (first) {
    GANTRY_ASSIGN_OR_RETURN(region_, SharedRegion::Create("doorbells", bytes));
  }
  const absl::Time deadline = absl::Now() + timeout;
  const auto others = [&](auto&& call) -> absl::Status {
    for (const int rank : ranks_) {
      if (rank != self) GANTRY_RETURN_IF_ERROR(call(rank));
    }
    return absl::OkStatus();
  };
  const int descriptor = region_.descriptor();
  GANTRY_RETURN_IF_ERROR(others([&](int rank) {
    return links_.Send(rank, kNodeChannel, std::as_bytes(std::span(&mine, 1)),
                       first ? std::span(&descriptor, 1) : std::span<const int>());
  }));
  CoreSet cores = mine.cores;
  uint8_t all_read = options.cross_memory ? 1 : 0;
  GANTRY_RETURN_IF_ERROR(others([&](int rank) -> absl::Status {
    GANTRY_ASSIGN_OR_RETURN(LinkMessage message, links_.Receive(rank, kNodeChannel, deadline - absl::Now()));
    const bool brings_bells = rank == ranks_.front();
    Hello hello;
    if (message.bytes.size() != sizeof(hello) || message.descriptors.size() != (brings_bells ? 1u : 0u)) {
      return absl::DataLossError(absl::StrFormat("rank %d introduced itself with %d bytes and %d descriptors", rank,
                                                 message.bytes.size(), message.descriptors.size()));
    }
    std::memcpy(&hello, message.bytes.data(), sizeof(hello));
    process_ids_[rank] = hello.process_id;
    cores.Add(hello.cores);
    if (all_read != 0 && !(links_.peer(rank).visible && CanRead(hello))) all_read = 0;
    if (!brings_bells) return absl::OkStatus();
    GANTRY_ASSIGN_OR_RETURN(
        region_, SharedRegion::Map("doorbells", std::move(message.descriptors.front()), bytes, Access::kReadWrite));
    return absl::OkStatus();
  }));
  // Whether cross-memory calls are used is the same for all.
  GANTRY_RETURN_IF_ERROR(
      others([&](int rank) { return links_.Send(rank, kNodeChannel, std::as_bytes(std::span(&all_read, 1))); }));
  cross_memory_ = all_read != 0;
  GANTRY_RETURN_IF_ERROR(others([&](int rank) -> absl::Status {
    GANTRY_ASSIGN_OR_RETURN(const LinkMessage message, links_.Receive(rank, kNodeChannel, deadline - absl::Now()));
    if (message.bytes.size() != 1 || message.bytes.front() != std::byte{1}) cross_memory_ = false;
    return absl::OkStatus();
  }));
  if (options.cross_memory && !cross_memory_) {
    GANTRY_RETURN_IF_ERROR(NoteFallback(
        {.what = "memory outside the pool",
         .wanted = "reads across processes",
         .got = "copies through the slots",
         .why = "process_vm_readv does not work between all ranks of this node",
         .remedy = "allow it (kernel.yama.ptrace_scope=0, the container's SYS_PTRACE), or do without cross_memory"}));
  }

  core_count_ = cores.count();
  policy_ = WaitPolicy::For(static_cast<int>(ranks_.size()), core_count_);
  bells_ = reinterpret_cast<Doorbell*>(region_.data());
  own_bell_ = &bells_[index_[self]];
  on_loss_ = liveness_.OnLoss([bell = own_bell_](int) { bell->Wake(); });
  return absl::OkStatus();
}

ShmNode::~ShmNode() {
  if (on_loss_ >= 0) liveness_.Forget(on_loss_);
  std::thread lane;
  {
    const std::lock_guard lock(lane_mutex_);
    lane_stops_ = true;
    lane.swap(lane_);
  }
  lane_wake_.notify_all();
  if (lane.joinable()) lane.join();
}

void ShmNode::Add(Mover& mover) {
  const std::unique_lock lock(movers_mutex_);
  movers_.push_back(&mover);
}

void ShmNode::Remove(Mover& mover) {
  const std::unique_lock lock(movers_mutex_);
  std::erase(movers_, &mover);
}

void ShmNode::MoveOthers(const Mover* but) {
  const std::shared_lock lock(movers_mutex_);
  if (movers_.size() == 1 && movers_.front() == but) return;
  // After each step the choice is made anew: an urgent operation that can go on does not wait for a long one.
  constexpr size_t kMost = 256;
  bool waits[kMost] = {};
  const size_t count = std::min(movers_.size(), kMost);
  for (;;) {
    size_t best = count;
    for (size_t i = 0; i < count; ++i) {
      if (waits[i] || movers_[i] == but) continue;
      if (best == count || movers_[i]->priority() > movers_[best]->priority()) best = i;
    }
    if (best == count) return;
    if (movers_[best]->MoveOnce(true) == Mover::Result::kMoved) {
      std::fill(waits, waits + count, false);
    } else {
      waits[best] = true;
    }
  }
}

void ShmNode::GoOn() {
  if (own_bell_->has_dozers()) MoveOthers(nullptr);
  own_bell_->RingSleepers();
}

void ShmNode::BackgroundBegun() {
  if (in_background_.fetch_add(1, std::memory_order_seq_cst) == 0) {
    const std::lock_guard lock(lane_mutex_);
    if (!lane_.joinable() && !lane_stops_) {
      lane_ = std::thread([this] { RunLane(); });
      pthread_setname_np(lane_.native_handle(), "gantry-lane");
    }
    lane_wake_.notify_one();
  }
  own_bell_->Ring();  // it may be asleep within another operation's wait
}

void ShmNode::RunLane() {
  PreferShortSlices();
  for (;;) {
    {
      std::unique_lock lock(lane_mutex_);
      lane_wake_.wait(lock, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane_mutex_) {
        return lane_stops_ || in_background_.load(std::memory_order_seq_cst) > 0;
      });
      if (lane_stops_) return;
    }
    // Never busy: the core belongs to what is computed meanwhile.
    constexpr WaitPolicy kLanePolicy = {.spin = {}, .yields = 0, .dozes = true};
    WaitUntil(
        *own_bell_, kLanePolicy, WaitClock::now() + std::chrono::hours(1),
        [&](bool rested) {
          if (!rested) return in_background_.load(std::memory_order_seq_cst) == 0;
          MoveOthers(nullptr);
          return in_background_.load(std::memory_order_seq_cst) == 0;
        },
        [] { return false; });
  }
}

}  // namespace gantry::shm
