// The flight recorder: what a rank did last, in memory that outlives it. Each rank has a ring of operations in a memfd, which its
// launcher and the ranks of its machine hold as well; after a kill -9 they still can read in which operation it was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/job.h"
#include "comm/links.h"
#include "memory/status.h"

namespace gantry {

enum class RecordedKind : uint32_t {
  kNone, kAllReduce, kReduceScatter, kAllGather, kBroadcast, kReduce, kAllToAll, kHalo, kSendReceive, kBarrier, kPut, kGet, kWaitSignal,
  kSplit, kShrink, kStep, kCheckpoint,
};
std::string_view NameOf(RecordedKind kind);  // "all_reduce"

struct RecordedOperation {
  RecordedKind kind = RecordedKind::kNone;
  std::string_view value = {};  // of what is exchanged; the first 55 bytes are kept
  std::string_view group = {};  // the first 15 bytes are kept
  uint64_t number = 0;          // of this operation within its group: the same on all its ranks
  int64_t bytes = 0;
  int peer = -1;                // who is waited for, where that is known at the start
};

// All calls but Create and Share are lock-free, allocate nothing and take less than 100 ns. Thread-safe.
class Recorder {
 public:
  static constexpr int kEntries = 1024;

  static absl::StatusOr<std::unique_ptr<Recorder>> Create(int rank, int size);
  ~Recorder();

  // The number that Waiting and End take.
  uint64_t Begin(const RecordedOperation& operation) noexcept;
  void Waiting(uint64_t ticket, int peer) noexcept;  // for whom; -1: for nobody any more
  void End(uint64_t ticket, bool ok) noexcept;

  // Gives it to the launcher and to the ranks of this machine, and keeps theirs until this goes or Unshare. Needs no answer from them.
  absl::Status Share(Links& links);
  void Unshare();
  int descriptor() const { return memory_.get(); }

 private:
  struct Header;
  struct Entry;
  friend struct RecorderLayout;
  Recorder() = default;

  Descriptor memory_;
  Header* header_ = nullptr;
  Entry* entries_ = nullptr;
  Links* links_ = nullptr;
  std::mutex mutex_;                   // of others_
  std::vector<Descriptor> others_;     // of the other ranks: open, so that they are found in /proc/PID/fd
};

// What a recorder held when it was read.
struct RecordedEntry {
  uint64_t ticket = 0;
  RecordedKind kind = RecordedKind::kNone;
  std::string value, group;
  uint64_t number = 0;
  int64_t bytes = 0;
  int peer = -1;
  int64_t begin_ns = 0, end_ns = 0;  // CLOCK_MONOTONIC; end 0: still in it
  bool ok = true;
};
struct RecorderImage {
  int rank = 0, size = 0;
  int64_t pid = 0;
  int64_t read_ns = 0;  // CLOCK_MONOTONIC when it was read
  std::vector<RecordedEntry> entries;  // by ticket, the oldest first; one that was being written is left out
};

// kDataLoss where it is no recorder. Trusts nothing in it.
absl::StatusOr<RecorderImage> ReadRecorder(int descriptor);
absl::StatusOr<RecorderImage> ParseRecorder(std::span<const std::byte> bytes, int64_t read_ns);
// Those that process `pid` (a launcher or a rank) holds open, by rank. The same user's, or root's to see.
absl::StatusOr<std::vector<RecorderImage>> FindRecorders(int64_t pid);
// A file with several of them: written with mode 0600 under a new name.
absl::Status WriteRecorders(const std::string& path, std::span<const RecorderImage> images);
absl::StatusOr<std::vector<RecorderImage>> ReadRecorderFile(const std::string& path);
absl::StatusOr<std::vector<RecorderImage>> ParseRecorderFile(std::span<const std::byte> bytes);

// Who keeps the others waiting, in words, the likeliest first: "rank 1 has not come to all_reduce 17 of 'w' in group world, which ranks
// 0, 2 wait in; it was last in barrier 16, which it left 3.20 s ago". Empty where nobody waits.
std::vector<std::string> ExplainWaits(std::span<const RecorderImage> images);
// A line a rank: what it is in, for whom it waits, since when.
std::string FormatRecorders(std::span<const RecorderImage> images);
std::string FormatRecordersJson(std::span<const RecorderImage> images);  // one object

}  // namespace gantry
