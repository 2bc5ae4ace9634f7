// Who lends what to whom, where it lies, and the checker of that.
#include "runtime/plan/lending.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <functional>

#include "runtime/plan/plan_file.h"
#include "tests/support/gan_case.h"

namespace gantry {
namespace {

using testing::HasSubstr;

TierOptions Open(TierKind kind) { return {.name = std::string(Name(kind)), .kind = kind}; }

PlanOptions Offloading(std::vector<TierKind> kinds) {
  PlanOptions options;
  for (const TierKind kind : kinds) options.tiers.push_back(Open(kind));
  return options;
}

std::vector<std::string> Texts(const std::vector<Loan>& loans) {
  std::vector<std::string> texts;
  for (const Loan& loan : loans) texts.push_back(absl::StrFormat("%d->%d %s %d", loan.lender, loan.borrower, Name(loan.kind), loan.bytes));
  return texts;
}

TEST(MatchLoansTest, NearestLendersShareOutEvenly) {
  // Nodes 0 0 0 1 1 1; ranks 0 and 4 lack.
  const std::vector<RankOffer> offers = {{.node = 0, .borrows = true, .host_bytes = 50'000},
                                         {.node = 0, .device_bytes = 100'000, .host_bytes = 60'000},
                                         {.node = 0, .device_bytes = 4095},
                                         {.node = 1, .device_bytes = 9'000, .host_bytes = INT64_MAX},
                                         {.node = 1, .borrows = true, .host_bytes = 70'000},
                                         {.node = 1, .device_bytes = 200'000}};
  EXPECT_THAT(Texts(MatchLoans(offers, Offloading({TierKind::kPeer}))),
              testing::ElementsAre("1->0 peer 49152", "3->0 peer 4096", "5->0 peer 98304", "5->4 peer 98304", "3->4 peer 4096", "1->4 peer 49152"));
  // One remote host each: the next rank of another node that has some.
  EXPECT_THAT(Texts(MatchLoans(offers, Offloading({TierKind::kHost, TierKind::kRemoteHost}))),
              testing::ElementsAre(absl::StrFormat("3->0 remote %d", INT64_MAX / 4096 * 4096), "0->4 remote 49152"));
  EXPECT_TRUE(MatchLoans(offers, Offloading({TierKind::kHost})).empty());
  EXPECT_TRUE(MatchLoans(std::span(offers).subspan(1, 3), Offloading({TierKind::kPeer, TierKind::kRemoteHost})).empty());
}

TEST(MatchLoansTest, OfManyLendersTheNearest) {
  std::vector<RankOffer> offers(8, {.device_bytes = 1 << 20});
  offers[6] = {.borrows = true};
  EXPECT_THAT(Texts(MatchLoans(offers, Offloading({TierKind::kPeer}))),
              testing::ElementsAre("7->6 peer 1048576", "0->6 peer 1048576", "1->6 peer 1048576", "2->6 peer 1048576"));
}

Plan WithBytes(int64_t arena, int64_t budget) {
  Plan plan;
  plan.arena_bytes = arena;
  plan.residency.budget_bytes = budget;
  return plan;
}

PlannedTier Borrowed(TierKind kind, int lender, int64_t bytes) {
  PlannedTier tier{.options = Open(kind), .bytes = bytes};
  tier.options.lender = lender;
  return tier;
}

// Ranks 0 and 2 borrow from rank 1: of its device both, of its host rank 2.
std::deque<Plan> Settled() {
  std::deque<Plan> plans;
  plans.push_back(WithBytes(1000, 1000));
  plans.push_back(WithBytes(5001, 9000));
  plans.push_back(WithBytes(900, 1000));
  plans[0].tiers = {Borrowed(TierKind::kPeer, 1, 100)};
  plans[2].tiers = {Borrowed(TierKind::kPeer, 1, 200), Borrowed(TierKind::kRemoteHost, 1, 300), Borrowed(TierKind::kPeer, 0, 0)};
  std::vector<LoanTrace> taken;
  for (int rank = 0; rank < 3; ++rank) taken.push_back(LoansOf(plans[rank], rank));
  for (int rank = 0; rank < 3; ++rank) Settle(taken, rank, plans[rank]);
  return plans;
}

std::vector<LoanTrace> Traces(const std::deque<Plan>& plans) {
  std::vector<LoanTrace> traces;
  for (int rank = 0; rank < static_cast<int>(plans.size()); ++rank) traces.push_back(LoansOf(plans[rank], rank));
  return traces;
}

TEST(SettleTest, LoansLieBehindTheArena) {
  const std::deque<Plan> plans = Settled();
  EXPECT_EQ(plans[0].tiers[0].lender_offset, 5056);  // the next multiple of 64
  EXPECT_EQ(plans[2].tiers[0].lender_offset, 5184);
  EXPECT_EQ(plans[2].tiers[1].lender_offset, 0);
  EXPECT_EQ(DeviceBytes(plans[1]), 5384);
  EXPECT_EQ(LentHostBytes(plans[1]), 300);
  EXPECT_EQ(DeviceBytes(plans[0]), 1000);
  ASSERT_EQ(plans[1].loans.size(), 3u);
  EXPECT_TRUE(VerifyLoans(Traces(plans)).ok()) << VerifyLoans(Traces(plans));
}

TEST(VerifyLoansTest, FindsWhatDoesNotFitTogether) {
  const std::vector<LoanTrace> right = Traces(Settled());
  const auto Wrong = [&](const std::function<void(std::vector<LoanTrace>&)>& change, std::string_view words) {
    std::vector<LoanTrace> traces = right;
    change(traces);
    const absl::Status status = VerifyLoans(traces);
    EXPECT_TRUE(absl::IsInternal(status)) << words;
    EXPECT_THAT(std::string(Message(status)), HasSubstr(words));
  };
  Wrong([](auto& ranks) { ranks[1].lent.pop_back(); }, "lends it 0 times");
  Wrong([](auto& ranks) { ranks[1].lent.push_back(ranks[1].lent[0]); }, "lends it 2 times");
  Wrong([](auto& ranks) { ranks[0].lent.push_back({.lender = 0, .borrower = 1, .bytes = 64, .offset = 1024}); }, "ranks lend 4 stretches of memory, and borrow 3");
  Wrong([](auto& ranks) { ranks[0].borrowed[0].bytes += 1; }, "rank 0 borrows 101 bytes of the device of rank 1");
  Wrong([](auto& ranks) { ranks[1].arena_bytes = 6000; }, "in the lender's arena of 6000 bytes");
  Wrong([](auto& ranks) { ranks[1].budget_bytes = 5383; }, "the lender's budget is 5383 bytes");
  Wrong([](auto& ranks) { ranks[0].borrowed[0].lender = 7; }, "no such two ranks");
  Wrong([](auto& ranks) { ranks[0].borrowed[0].bytes = ranks[1].lent[0].bytes = 129; }, "ranks 0 and 2 both borrow bytes of rank 1");
}

TEST(LendingTextTest, IsReadBack) {
  const std::vector<LoanTrace> traces = Traces(Settled());
  for (const LoanTrace& trace : traces) {
    const absl::StatusOr<LoanTrace> read = LoansFromText(ToText(trace));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->arena_bytes, trace.arena_bytes);
    EXPECT_EQ(read->budget_bytes, trace.budget_bytes);
    EXPECT_EQ(read->lent, trace.lent);
    EXPECT_EQ(read->borrowed, trace.borrowed);
  }
  const RankOffer offer{.node = 3, .borrows = true, .device_bytes = 17, .host_bytes = INT64_MAX};
  const absl::StatusOr<RankOffer> read = OfferFromText(ToText(offer));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(ToText(*read), ToText(offer));
  for (const char* wrong : {"", "1 2", "1 x 3 4", "1 2 3 99999999999999999999"}) EXPECT_TRUE(absl::IsDataLoss(OfferFromText(wrong).status())) << wrong;
  for (const char* wrong : {"", "1 2", "1 2 0 4", "1 2 0 0 1 9 5 6", "1 2 0 -1 1 2 5 6", "words"}) {
    EXPECT_TRUE(absl::IsDataLoss(LoansFromText(wrong).status())) << wrong;
  }
}

class PlanWithLoansTest : public testing::Test {
 protected:
  PlanWithLoansTest() {
    test::GanCase setup = test::CaseOf("dcgan");
    program_ = *test::StepProgramOf(setup);
    options_ = setup.plan;
    options_.recompute = false;
    const Plan free = *MakePlan(program_, options_);
    footprint_ = free.arena_bytes;
    options_.device_memory.bytes = footprint_ * 3 / 4;
    options_.tiers = {Open(TierKind::kPeer), Open(TierKind::kRemoteHost)};
  }

  Program program_;
  PlanOptions options_;
  int64_t footprint_ = 0;
};

TEST_F(PlanWithLoansTest, WhatDoesNotFitAloneFitsWithWhatIsLent) {
  absl::StatusOr<Plan> alone = PlanAlone(program_, options_);
  ASSERT_TRUE(absl::IsResourceExhausted(alone.status())) << alone.status();
  EXPECT_EQ(Message(alone.status()).find("What would fit"), std::string::npos) << "advice is for when nobody lends";
  const absl::StatusOr<RankOffer> offer = OfferOf(alone, options_, 4);
  ASSERT_TRUE(offer.ok());
  EXPECT_TRUE(offer->borrows);
  EXPECT_EQ(offer->node, 4);
  EXPECT_EQ(offer->device_bytes, 0);
  EXPECT_EQ(offer->host_bytes, INT64_MAX);

  const Loan loans[] = {{.lender = 2, .borrower = 5, .bytes = 1 << 20}, {.lender = 2, .borrower = 1, .bytes = footprint_ / 4096 * 4096}};
  const absl::StatusOr<Plan> plan = PlanWithLoans(program_, options_, 1, loans, std::move(alone));
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->tiers.size(), 1u);
  EXPECT_EQ(plan->tiers[0].options.name, "peer-2");
  EXPECT_EQ(plan->tiers[0].options.lender, 2);
  EXPECT_GT(plan->tiers[0].bytes, 0);
  EXPECT_LE(plan->tiers[0].bytes, loans[1].bytes);
  EXPECT_LE(plan->arena_bytes, options_.device_memory.bytes);

  // The slab is as large as it must be, so that with so much and no more it fits again.
  const Loan exact[] = {{.lender = 2, .borrower = 1, .bytes = plan->tiers[0].bytes}};
  const absl::StatusOr<Plan> again = PlanWithLoans(program_, options_, 1, exact, absl::ResourceExhaustedError(""));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_LE(again->tiers[0].bytes, exact[0].bytes);

  // And its file says whose memory it is.
  const absl::StatusOr<Plan> read = PlanFromJson(PlanToJson(*plan), program_, options_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(PlanToJson(*read), PlanToJson(*plan));
  PlanOptions none = options_;
  none.tiers = {Open(TierKind::kHost)};
  EXPECT_THAT(std::string(Message(PlanFromJson(PlanToJson(*plan), program_, none).status())), HasSubstr("place to offload to: peer-2"));
}

TEST_F(PlanWithLoansTest, TooLittleSaysWhatIsLent) {
  const Loan loans[] = {{.lender = 2, .borrower = 1, .bytes = 8192}};
  options_.advise = false;
  const absl::StatusOr<Plan> little = PlanWithLoans(program_, options_, 1, loans, absl::ResourceExhaustedError(""));
  EXPECT_TRUE(absl::IsResourceExhausted(little.status()));
  EXPECT_THAT(std::string(Message(little.status())), HasSubstr("Other ranks lend it 8192 bytes of the device of rank 2"));
  const absl::StatusOr<Plan> nothing = PlanWithLoans(program_, options_, 3, loans, absl::ResourceExhaustedError(""));
  EXPECT_TRUE(absl::IsResourceExhausted(nothing.status()));
  EXPECT_THAT(std::string(Message(nothing.status())), HasSubstr("Other ranks lend it nothing"));
}

TEST_F(PlanWithLoansTest, WhoFitsLendsWhatIsLeft) {
  options_.device_memory.bytes = 2 * footprint_;
  options_.tiers[1].budget_bytes = 12345;
  absl::StatusOr<Plan> alone = PlanAlone(program_, options_);
  ASSERT_TRUE(alone.ok()) << alone.status();
  const absl::StatusOr<RankOffer> offer = OfferOf(alone, options_, 0);
  ASSERT_TRUE(offer.ok());
  EXPECT_FALSE(offer->borrows);
  EXPECT_EQ(offer->device_bytes, 2 * footprint_ - (alone->arena_bytes + 63) / 64 * 64);
  EXPECT_EQ(offer->host_bytes, 12345);
  const int64_t arena = alone->arena_bytes;
  const absl::StatusOr<Plan> plan = PlanWithLoans(program_, options_, 0, {}, std::move(alone));
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->arena_bytes, arena);
  // Without a budget nobody has said how much there is.
  options_.device_memory = {};
  EXPECT_EQ(OfferOf(PlanAlone(program_, options_), options_, 0)->device_bytes, 0);
}

TEST_F(PlanWithLoansTest, OneRankBorrowsFromNobody) {
  EXPECT_TRUE(absl::IsInvalidArgument(MakePlan(program_, options_).status()));
  EXPECT_THAT(std::string(Message(MakePlan(program_, options_).status())), HasSubstr("there is one rank"));
  options_.tiers.clear();
  options_.rank_memory = {{}, {}};
  EXPECT_THAT(std::string(Message(MakePlan(program_, options_).status())), HasSubstr("budgets of 2 ranks"));
  EXPECT_THAT(std::string(Message(ReserveTier({.name = "peer-1", .kind = TierKind::kPeer, .lender = 1}, 64).status())),
              HasSubstr("memory of another rank"));
}

// A host with a limit holds the rank's own values and those of others: never more than that together.
TEST_F(PlanWithLoansTest, WhatIsLentOfTheHostIsNotUsed) {
  options_.tiers = {test::Host(), Open(TierKind::kRemoteHost)};
  for (TierOptions& tier : options_.tiers) tier.budget_bytes = footprint_;
  absl::StatusOr<Plan> alone = PlanAlone(program_, options_);
  ASSERT_TRUE(alone.ok()) << alone.status();
  const absl::StatusOr<RankOffer> offer = OfferOf(alone, options_, 0);
  ASSERT_TRUE(offer.ok());
  EXPECT_TRUE(offer->borrows);
  EXPECT_EQ(offer->host_bytes, footprint_ - (alone->tiers[0].bytes + 63) / 64 * 64);
  const Loan loans[] = {{.lender = 1, .borrower = 0, .kind = TierKind::kRemoteHost, .bytes = footprint_ / 4096 * 4096}};
  const absl::StatusOr<Plan> plan = PlanWithLoans(program_, options_, 0, loans, std::move(alone));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_LE(plan->tiers[0].bytes + offer->host_bytes, footprint_);
  // Where it does not fit alone it may need all.
  EXPECT_EQ(OfferOf(absl::ResourceExhaustedError(""), options_, 0)->host_bytes, 0);
}

// A tier's slab is laid out; what gaps it has counts into its budget, too.
TEST_F(PlanWithLoansTest, SlabsStayWithinTheirBudgets) {
  options_.tiers = {test::Host()};
  const Plan roomy = *MakePlan(program_, options_);
  for (const int64_t less : {0, 64, 4096, 65536}) {
    options_.tiers[0].budget_bytes = roomy.tiers[0].bytes - less;
    const absl::StatusOr<Plan> plan = MakePlan(program_, options_);
    if (plan.ok()) {
      EXPECT_LE(plan->tiers[0].bytes, options_.tiers[0].budget_bytes);
    } else {
      EXPECT_TRUE(absl::IsResourceExhausted(plan.status())) << plan.status();
    }
  }
}

}  // namespace
}  // namespace gantry
