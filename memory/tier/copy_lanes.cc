#include "memory/tier/copy_lanes.h"

#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "memory/crc32.h"

namespace gantry {
namespace {

using Clock = std::chrono::steady_clock;
using Nanoseconds = std::chrono::nanoseconds;

constexpr int kMaxPending = 1 << 24;
constexpr int64_t kMaxEncodedChunks = int64_t{1} << 32;
constexpr uint64_t kChecksumSet = uint64_t{1} << 32;
// Throttled and checksummed copies go in pieces of this: the throttle spreads them over the copy's time, as a link
// does.
constexpr int64_t kPieceBytes = 1 << 20;
// A copy that ends within this is waited for without going to sleep.
constexpr Nanoseconds kSpin = std::chrono::microseconds(20);

Nanoseconds FromSeconds(double seconds) {
  return Nanoseconds(static_cast<int64_t>(std::min(seconds, 1e8) * 1e9));  // 1e8 s: three years, without overflow
}

// splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014), as a number in [0, 1).
double NextUniform(uint64_t& state) {
  uint64_t bits = state += 0x9e3779b97f4a7c15;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111eb;
  bits ^= bits >> 31;
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

absl::Status CheckThrottle(std::string_view tier, std::string_view direction, const Throttle& throttle) {
  for (const double value : {throttle.bytes_per_second, throttle.latency_seconds, throttle.jitter_seconds}) {
    if (std::isfinite(value) && value >= 0) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "copy lanes: the throttle %s of tier %s has %g where a number from 0 on is needed", direction, tier, value));
  }
  return absl::OkStatus();
}

bool Throttled(const Throttle& throttle) {
  return throttle.bytes_per_second > 0 || throttle.latency_seconds > 0 || throttle.jitter_seconds > 0;
}

}  // namespace

// The thread and queue of one tier and direction.
class CopyLanes::Lane {
 public:
  Lane(TierSlab& slab, bool out, const Throttle& throttle, const CopyLanesOptions& options,
       std::span<std::atomic<uint64_t>> checksums, std::span<std::atomic<uint32_t>> chunk_bytes)
      : slab_(slab),
        out_(out),
        throttle_(throttle),
        checksums_(checksums),
        chunk_bytes_(chunk_bytes),
        staging_(chunk_bytes.empty() ? 0 : kEncodedChunkBytes + kEncodedSlackBytes),
        jitter_state_(throttle.seed),
        ring_(static_cast<size_t>(options.max_pending)) {}
  ~Lane() {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    thread_.join();
  }

  absl::Status Run(const std::string& thread_name);
  int64_t Start(const LaneCopy& copy, std::atomic<int64_t>& waited_ns);
  absl::Status Wait(int64_t count, std::atomic<int64_t>& waited_ns);
  int64_t started() const {
    const std::lock_guard lock(mutex_);
    return started_;
  }
  // Keeps the sum of what a copy out took; compares that of what a copy in brought.
  absl::Status CheckSums(const LaneCopy& copy, uint32_t sum);
  int64_t bytes_moved() const { return bytes_moved_.load(std::memory_order_relaxed); }
  double busy_seconds() const { return 1e-9 * static_cast<double>(busy_ns_.load(std::memory_order_relaxed)); }

 private:
  struct Queued {
    LaneCopy copy;
    Clock::time_point at;
  };

  void Loop();
  absl::Status Copy(const Queued& queued);
  absl::Status CheckCopy(const LaneCopy& copy) const;
  // Moves the piece at `position` of the copy's device bytes: what the tier got or gave, which is in staging_ where it is encoded.
  absl::StatusOr<std::span<const std::byte>> MovePiece(const LaneCopy& copy, int64_t position, int64_t piece_bytes);
  // Sleeps until then; false where the lane is to stop.
  bool SleepUntil(Clock::time_point time);
  absl::Status FirstError() const {
    if (!failed_.load(std::memory_order_acquire)) return absl::OkStatus();
    const std::lock_guard lock(mutex_);
    return error_;
  }

  TierSlab& slab_;
  const bool out_;
  const Throttle throttle_;
  const std::span<std::atomic<uint64_t>> checksums_;
  const std::span<std::atomic<uint32_t>> chunk_bytes_;
  // Of the thread.
  std::vector<std::byte> staging_;  // an encoded chunk
  uint64_t jitter_state_;
  Clock::time_point link_free_at_{};  // when the throttle lets the next copy begin
  Clock::time_point idle_at_{};       // when the last copy ended

  mutable std::mutex mutex_;
  std::condition_variable work_;  // something is queued, or the lane is to stop
  std::condition_variable done_;  // a copy is finished
  std::vector<Queued> ring_;      // copy i (from 0) is at i % size until it is finished; guarded by mutex_
  int64_t started_ = 0;           // guarded by mutex_
  bool stopping_ = false;         // guarded by mutex_
  absl::Status error_;            // guarded by mutex_
  std::atomic<bool> failed_{false};
  std::atomic<int64_t> finished_{0};  // grows under mutex_
  std::atomic<int64_t> bytes_moved_{0}, busy_ns_{0};
  std::thread thread_;
};

absl::Status CopyLanes::Lane::Run(const std::string& thread_name) {
  try {
    thread_ = std::thread([this] { Loop(); });
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "copy lanes: no thread for tier %s: %s; raise the limit of processes", slab_.name(), error.what()));
  }
  pthread_setname_np(thread_.native_handle(), thread_name.substr(0, 15).c_str());
  return absl::OkStatus();
}

int64_t CopyLanes::Lane::Start(const LaneCopy& copy, std::atomic<int64_t>& waited_ns) {
  int64_t started = 0;
  {
    std::unique_lock lock(mutex_);
    const auto has_room = [&] {
      return started_ - finished_.load(std::memory_order_relaxed) < static_cast<int64_t>(ring_.size());
    };
    Clock::time_point now = Clock::now();
    if (!has_room()) {
      done_.wait(lock, has_room);
      const Clock::time_point then = std::exchange(now, Clock::now());
      waited_ns.fetch_add(Nanoseconds(now - then).count(), std::memory_order_relaxed);
    }
    ring_[static_cast<size_t>(started_) % ring_.size()] = {copy, now};
    started = ++started_;
  }
  work_.notify_one();
  return started;
}

absl::Status CopyLanes::Lane::Wait(int64_t count, std::atomic<int64_t>& waited_ns) {
  const auto is_done = [&] { return finished_.load(std::memory_order_acquire) >= count; };
  if (is_done()) return FirstError();
  const Clock::time_point start = Clock::now();
  while (!is_done() && Clock::now() - start < kSpin) {
  }
  if (!is_done()) {
    std::unique_lock lock(mutex_);
    if (count > started_) {
      return absl::InvalidArgumentError(
          absl::StrFormat("copy lanes: wait for %d copies %s tier %s, which has been given %d", count,
                          out_ ? "out to" : "in from", slab_.name(), started_));
    }
    done_.wait(lock, is_done);
  }
  waited_ns.fetch_add(Nanoseconds(Clock::now() - start).count(), std::memory_order_relaxed);
  return FirstError();
}

void CopyLanes::Lane::Loop() {
  prctl(PR_SET_TIMERSLACK, 1000);  // ns; by default a sleep ends up to 50 us late
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [&] { return stopping_ || started_ > finished_.load(std::memory_order_relaxed); });
    if (stopping_) return;
    const int64_t index = finished_.load(std::memory_order_relaxed);
    const Queued queued = ring_[static_cast<size_t>(index) % ring_.size()];
    absl::Status status;
    if (error_.ok()) {
      lock.unlock();
      status = Copy(queued);
      const Clock::time_point start = std::max(queued.at, std::exchange(idle_at_, Clock::now()));
      busy_ns_.fetch_add(Nanoseconds(idle_at_ - start).count(), std::memory_order_relaxed);
      lock.lock();
    }
    if (!status.ok()) {
      error_ = std::move(status);
      failed_.store(true, std::memory_order_release);
    }
    finished_.store(index + 1, std::memory_order_release);
    lock.unlock();  // so that who wakes finds it free
    done_.notify_all();
    lock.lock();
  }
}

absl::Status CopyLanes::Lane::Copy(const Queued& queued) {
  const LaneCopy& copy = queued.copy;
  if (copy.bytes == 0) return absl::OkStatus();
  GANTRY_RETURN_IF_ERROR(CheckCopy(copy));
  const bool throttled = Throttled(throttle_);
  const bool summed = copy.checksum_slot >= 0 && !checksums_.empty();
  // The link's time: from when the copy was queued or the link was done with the one before, whichever is later. What
  // the machine adds (a late wake-up, a slow memcpy) is not the link's and does not make the next copy late too.
  const Clock::time_point first = std::max(queued.at, link_free_at_) + FromSeconds(throttle_.latency_seconds) +
                                  FromSeconds(throttle_.jitter_seconds * NextUniform(jitter_state_));
  const double seconds_per_byte = throttle_.bytes_per_second > 0 ? 1 / throttle_.bytes_per_second : 0;
  // When the link has taken so many bytes of this copy.
  const auto After = [&](int64_t bytes) { return first + FromSeconds(seconds_per_byte * static_cast<double>(bytes)); };

  const int64_t piece_bytes = copy.encoding != CopyEncoding::kNone ? kEncodedChunkBytes
                              : throttled || summed                ? kPieceBytes
                                                                   : copy.bytes;
  uint32_t sum = 0;
  int64_t moved = 0;
  for (int64_t position = 0; position < copy.bytes; position += piece_bytes) {
    if (throttled && position > 0 && !SleepUntil(After(moved))) {
      return absl::CancelledError("copy lanes: destroyed with copies in work");
    }
    GANTRY_ASSIGN_OR_RETURN(const std::span<const std::byte> piece,
                            MovePiece(copy, position, std::min(piece_bytes, copy.bytes - position)));
    moved += static_cast<int64_t>(piece.size());
    if (summed) sum = Crc32(piece, sum);
  }
  if (summed) GANTRY_RETURN_IF_ERROR(CheckSums(copy, sum));
  if (throttled) {
    link_free_at_ = After(moved);
    SleepUntil(link_free_at_);
  }
  bytes_moved_.fetch_add(moved, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::StatusOr<std::span<const std::byte>> CopyLanes::Lane::MovePiece(const LaneCopy& copy, int64_t position,
                                                                      int64_t piece_bytes) {
  const std::span<std::byte> piece(copy.device + position, static_cast<size_t>(piece_bytes));
  if (copy.encoding == CopyEncoding::kNone) {
    const int64_t offset = copy.tier_offset + position;
    GANTRY_RETURN_IF_ERROR(out_ ? slab_.Write(offset, piece) : slab_.Read(offset, piece));
    return piece;
  }
  const int64_t chunk = position / kEncodedChunkBytes;
  const int64_t offset = copy.tier_offset + EncodedTierBytes(copy.encoding, position);
  const std::span<float> floats(reinterpret_cast<float*>(piece.data()), piece.size() / sizeof(float));
  std::atomic<uint32_t>& bytes = chunk_bytes_[static_cast<size_t>(copy.first_chunk + chunk)];
  if (out_) {
    const std::span<std::byte> encoded(staging_.data(), static_cast<size_t>(EncodeChunk(copy.encoding, floats, staging_.data())));
    GANTRY_RETURN_IF_ERROR(slab_.Write(offset, encoded));
    bytes.store(static_cast<uint32_t>(encoded.size()), std::memory_order_relaxed);
    return encoded;
  }
  const std::span<std::byte> encoded(staging_.data(), bytes.load(std::memory_order_relaxed));
  GANTRY_RETURN_IF_ERROR(slab_.Read(offset, encoded));
  if (!DecodeChunk(copy.encoding, encoded.data(), static_cast<int64_t>(encoded.size()), floats)) {
    return absl::DataLossError(absl::StrFormat(
        "tier %s: %d encoded bytes at offset %d came back damaged; the tier's memory or file was overwritten, resume from the "
        "last checkpoint",
        slab_.name(), encoded.size(), offset));
  }
  return encoded;
}

absl::Status CopyLanes::Lane::CheckCopy(const LaneCopy& copy) const {
  const char* const wrong = copy.bytes < 0           ? "of fewer than 0 bytes"
                            : copy.device == nullptr ? "without device memory"
                            : copy.tier_offset < 0   ? "below the slab"
                            : !checksums_.empty() && copy.checksum_slot >= std::ssize(checksums_)
                                ? "with a checksum slot beyond the last"
                            : copy.encoding != CopyEncoding::kNone && copy.bytes % static_cast<int64_t>(sizeof(float)) != 0
                                ? "encoded, but not of whole floats"
                            : copy.encoding != CopyEncoding::kNone &&
                                    (copy.first_chunk < 0 ||
                                     copy.first_chunk + EncodedChunks(copy.bytes) > std::ssize(chunk_bytes_))
                                ? "with encoded chunks beyond the last"
                                : nullptr;
  if (wrong == nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("tier %s: a copy %s, %s (%d bytes at offset %d, slot %d)",
                                                    slab_.name(), out_ ? "out" : "in", wrong, copy.bytes,
                                                    copy.tier_offset, copy.checksum_slot));
}

absl::Status CopyLanes::Lane::CheckSums(const LaneCopy& copy, uint32_t sum) {
  std::atomic<uint64_t>& slot = checksums_[static_cast<size_t>(copy.checksum_slot)];
  if (out_) {
    slot.store(sum | kChecksumSet, std::memory_order_relaxed);
    return absl::OkStatus();
  }
  const uint64_t expected = slot.load(std::memory_order_relaxed);
  if ((expected & kChecksumSet) == 0 || static_cast<uint32_t>(expected) == sum) return absl::OkStatus();
  return absl::DataLossError(absl::StrFormat(
      "tier %s: %d bytes at offset %d came back changed: CRC %08x went out, %08x came in; the tier's memory or "
      "file is damaged or was overwritten, resume from the last checkpoint",
      slab_.name(), copy.bytes, copy.tier_offset, static_cast<uint32_t>(expected), sum));
}

bool CopyLanes::Lane::SleepUntil(Clock::time_point time) {
  if (Clock::now() >= time) return true;
  std::unique_lock lock(mutex_);
  return !work_.wait_until(lock, time, [&] { return stopping_; });
}

CopyLanes::CopyLanes() = default;
CopyLanes::~CopyLanes() = default;

absl::StatusOr<std::unique_ptr<CopyLanes>> CopyLanes::Create(std::vector<TierSlab*> slabs, std::vector<Throttle> out,
                                                             std::vector<Throttle> in, CopyLanesOptions options) {
  if (options.max_pending < 1 || options.max_pending > kMaxPending) {
    return absl::InvalidArgumentError(
        absl::StrFormat("copy lanes: room for %d copies asked for, 1 to %d can be", options.max_pending, kMaxPending));
  }
  if (options.checksum_slots < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("copy lanes: %d checksum slots", options.checksum_slots));
  }
  if (options.encoded_chunks < 0 || options.encoded_chunks > kMaxEncodedChunks) {
    return absl::InvalidArgumentError(absl::StrFormat("copy lanes: %d encoded chunks", options.encoded_chunks));
  }
  for (const std::vector<Throttle>* throttles : {&out, &in}) {
    if (!throttles->empty() && throttles->size() != slabs.size()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("copy lanes: %d throttles for %d slabs", throttles->size(), slabs.size()));
    }
  }
  out.resize(slabs.size());
  in.resize(slabs.size());
  for (size_t tier = 0; tier < slabs.size(); ++tier) {
    if (slabs[tier] == nullptr) return absl::InvalidArgumentError(absl::StrFormat("copy lanes: slab %d is null", tier));
    GANTRY_RETURN_IF_ERROR(CheckThrottle(slabs[tier]->name(), "out", out[tier]));
    GANTRY_RETURN_IF_ERROR(CheckThrottle(slabs[tier]->name(), "in", in[tier]));
  }

  std::unique_ptr<CopyLanes> lanes(new CopyLanes());
  const auto slots = static_cast<size_t>(options.checksum_slots);
  lanes->checksum_slots_ = options.checksum_slots;
  if (slots > 0) lanes->checksums_ = std::make_unique<std::atomic<uint64_t>[]>(slots);
  const auto chunks = static_cast<size_t>(options.encoded_chunks);
  if (chunks > 0) lanes->chunk_bytes_ = std::make_unique<std::atomic<uint32_t>[]>(chunks);
  for (size_t tier = 0; tier < slabs.size(); ++tier) {
    for (const bool outward : {true, false}) {
      auto lane = std::make_unique<Lane>(*slabs[tier], outward, outward ? out[tier] : in[tier], options,
                                         std::span(lanes->checksums_.get(), slots), std::span(lanes->chunk_bytes_.get(), chunks));
      GANTRY_RETURN_IF_ERROR(lane->Run(absl::StrFormat("gantry-%s-%d", outward ? "out" : "in", tier)));
      lanes->lanes_.push_back(std::move(lane));
    }
  }
  return lanes;
}

int64_t CopyLanes::Start(const LaneCopy& copy) {
  const int index = lane(copy.tier, copy.out);
  if (copy.tier < 0 || copy.tier >= lane_count() / 2) return -1;
  return lanes_[index]->Start(copy, waited_ns_);
}

absl::Status CopyLanes::Wait(int lane, int64_t count) {
  if (lane < 0 || lane >= lane_count()) {
    return absl::InvalidArgumentError(absl::StrFormat("copy lanes: no lane %d, there are %d", lane, lane_count()));
  }
  return lanes_[lane]->Wait(count, waited_ns_);
}

absl::Status CopyLanes::Drain() {
  absl::Status status;
  for (const std::unique_ptr<Lane>& lane : lanes_) status.Update(lane->Wait(lane->started(), waited_ns_));
  return status;
}

absl::Status CopyLanes::CheckRead(int tier, int64_t tier_offset, int slot, std::span<const std::byte> content) {
  if (!HasSlot(slot)) return absl::OkStatus();
  const LaneCopy read{.tier = tier, .out = false, .tier_offset = tier_offset, .bytes = std::ssize(content), .checksum_slot = slot};
  return lanes_[lane(tier, false)]->CheckSums(read, Crc32(content));
}

void CopyLanes::NoteWrite(int slot, std::span<const std::byte> content) {
  if (HasSlot(slot)) checksums_[static_cast<size_t>(slot)].store(Crc32(content) | kChecksumSet, std::memory_order_relaxed);
}

void CopyLanes::ForgetChecksum(int slot) {
  if (HasSlot(slot)) checksums_[static_cast<size_t>(slot)].store(0, std::memory_order_relaxed);
}

double CopyLanes::waited_seconds() const {
  return 1e-9 * static_cast<double>(waited_ns_.load(std::memory_order_relaxed));
}
int64_t CopyLanes::bytes_out(int tier) const { return lanes_[lane(tier, true)]->bytes_moved(); }
int64_t CopyLanes::bytes_in(int tier) const { return lanes_[lane(tier, false)]->bytes_moved(); }
double CopyLanes::busy_seconds(int lane) const { return lanes_[lane]->busy_seconds(); }

}  // namespace gantry
