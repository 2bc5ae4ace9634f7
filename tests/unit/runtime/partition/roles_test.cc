#include "runtime/partition/roles.h"

#include <gtest/gtest.h>

#include <set>

#include "runtime/partition/parallel.h"
#include "tests/support/small_gan.h"

namespace gantry {
namespace {

absl::StatusOr<Program> Step() {
  const testing::SmallGan gan = testing::MakeSmallGan(4, DataType::kF32);
  return BuildGanStep({.r1 = 1.0, .ema = 0.99}, gan.generators, gan.discriminators);
}

// What one rank exchanges, in its order.
std::vector<std::string> Exchanges(const Program& program) {
  std::vector<std::string> exchanges;
  for (const Op& op : program.ops()) {
    if (!op.definition->communicates) continue;
    exchanges.push_back(absl::StrFormat("%d: %d to %d and %d", op.attributes.Int("sequence"), op.attributes.Ints("from_ends").back(),
                                        op.attributes.Ints("to_ends")[0], op.attributes.Ints("to_ends")[1]));
  }
  return exchanges;
}

TEST(RolesTest, EachRankHasItsNetworksAlone) {
  const auto whole = Step();
  ASSERT_TRUE(whole.ok()) << whole.status();
  const RoleAxis axis{.first = {"generator"}, .ranks = {0, 1}};
  std::vector<Program> programs;
  for (int index : {0, 1}) {
    auto program = PartitionRoles(*whole, axis, index);
    ASSERT_TRUE(program.ok()) << program.status();
    programs.push_back(*std::move(program));
  }
  std::set<std::string> states;
  for (int index : {0, 1}) {
    for (const State& state : programs[index].states()) {
      EXPECT_TRUE(states.insert(state.whole).second) << state.whole << " is on both ranks";
      EXPECT_EQ(state.whole.find("discriminator") == std::string::npos, index == 0) << state.whole;
    }
    for (const Op& op : programs[index].ops()) {
      const std::string& network = programs[index].labels()[op.network];
      const bool convolves = op.definition->name.starts_with("conv");
      EXPECT_FALSE(convolves && (network == "generator") != (index == 0)) << network << " on rank " << index;
    }
    EXPECT_EQ(programs[index].outputs().size(), whole->outputs().size());
  }
  EXPECT_EQ(states.size(), whole->states().size());
  const std::vector<std::string> exchanges = Exchanges(programs[0]);
  EXPECT_EQ(Exchanges(programs[1]), exchanges);
  // Samples one way and their gradient the other way, each once; the rest are scalars.
  const int64_t samples = 4 * 3 * 8 * 8;
  int there = 0, back = 0;
  for (const std::string& exchange : exchanges) {
    there += exchange.ends_with(absl::StrFormat("%d to 0 and %d", samples, samples));
    back += exchange.ends_with(absl::StrFormat("%d to %d and 0", samples, samples));
  }
  EXPECT_EQ(there, 1);
  EXPECT_EQ(back, 1);
}

TEST(RolesTest, TakesTwoRanksAnAxis) {
  const auto whole = Step();
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(PartitionRoles(*whole, {.first = {"generator"}, .ranks = {0, 1, 2}}, 0).status().code(), absl::StatusCode::kInvalidArgument);
  const auto parallel = Parallel::Parse("roles");
  ASSERT_TRUE(parallel.ok());
  EXPECT_EQ(parallel->Text(), "roles");
  const absl::Status odd = PartitionFor(*whole, *parallel, 0, 3).status();
  EXPECT_NE(Message(odd).find("even number"), std::string::npos) << odd;
}

TEST(RolesTest, GroupsAreTheSameNumberOnEveryRankAndHoldIt) {
  for (const char* text : {"roles", "roles+batch", "roles+shard", "roles+space+shard", "roles+batch+space", "batch", "space+shard", "channel", "batch+channel", "roles+channel", "pipeline", "pipeline:2+batch"}) {
    const auto parallel = Parallel::Parse(text);
    ASSERT_TRUE(parallel.ok());
    for (const int ranks : {2, 4, 8}) {
      const auto first = GroupsOf(*parallel, 0, ranks);
      for (int rank = 0; rank < ranks; ++rank) {
        const auto groups = GroupsOf(*parallel, rank, ranks);
        ASSERT_EQ(groups.size(), first.size()) << text;
        for (const std::vector<int>& group : groups) {
          EXPECT_NE(std::ranges::find(group, rank), group.end()) << text << ", rank " << rank << " of " << ranks;
          // All its members know it.
          for (int member : group) {
            const auto theirs = GroupsOf(*parallel, member, ranks);
            EXPECT_NE(std::ranges::find(theirs, group), theirs.end());
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace gantry
