// Whatever is kept, copied away or made again, wherever and in whichever pieces: the bits are those of the step that keeps everything.
// Choices are drawn at random, so that they are unlike those that the planner would make.
//
// GANTRY_TEST_POLICIES  policies a case (default 3)
// GANTRY_TEST_STEPS     steps of training (default 2)
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"
#include "memory/residency/residency_problem.h"
#include "runtime/plan/lay_out.h"
#include "runtime/plan/plan_file.h"
#include "runtime/plan/reside.h"
#include "runtime/plan/split_batch.h"
#include "tests/support/gan_case.h"

namespace gantry {
namespace {

using test::CaseOf;
using test::GanCase;
using test::Outcome;
using test::Train;

int FromEnvironment(const char* name, int fallback) {
  const char* text = std::getenv(name);
  return text == nullptr ? fallback : std::max(1, std::atoi(text));
}

class Dice {
 public:
  explicit Dice(uint64_t seed) : random_(seed) {}
  int Below(int count) { return static_cast<int>(random_() % static_cast<uint64_t>(count)); }
  bool Chance(double probability) { return std::uniform_real_distribution<>()(random_) < probability; }

 private:
  std::mt19937_64 random_;
};

// Every gap by itself; `leave` and `again` are chances. What a state leaves to is where it is between steps.
ResidencyChoice DrawChoice(const ResidencyProblem& problem, int tiers, double leave, double again, Dice& dice) {
  ResidencyChoice choice = KeepAll(problem);
  for (size_t i = 0; i < problem.items.size(); ++i) {
    const ResidencyItem& item = problem.items[i];
    std::vector<int> allowed;
    for (int tier = 0; tier < tiers; ++tier) {
      if ((item.tiers >> tier & 1) != 0 && item.bytes > 0) allowed.push_back(tier);
    }
    std::vector<Residence>& gaps = choice[i];
    const auto Tier = [&] { return InTier(allowed[dice.Below(static_cast<int>(allowed.size()))]); };
    if (item.made_by < 0) {
      if (allowed.empty() || !dice.Chance(leave)) continue;
      const Residence home = Tier();
      for (size_t gap = 0; gap + 1 < gaps.size(); ++gap) gaps[gap] = gap == 0 || dice.Chance(leave) ? home : Residence::kKeep;
      if (item.wraps) gaps.back() = gaps.front() = home;
      continue;
    }
    const bool repeatable = item.changes.empty() && problem.ops[item.made_by].repeatable;
    for (size_t gap = 0; gap + 1 < gaps.size(); ++gap) {
      if (repeatable && dice.Chance(again)) {
        gaps[gap] = Residence::kRecompute;
      } else if (!allowed.empty() && dice.Chance(leave)) {
        gaps[gap] = Tier();
      }
    }
  }
  return choice;
}

// A plan with random choices. What cannot run again, because its inputs have changed, is kept instead.
absl::StatusOr<Plan> DrawPlan(const Program& program, PlanOptions options, Dice& dice) {
  options.rates.copy_bytes_per_second = dice.Chance(0.5) ? 1e8 : 1e11;  // when copies begin
  const int64_t piece_bytes = int64_t{1} << (10 + dice.Below(10));
  Plan base;
  const int batch_parts = kMostBatchParts >> dice.Below(2);
  GANTRY_ASSIGN_OR_RETURN(base.program, PrepareProgram(program, options, piece_bytes, batch_parts));
  GANTRY_RETURN_IF_ERROR(ChooseKernels(base, options));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<TakeOver> taken_over, LayOut(base, options, 0, 1));
  Resider resider(base, taken_over, options);
  const double leave = 0.2 + 0.2 * dice.Below(4);
  ResidencySolution solution;
  for (double again = 0.3;; again = again > 1e-3 ? again / 2 : 0.0) {
    solution.choice = DrawChoice(resider.problem(), static_cast<int>(options.tiers.size()), leave, again, dice);
    solution.schedule = ResidencyScheduler(resider.problem()).Run(solution.choice);
    if (solution.schedule.valid || again == 0.0) break;
  }
  if (!solution.schedule.valid) return absl::InternalError("choices without repeats do not hold");
  GANTRY_ASSIGN_OR_RETURN(ResidentProgram resident, resider.Rewrite(solution));
  Plan plan;
  plan.program = std::move(resident.program);
  for (const TierOptions& tier : options.tiers) plan.tiers.push_back({tier});
  GANTRY_RETURN_IF_ERROR(ChooseKernels(plan, options));
  for (size_t op = 0; op < plan.schedule.size(); ++op) plan.schedule[op].done_by = resident.done_by[op];
  GANTRY_RETURN_IF_ERROR(LayOut(plan, options, 0, 1).status());
  plan.residency = {.used = true, .piece_bytes = piece_bytes, .batch_parts = batch_parts, .footprint_bytes = base.arena_bytes};
  for (const ResidencyAction& action : solution.schedule.actions) {
    plan.residency.stashes += action.kind == ResidencyAction::Kind::kStash;
    plan.residency.fetches += action.kind == ResidencyAction::Kind::kFetch;
    plan.residency.repeats += action.kind == ResidencyAction::Kind::kAgain;
  }
  for (size_t tier = 0; tier < plan.tiers.size(); ++tier) {
    plan.tiers[tier].out_bytes = solution.schedule.out_bytes[tier];
    plan.tiers[tier].in_bytes = solution.schedule.in_bytes[tier];
  }
  plan.origin = {.program = Fingerprint(program),
                 .prepared = Fingerprint(base.program),
                 .machine = MachineText(options),
                 .choice = solution.choice,
                 .actions = solution.schedule.actions};
  return plan;
}

struct NamedCase {
  std::string name;
  GanCase setup;
  bool by_space = false;  // some convolutions are over large images in plain layout
};

std::vector<NamedCase> Cases() {
  std::vector<NamedCase> cases;
  for (const std::string& family : FamilyNames()) {
    for (const int64_t batch : {1, 4, 72}) {  // by rows of weights, on panels, and in parts of the batch
      if (batch == 72 && family == kVideoFamily) continue;  // clips are not on panels
      GanCase setup = CaseOf(family);
      setup.size = 16;
      setup.batch = batch;
      setup.plan.chunk_bytes = 1 << 13;
      std::string name = family + (batch == 1 ? "One" : batch == 4 ? "Four" : "Many");
      std::erase(name, '-');
      cases.push_back({name, setup, family == kVideoFamily});
    }
  }
  for (const std::string family : {"sngan", "r3gan"}) {
    GanCase setup = CaseOf(family);
    setup.width = 8;
    setup.batch = 2;
    setup.plan.chunk_bytes = 1 << 13;
    cases.push_back({family + "Rows", setup, true});
  }
  GanCase lazy = CaseOf("r3gan");
  lazy.size = 16;
  lazy.batch = 2;
  lazy.step.penalty_every = 2;
  lazy.step.accumulate = 2;
  lazy.plan.chunk_bytes = 1 << 13;
  cases.push_back({"LazyPenaltyAccumulated", lazy});
  GanCase clipped = CaseOf("dcgan");
  clipped.size = 16;
  clipped.batch = 1;
  clipped.plan.chunk_bytes = 1 << 13;
  clipped.optimizer = {.kind = OptimizerConfig::Kind::kSgd, .momentum = 0.9, .weight_decay = 0.01, .clip_norm = 1.0};
  cases.push_back({"ClippedSgd", clipped});
  GanCase plain = CaseOf("wgan-gp");
  plain.size = 16;
  plain.width = 8;
  plain.batch = 2;
  plain.step.dtype = DataType::kF64;
  plain.plan.kernels = KernelChoice::kReference;
  plain.plan.chunk_bytes = 1 << 12;
  cases.push_back({"PlainLoops", plain});
  return cases;
}

class RandomPolicyTest : public ::testing::TestWithParam<NamedCase> {};

TEST_P(RandomPolicyTest, GivesTheBitsOfTheUnlimitedStep) {
  const GanCase& setup = GetParam().setup;
  const int steps = FromEnvironment("GANTRY_TEST_STEPS", 2), policies = FromEnvironment("GANTRY_TEST_POLICIES", 3);
  const Outcome unlimited = Train(setup, steps);
  ASSERT_FALSE(unlimited.states.empty());
  const absl::StatusOr<Program> program = test::StepProgramOf(setup);
  ASSERT_TRUE(program.ok()) << program.status();
  int stashes = 0, repeats = 0;
  bool parts = false, bands = false;
  for (int policy = 0; policy < policies; ++policy) {
    Dice dice(1000 * policy + setup.batch);
    GanCase drawn = setup;
    drawn.plan.tiers = {test::Host(), TierOptions{.name = "nvme", .kind = TierKind::kFile, .directory = ::testing::TempDir()}};
    if (policy % 3 == 1) drawn.plan.tiers.pop_back();
    const absl::StatusOr<Plan> plan = DrawPlan(*program, drawn.plan, dice);
    ASSERT_TRUE(plan.ok()) << plan.status();
    stashes += plan->residency.stashes;
    repeats += plan->residency.repeats;
    for (const Op& op : plan->program.ops()) {
      parts = parts || op.definition->name == "put_images";
      bands = bands || op.definition->name == "conv_weight_grad_bands";
    }
    drawn.plan_file = absl::StrCat(::testing::TempDir(), "/gantry_policy_", getpid(), "_", GetParam().name, ".json");
    std::ofstream(drawn.plan_file) << PlanToJson(*plan);
    EXPECT_TRUE(Train(drawn, steps) == unlimited) << "policy " << policy << ", up to " << plan->residency.batch_parts << " parts";
    std::remove(drawn.plan_file.c_str());
  }
  EXPECT_GT(stashes, 10);
  EXPECT_GT(repeats, 0);
  EXPECT_EQ(parts, setup.batch == 72);  // at least one policy has parts
  EXPECT_TRUE(bands || !GetParam().by_space);
}

INSTANTIATE_TEST_SUITE_P(Cases, RandomPolicyTest, ::testing::ValuesIn(Cases()), [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace gantry
