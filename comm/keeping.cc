#include "comm/keeping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_split.h"

namespace gantry {
namespace {

constexpr uint64_t kMagic = 0x31304b45544e4147;  // "GANTEK01"
constexpr size_t kHeaderBytes = 4096;
constexpr size_t kAlignment = 4096;
constexpr int kMaxRanks = 1 << 20;

size_t AlignedSlot(int64_t bytes) { return (static_cast<size_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment; }

absl::StatusOr<int> Number(std::string_view name, std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("%s has '%s'; it takes numbers from 0 on", name, text));
  }
  return value;
}

}  // namespace

struct Keeping::Header {
  uint64_t magic;
  std::atomic<int64_t> begun, first_step, step, checkpoint_step, resumed_step, from_memory;
  std::atomic<int64_t> slot_bytes;
  // The step that a slot holds whole; -1: none, or it is being written.
  std::atomic<int64_t> slot_step[2];
};

absl::StatusOr<std::vector<Descriptor>> Keeping::Make(int ranks) {
  static_assert(sizeof(Header) <= kHeaderBytes && std::atomic<int64_t>::is_always_lock_free);
  std::vector<Descriptor> pieces;
  for (int rank = 0; rank < ranks; ++rank) {
    pieces.emplace_back(memfd_create("gantry-keeping", MFD_CLOEXEC));
    if (!pieces.back().valid()) return SystemError(errno, "making memory that outlives a rank");
  }
  return pieces;
}

KeptProgress Keeping::ReadProgress(int descriptor) {
  alignas(Header) std::byte bytes[sizeof(Header)] = {};
  if (pread(descriptor, bytes, sizeof(bytes), 0) != static_cast<ssize_t>(sizeof(bytes))) return {};
  const Header& header = *reinterpret_cast<const Header*>(bytes);
  if (header.magic != kMagic) return {};
  return {.begun = header.begun.load() != 0,
          .first_step = header.first_step.load(),
          .step = header.step.load(),
          .checkpoint_step = header.checkpoint_step.load(),
          .resumed_step = header.resumed_step.load(),
          .from_memory = header.from_memory.load() != 0};
}

absl::StatusOr<std::unique_ptr<Keeping>> Keeping::FromEnvironment() {
  const char* const descriptors = std::getenv("GANTRY_KEEPING_FDS");
  const char* const rank = std::getenv("GANTRY_RANK");
  if (descriptors == nullptr || rank == nullptr) return std::unique_ptr<Keeping>();
  std::unique_ptr<Keeping> keeping(new Keeping());
  GANTRY_ASSIGN_OR_RETURN(keeping->rank_, Number("GANTRY_RANK", rank));
  if (const char* restart = std::getenv("GANTRY_RESTART"); restart != nullptr) {
    GANTRY_ASSIGN_OR_RETURN(keeping->restart_, Number("GANTRY_RESTART", restart));
  }
  if (const char* resume = std::getenv("GANTRY_RESUME"); resume != nullptr)
    keeping->resumes_ = std::string_view(resume) == "1";
  for (const absl::string_view text : absl::StrSplit(descriptors, ',')) {
    GANTRY_ASSIGN_OR_RETURN(const int inherited, Number("GANTRY_KEEPING_FDS", {text.data(), text.size()}));
    // A copy, so that it can be opened once more in the same process.
    keeping->pieces_.emplace_back(fcntl(inherited, F_DUPFD_CLOEXEC, 0));
    struct stat facts {};
    if (!keeping->pieces_.back().valid() || fstat(keeping->pieces_.back().get(), &facts) != 0 ||
        !S_ISREG(facts.st_mode)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("GANTRY_KEEPING_FDS names descriptor %d, which is no memory of a launcher", inherited));
    }
    fcntl(inherited, F_SETFD, FD_CLOEXEC);
  }
  if (keeping->rank_ >= keeping->size() || keeping->size() > kMaxRanks) {
    return absl::InvalidArgumentError(
        absl::StrFormat("GANTRY_KEEPING_FDS has %d descriptors, this is rank %d", keeping->size(), keeping->rank_));
  }
  keeping->read_.resize(keeping->size());
  struct stat facts {};
  if (fstat(keeping->pieces_[keeping->rank_].get(), &facts) != 0)
    return SystemError(errno, "asking for the size of kept memory");
  GANTRY_RETURN_IF_ERROR(keeping->MapOwn(std::max<size_t>(kHeaderBytes, static_cast<size_t>(facts.st_size))));
  if (keeping->header_->magic != kMagic) {
    keeping->header_->checkpoint_step = keeping->header_->resumed_step = -1;
    keeping->header_->slot_step[0] = keeping->header_->slot_step[1] = -1;
    keeping->header_->magic = kMagic;
  }
  return keeping;
}

Keeping::~Keeping() {
  if (header_ != nullptr) munmap(header_, own_bytes_);
  for (const Mapping& mapping : read_) {
    if (mapping.data != nullptr) munmap(mapping.data, mapping.bytes);
  }
}

absl::Status Keeping::MapOwn(size_t bytes) {
  const int piece = pieces_[rank_].get();
  struct stat facts {};
  if (fstat(piece, &facts) != 0) return SystemError(errno, "asking for the size of kept memory");
  // Backed now: a page that is missing later would end this process.
  if (static_cast<size_t>(facts.st_size) < bytes) {
    if (const int error = posix_fallocate(piece, 0, static_cast<off_t>(bytes)); error != 0) {
      return absl::ResourceExhaustedError(absl::StrFormat(
          "%d bytes to keep states in memory: %s; keep them less often in files instead", bytes, std::strerror(error)));
    }
  }
  if (header_ != nullptr) munmap(header_, own_bytes_);
  header_ = nullptr;
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, piece, 0);
  if (data == MAP_FAILED) return SystemError(errno, absl::StrFormat("mapping %d bytes of kept memory", bytes));
  header_ = static_cast<Header*>(data);
  own_bytes_ = bytes;
  return absl::OkStatus();
}

KeptProgress Keeping::progress() const { return ReadProgress(pieces_[rank_].get()); }

void Keeping::SetProgress(const KeptProgress& progress) {
  header_->first_step.store(progress.first_step, std::memory_order_relaxed);
  header_->step.store(progress.step, std::memory_order_relaxed);
  header_->checkpoint_step.store(progress.checkpoint_step, std::memory_order_relaxed);
  header_->resumed_step.store(progress.resumed_step, std::memory_order_relaxed);
  header_->from_memory.store(progress.from_memory ? 1 : 0, std::memory_order_relaxed);
  header_->begun.store(progress.begun ? 1 : 0, std::memory_order_release);
}

absl::Status Keeping::Reserve(int64_t bytes) {
  if (header_->slot_bytes.load() == bytes && own_bytes_ >= kHeaderBytes + 2 * AlignedSlot(bytes))
    return absl::OkStatus();
  for (auto& step : header_->slot_step) step.store(-1, std::memory_order_release);
  GANTRY_RETURN_IF_ERROR(MapOwn(kHeaderBytes + 2 * AlignedSlot(bytes)));
  header_->slot_bytes.store(bytes, std::memory_order_release);
  return absl::OkStatus();
}

std::span<std::byte> Keeping::BeginWrite() {
  writing_ = header_->slot_step[0].load() <= header_->slot_step[1].load() ? 0 : 1;
  header_->slot_step[writing_].store(-1, std::memory_order_release);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const auto bytes = static_cast<size_t>(header_->slot_bytes.load());
  return {reinterpret_cast<std::byte*>(header_) + kHeaderBytes +
              static_cast<size_t>(writing_) * AlignedSlot(static_cast<int64_t>(bytes)),
          bytes};
}

void Keeping::Commit(int64_t step) { header_->slot_step[writing_].store(step, std::memory_order_release); }

void Keeping::ForgetAfter(int64_t step) {
  for (auto& kept : header_->slot_step) {
    if (kept.load() > step) kept.store(-1, std::memory_order_release);
  }
}

absl::StatusOr<std::vector<Keeping::Kept>> Keeping::Read(int rank) {
  struct stat facts {};
  const int piece = pieces_[rank].get();
  if (fstat(piece, &facts) != 0)
    return SystemError(errno, absl::StrFormat("asking for the size of what rank %d has kept", rank));
  std::vector<Kept> kept;
  if (static_cast<size_t>(facts.st_size) < kHeaderBytes) return kept;
  Mapping& mapping = read_[rank];
  if (mapping.data == nullptr) {
    void* const data = mmap(nullptr, static_cast<size_t>(facts.st_size), PROT_READ, MAP_SHARED, piece, 0);
    if (data == MAP_FAILED) return SystemError(errno, absl::StrFormat("mapping what rank %d has kept", rank));
    mapping = {static_cast<std::byte*>(data), static_cast<size_t>(facts.st_size)};
  }
  const Header& header = *reinterpret_cast<const Header*>(mapping.data);
  const int64_t bytes = header.slot_bytes.load();
  if (header.magic != kMagic || bytes <= 0 || static_cast<size_t>(bytes) > mapping.bytes ||
      kHeaderBytes + 2 * AlignedSlot(bytes) > mapping.bytes)
    return kept;
  for (int slot = 0; slot < 2; ++slot) {
    const int64_t step = header.slot_step[slot].load(std::memory_order_acquire);
    if (step < 0) continue;
    kept.push_back(
        {step,
         {mapping.data + kHeaderBytes + static_cast<size_t>(slot) * AlignedSlot(bytes), static_cast<size_t>(bytes)}});
  }
  std::sort(kept.begin(), kept.end(), [](const Kept& a, const Kept& b) { return a.step > b.step; });
  return kept;
}

}  // namespace gantry
