#include "runtime/plan/lending.h"

#include <algorithm>
#include <charconv>
#include <tuple>

#include "absl/strings/str_join.h"

namespace gantry {
namespace {

constexpr int64_t kShareBytes = 4096;     // shares are multiples of it
constexpr int64_t kAlignmentBytes = 64;   // of loans behind each other
constexpr TierKind kLentKinds[] = {TierKind::kPeer, TierKind::kRemoteHost};

int64_t Aligned(int64_t bytes) { return (bytes + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes; }

bool IsOpen(const TierOptions& tier) { return IsLent(tier.kind) && tier.lender < 0; }

bool HasHost(const PlanOptions& options) {
  return std::any_of(options.tiers.begin(), options.tiers.end(), [](const TierOptions& tier) { return tier.kind == TierKind::kHost; });
}

PlanOptions OptionsAlone(const PlanOptions& options) {
  PlanOptions alone = options;
  std::erase_if(alone.tiers, IsOpen);
  return alone;
}

// "1,048,576 bytes of the device of rank 1".
std::string Describe(const Loan& loan) {
  const std::string bytes = loan.bytes > INT64_MAX / 2 ? std::string("any number of") : absl::StrCat(loan.bytes);
  return absl::StrFormat("%s bytes of the %s of rank %d", bytes, LenderMemory(loan.kind), loan.lender);
}

void Match(std::span<const RankOffer> offers, TierKind kind, std::vector<Loan>& loans) {
  const int ranks = static_cast<int>(offers.size());
  const auto SpareOf = [&](int rank) { return kind == TierKind::kPeer ? offers[rank].device_bytes : offers[rank].host_bytes; };
  const size_t first = loans.size();
  std::vector<int> borrowers(offers.size(), 0);  // per lender
  for (int borrower = 0; borrower < ranks; ++borrower) {
    if (!offers[borrower].borrows) continue;
    std::vector<std::tuple<bool, int, int>> lenders;  // on another node, distance, rank
    for (int distance = 1; distance < ranks; ++distance) {
      const int lender = (borrower + distance) % ranks;
      const bool far = offers[lender].node != offers[borrower].node;
      if (SpareOf(lender) < kShareBytes || (kind == TierKind::kRemoteHost && !far)) continue;
      lenders.emplace_back(far, distance, lender);
    }
    std::sort(lenders.begin(), lenders.end());
    lenders.resize(std::min<size_t>(lenders.size(), kind == TierKind::kPeer ? kMostPeers : kMostRemoteHosts));
    for (const auto& [far, distance, lender] : lenders) {
      loans.push_back({.lender = lender, .borrower = borrower, .kind = kind, .far = far});
      ++borrowers[lender];
    }
  }
  for (size_t i = first; i < loans.size(); ++i) {
    loans[i].bytes = SpareOf(loans[i].lender) / borrowers[loans[i].lender] / kShareBytes * kShareBytes;
  }
}

std::string NumbersText(std::span<const int64_t> numbers) { return absl::StrJoin(numbers, " "); }

absl::StatusOr<std::vector<int64_t>> NumbersFromText(std::string_view text) {
  std::vector<int64_t> numbers;
  for (const char *at = text.data(), *const end = at + text.size(); at != end;) {
    const auto [next, error] = std::from_chars(at, end, numbers.emplace_back());
    if (error != std::errc() || (next != end && *next != ' ')) return absl::DataLossError("what a rank says about its memory cannot be read");
    at = next == end ? end : next + 1;
  }
  return numbers;
}

constexpr size_t kLoanNumbers = 5;

void Append(std::vector<int64_t>& numbers, const Loan& loan) {
  numbers.insert(numbers.end(), {loan.lender, loan.borrower, static_cast<int64_t>(loan.kind), loan.bytes, loan.offset});
}

absl::Status CheckLoan(const Loan& loan, std::span<const LoanTrace> ranks) {
  const auto Wrong = [&](std::string_view what) {
    return absl::InternalError(absl::StrFormat("rank %d borrows %s at offset %d: %s", loan.borrower, Describe(loan), loan.offset, what));
  };
  const int count = static_cast<int>(ranks.size());
  if (loan.lender < 0 || loan.lender >= count || loan.borrower < 0 || loan.borrower >= count || loan.lender == loan.borrower) {
    return Wrong("the job has no such two ranks");
  }
  if (!IsLent(loan.kind) || loan.bytes <= 0 || loan.offset < 0 || loan.bytes > INT64_MAX - loan.offset) return Wrong("it has no such place");
  const LoanTrace& lender = ranks[loan.lender];
  if (loan.kind == TierKind::kPeer && loan.offset < lender.arena_bytes) {
    return Wrong(absl::StrFormat("that is in the lender's arena of %d bytes", lender.arena_bytes));
  }
  if (loan.kind == TierKind::kPeer && lender.budget_bytes > 0 && loan.offset + loan.bytes > lender.budget_bytes) {
    return Wrong(absl::StrFormat("the lender's budget is %d bytes", lender.budget_bytes));
  }
  return absl::OkStatus();
}

}  // namespace

bool MayBorrow(const PlanOptions& options) {
  return std::any_of(options.tiers.begin(), options.tiers.end(), [](const TierOptions& tier) { return IsLent(tier.kind); });
}

absl::Status RequireOneRank(const PlanOptions& options) {
  if (!options.rank_memory.empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("memory.device has budgets of %d ranks, this is a plan of one: give one budget, or plan for --ranks %d",
                        options.rank_memory.size(), options.rank_memory.size()));
  }
  const auto open = std::find_if(options.tiers.begin(), options.tiers.end(), IsOpen);
  if (open == options.tiers.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "memory.offload has \"%s\", the memory of other ranks, and there is one rank: start several (--ranks), or let values wait in \"host\"",
      open->name));
}

absl::StatusOr<Plan> PlanAlone(const Program& program, const PlanOptions& options) {
  PlanOptions alone = OptionsAlone(options);
  alone.advise = options.advise && !MayBorrow(options);
  return MakePlan(program, alone);
}

absl::StatusOr<RankOffer> OfferOf(const absl::StatusOr<Plan>& alone, const PlanOptions& options, int node) {
  if (!alone.ok() && !absl::IsResourceExhausted(alone.status())) return alone.status();
  RankOffer offer{.node = node, .borrows = !alone.ok() || alone->residency.used};
  if (!offer.borrows && alone->residency.budget_bytes > 0) offer.device_bytes = alone->residency.budget_bytes - Aligned(alone->arena_bytes);
  offer.device_bytes = std::max<int64_t>(0, offer.device_bytes);
  for (const TierOptions& tier : options.tiers) {
    if (tier.kind == TierKind::kRemoteHost) offer.host_bytes = tier.budget_bytes;
  }
  // What its own values may take of a limited host it does not lend.
  if (offer.host_bytes == INT64_MAX || !HasHost(options)) return offer;
  if (!alone.ok()) {
    offer.host_bytes = 0;
    return offer;
  }
  for (const PlannedTier& tier : alone->tiers) {
    if (tier.options.kind == TierKind::kHost) offer.host_bytes = std::max<int64_t>(0, offer.host_bytes - Aligned(tier.bytes));
  }
  return offer;
}

std::vector<Loan> MatchLoans(std::span<const RankOffer> offers, const PlanOptions& options) {
  std::vector<Loan> loans;
  for (const TierOptions& tier : options.tiers) {
    if (IsOpen(tier)) Match(offers, tier.kind, loans);
  }
  return loans;
}

absl::StatusOr<Plan> PlanWithLoans(const Program& program, const PlanOptions& options, int rank, std::span<const Loan> loans,
                                   absl::StatusOr<Plan> alone) {
  if (alone.ok() && !alone->residency.used) return alone;
  GANTRY_ASSIGN_OR_RETURN(const RankOffer mine, OfferOf(alone, options, 0));
  PlanOptions borrowing = options;
  borrowing.tiers.clear();
  std::vector<std::string> offered;
  for (const TierOptions& tier : options.tiers) {
    if (!IsOpen(tier)) borrowing.tiers.push_back(tier);
    // What others may have borrowed of it.
    if (tier.kind == TierKind::kHost && tier.budget_bytes != INT64_MAX) borrowing.tiers.back().budget_bytes -= mine.host_bytes;
    for (const Loan& loan : loans) {
      if (!IsOpen(tier) || loan.kind != tier.kind || loan.borrower != rank || loan.bytes == 0) continue;
      TierOptions& lent = borrowing.tiers.emplace_back(tier);
      lent.name = absl::StrCat(tier.name, "-", loan.lender);
      lent.lender = loan.lender;
      lent.far = loan.far;
      lent.budget_bytes = loan.bytes;
      offered.push_back(Describe(loan));
    }
  }
  if (offered.empty() && alone.ok()) return alone;
  absl::StatusOr<Plan> plan = MakePlan(program, borrowing);
  if (plan.ok()) return !alone.ok() || plan->residency.seconds < alone->residency.seconds ? std::move(plan) : std::move(alone);
  if (alone.ok()) return alone;
  if (!absl::IsResourceExhausted(plan.status())) return plan;
  return absl::Status(plan.status().code(),
                      absl::StrCat(plan.status().message(), "\nOther ranks lend it ",
                                   offered.empty() ? "nothing: ranks that fit a budget of theirs lend what is left of it, and ranks of other "
                                                     "nodes host memory (--offload peer, remote)"
                                                   : absl::StrJoin(offered, ", ")));
}

LoanTrace LoansOf(const Plan& plan, int rank) {
  LoanTrace trace{.arena_bytes = plan.arena_bytes, .budget_bytes = plan.residency.budget_bytes};
  for (const PlannedLoan& loan : plan.loans) {
    trace.lent.push_back({.lender = rank, .borrower = loan.borrower, .kind = loan.kind, .bytes = loan.bytes, .offset = loan.offset});
  }
  for (const PlannedTier& tier : plan.tiers) {
    if (!IsLent(tier.options.kind) || tier.bytes == 0) continue;
    trace.borrowed.push_back(
        {.lender = tier.options.lender, .borrower = rank, .kind = tier.options.kind, .bytes = tier.bytes, .offset = tier.lender_offset});
  }
  return trace;
}

void Settle(std::span<const LoanTrace> ranks, int rank, Plan& plan) {
  plan.loans.clear();
  for (const TierKind kind : kLentKinds) {
    std::vector<int64_t> end(ranks.size(), 0);  // of what each has lent
    if (kind == TierKind::kPeer) {
      for (size_t lender = 0; lender < ranks.size(); ++lender) end[lender] = ranks[lender].arena_bytes;
    }
    for (const LoanTrace& borrower : ranks) {
      for (const Loan& loan : borrower.borrowed) {
        if (loan.kind != kind) continue;
        int64_t& at = end[static_cast<size_t>(loan.lender)];
        const int64_t offset = Aligned(at);
        at = offset + loan.bytes;
        if (loan.lender == rank) plan.loans.push_back({.borrower = loan.borrower, .kind = kind, .offset = offset, .bytes = loan.bytes});
        for (PlannedTier& tier : plan.tiers) {
          if (loan.borrower == rank && tier.options.kind == kind && tier.options.lender == loan.lender) tier.lender_offset = offset;
        }
      }
    }
  }
}

absl::Status VerifyLoans(std::span<const LoanTrace> ranks) {
  std::vector<Loan> lent, borrowed;
  for (const LoanTrace& rank : ranks) {
    lent.insert(lent.end(), rank.lent.begin(), rank.lent.end());
    borrowed.insert(borrowed.end(), rank.borrowed.begin(), rank.borrowed.end());
  }
  for (const Loan& loan : borrowed) {
    GANTRY_RETURN_IF_ERROR(CheckLoan(loan, ranks));
    const auto times = std::count(ranks[loan.lender].lent.begin(), ranks[loan.lender].lent.end(), loan);
    if (times != 1) {
      return absl::InternalError(absl::StrFormat("rank %d borrows %s at offset %d, which that rank lends it %d times", loan.borrower,
                                                 Describe(loan), loan.offset, times));
    }
  }
  if (lent.size() != borrowed.size()) {
    return absl::InternalError(absl::StrFormat("ranks lend %d stretches of memory, and borrow %d", lent.size(), borrowed.size()));
  }
  std::sort(borrowed.begin(), borrowed.end(), [](const Loan& a, const Loan& b) {
    return std::tie(a.lender, a.kind, a.offset) < std::tie(b.lender, b.kind, b.offset);
  });
  for (size_t i = 1; i < borrowed.size(); ++i) {
    const Loan &a = borrowed[i - 1], &b = borrowed[i];
    if (a.lender != b.lender || a.kind != b.kind || a.offset + a.bytes <= b.offset) continue;
    return absl::InternalError(absl::StrFormat("ranks %d and %d both borrow bytes of rank %d from offset %d on", a.borrower, b.borrower,
                                               a.lender, b.offset));
  }
  return absl::OkStatus();
}

std::string ToText(const RankOffer& offer) {
  const int64_t numbers[] = {offer.node, offer.borrows ? 1 : 0, offer.device_bytes, offer.host_bytes};
  return NumbersText(numbers);
}

absl::StatusOr<RankOffer> OfferFromText(std::string_view text) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> numbers, NumbersFromText(text));
  if (numbers.size() != 4) return absl::DataLossError("what a rank has to lend cannot be read");
  return RankOffer{.node = static_cast<int>(numbers[0]), .borrows = numbers[1] != 0, .device_bytes = numbers[2], .host_bytes = numbers[3]};
}

std::string ToText(const LoanTrace& trace) {
  std::vector<int64_t> numbers = {trace.arena_bytes, trace.budget_bytes, std::ssize(trace.lent)};
  for (const std::vector<Loan>* loans : {&trace.lent, &trace.borrowed}) {
    for (const Loan& loan : *loans) Append(numbers, loan);
  }
  return NumbersText(numbers);
}

absl::StatusOr<LoanTrace> LoansFromText(std::string_view text) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> numbers, NumbersFromText(text));
  const auto Damaged = [] { return absl::DataLossError("what a rank lends and borrows cannot be read"); };
  if (numbers.size() < 3 || (numbers.size() - 3) % kLoanNumbers != 0) return Damaged();
  LoanTrace trace{.arena_bytes = numbers[0], .budget_bytes = numbers[1]};
  for (size_t at = 3; at < numbers.size(); at += kLoanNumbers) {
    const int64_t kind = numbers[at + 2];
    if (kind < 0 || kind > static_cast<int64_t>(TierKind::kRemoteHost) || numbers[at] < 0 || numbers[at] > INT32_MAX) return Damaged();
    const Loan loan{.lender = static_cast<int>(numbers[at]), .borrower = static_cast<int>(numbers[at + 1]), .kind = static_cast<TierKind>(kind),
                    .bytes = numbers[at + 3], .offset = numbers[at + 4]};
    (std::ssize(trace.lent) < numbers[2] ? trace.lent : trace.borrowed).push_back(loan);
  }
  return trace;
}

std::string_view LenderMemory(TierKind kind) { return kind == TierKind::kPeer ? "device" : "host"; }

std::string Describe(const PlannedLoan& loan) {
  return absl::StrFormat("lends rank %-3d %d bytes of its %s", loan.borrower, loan.bytes, LenderMemory(loan.kind));
}

}  // namespace gantry
