#include "memory/tier/tier.h"

#include <algorithm>
#include <utility>

#include "memory/cpu/backed_memory.h"
#include "memory/tier/file_tier.h"
#include "memory/tier/stream_copy.h"
#include "memory/tier/tier_checks.h"

namespace gantry {
namespace {

class HostSlab final : public TierSlab {
 public:
  HostSlab(std::string name, BackedMemory memory, int64_t bytes)
      : name_(std::move(name)), memory_(std::move(memory)), bytes_(bytes) {}

  int64_t size_bytes() const override { return bytes_; }
  std::byte* data() const override { return memory_.data(); }
  int descriptor() const override { return memory_.descriptor(); }
  absl::Status Write(int64_t offset, std::span<const std::byte> from) override {
    GANTRY_RETURN_IF_ERROR(CheckTierRange(*this, "write", offset, from.size()));
    if (!from.empty()) StreamCopy(memory_.data() + offset, from.data(), from.size());
    return absl::OkStatus();
  }
  absl::Status Read(int64_t offset, std::span<std::byte> to) override {
    GANTRY_RETURN_IF_ERROR(CheckTierRange(*this, "read", offset, to.size()));
    if (!to.empty()) StreamCopyIn(to.data(), memory_.data() + offset, to.size());
    return absl::OkStatus();
  }
  std::string DescribePath() const override { return "memory"; }
  std::string_view name() const override { return name_; }

 private:
  const std::string name_;
  const BackedMemory memory_;
  const int64_t bytes_;
};

}  // namespace

std::string_view Name(TierKind kind) {
  switch (kind) {
    case TierKind::kHost:
      return "host";
    case TierKind::kFile:
      return "file";
    case TierKind::kPeer:
      return "peer";
    case TierKind::kRemoteHost:
      break;
  }
  return "remote";
}

absl::Status CheckTierRange(const TierSlab& slab, std::string_view action, int64_t offset, size_t bytes) {
  if (offset >= 0 && offset <= slab.size_bytes() && bytes <= static_cast<uint64_t>(slab.size_bytes() - offset)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("tier %s: %s of %d bytes at offset %d is outside its slab of %d bytes", slab.name(), action,
                      bytes, offset, slab.size_bytes()));
}

absl::Status CheckTierBudget(const TierOptions& options, int64_t bytes) {
  const int64_t budget = std::max<int64_t>(options.budget_bytes, 0);
  if (bytes <= budget) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrFormat(
      "tier %s: %d bytes asked for, its budget is %d: %d short; give it a larger budget, or let less leave "
      "the device",
      options.name, bytes, budget, bytes - budget));
}

absl::StatusOr<std::unique_ptr<TierSlab>> ReserveTier(const TierOptions& options, int64_t bytes) {
  if (bytes < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("tier %s: cannot reserve %d bytes", options.name, bytes));
  }
  if (options.kind == TierKind::kFile) return ReserveFileTier(options, bytes);
  if (IsLent(options.kind)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "tier %s: its %d bytes are memory of another rank, which only a job of several ranks reaches", options.name, bytes));
  }
  GANTRY_RETURN_IF_ERROR(CheckTierBudget(options, bytes));
  GANTRY_ASSIGN_OR_RETURN(
      BackedMemory memory,
      BackedMemory::Map(absl::StrCat("tier ", options.name), bytes,
                        "the machine has no room for it, let less leave the device or use a file tier"));
  return std::make_unique<HostSlab>(options.name, std::move(memory), bytes);
}

}  // namespace gantry
