// Ranks with unequal budgets that train in each other's memory: the same bits as without budgets, and predicted bytes are the measured
// ones on the ranks that borrow and on those that lend.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <map>

#include "runtime/data/file.h"
#include "runtime/gan/families.h"
#include "runtime/gan/gan_session.h"
#include "runtime/plan/plan_file.h"
#include "runtime/simulate/plan_ranks.h"
#include "tests/support/run_ranks.h"

namespace gantry {
namespace {

using testing::HasSubstr;

constexpr int kSteps = 3;

std::vector<GanRole> RoleOf(std::string name, Model model) {
  std::vector<GanRole> roles;
  roles.push_back({.name = std::move(name), .model = std::move(model)});
  return roles;
}

GanStepConfig StepConfig() { return {.r1 = 1.0, .penalty_every = 2, .ema = 0.9}; }

Family SmallFamily() {
  return *BuildFamily("dcgan", {.image_size = 16, .channels = 3, .width = 8, .latent_size = 8, .batch = 6});
}

struct Outcome {
  std::map<std::string, double> scalars;
  std::map<std::string, std::vector<double>> states;
  int64_t arena_bytes = 0, lent_device_bytes = 0, lent_host_bytes = 0;
  std::map<std::string, int64_t> tiers;  // bytes by name
  std::string plan;                      // as a file
};

PlanOptions OnOneThread(PlanOptions plan) {
  plan.thread_count = 1;
  plan.recompute = false;  // what does not fit has to go somewhere
  plan.advise = false;
  return plan;
}

// Trains, and expects of this rank that what was planned is what was touched.
absl::StatusOr<Outcome> Train(JobRanks& ranks, const PlanOptions& plan, const std::string& plan_file = "") {
  Family family = SmallFamily();
  const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = 1});
  GANTRY_ASSIGN_OR_RETURN(const auto session,
                          GanSession::Create({.step = StepConfig(), .plan = OnOneThread(plan), .seed = 5, .plan_file = plan_file, .ranks = &ranks},
                                             RoleOf("generator", std::move(family.generator)),
                                             RoleOf("discriminator", std::move(family.discriminator)), *device));
  Outcome outcome;
  for (int i = 0; i < kSteps; ++i) {
    std::vector<float> real(session->real_elements() * session->draws_per_step());
    for (size_t e = 0; e < real.size(); ++e) real[e] = static_cast<float>(std::sin(0.31 * static_cast<double>(e) + i));
    GANTRY_RETURN_IF_ERROR(session->Step({.real = real}));
  }
  for (const std::string& name : session->ScalarNames()) outcome.scalars[name] = *session->Scalar(name);
  for (const std::string& name : session->StateNames()) {
    std::vector<double> values(session->StateType(name)->element_count());
    GANTRY_RETURN_IF_ERROR(session->ReadState(name, values));
    outcome.states[name] = std::move(values);
  }
  const Plan& made = session->plan();
  EXPECT_EQ(session->high_water_bytes(), DeviceBytes(made));
  EXPECT_EQ(session->executor().high_water_bytes(), made.arena_bytes);
  EXPECT_EQ(session->lent_host_high_water_bytes(), LentHostBytes(made));
  EXPECT_EQ(device->reserved_bytes(), DeviceBytes(made));
  if (made.residency.budget_bytes > 0) {
    EXPECT_LE(DeviceBytes(made), made.residency.budget_bytes);
  }
  for (size_t tier = 0; tier < made.tiers.size(); ++tier) {
    EXPECT_EQ(session->executor().tier_high_water_bytes(static_cast<int>(tier)), made.tiers[tier].bytes);
    if (made.tiers[tier].bytes > 0) outcome.tiers[made.tiers[tier].options.name] = made.tiers[tier].bytes;
  }
  outcome.plan = PlanToJson(made);
  outcome.arena_bytes = made.arena_bytes;
  outcome.lent_device_bytes = DeviceBytes(made) - made.arena_bytes;
  outcome.lent_host_bytes = LentHostBytes(made);
  return outcome;
}

TierOptions Open(TierKind kind) { return {.name = std::string(Name(kind)), .kind = kind}; }

// `budgets`: of each rank, as a share of what its step takes; 0: none.
PlanOptions Budgets(int64_t footprint, const std::vector<double>& budgets, std::vector<TierKind> kinds) {
  PlanOptions plan;
  for (const double share : budgets) plan.rank_memory.push_back({.bytes = static_cast<int64_t>(share * static_cast<double>(footprint))});
  for (const TierKind kind : kinds) plan.tiers.push_back(Open(kind));
  return plan;
}

// In every rank of a job whose ranks are on these nodes, with what the step takes on a rank without a budget.
void RunJob(const std::vector<int>& node_of, const std::function<void(JobRanks& ranks, const Outcome& free)>& body, RunRanksOptions options = {}) {
  options.node_of = node_of;
  RunRanksUnconnected(
      static_cast<int>(node_of.size()),
      [&](Job job) {
        const absl::StatusOr<std::unique_ptr<JobRanks>> ranks = JobRanks::Join(std::move(job));
        ASSERT_TRUE(ranks.ok()) << ranks.status();
        const absl::StatusOr<Outcome> free = Train(**ranks, {});
        ASSERT_TRUE(free.ok()) << free.status();
        body(**ranks, *free);
      },
      options);
}

void ExpectSameBits(const absl::StatusOr<Outcome>& outcome, const Outcome& free) {
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_TRUE(outcome->scalars == free.scalars);
  EXPECT_TRUE(outcome->states == free.states);
}

TEST(LendingTrainTest, APoorRankFitsThroughItsPeer) {
  RunJob({0, 0}, [](JobRanks& ranks, const Outcome& free) {
    const std::vector<double> shares = {0.8, 3.0};
    // Alone it does not fit, which all hear of.
    const absl::StatusOr<Outcome> alone = Train(ranks, Budgets(free.arena_bytes, shares, {}));
    EXPECT_TRUE(absl::IsResourceExhausted(alone.status())) << alone.status();
    EXPECT_THAT(std::string(Message(alone.status())), HasSubstr("rank 0 of 2: the step does not fit"));
    const absl::StatusOr<Outcome> lent = Train(ranks, Budgets(free.arena_bytes, shares, {TierKind::kPeer}));
    ExpectSameBits(lent, free);
    if (ranks.rank() == 0) {
      EXPECT_GT(lent->tiers.at("peer-1"), 0);
      EXPECT_LE(lent->arena_bytes, static_cast<int64_t>(0.8 * static_cast<double>(free.arena_bytes)));
    } else {
      EXPECT_TRUE(lent->tiers.empty());
      EXPECT_GT(lent->lent_device_bytes, 0);
    }
    // A link as slow as one likes; sums of what comes back.
    PlanOptions slow = Budgets(free.arena_bytes, shares, {TierKind::kPeer});
    slow.tiers[0].out = slow.tiers[0].in = {.bytes_per_second = 50e6, .latency_seconds = 1e-4};
    slow.checksums = true;
    ExpectSameBits(Train(ranks, slow), free);
  });
}

TEST(LendingTrainTest, ThreeRanksOfWhichTwoLack) {
  RunJob({0, 0, 0}, [](JobRanks& ranks, const Outcome& free) {
    const absl::StatusOr<Outcome> lent = Train(ranks, Budgets(free.arena_bytes, {0.8, 3.0, 0.85}, {TierKind::kPeer}));
    ExpectSameBits(lent, free);
    EXPECT_EQ(lent->lent_device_bytes > 0, ranks.rank() == 1);
    EXPECT_EQ(lent->tiers.contains("peer-1"), ranks.rank() != 1);
    // Both have some to lend.
    const absl::StatusOr<Outcome> both = Train(ranks, Budgets(free.arena_bytes, {1.15, 0.8, 1.15}, {TierKind::kPeer}));
    ExpectSameBits(both, free);
    if (ranks.rank() == 1) {
      EXPECT_FALSE(both->tiers.empty());
    }
    // Own host memory beside it.
    ExpectSameBits(Train(ranks, Budgets(free.arena_bytes, {0.8, 1.02, 0.8}, {TierKind::kPeer, TierKind::kHost})), free);
  });
}

TEST(LendingTrainTest, WhatIsTooLittleIsToldToAll) {
  RunJob({0, 0}, [](JobRanks& ranks, const Outcome& free) {
    const absl::StatusOr<Outcome> outcome = Train(ranks, Budgets(free.arena_bytes, {0.8, 1.01}, {TierKind::kPeer}));
    EXPECT_TRUE(absl::IsResourceExhausted(outcome.status())) << outcome.status();
    EXPECT_THAT(std::string(Message(outcome.status())), testing::StartsWith("rank 0 of 2: the step does not fit"));
    EXPECT_THAT(std::string(Message(outcome.status())), HasSubstr("Other ranks lend it"));
    // Two budgets for three ranks, so to speak.
    const absl::StatusOr<Outcome> wrong = Train(ranks, Budgets(free.arena_bytes, {1, 1, 1}, {TierKind::kHost}));
    EXPECT_TRUE(absl::IsInvalidArgument(wrong.status())) << wrong.status();
    EXPECT_THAT(std::string(Message(wrong.status())), HasSubstr("budgets of 3 ranks, the job has 2"));
  });
}

TEST(LendingTrainTest, OtherNodesLendTheirDevicesAndHosts) {
  RunJob({0, 1}, [](JobRanks& ranks, const Outcome& free) {
    ExpectSameBits(Train(ranks, Budgets(free.arena_bytes, {0.8, 3.0}, {TierKind::kPeer})), free);
    // Each lets values wait in the other's host memory.
    const absl::StatusOr<Outcome> remote = Train(ranks, Budgets(free.arena_bytes, {0.8, 0.8}, {TierKind::kRemoteHost}));
    ExpectSameBits(remote, free);
    EXPECT_GT(remote->tiers.at(ranks.rank() == 0 ? "remote-1" : "remote-0"), 0);
    EXPECT_GT(remote->lent_host_bytes, 0);
    EXPECT_EQ(remote->lent_device_bytes, 0);
    // What a rank gives of its host memory is limited.
    PlanOptions little = Budgets(free.arena_bytes, {0.8, 0.8}, {TierKind::kRemoteHost});
    little.tiers[0].budget_bytes = 8192;
    const absl::StatusOr<Outcome> none = Train(ranks, little);
    EXPECT_TRUE(absl::IsResourceExhausted(none.status())) << none.status();
    EXPECT_THAT(std::string(Message(none.status())), HasSubstr("8192 bytes of the host of rank"));
  });
}

TEST(LendingTrainTest, NearestFirst) {
  RunJob({0, 1, 0}, [](JobRanks& ranks, const Outcome& free) {
    const absl::StatusOr<Outcome> lent = Train(ranks, Budgets(free.arena_bytes, {0.85, 3.0, 3.0}, {TierKind::kPeer}));
    ExpectSameBits(lent, free);
    if (ranks.rank() == 0) {
      EXPECT_TRUE(lent->tiers.contains("peer-2")) << "of its node, though rank 1 comes first";
    }
  });
}

TEST(LendingTrainTest, PlansFromFilesAreCarriedOut) {
  RunJob({0, 0}, [](JobRanks& ranks, const Outcome& free) {
    const auto Write = [&](std::string_view name, const Outcome& outcome) {
      const std::string path = absl::StrFormat("%sgantry-lending-%d-%d-%s.json", testing::TempDir(), getpid(), ranks.rank(), name);
      EXPECT_TRUE(WriteFileAtomically(path, std::as_bytes(std::span(outcome.plan.data(), outcome.plan.size()))).ok());
      return path;
    };
    const PlanOptions plan = Budgets(free.arena_bytes, {0.8, 3.0}, {TierKind::kPeer});
    const absl::StatusOr<Outcome> made = Train(ranks, plan), rich = Train(ranks, Budgets(free.arena_bytes, {2.0, 3.0}, {TierKind::kPeer}));
    ASSERT_TRUE(made.ok() && rich.ok());
    const std::string mine = Write("mine", *made), others = Write("rich", *rich);
    const absl::StatusOr<Outcome> again = Train(ranks, plan, mine);
    ExpectSameBits(again, free);
    EXPECT_EQ(again->plan, made->plan);
    // Of a job in which nobody lends: the plans do not fit together, which is found before the first step.
    const absl::StatusOr<Outcome> mixed = Train(ranks, plan, ranks.rank() == 0 ? mine : others);
    EXPECT_TRUE(absl::IsInternal(mixed.status())) << mixed.status();
    EXPECT_THAT(std::string(Message(mixed.status())), HasSubstr("what the ranks lend each other does not fit together"));
    std::filesystem::remove(mine);
    std::filesystem::remove(others);
  });
}

TEST(LendingTrainTest, PlansOfAllRanksAreThose) {
  RunJob({0, 0, 0}, [](JobRanks& ranks, const Outcome& free) {
    // The own host would do, but is slower.
    PlanOptions plan = Budgets(free.arena_bytes, {0.8, 3.0, 1.5}, {TierKind::kPeer, TierKind::kHost});
    plan.tiers[1].out = plan.tiers[1].in = {.bytes_per_second = 50e6, .latency_seconds = 1e-4};
    const absl::StatusOr<Outcome> trained = Train(ranks, plan);
    ExpectSameBits(trained, free);
    EXPECT_EQ(trained->tiers.contains("peer-1"), ranks.rank() == 0);
    Family family = SmallFamily();
    const std::vector<GanRole> generators = RoleOf("generator", std::move(family.generator)),
                               discriminators = RoleOf("discriminator", std::move(family.discriminator));
    const absl::StatusOr<Program> program = BuildGanStep(StepConfig(), generators, discriminators);
    ASSERT_TRUE(program.ok()) << program.status();
    const absl::StatusOr<JobPlan> job = PlanRanks(*program, {}, ranks.size(), OnOneThread(plan));
    ASSERT_TRUE(job.ok()) << job.status();
    const Plan& mine = job->ClassOf(ranks.rank()).plan;
    EXPECT_EQ(mine.arena_bytes, trained->arena_bytes);
    EXPECT_EQ(DeviceBytes(mine) - mine.arena_bytes, trained->lent_device_bytes);
    for (const PlannedTier& tier : mine.tiers) {
      if (tier.bytes > 0) {
        EXPECT_EQ(tier.bytes, trained->tiers.at(tier.options.name));
      }
    }
    EXPECT_THAT(Describe(*job), HasSubstr("lends rank 0"));
    EXPECT_THAT(ToJson(*job), HasSubstr("\"of\":\"device\""));
  });
}

}  // namespace
}  // namespace gantry
