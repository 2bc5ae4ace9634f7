#include "runtime/partition/pipeline.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "runtime/gan/families.h"
#include "runtime/gan/gan_step.h"
#include "runtime/graph/rewrite.h"
#include "runtime/partition/homes.h"
#include "runtime/partition/parallel.h"

namespace gantry {
namespace {

Program Step(int accumulate) {
  absl::StatusOr<Family> family = BuildFamily("dcgan", {.image_size = 32, .channels = 3, .width = 16, .latent_size = 16, .batch = 8});
  EXPECT_TRUE(family.ok()) << family.status();
  std::vector<GanRole> generators, discriminators;
  generators.push_back({.name = "generator", .model = std::move(family->generator), .optimizer = {.clip_norm = 1.0}});
  discriminators.push_back({.name = "discriminator", .model = std::move(family->discriminator)});
  absl::StatusOr<Program> program = BuildGanStep({.r1 = 1.0, .accumulate = accumulate, .ema = 0.9}, generators, discriminators);
  EXPECT_TRUE(program.ok()) << program.status();
  absl::StatusOr<Program> simple = Simplify(*program);
  EXPECT_TRUE(simple.ok()) << simple.status();
  return *std::move(simple);
}

const std::vector<std::string> kForward = {"generator"};

std::vector<Program> Stages(const Program& program, int count) {
  std::vector<Program> programs;
  const absl::StatusOr<StagedProgram> staged = AssignStages(program, kForward, count);
  EXPECT_TRUE(staged.ok()) << staged.status();
  std::vector<int> ranks;
  for (int stage = 0; stage < count; ++stage) ranks.push_back(stage);
  for (int stage = 0; staged.ok() && stage < count; ++stage) {
    absl::StatusOr<Program> mine = PartitionPipeline(staged->program, *staged, ranks, stage);
    EXPECT_TRUE(mine.ok()) << mine.status();
    if (mine.ok()) programs.push_back(*std::move(mine));
  }
  return programs;
}

// Of convolutions: what takes the time.
double FlopsOf(const Program& program, const Op& op) {
  std::vector<TensorType> inputs, outputs;
  for (ValueId input : op.inputs) inputs.push_back(program.TypeOf(input));
  for (ValueId output : op.outputs) outputs.push_back(program.TypeOf(output));
  const bool counts = op.definition->cost != nullptr && op.definition->name.starts_with("conv");
  return counts ? op.definition->cost(inputs, outputs, op.attributes).flops : 0.0;
}

double Flops(const Program& program) {
  double flops = 0.0;
  for (const Op& op : program.ops()) flops += FlopsOf(program, op);
  return flops;
}

// A layer's weight, its moments and its average.
std::string WeightOf(std::string name) {
  for (const std::string prefix : {"ema.", "adam_m.", "adam_v."}) {
    if (name.starts_with(prefix)) name = name.substr(prefix.size());
  }
  for (const std::string suffix : {".adam_m", ".adam_v", ".m", ".v"}) {
    if (name.ends_with(suffix)) name = name.substr(0, name.size() - suffix.size());
  }
  return name;
}

TEST(PipelineTest, EachLayerHasOneStageAndWorkIsShared) {
  const Program whole = Step(1);
  for (const int count : {2, 3}) {
    const std::vector<Program> stages = Stages(whole, count);
    ASSERT_EQ(static_cast<int>(stages.size()), count);
    std::set<std::string> states;
    std::map<std::string, int> stage_of_weight;
    double flops = 0.0, most = 0.0;
    for (int stage = 0; stage < count; ++stage) {
      EXPECT_FALSE(stages[stage].states().empty());
      for (const State& state : stages[stage].states()) {
        EXPECT_TRUE(states.insert(state.whole).second) << state.whole << " is in two stages";
        const auto [found, made] = stage_of_weight.emplace(WeightOf(state.whole), stage);
        EXPECT_EQ(found->second, stage) << state.whole << " is apart from its weight";
      }
      flops += Flops(stages[stage]);
      most = std::max(most, Flops(stages[stage]));
      for (const std::string& label : stages[stage].labels()) EXPECT_EQ(label.find('|'), std::string::npos) << label;
    }
    EXPECT_EQ(states.size(), whole.states().size());
    EXPECT_DOUBLE_EQ(flops, Flops(whole));  // nothing is computed twice
    EXPECT_LT(most, 0.75 * flops);
    // Later layers of the generator are in the same stage or a later one; of the discriminator the other way.
    int at = 0, back = count - 1;
    for (const State& state : whole.states()) {
      if (state.role != StateRole::kParameter) continue;
      const int stage = stage_of_weight.at(state.name);
      if (state.network == "generator") {
        EXPECT_GE(stage, at) << state.name;
        at = stage;
      } else {
        EXPECT_LE(stage, back) << state.name;
        back = stage;
      }
    }
    EXPECT_GT(at, 0);
    EXPECT_LT(back, count - 1);
  }
}

// How long stages of equal speed take, in operations, where each does its ops in order and both wait at an exchange.
double LongestOf(const std::vector<Program>& stages) {
  std::vector<size_t> next(stages.size(), 0);
  std::vector<double> time(stages.size(), 0.0);
  for (;;) {
    int64_t first = std::numeric_limits<int64_t>::max();
    std::vector<int64_t> members;
    for (size_t stage = 0; stage < stages.size(); ++stage) {
      const std::vector<Op>& ops = stages[stage].ops();
      for (; next[stage] < ops.size() && !ops[next[stage]].definition->communicates; ++next[stage]) time[stage] += FlopsOf(stages[stage], ops[next[stage]]);
      if (next[stage] == ops.size() || ops[next[stage]].attributes.Int("sequence") >= first) continue;
      first = ops[next[stage]].attributes.Int("sequence");
      members = ops[next[stage]].attributes.Ints("ranks");
    }
    if (members.empty()) return *std::ranges::max_element(time);
    double begin = 0.0;
    for (const int64_t member : members) begin = std::max(begin, time[member]);
    for (const int64_t member : members) {
      time[member] = begin;
      ++next[member];
    }
  }
}

TEST(PipelineTest, MicroBatchesFollowEachOther) {
  for (const int count : {2, 3}) {
    const std::vector<Program> one = Stages(Step(1), count), four = Stages(Step(4), count);
    ASSERT_EQ(static_cast<int>(one.size() + four.size()), 2 * count);
    const double alone = Flops(Step(1));
    EXPECT_LT(LongestOf(one), alone);
    // More to do while gradients are away.
    EXPECT_LT(LongestOf(four), 3.6 * LongestOf(one)) << count;
    EXPECT_LT(LongestOf(four), 0.8 * 4 * alone) << count;
  }
}

TEST(PipelineTest, SendsGoBetweenTwoRanks) {
  for (const Program& program : Stages(Step(1), 3)) {
    int sends = 0;
    for (const Op& op : program.ops()) {
      if (!op.definition->communicates) continue;
      const bool scalar = op.attributes.Ints("from_ends").back() == 1;
      EXPECT_TRUE(scalar || op.attributes.Ints("ranks").size() == 2) << op.attributes.ToString();
      sends += scalar ? 0 : 1;
    }
    EXPECT_GT(sends, 0);
  }
}

// Ranks make their groups one after the other, all at once: whoever is in one must make it at the same time.
TEST(PipelineTest, PairsAreMadeInRounds) {
  for (const char* text : {"pipeline", "pipeline:3+batch", "pipeline:4+batch"}) {
    const Parallel parallel = *Parallel::Parse(text);
    for (const int ranks : {2, 3, 4, 5, 6, 8, 12}) {
      if (ranks % OutermostOf(parallel, ranks) != 0) continue;
      std::vector<std::vector<std::vector<int>>> groups;
      for (int rank = 0; rank < ranks; ++rank) groups.push_back(GroupsOf(parallel, rank, ranks));
      for (int rank = 0; rank < ranks; ++rank) {
        std::set<std::vector<int>> pairs;
        ASSERT_EQ(groups[rank].size(), groups[0].size()) << text;
        for (size_t round = 0; round < groups[rank].size(); ++round) {
          for (const int member : groups[rank][round]) EXPECT_EQ(groups[member][round], groups[rank][round]) << text << " over " << ranks << ", rank " << rank;
          pairs.insert(groups[rank][round]);
        }
        // With every other stage at its place of the mesh.
        const int stages = OutermostOf(parallel, ranks), half = ranks / stages;
        for (int stage = 0; stage < stages; ++stage) {
          const int other = rank % half + stage * half;
          if (other == rank) continue;
          EXPECT_TRUE(pairs.contains({std::min(rank, other), std::max(rank, other)})) << rank << " and " << other;
        }
      }
    }
  }
}

TEST(PipelineTest, SaysWhatItTakes) {
  const Program whole = Step(1);
  for (const int count : {0, 1, kMostHomes + 1}) EXPECT_EQ(AssignStages(whole, kForward, count).status().code(), absl::StatusCode::kInvalidArgument);
  const auto Refused = [&](std::string_view text, int ranks) {
    const absl::StatusOr<Parallel> parallel = Parallel::Parse(text);
    return parallel.ok() ? std::string(Message(PartitionFor(whole, *parallel, 0, ranks).status())) : std::string(Message(parallel.status()));
  };
  EXPECT_NE(Refused("pipeline+roles", 2).find("choose \"roles\""), std::string::npos);
  EXPECT_NE(Refused("pipeline:3", 4).find("a multiple of 3"), std::string::npos);
  EXPECT_NE(Refused("pipeline:1", 4).find("\"pipeline:3\" has 3 stages"), std::string::npos);
  EXPECT_NE(Refused("space+channel", 4).find("not split together"), std::string::npos);
  EXPECT_EQ(Parallel::Parse("batch+pipeline:2")->Text(), "batch+pipeline:2");
}

}  // namespace
}  // namespace gantry
