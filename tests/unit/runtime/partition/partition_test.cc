// A partitioned step is the step: every rank's states and losses after some steps are those of one rank, up to the order of sums.
#include "runtime/partition/partition.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "absl/strings/str_join.h"
#include "ops/functional.h"
#include "runtime/gan/families.h"
#include "runtime/gan/gan_step.h"
#include "runtime/graph/rewrite.h"
#include "runtime/partition/exchange_kernels.h"
#include "runtime/partition/parallel.h"
#include "runtime/plan/plan.h"
#include "tests/support/lockstep_runner.h"
#include "tests/support/partition_check.h"

namespace gantry {
namespace {

using test::Elements;
using test::LockstepRunner;

struct Case {
  std::string family = "dcgan";
  GanStepConfig step;
  OptimizerConfig optimizer;
  int64_t size = 16, batch = 6;
  int64_t frames = 0;
};

Program Build(const Case& setup, DataType dtype = DataType::kF64) {
  GanStepConfig step = setup.step;
  step.dtype = dtype;
  absl::StatusOr<Family> family = BuildFamily(
      setup.family, {.image_size = setup.size, .frames = setup.frames, .channels = 3, .width = 8, .latent_size = 8, .batch = setup.batch, .dtype = dtype});
  EXPECT_TRUE(family.ok()) << family.status();
  std::vector<GanRole> generators, discriminators;
  generators.push_back({.name = "generator", .model = std::move(family->generator), .optimizer = setup.optimizer});
  discriminators.push_back({.name = "discriminator", .model = std::move(family->discriminator), .optimizer = setup.optimizer});
  absl::StatusOr<Program> program = BuildGanStep(step, generators, discriminators);
  EXPECT_TRUE(program.ok()) << program.status();
  absl::StatusOr<Program> simple = Simplify(*program);
  EXPECT_TRUE(simple.ok()) << simple.status();
  return *std::move(simple);
}

// Content of an input in a step, and of a state at first: any numbers that depend on the name and the element.
double InputAt(const std::string& name, int64_t element, int step) {
  if (name.ends_with(".learning_rate")) return 0.01;
  if (name.ends_with(".updates")) return step;
  if (name == "penalty") return step % 2 == 0 ? 1.0 : 0.0;
  if (name == "random_state") return element == 0 ? 7.0 : step;
  const double wave = std::sin(0.37 * static_cast<double>(element) + 1.7 * step + static_cast<double>(name.size()));
  return name.starts_with("mix.") ? 0.5 + 0.4 * wave : wave;
}

double StateAt(const std::string& name, const State& state, int64_t element) {
  if (state.role == StateRole::kMoment) return 0.0;
  if (state.role == StateRole::kStatistic) return 1.0;
  std::string plain = name.starts_with("ema.") ? name.substr(4) : name;
  size_t seed = 0;
  for (char c : plain) seed = seed * 31 + static_cast<unsigned char>(c);
  return 0.3 * std::sin(0.71 * static_cast<double>(element) + static_cast<double>(seed % 1000));
}

struct Outcome {
  std::map<std::string, double> scalars;                // of the last step
  std::map<std::string, std::vector<double>> states;    // whole
  bool states_agree = true;                             // what several ranks hold is the same on all
};

Outcome Train(const std::vector<RankProgram>& ranks, int steps) {
  Outcome outcome;
  std::vector<const Program*> programs;
  for (const RankProgram& rank : ranks) programs.push_back(&rank.program);
  absl::StatusOr<LockstepRunner> runner = LockstepRunner::Create(programs);
  EXPECT_TRUE(runner.ok()) << runner.status();
  if (!runner.ok()) return outcome;
  const auto NameOf = [](const State& state) { return state.whole.empty() ? state.name : state.whole; };
  for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
    for (const State& state : programs[r]->states()) {
      std::vector<double> content(programs[r]->TypeOf(state.first).element_count());
      for (size_t e = 0; e < content.size(); ++e) content[e] = StateAt(NameOf(state), state, state.begin + static_cast<int64_t>(e));
      runner->Set(r, state.first, content);
    }
  }
  for (int step = 0; step < steps; ++step) {
    for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
      for (ValueId input : programs[r]->inputs()) {
        const Value& value = programs[r]->values()[input];
        std::vector<int64_t> elements;
        const auto part = std::find_if(ranks[r].input_parts.begin(), ranks[r].input_parts.end(),
                                       [&](const InputPart& candidate) { return candidate.name == value.name; });
        if (part == ranks[r].input_parts.end()) {
          elements = Elements(value.type.shape, std::vector<int64_t>(value.type.shape.rank(), 0), value.type.shape);
        } else {
          elements = Elements(part->whole, part->begins, value.type.shape);
        }
        std::vector<double> content;
        for (int64_t element : elements) content.push_back(InputAt(value.name, element, step));
        runner->Set(r, input, content);
      }
    }
    const absl::Status status = runner->Run();
    EXPECT_TRUE(status.ok()) << status;
    for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
      for (const State& state : programs[r]->states()) runner->Set(r, state.first, runner->Get(r, state.last));
    }
  }
  for (const NamedValue& output : programs[0]->outputs()) {
    if (programs[0]->TypeOf(output.value).element_count() == 1) outcome.scalars[output.name] = runner->Get(0, output.value)[0];
  }
  for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
    for (const State& state : programs[r]->states()) {
      std::vector<double>& whole = outcome.states[NameOf(state)];
      const std::vector<double> content = runner->Get(r, state.last);
      if (state.whole.empty()) {
        if (r > 0) outcome.states_agree = outcome.states_agree && whole == content;
        whole = content;
        continue;
      }
      whole.resize(std::max(whole.size(), state.begin + content.size()), std::nan(""));
      std::copy(content.begin(), content.end(), whole.begin() + state.begin);
    }
  }
  return outcome;
}

std::vector<RankProgram> PartitionAll(const Program& program, const PartitionAxis& axis) {
  std::vector<RankProgram> ranks;
  for (int i = 0; i < static_cast<int>(axis.ranks.size()); ++i) {
    absl::StatusOr<RankProgram> rank = Partition(program, axis, i);
    EXPECT_TRUE(rank.ok()) << rank.status();
    if (!rank.ok()) return {};
    ranks.push_back(*std::move(rank));
  }
  return ranks;
}

void ExpectSame(const Outcome& expected, const Outcome& actual, double tolerance) {
  EXPECT_TRUE(actual.states_agree);
  for (const auto& [name, value] : expected.scalars) {
    ASSERT_TRUE(actual.scalars.contains(name)) << name;
    EXPECT_NEAR(actual.scalars.at(name), value, tolerance * std::max(1.0, std::fabs(value))) << name;
  }
  ASSERT_EQ(expected.states.size(), actual.states.size());
  for (const auto& [name, values] : expected.states) {
    ASSERT_TRUE(actual.states.contains(name)) << name;
    const std::vector<double>& others = actual.states.at(name);
    ASSERT_EQ(values.size(), others.size()) << name;
    double largest = 0.0, error = 0.0;
    for (size_t e = 0; e < values.size(); ++e) {
      largest = std::max(largest, std::fabs(values[e]));
      error = std::max(error, std::isnan(others[e]) ? INFINITY : std::fabs(values[e] - others[e]));
    }
    EXPECT_LE(error, tolerance * std::max(1.0, largest)) << name;
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  cases.push_back({.family = "dcgan", .step = {.r1 = 1.0, .penalty_every = 2, .ema = 0.9}});
  cases.push_back({.family = "wgan-gp", .step = {.loss = GanLoss::kWasserstein, .gradient_penalty = 10.0, .n_critic = 2}});
  cases.push_back({.family = "sngan", .step = {.loss = GanLoss::kHinge, .accumulate = 2}, .optimizer = {.clip_norm = 0.5}});
  cases.push_back({.family = "r3gan", .step = {.loss = GanLoss::kRelativistic, .r1 = 1.0, .r2 = 1.0, .ema = 0.9}, .optimizer = {.kind = OptimizerConfig::Kind::kAdamW, .weight_decay = 0.1}});
  return cases;
}

class PartitionFamilyTest : public testing::TestWithParam<int> {
 protected:
  void Check(const PartitionAxis& axis) {
    const Case setup = Cases()[GetParam()];
    const Program program = Build(setup);
    std::vector<RankProgram> one(1);
    one[0].program = Build(setup);
    const Outcome expected = Train(one, 3);
    const std::vector<RankProgram> ranks = PartitionAll(program, axis);
    ASSERT_EQ(ranks.size(), axis.ranks.size());
    for (const std::string& op : ranks[0].gathered) RecordProperty("gathered_" + op, 1);
    ExpectSame(expected, Train(ranks, 3), 1e-9);
  }

  // Four ranks: 0 and 1 share a part of the batch, and so do 2 and 3.
  void CheckMesh(PartitionAxis second) {
    const Case setup = Cases()[GetParam()];
    const Program program = Build(setup);
    std::vector<RankProgram> one(1);
    one[0].program = Build(setup);
    std::vector<RankProgram> ranks;
    for (int rank = 0; rank < 4; ++rank) {
      const PartitionAxis first{.split = SplitKind::kBatch, .ranks = {rank % 2, rank % 2 + 2}};
      const absl::StatusOr<RankProgram> half = Partition(program, first, rank / 2);
      ASSERT_TRUE(half.ok()) << half.status();
      second.ranks = {rank / 2 * 2, rank / 2 * 2 + 1};
      absl::StatusOr<RankProgram> quarter = Partition(half->program, second, rank % 2, half->input_parts);
      ASSERT_TRUE(quarter.ok()) << quarter.status();
      ranks.push_back(*std::move(quarter));
    }
    ExpectSame(Train(one, 3), Train(ranks, 3), 1e-9);
  }
};

int64_t StateBytes(const Program& program) {
  int64_t bytes = 0;
  for (const State& state : program.states()) bytes += program.TypeOf(state.first).size_bytes();
  return bytes;
}

// What the arena holds at its fullest beside states and what has the shape of one: gradients.
int64_t ActivationBytes(const Program& program, const Plan& plan) {
  std::set<std::vector<int64_t>> of_states;
  for (const State& state : program.states()) of_states.insert(program.TypeOf(state.first).shape.dims());
  // By offset, the steps at which something of a state's shape is made there.
  std::map<int64_t, std::set<int>> gradients;
  for (int step = 0; step < static_cast<int>(plan.schedule.size()); ++step) {
    for (ValueId output : plan.program.ops()[plan.schedule[step].op].outputs) {
      if (of_states.contains(plan.program.TypeOf(output).shape.dims())) gradients[plan.offsets[output]].insert(step);
    }
  }
  std::vector<int64_t> live(plan.schedule.size() + 1, 0);
  for (const PlannedBuffer& buffer : plan.buffers) {
    const std::set<int>& steps = gradients[buffer.offset];
    const auto made = steps.lower_bound(buffer.lower);
    if (buffer.persistent || (made != steps.end() && *made < buffer.upper)) continue;
    for (int step = buffer.lower; step < buffer.upper; ++step) live[step] += buffer.bytes;
  }
  return *std::max_element(live.begin(), live.end());
}

TEST(PartitionTest, StatesAreHeldOnce) {
  const Program program = Build({.step = {.ema = 0.9}});
  for (const RankProgram& rank : PartitionAll(program, {.shard_states = true, .ranks = {0, 1, 2}, .least_elements = 4})) {
    EXPECT_LE(StateBytes(rank.program), StateBytes(program) * 1.02 / 3);
  }
}

// Whatever ops read of other ranks' rows, what a rank keeps is hardly more than its share.
class SpaceMemoryTest : public testing::TestWithParam<std::tuple<const char*, int64_t, int>> {};

TEST_P(SpaceMemoryTest, RanksHoldTheirShare) {
  const auto [family, batch, count] = GetParam();
  const bool clips = std::string_view(family) == kVideoFamily;
  Case setup{.family = family, .size = clips ? 32 : 256, .batch = batch, .frames = clips ? 128 : 0};
  const absl::StatusOr<FamilyDefaults> defaults = DefaultsOf(family);
  ASSERT_TRUE(defaults.ok());
  setup.step = {.loss = defaults->loss, .r1 = defaults->r1, .r2 = defaults->r2, .gradient_penalty = defaults->gradient_penalty};
  PartitionAxis axis{.split = SplitKind::kSpace};
  for (int rank = 0; rank < count; ++rank) axis.ranks.push_back(rank);
  const ExchangeKernels exchanges;
  for (const KernelChoice kernels : {KernelChoice::kReference, KernelChoice::kFast}) {
    // Scratch of fast kernels has weights in another order, which at batch 1 is a good part of so small a network.
    if (kernels == KernelChoice::kFast && batch == 1) continue;
    const Program program = Build(setup, kernels == KernelChoice::kFast ? DataType::kF32 : DataType::kF64);
    const auto PlanOf = [&](const Program& one, bool overlap) {
      absl::StatusOr<Plan> plan = MakePlan(one, {.kernels = kernels, .overlap = overlap, .exchanges = &exchanges});
      EXPECT_TRUE(plan.ok()) << plan.status();
      return plan.ok() ? *std::move(plan) : Plan();
    };
    const auto alone = static_cast<double>(ActivationBytes(program, PlanOf(program, false)));
    const std::vector<RankProgram> ranks = PartitionAll(program, axis);
    std::vector<int64_t> arenas;
    for (const RankProgram& rank : ranks) {
      EXPECT_EQ(absl::StrJoin(rank.gathered, " ").find("resize"), std::string::npos);
      const Plan plan = PlanOf(rank.program, false);
      EXPECT_LE(static_cast<double>(ActivationBytes(rank.program, plan)), 1.15 * alone / count);
      arenas.push_back(plan.arena_bytes);
    }
    // The order that hides exchanges takes more, of everything together.
    EXPECT_LE(static_cast<double>(PlanOf(ranks[1].program, true).arena_bytes), 1.18 * static_cast<double>(arenas[1]));
  }
}

INSTANTIATE_TEST_SUITE_P(Families, SpaceMemoryTest,
                         testing::Combine(testing::Values("dcgan", "wgan-gp", "sngan", "r3gan", "video"), testing::Values(1, 2), testing::Values(2, 3, 4)),
                         [](const auto& instance) {
                           std::string name = std::get<0>(instance.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return absl::StrFormat("%s_batch_%d_over_%d", name, std::get<1>(instance.param), std::get<2>(instance.param));
                         });

// Each weight, moment and average once among the ranks, and nowhere whole: layers work on parts.
TEST(PartitionTest, ChannelsShareOutLayers) {
  for (const Case& setup : Cases()) {
    SCOPED_TRACE(setup.family);
    const Program program = Build(setup);
    std::set<std::vector<int64_t>> weights;
    for (const State& state : program.states()) {
      const Shape& shape = program.TypeOf(state.first).shape;
      if (state.role == StateRole::kParameter && shape.rank() == 4 && shape[0] >= 8) weights.insert(shape.dims());
    }
    for (const RankProgram& rank : PartitionAll(program, {.split = SplitKind::kChannel, .ranks = {0, 1}})) {
      // Spectral norms keep a vector for each side of a weight, whole.
      EXPECT_LE(StateBytes(rank.program), StateBytes(program) * (setup.family == "sngan" ? 1.08 : 1.02) / 2);
    }
    if (setup.family == "r3gan") continue;  // of this width it has layers of fewer groups than ranks: they are gathered
    // A third of one weight does not look like another one.
    for (const RankProgram& rank : PartitionAll(program, {.split = SplitKind::kChannel, .ranks = {0, 1, 2}, .least_channels = 2})) {
      EXPECT_EQ(absl::StrJoin(rank.gathered, " "), "");
      for (const Op& op : rank.program.ops()) {
        if (!op.definition->name.starts_with("conv")) continue;
        const ValueId weight = op.definition->name == "conv_weight_grad" ? op.outputs[0] : op.inputs[1];
        EXPECT_FALSE(weights.contains(rank.program.TypeOf(weight).shape.dims())) << rank.program.TypeOf(weight).ToString();
      }
    }
  }
}

TEST(PartitionTest, GradientsOfSeveralPassesAreReducedOnce) {
  const Program program = Build({});
  const std::vector<RankProgram> ranks = PartitionAll(program, {.ranks = {0, 1}});
  int parameters = 0, reduces = 0;
  for (const State& state : program.states()) parameters += state.role == StateRole::kParameter;
  for (const Op& op : ranks[0].program.ops()) {
    reduces += op.definition->name == "all_reduce" && ranks[0].program.TypeOf(op.outputs[0]).element_count() > 256;
  }
  EXPECT_GT(reduces, 0);
  EXPECT_LE(reduces, parameters);
}

TEST(PartitionTest, AxesThatMakeNoSenseAreRefused) {
  const Program program = Build({});
  EXPECT_EQ(Partition(program, {.ranks = {}}, 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Partition(program, {.ranks = {0, 1}}, 2).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Partition(program, {.ranks = {0, 1}, .shares = {1.0}}, 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Partition(program, {.ranks = {0, 1}, .shares = {1.0, -1.0}}, 0).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(PartitionFamilyTest, BatchOverTwo) { Check({.split = SplitKind::kBatch, .ranks = {0, 1}}); }
TEST_P(PartitionFamilyTest, BatchOverThreeUnequal) { Check({.split = SplitKind::kBatch, .ranks = {0, 1, 2}, .shares = {1.0, 0.5, 2.0}}); }
TEST_P(PartitionFamilyTest, BatchAndShardedStates) {
  Check({.split = SplitKind::kBatch, .shard_states = true, .ranks = {0, 1}, .least_elements = 8});
}
TEST_P(PartitionFamilyTest, ShardedStatesAlone) {
  Check({.split = SplitKind::kNone, .shard_states = true, .ranks = {0, 1, 2}, .least_elements = 8});
}
TEST_P(PartitionFamilyTest, SpaceOverTwo) { Check({.split = SplitKind::kSpace, .ranks = {0, 1}}); }
TEST_P(PartitionFamilyTest, ChannelsOverTwo) { Check({.split = SplitKind::kChannel, .ranks = {0, 1}}); }
TEST_P(PartitionFamilyTest, ChannelsOverThree) { Check({.split = SplitKind::kChannel, .ranks = {0, 1, 2}, .least_channels = 1}); }
TEST_P(PartitionFamilyTest, ChannelsOverThreeUnequal) {
  Check({.split = SplitKind::kChannel, .ranks = {0, 1, 2}, .shares = {1.0, 0.5, 2.0}, .least_channels = 2});
}
TEST_P(PartitionFamilyTest, ChannelsAndShardedStates) {
  Check({.split = SplitKind::kChannel, .shard_states = true, .ranks = {0, 1}, .least_elements = 8});
}
TEST_P(PartitionFamilyTest, SpaceOverThree) { Check({.split = SplitKind::kSpace, .ranks = {0, 1, 2}, .least_rows = 2}); }

// A mesh of two axes: along the first batch, along the second space or states.
TEST_P(PartitionFamilyTest, BatchOverTwoAndSpaceOverTwo) { CheckMesh({.split = SplitKind::kSpace}); }
TEST_P(PartitionFamilyTest, BatchOverTwoAndChannelsOverTwo) { CheckMesh({.split = SplitKind::kChannel}); }
TEST_P(PartitionFamilyTest, BatchOverTwoAndStatesOverTwo) {
  CheckMesh({.split = SplitKind::kNone, .shard_states = true, .least_elements = 8});
}
TEST_P(PartitionFamilyTest, BatchOverTwoAndSpaceWithStatesOverTwo) {
  CheckMesh({.split = SplitKind::kSpace, .shard_states = true, .least_elements = 8});
}

// Ranks of speeds 1 : 0.5 : 0.25, as PartitionFor takes them.
TEST_P(PartitionFamilyTest, SharesByTheSpeedOfRanks) {
  const Case setup = Cases()[GetParam()];
  const Program program = Build(setup);
  std::vector<RankProgram> one(1);
  one[0].program = Build(setup);
  const Outcome expected = Train(one, 3);
  for (const char* split : {"batch", "space", "batch+shard", "channel"}) {
    SCOPED_TRACE(split);
    Parallel parallel = *Parallel::Parse(split);
    parallel.shares = {1.0, 0.5, 0.25};
    std::vector<RankProgram> ranks;
    for (int rank = 0; rank < 3; ++rank) {
      absl::StatusOr<RankProgram> mine = PartitionFor(program, parallel, rank, 3);
      ASSERT_TRUE(mine.ok()) << mine.status();
      ranks.push_back(*std::move(mine));
    }
    ExpectSame(expected, Train(ranks, 3), 1e-9);
  }
}

// Rows of a mesh with different numbers of samples have the same stages, and split channels alike.
TEST_P(PartitionFamilyTest, MeshesOfUnevenRows) {
  Case setup = Cases()[GetParam()];
  setup.batch = 7;
  const Program program = Build(setup);
  std::vector<RankProgram> one(1);
  one[0].program = Build(setup);
  const Outcome expected = Train(one, 3);
  for (const char* split : {"batch", "batch+space", "batch+channel", "batch+pipeline", "shard+pipeline", "space+pipeline", "channel+pipeline"}) {
    SCOPED_TRACE(split);
    std::vector<RankProgram> ranks;
    for (int rank = 0; rank < 4; ++rank) {
      absl::StatusOr<RankProgram> mine = PartitionFor(program, *Parallel::Parse(split), rank, 4);
      ASSERT_TRUE(mine.ok()) << mine.status();
      ranks.push_back(*std::move(mine));
    }
    ExpectSame(expected, Train(ranks, 3), 1e-9);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, PartitionFamilyTest, testing::Values(0, 1, 2, 3),
                         [](const auto& instance) { return std::string("case") + std::to_string(instance.param); });

}  // namespace
}  // namespace gantry
