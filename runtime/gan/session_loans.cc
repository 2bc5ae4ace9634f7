#include "runtime/gan/session_loans.h"

#include <algorithm>
#include <utility>

namespace gantry {
namespace {

// The regions that a rank shares, in their order.
constexpr int kArenaRegion = 0, kHostRegion = 1;

// For the others to have read what they need; a rank that is lost ends the wait.
constexpr absl::Duration kLeaveTimeout = absl::Seconds(60);

}  // namespace

absl::StatusOr<Plan> SessionLoans::MakePlan(const Program& program, const PlanOptions& options) {
  absl::StatusOr<Plan> alone = PlanAlone(program, options);
  const absl::StatusOr<RankOffer> mine = OfferOf(alone, options, ranks_.links().peer(ranks_.rank()).node);
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::string> told,
                          ranks_.Gather(mine.ok() ? absl::StatusOr<std::string>(ToText(*mine)) : mine.status()));
  std::vector<RankOffer> offers(told.size());
  for (size_t rank = 0; rank < told.size(); ++rank) {
    GANTRY_ASSIGN_OR_RETURN(offers[rank], OfferFromText(told[rank]));
  }
  absl::StatusOr<Plan> plan =
      PlanWithLoans(program, options, ranks_.rank(), MatchLoans(offers, options), std::move(alone));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<LoanTrace> taken,
                          GatherLoans(plan.ok() ? absl::StatusOr<LoanTrace>(LoansOf(*plan, ranks_.rank())) : plan.status()));
  Settle(taken, ranks_.rank(), *plan);
  return plan;
}

absl::StatusOr<std::vector<LoanTrace>> SessionLoans::GatherLoans(const absl::StatusOr<LoanTrace>& mine) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::string> told,
                          ranks_.Gather(mine.ok() ? absl::StatusOr<std::string>(ToText(*mine)) : mine.status()));
  std::vector<LoanTrace> loans;
  for (const std::string& text : told) {
    GANTRY_ASSIGN_OR_RETURN(loans.emplace_back(), LoansFromText(text));
  }
  return loans;
}

absl::StatusOr<std::unique_ptr<TierSlab>> SessionLoans::ReserveTier(const TierOptions& options, int64_t bytes) {
  if (!IsLent(options.kind)) {
    slabs_.push_back(nullptr);
    return gantry::ReserveTier(options, bytes);
  }
  auto slab = std::make_unique<PoolSlab>(options.name, options.lender, bytes);
  slabs_.push_back(slab.get());
  return slab;
}

absl::Status SessionLoans::ReserveHost(const Plan& plan) {
  const int64_t bytes = LentHostBytes(plan);
  if (bytes == 0) return absl::OkStatus();
  GANTRY_ASSIGN_OR_RETURN(host_, gantry::ReserveTier({.name = "lent to other ranks"}, bytes));
  return absl::OkStatus();
}

PoolRegion SessionLoans::HostRegion() const {
  PoolRegion region{.name = "lent host memory"};
  if (host_ == nullptr) return region;
  region.data = host_->data();
  region.bytes = host_->size_bytes();
  region.descriptor = host_->descriptor();
  return region;
}

absl::Status SessionLoans::Connect(Fabric& fabric, const Plan& plan) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<LoanTrace> loans, GatherLoans(LoansOf(plan, ranks_.rank())));
  GANTRY_RETURN_IF_ERROR(Annotate(VerifyLoans(loans), "what the ranks lend each other does not fit together"));
  const Links& links = ranks_.links();
  for (const LoanTrace& rank : loans) {
    for (const Loan& loan : rank.borrowed) far_ = far_ || links.peer(loan.lender).node != links.peer(loan.borrower).node;
  }
  for (size_t tier = 0; tier < slabs_.size(); ++tier) {
    if (slabs_[tier] == nullptr || slabs_[tier]->size_bytes() == 0) continue;
    const PlannedTier& planned = plan.tiers[tier];
    const int region = planned.options.kind == TierKind::kPeer ? kArenaRegion : kHostRegion;
    GANTRY_RETURN_IF_ERROR(
        slabs_[tier]->Connect(fabric, ranks_.liveness(), {planned.options.lender, region, planned.lender_offset}));
  }
  return absl::OkStatus();
}

absl::Status SessionLoans::Measure(const Executor& executor) {
  if (std::exchange(measured_, true)) return absl::OkStatus();
  const std::vector<PlannedTier>& tiers = executor.plan().tiers;
  LoanTrace mine;
  for (size_t tier = 0; tier < tiers.size(); ++tier) {
    if (!IsLent(tiers[tier].options.kind)) continue;
    mine.borrowed.push_back({.lender = tiers[tier].options.lender,
                             .borrower = ranks_.rank(),
                             .kind = tiers[tier].options.kind,
                             .bytes = executor.tier_high_water_bytes(static_cast<int>(tier)),
                             .offset = tiers[tier].lender_offset});
  }
  GANTRY_ASSIGN_OR_RETURN(const std::vector<LoanTrace> all, GatherLoans(mine));
  for (const LoanTrace& rank : all) {
    for (const Loan& loan : rank.borrowed) {
      if (loan.lender != ranks_.rank() || loan.bytes == 0) continue;
      int64_t& mark = high_water_[loan.kind == TierKind::kPeer ? 0 : 1];
      mark = std::max(mark, loan.offset + loan.bytes);
    }
  }
  return absl::OkStatus();
}

void SessionLoans::Leave(Fabric& fabric) const {
  if (far_) static_cast<void>(fabric.world().Barrier(kLeaveTimeout));
}

}  // namespace gantry
