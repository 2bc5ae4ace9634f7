// Memory that ranks lend each other: who has some to spare, who borrows it, how much, and where it lies. Numbers in,
// numbers out, so that ranks that have told each other the same numbers come to the same answer, and so does
// `gantry plan`, which asks nobody.
//
//   each rank       PlanAlone: within its own budget, with its own tiers; OfferOf says what is left, or that it lacks
//   from all offers MatchLoans: at most so much of that rank's memory for this one
//   each rank       PlanWithLoans: those that lack plan again with what they may borrow; LoansOf says what they use
//   from all taken  Settle: every loan at exact size, behind the lender's arena
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/plan/plan.h"

namespace gantry {

// What a rank has to spare once it has planned by itself.
struct RankOffer {
  int node = 0;
  // It does not fit, or something leaves its device, or runs again: with what others lend it may fit, or be faster.
  bool borrows = false;
  // What its plan leaves of its budget; 0 where it has none, or borrows.
  int64_t device_bytes = 0;
  // What its plan leaves of its host memory; INT64_MAX: no limit. 0 where nobody is to use the hosts of others.
  int64_t host_bytes = 0;
};

struct Loan {
  int lender = 0, borrower = 0;  // ranks
  TierKind kind = TierKind::kPeer;
  bool far = false;    // the lender is on another node, for the choice; not in what plans say
  int64_t bytes = 0;   // at first the most that it may be
  int64_t offset = 0;  // once settled: as PlannedLoan::offset
  bool operator==(const Loan&) const = default;
};

// A rank borrows from so many others at most: each is a tier with two lanes.
inline constexpr int kMostPeers = 4, kMostRemoteHosts = 1;

// Whether values may wait in memory of other ranks.
bool MayBorrow(const PlanOptions& options);
// kInvalidArgument where the options are for several ranks: budgets for each, or memory of another one without a lender.
absl::Status RequireOneRank(const PlanOptions& options);

// With the rank's own tiers alone. Where others may lend, what does not fit is told without advice.
absl::StatusOr<Plan> PlanAlone(const Program& program, const PlanOptions& options);
// `alone`: what PlanAlone gave; kResourceExhausted means that the rank borrows, other errors are returned.
absl::StatusOr<RankOffer> OfferOf(const absl::StatusOr<Plan>& alone, const PlanOptions& options, int node);

// The most that each may take of each other, by kind in the order of the options' tiers, then by borrower, nearest lender
// first: ranks of the same node before others, then by distance behind the borrower around the ring of ranks. A lender
// shares out what it has evenly. Remote hosts are those of other nodes. Multiples of 4096 bytes.
std::vector<Loan> MatchLoans(std::span<const RankOffer> offers, const PlanOptions& options);

// The plan that `rank` carries out: with a tier "peer-1" for what it may take of rank 1 where it does not fit alone or is
// predicted to be faster so, else `alone`. kResourceExhausted says what was offered.
absl::StatusOr<Plan> PlanWithLoans(const Program& program, const PlanOptions& options, int rank,
                                   std::span<const Loan> loans, absl::StatusOr<Plan> alone);

// What other ranks must know of a plan: the arena, and where its loans lie.
struct LoanTrace {
  int64_t arena_bytes = 0, budget_bytes = 0;  // budget 0: none
  std::vector<Loan> lent, borrowed;
};
LoanTrace LoansOf(const Plan& plan, int rank);

// Gives the plan of `rank` its places, from what all ranks say before: those of its loans, and where it borrows.
void Settle(std::span<const LoanTrace> ranks, int rank, Plan& plan);

// The checker, which knows nothing of the above: what a rank borrows is lent to it by that rank, at that place and size;
// nothing is lent that nobody borrows; loans on a device lie behind its arena and within its budget; no two of them
// overlap. kInternal names the ranks and the bytes.
absl::Status VerifyLoans(std::span<const LoanTrace> ranks);

// As text, to send to others, and back. kDataLoss where it is damaged.
std::string ToText(const RankOffer& offer);
std::string ToText(const LoanTrace& trace);
absl::StatusOr<RankOffer> OfferFromText(std::string_view text);
absl::StatusOr<LoanTrace> LoansFromText(std::string_view text);

// "device" or "host": of the rank that lends.
std::string_view LenderMemory(TierKind kind);
// "lends rank 0      1234 bytes of its device"
std::string Describe(const PlannedLoan& loan);

}  // namespace gantry
