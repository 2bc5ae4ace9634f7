#include "comm/recorder.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "comm/channels.h"
#include "comm/frame.h"

namespace gantry {
namespace {

constexpr uint64_t kMagic = 0x31304352544e4147;  // "GANTRC01"
constexpr int kMaxRank = 1 << 20;

int64_t MonotonicNs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

template <size_t kBytes>
void PutText(char (&to)[kBytes], std::string_view text) {
  const size_t count = std::min(text.size(), kBytes - 1);
  if (count > 0) std::memcpy(to, text.data(), count);  // an empty text may have no address
  to[count] = '\0';
}

// Printable characters up to the zero; what a damaged memory holds must not reach a terminal.
template <size_t kBytes>
std::string GetText(const char (&from)[kBytes]) {
  std::string text(from, strnlen(from, kBytes));
  for (char& letter : text) {
    if (static_cast<unsigned char>(letter) < 0x20 || letter == 0x7f) letter = '?';
  }
  return text;
}

}  // namespace

struct Recorder::Header {
  uint64_t magic;
  uint32_t entry_count, entry_bytes;
  int32_t rank, size;
  int64_t pid;
  alignas(64) std::atomic<uint64_t> next;  // tickets begin with 1
};

// Two cache lines. `ticket` is 0 while the rest is written.
struct alignas(64) Recorder::Entry {
  std::atomic<uint64_t> ticket;
  std::atomic<int64_t> begin_ns, end_ns;
  std::atomic<int32_t> peer;
  std::atomic<uint32_t> kind_and_failed;  // kind, and 2^31 where it failed
  uint64_t number;
  int64_t bytes;
  char group[16];
  char value[56];
  char unused[8];
};

struct RecorderLayout {
  using Header = Recorder::Header;
  using Entry = Recorder::Entry;
  static constexpr size_t kHeaderBytes = 4096;
  static constexpr size_t kBytes = kHeaderBytes + sizeof(Entry) * Recorder::kEntries;
  static_assert(sizeof(Header) <= kHeaderBytes && sizeof(Entry) == 128);
};

std::string_view NameOf(RecordedKind kind) {
  static constexpr std::string_view kNames[] = {"none",       "all_reduce",   "reduce_scatter", "all_gather", "broadcast", "reduce",
                                                "all_to_all", "halo",         "send_receive",   "barrier",    "put",       "get",
                                                "wait_signal", "split",       "shrink",         "step",       "checkpoint"};
  const auto index = static_cast<size_t>(kind);
  return index < std::size(kNames) ? kNames[index] : "unknown";
}

absl::StatusOr<std::unique_ptr<Recorder>> Recorder::Create(int rank, int size) {
  std::unique_ptr<Recorder> recorder(new Recorder);
  recorder->memory_.Reset(memfd_create("gantry-recorder", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  const int memory = recorder->memory_.get();
  if (memory < 0 || ftruncate(memory, RecorderLayout::kBytes) != 0 || fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return SystemError(errno, "making the flight recorder's memory");
  }
  void* start = mmap(nullptr, RecorderLayout::kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memory, 0);
  if (start == MAP_FAILED) return SystemError(errno, "mapping the flight recorder's memory");
  recorder->header_ = static_cast<Header*>(start);
  recorder->entries_ = reinterpret_cast<Entry*>(static_cast<std::byte*>(start) + RecorderLayout::kHeaderBytes);
  recorder->header_->entry_count = kEntries;
  recorder->header_->entry_bytes = sizeof(Entry);
  recorder->header_->rank = rank;
  recorder->header_->size = size;
  recorder->header_->pid = getpid();
  recorder->header_->magic = kMagic;
  return recorder;
}

Recorder::~Recorder() {
  Unshare();
  if (header_ != nullptr) munmap(header_, RecorderLayout::kBytes);
}

uint64_t Recorder::Begin(const RecordedOperation& operation) noexcept {
  const uint64_t ticket = header_->next.fetch_add(1, std::memory_order_relaxed) + 1;
  Entry& entry = entries_[ticket % kEntries];
  entry.ticket.store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  entry.begin_ns.store(MonotonicNs(), std::memory_order_relaxed);
  entry.end_ns.store(0, std::memory_order_relaxed);
  entry.peer.store(operation.peer, std::memory_order_relaxed);
  entry.kind_and_failed.store(static_cast<uint32_t>(operation.kind), std::memory_order_relaxed);
  entry.number = operation.number;
  entry.bytes = operation.bytes;
  PutText(entry.group, operation.group);
  PutText(entry.value, operation.value);
  entry.ticket.store(ticket, std::memory_order_release);
  return ticket;
}

void Recorder::Waiting(uint64_t ticket, int peer) noexcept {
  Entry& entry = entries_[ticket % kEntries];
  if (entry.ticket.load(std::memory_order_relaxed) == ticket) entry.peer.store(peer, std::memory_order_relaxed);
}

void Recorder::End(uint64_t ticket, bool ok) noexcept {
  Entry& entry = entries_[ticket % kEntries];
  if (entry.ticket.load(std::memory_order_relaxed) != ticket) return;  // written over long since
  if (!ok) entry.kind_and_failed.fetch_or(uint32_t{1} << 31, std::memory_order_relaxed);
  entry.end_ns.store(MonotonicNs(), std::memory_order_release);
}

absl::Status Recorder::Share(Links& links) {
  links_ = &links;
  const int descriptor = memory_.get();
  if (const int launcher = links.job().launcher; launcher >= 0) {
    const auto header = EncodeFrameHeader({.channel = kRecorderChannel, .descriptor_count = 1, .bytes = 0});
    GANTRY_RETURN_IF_ERROR(SendSome(launcher, header, {}, std::span(&descriptor, 1)).status());
  }
  links.HandleChannel(kRecorderChannel, [this](int, LinkMessage message) {
    if (message.descriptors.size() != 1) return;
    const std::unique_lock lock(mutex_);
    others_.push_back(std::move(message.descriptors[0]));
  });
  for (int rank = 0; rank < links.size(); ++rank) {
    // One that is lost already needs none.
    if (rank != links.rank() && links.SameNode(rank)) (void)links.Send(rank, kRecorderChannel, {}, std::span(&descriptor, 1));
  }
  return absl::OkStatus();
}

void Recorder::Unshare() {
  if (links_ != nullptr) links_->HandleChannel(kRecorderChannel, nullptr);
  links_ = nullptr;
  const std::unique_lock lock(mutex_);
  others_.clear();
}

absl::StatusOr<RecorderImage> ParseRecorder(std::span<const std::byte> bytes, int64_t read_ns) {
  using Entry = RecorderLayout::Entry;
  const auto copy = [&](size_t at, auto& to) { std::memcpy(static_cast<void*>(&to), bytes.data() + at, sizeof(to)); };
  struct {
    uint64_t magic;
    uint32_t entry_count, entry_bytes;
    int32_t rank, size;
    int64_t pid;
  } header;
  if (bytes.size() != RecorderLayout::kBytes) return absl::DataLossError(absl::StrFormat("a recorder of %d bytes; it should have %d", bytes.size(), RecorderLayout::kBytes));
  copy(0, header);
  if (header.magic != kMagic || header.entry_count != Recorder::kEntries || header.entry_bytes != sizeof(Entry)) {
    return absl::DataLossError("it is no flight recorder of this version");
  }
  if (header.size < 1 || header.size > kMaxRank || header.rank < 0 || header.rank >= header.size) {
    return absl::DataLossError(absl::StrFormat("a recorder of rank %d of %d", header.rank, header.size));
  }
  RecorderImage image{.rank = header.rank, .size = header.size, .pid = header.pid, .read_ns = read_ns};
  for (size_t i = 0; i < Recorder::kEntries; ++i) {
    alignas(Entry) std::byte storage[sizeof(Entry)];
    std::memcpy(storage, bytes.data() + RecorderLayout::kHeaderBytes + i * sizeof(Entry), sizeof(Entry));
    const Entry& entry = *reinterpret_cast<const Entry*>(storage);
    const uint64_t ticket = entry.ticket.load(std::memory_order_relaxed);
    if (ticket == 0 || ticket % Recorder::kEntries != i) continue;
    const uint32_t kind = entry.kind_and_failed.load(std::memory_order_relaxed);
    image.entries.push_back({.ticket = ticket,
                             .kind = static_cast<RecordedKind>(kind & 0x7fffffff),
                             .value = GetText(entry.value),
                             .group = GetText(entry.group),
                             .number = entry.number,
                             .bytes = entry.bytes,
                             .peer = std::clamp(entry.peer.load(std::memory_order_relaxed), -1, header.size - 1),
                             .begin_ns = entry.begin_ns.load(std::memory_order_relaxed),
                             .end_ns = entry.end_ns.load(std::memory_order_relaxed),
                             .ok = (kind >> 31) == 0});
  }
  std::sort(image.entries.begin(), image.entries.end(), [](const RecordedEntry& a, const RecordedEntry& b) { return a.ticket < b.ticket; });
  return image;
}

absl::StatusOr<RecorderImage> ReadRecorder(int descriptor) {
  // A copy by read: the owner may go on writing, and tears only entries that it is in, whose ticket is 0.
  std::vector<std::byte> bytes(RecorderLayout::kBytes + 1);
  const ssize_t count = pread(descriptor, bytes.data(), bytes.size(), 0);
  if (count < 0) return SystemError(errno, "reading a flight recorder");
  return ParseRecorder(std::span(bytes).first(static_cast<size_t>(count)), MonotonicNs());
}

}  // namespace gantry
