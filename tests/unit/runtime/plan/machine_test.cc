#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "runtime/plan/cost_model.h"
#include "runtime/plan/lay_out.h"
#include "tests/support/small_gan.h"

namespace gantry {
namespace {

using ::testing::HasSubstr;

std::string Corpus(const std::string& name) {
  std::ifstream file(GANTRY_TEST_DATA "/fuzz/corpus/machine/" + name);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(MachineTest, DescriptionsAreRead) {
  const auto machine = ParseMachine(Corpus("described.toml"));
  ASSERT_TRUE(machine.ok()) << machine.status();
  EXPECT_EQ(machine->memory_bytes, int64_t{38} << 30);
  EXPECT_EQ(machine->flops_per_second, 1.4e13);
  EXPECT_EQ(machine->bytes_per_second, 1.3e12);
  EXPECT_DOUBLE_EQ(machine->op_seconds, 5e-6);
  ASSERT_NE(machine->FindTier("host"), nullptr);
  EXPECT_EQ(machine->FindTier("host")->out_bytes_per_second, 24e9);
  EXPECT_EQ(machine->FindTier("file")->name, "nvme");
  EXPECT_EQ(machine->FindTier("file")->granularity_bytes, 4096);
  EXPECT_EQ(machine->FindTier("peer"), nullptr);
}

TEST(MachineTest, RanksAndLinksAreRead) {
  const auto machine = ParseMachine(Corpus("ranks.toml"));
  ASSERT_TRUE(machine.ok()) << machine.status();
  EXPECT_EQ(machine->rank_count, 16);
  EXPECT_EQ(machine->ranks_per_node, 8);
  ASSERT_EQ(machine->links.size(), 3u);
  EXPECT_EQ(machine->links[0].between, "pairs");
  EXPECT_EQ(machine->links[0].pairs[1], (std::pair<int, int>{0, 2}));
  EXPECT_EQ(machine->links[1].parallel, 2);
  EXPECT_TRUE(machine->links[2].shared);
}

TEST(MachineTest, SpeedsOfRanksAreReadAndWritten) {
  const auto machine = ParseMachine("format = \"gantry-machine-1\"\n[ranks]\ncount = 3\nspeed = [1, 0.5, 0.25]");
  ASSERT_TRUE(machine.ok()) << machine.status();
  EXPECT_EQ(machine->rank_speeds, (std::vector<double>{1.0, 0.5, 0.25}));
  const auto again = ParseMachine(ToToml(*machine));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->rank_speeds, machine->rank_speeds);
}

TEST(MachineTest, WhatRanksMeasuredIsReadAndWritten) {
  const auto machine = ParseMachine(
      "format = \"gantry-machine-1\"\n[[links]]\nlatency = \"2us\"\nstart = \"12us\"\n[[kernels]]\nfamily = \"x\"\nthreads = 2\nranks = 4\n"
      "samples = [[1.0, 2.0, 3.0]]");
  ASSERT_TRUE(machine.ok()) << machine.status();
  const auto again = ParseMachine(ToToml(*machine));
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_EQ(again->links.size(), 1u);
  EXPECT_DOUBLE_EQ(again->links[0].start_seconds, 12e-6);
  ASSERT_EQ(again->kernels.size(), 1u);
  EXPECT_EQ(again->kernels[0].threads, 2);
  EXPECT_EQ(again->kernels[0].ranks, 4);
}

TEST(MachineTest, DescriptionsThatComeWithGantryAreWhole) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(GANTRY_TEST_DATA).parent_path() / "tools/machines")) {
    if (entry.path().extension() != ".toml") continue;
    ++count;
    std::ifstream file(entry.path());
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const auto machine = ParseMachine(text, entry.path().string());
    ASSERT_TRUE(machine.ok()) << machine.status();
    EXPECT_GT(machine->flops_per_second, 0) << entry.path();
    EXPECT_GT(machine->rank_count, 1) << entry.path();
    EXPECT_NE(machine->FindTier("host"), nullptr) << entry.path();
    EXPECT_FALSE(machine->links.empty()) << entry.path();
    EXPECT_TRUE(machine->kernels.empty()) << "nothing in it is measured: " << entry.path();
  }
  EXPECT_EQ(count, 4);
}

TEST(MachineTest, WhatIsWrittenIsReadAgain) {
  for (const char* name : {"described.toml", "measured.toml", "ranks.toml"}) {
    const auto machine = ParseMachine(Corpus(name));
    ASSERT_TRUE(machine.ok()) << machine.status();
    const auto again = ParseMachine(ToToml(*machine));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(ToToml(*again), ToToml(*machine)) << name;
  }
}

TEST(MachineTest, WhatIsWrongIsNamed) {
  const std::string head = "format = \"gantry-machine-1\"\n";
  const std::pair<std::string, std::string> cases[] = {
      {"", "its format is \"\""},
      {"format = \"gantry-machine-9\"", "gantry-machine-9"},
      {head + "[device]\nmemry = 1", "did you mean 'memory'"},
      {head + "[device]\nmemory = \"lots\"", "\"lots\" is no size"},
      {head + "[device]\nmemory = 0", "device.memory is 0"},
      {head + "[device]\nbandwidth = \"3GB\"", "\"3GB\" is no rate"},
      {head + "[[tiers]]\nkind = \"tape\"", "it must be one of host, file, peer, remote"},
      {head + "[tiers]\nkind = \"host\"", "write [[tiers]]"},
      {head + "[[tiers]]\nkind = \"host\"\nlatency = \"1 day\"", "is no time"},
      {head + "[[tiers]]\ncompute_share = 2", "it must be 0 to 1"},
      {head + "[[kernels]]\nfamily = \"x\"", "needs a family and samples"},
      {head + "[[kernels]]\nfamily = \"x\"\nsamples = [[1.0, 2.0]]", "lists of 3 numbers"},
      {head + "[[kernels]]\nfamily = \"x\"\nsamples = [[1.0, 2.0, -1.0]]", "lists of 3 numbers"},
      {head + "[ranks]\ncount = 4\nper_node = 8", "from 1 to 4"},
      {head + "[ranks]\ncount = 2\nspeed = [1.0, 0.0]", "ranks.speed"},
      {head + "[[links]]\npairs = [[0, 1]]", "two different ranks of a node"},
      {head + "[[links]]\nbetween = \"pairs\"", "which needs some"},
      {head + "x = ", "is not TOML"},
  };
  for (const auto& [text, word] : cases) {
    const auto machine = ParseMachine(text);
    ASSERT_FALSE(machine.ok()) << text;
    EXPECT_THAT(std::string(machine.status().message()), HasSubstr(word)) << text;
  }
  EXPECT_THAT(std::string(ParseMachine(head + "\n\n[device]\nmemry = 1").status().message()), HasSubstr("machine.toml:5"));
}

class CostModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::SmallGan gan = testing::MakeSmallGan(4, DataType::kF32);
    const auto program = BuildGanStep({}, gan.generators, gan.discriminators);
    ASSERT_TRUE(program.ok()) << program.status();
    auto prepared = PrepareProgram(*program, options_, 0);
    ASSERT_TRUE(prepared.ok());
    plan_.program = *std::move(prepared);
    ASSERT_TRUE(ChooseKernels(plan_, options_).ok());
  }

  PlanOptions options_;
  Plan plan_;
};

TEST_F(CostModelTest, ASampleOfTheSameWorkGivesItsSeconds) {
  Machine machine;
  double total = 0, analytic = 0;
  int ops = 0;
  for (const PlannedOp& step : plan_.schedule) {
    if (step.kernel == nullptr) continue;
    const std::string family = FamilyOf(plan_.program.ops()[step.op], *step.kernel);
    const OpWork work = WorkOf(plan_.program, step.op);
    auto kernel = std::find_if(machine.kernels.begin(), machine.kernels.end(), [&](const MeasuredKernel& known) { return known.family == family; });
    if (kernel == machine.kernels.end()) kernel = machine.kernels.insert(kernel, {.family = family});
    const double seconds = 1e-3 * (1 + std::log1p(work.bytes) + std::log1p(work.flops));
    kernel->samples.push_back({work.flops, work.bytes, seconds});
    total += seconds;
    ++ops;
  }
  analytic = CostModel(options_).Seconds(plan_);
  options_.machine = std::make_shared<const Machine>(machine);
  const double measured = CostModel(options_).Seconds(plan_);
  EXPECT_GT(ops, 20);
  EXPECT_NEAR(measured, total, 0.01 * total);
  EXPECT_GT(std::abs(measured - analytic), 0.1 * total);
}

TEST_F(CostModelTest, BetweenSamplesItFollowsTheWork) {
  // One family, twice as slow as the analytic model at one size and four times at another: in between it is in between.
  const PlannedOp* chosen = nullptr;
  for (const PlannedOp& step : plan_.schedule) {
    if (step.kernel != nullptr && WorkOf(plan_.program, step.op).bytes > 10000) chosen = &step;
  }
  ASSERT_NE(chosen, nullptr);
  const OpWork work = WorkOf(plan_.program, chosen->op);
  const MachineRates rates;
  const auto Analytic = [&](double flops, double bytes) {
    return std::max(flops / rates.flops_per_second, bytes / rates.bytes_per_second) + rates.op_seconds;
  };
  Machine machine;
  MeasuredKernel kernel{.family = FamilyOf(plan_.program.ops()[chosen->op], *chosen->kernel)};
  for (const double factor : {0.25, 4.0}) {
    const double flops = work.flops * factor, bytes = work.bytes * factor;
    kernel.samples.push_back({flops, bytes, Analytic(flops, bytes) * (factor < 1 ? 2 : 4)});
  }
  machine.kernels = {kernel};
  options_.machine = std::make_shared<const Machine>(machine);
  const double seconds = CostModel(options_).Seconds(plan_.program, chosen->op, chosen->kernel.get());
  EXPECT_GT(seconds, 2.0 * Analytic(work.flops, work.bytes));
  EXPECT_LT(seconds, 4.0 * Analytic(work.flops, work.bytes));
}

TEST_F(CostModelTest, WhatAsManyRanksMeasuredCountsFirst) {
  const auto chosen = std::find_if(plan_.schedule.begin(), plan_.schedule.end(), [](const PlannedOp& step) { return step.kernel != nullptr; });
  ASSERT_NE(chosen, plan_.schedule.end());
  const OpWork work = WorkOf(plan_.program, chosen->op);
  const std::string family = FamilyOf(plan_.program.ops()[chosen->op], *chosen->kernel);
  Machine machine;
  machine.kernels = {{family, 1, 1, {{work.flops, work.bytes, 1.0}}}, {family, 1, 2, {{work.flops, work.bytes, 2.0}}}};
  const auto SecondsWith = [&](int ranks) {
    options_.machine = std::make_shared<const Machine>(machine);
    options_.ranks_of_machine = ranks;
    return CostModel(options_).Seconds(plan_.program, chosen->op, chosen->kernel.get());
  };
  EXPECT_NEAR(SecondsWith(1), 1.0, 1e-2);
  EXPECT_NEAR(SecondsWith(2), 2.0, 2e-2);
  EXPECT_GT(SecondsWith(4), 1.5);
  // The same work with other ranks says more than ten times the work with as many.
  machine.kernels[1].samples[0] = {10 * work.flops, 10 * work.bytes, 100.0};
  EXPECT_LT(SecondsWith(2), 2.0);
}

TEST_F(CostModelTest, DescriptionsReplaceTheGuess) {
  Machine fast;
  fast.flops_per_second = 1e15;
  fast.bytes_per_second = 1e14;
  fast.op_seconds = 0;
  fast.tiers.push_back({.kind = "host", .memory_bytes = 1 << 20, .out_bytes_per_second = 1e6, .in_bytes_per_second = 2e6, .latency_seconds = 1.0,
                        .compute_share = 0.5});
  const double before = CostModel(options_).Seconds(plan_);
  options_.machine = std::make_shared<const Machine>(fast);
  const CostModel costs(options_);
  EXPECT_LT(costs.Seconds(plan_), before / 100);
  const ResidencyTier tier = costs.TierOf({.name = "host"});
  EXPECT_EQ(tier.budget_bytes, 1 << 20);
  EXPECT_EQ(tier.out_bytes_per_second, 1e6);
  EXPECT_EQ(tier.in_bytes_per_second, 2e6);
  EXPECT_EQ(tier.latency_seconds, 1.0);
  EXPECT_DOUBLE_EQ(tier.out_compute_seconds_per_byte, 0.5e-6);
  // A throttle that is slower than the machine counts; one that is faster does not.
  EXPECT_EQ(costs.TierOf({.name = "host", .out = {.bytes_per_second = 1e3}}).out_bytes_per_second, 1e3);
  EXPECT_EQ(costs.TierOf({.name = "host", .out = {.bytes_per_second = 1e9}}).out_bytes_per_second, 1e6);
}

TEST_F(CostModelTest, MemoryOfOtherRanksIsBehindTheirLink) {
  const TierOptions peer{.name = "peer-1", .kind = TierKind::kPeer, .budget_bytes = 4096}, remote{.name = "remote-1", .kind = TierKind::kRemoteHost, .far = true},
      far{.name = "peer-1", .kind = TierKind::kPeer, .far = true};
  const auto RateOf = [&](const Machine& machine, const TierOptions& tier) {
    options_.machine = std::make_shared<const Machine>(machine);
    return CostModel(options_).TierOf(tier);
  };
  // What is measured of the own host holds for another rank's memory in it; nothing is known of the network.
  Machine machine;
  machine.tiers.push_back({.kind = "host", .memory_bytes = 1 << 20, .out_bytes_per_second = 1e6, .in_bytes_per_second = 2e6});
  EXPECT_EQ(RateOf(machine, peer).in_bytes_per_second, 2e6);
  EXPECT_EQ(RateOf(machine, peer).budget_bytes, 4096);
  EXPECT_EQ(RateOf(machine, remote).in_bytes_per_second, options_.rates.link_bytes_per_second);
  EXPECT_EQ(RateOf(machine, remote).budget_bytes, INT64_MAX);
  machine.links.push_back({.between = "node", .bytes_per_second = 3e6, .latency_seconds = 1e-3});
  machine.links.push_back({.between = "network", .bytes_per_second = 4e5, .latency_seconds = 2e-3});
  EXPECT_EQ(RateOf(machine, peer).out_bytes_per_second, 3e6);
  EXPECT_EQ(RateOf(machine, peer).latency_seconds, 1e-3);
  EXPECT_EQ(RateOf(machine, remote).out_bytes_per_second, 4e5);
  EXPECT_EQ(RateOf(machine, remote).latency_seconds, 2e-3);
  EXPECT_EQ(RateOf(machine, far).out_bytes_per_second, 4e5);
  machine.tiers.push_back({.kind = "peer", .out_bytes_per_second = 7e6, .in_bytes_per_second = 8e6});
  EXPECT_EQ(RateOf(machine, peer).in_bytes_per_second, 8e6);
  EXPECT_EQ(RateOf(machine, far).in_bytes_per_second, 4e5) << "peers of a node are described";
  machine.tiers.push_back({.kind = "remote", .out_bytes_per_second = 5e5, .in_bytes_per_second = 6e5, .latency_seconds = 1});
  EXPECT_EQ(RateOf(machine, remote).in_bytes_per_second, 6e5);
  EXPECT_EQ(RateOf(machine, remote).latency_seconds, 1);
}

}  // namespace
}  // namespace gantry
