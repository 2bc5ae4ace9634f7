#include "comm/pool_slab.h"

#include <utility>

#include "memory/tier/stream_copy.h"
#include "memory/tier/tier_checks.h"

namespace gantry {

absl::Status PoolSlab::Connect(Fabric& fabric, Liveness& liveness, const GlobalAddress& place) {
  const Pool& pool = fabric.pool();
  if (place.rank != lender_) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tier %s: it is memory of rank %d, not of rank %d", name_, lender_, place.rank));
  }
  GANTRY_RETURN_IF_ERROR(Annotate(pool.Check(place, bytes_), absl::StrCat("tier ", name_)));
  if (!pool.writable(place.rank, place.region)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tier %s: region %d of rank %d is lent to be read", name_, place.region, lender_));
  }
  transport_ = &fabric.transport(lender_);
  liveness_ = &liveness;
  place_ = place;
  std::byte* const region = pool.data(place.rank, place.region);
  mapped_ = region == nullptr ? nullptr : region + place.offset;
  return absl::OkStatus();
}

absl::Status PoolSlab::Check(std::string_view action, int64_t offset, size_t bytes) const {
  GANTRY_RETURN_IF_ERROR(CheckTierRange(*this, action, offset, bytes));
  if (bytes == 0) return absl::OkStatus();
  if (transport_ == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrFormat("tier %s: %s of %d bytes before the ranks are connected", name_, action, bytes));
  }
  // The memory of a rank that has left stays mapped as it was; that of a killed one too, but its job has ended.
  if (!liveness_->lost(lender_) || liveness_->has_left(lender_)) return absl::OkStatus();
  return liveness_->StatusOf(lender_, absl::StrFormat("%s of %d bytes, tier %s", action, bytes, name_));
}

absl::Status PoolSlab::Finish(std::string_view action, Pending pending, size_t bytes) const {
  absl::Status status = pending.Wait();
  if (status.ok()) return status;
  return Annotate(status, absl::StrFormat("tier %s: %s of %d bytes in memory of rank %d", name_, action, bytes, lender_));
}

absl::Status PoolSlab::Write(int64_t offset, std::span<const std::byte> from) {
  GANTRY_RETURN_IF_ERROR(Check("write", offset, from.size()));
  if (from.empty()) return absl::OkStatus();
  if (mapped_ != nullptr) {
    StreamCopy(mapped_ + offset, from.data(), from.size());
    return absl::OkStatus();
  }
  return Finish("write", transport_->Put({place_.rank, place_.region, place_.offset + offset}, from), from.size());
}

absl::Status PoolSlab::Read(int64_t offset, std::span<std::byte> to) {
  GANTRY_RETURN_IF_ERROR(Check("read", offset, to.size()));
  if (to.empty()) return absl::OkStatus();
  if (mapped_ != nullptr) {
    StreamCopyIn(to.data(), mapped_ + offset, to.size());
    return absl::OkStatus();
  }
  return Finish("read", transport_->Get(to, {place_.rank, place_.region, place_.offset + offset}), to.size());
}

std::string PoolSlab::DescribePath() const {
  return absl::StrFormat("memory of rank %d, %s", lender_,
                         transport_ == nullptr ? "not connected" : transport_->DescribePath(lender_));
}

}  // namespace gantry
