// Exchanges beside compute: plans of all ranks fit together, the checkers find what does not, and orders leave exchanges time.
#include "runtime/plan/overlap.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <latch>
#include <set>
#include <thread>
#include <utility>

#include "runtime/execute/exchange_lanes.h"
#include "runtime/partition/exchange_kernels.h"
#include "runtime/partition/parallel.h"
#include "runtime/plan/exchange_options.h"
#include "runtime/plan/verify_ranks.h"
#include "tests/support/gan_case.h"
#include "tests/support/thread_state.h"

namespace gantry {
namespace {

using test::CaseOf;
using test::GanCase;

// The plans of all ranks, made apart. `kernels` outlives them.
struct Ranks {
  std::vector<std::unique_ptr<ExchangeKernels>> kernels;
  std::deque<Plan> plans;
  std::vector<RankTrace> traces() const {
    std::vector<RankTrace> result;
    for (const Plan& plan : plans) result.push_back(TraceOf(plan));
    return result;
  }
};

Ranks PlanRanks(const GanCase& setup, std::string_view split, int size, int64_t bucket_bytes = 16384) {
  Ranks ranks;
  const absl::StatusOr<Program> program = test::StepProgramOf(setup);
  EXPECT_TRUE(program.ok()) << program.status();
  Parallel parallel = *Parallel::Parse(split);
  parallel.exchanges.bucket_bytes = bucket_bytes;
  for (int rank = 0; rank < size; ++rank) {
    const absl::StatusOr<RankProgram> mine = PartitionFor(*program, parallel, rank, size);
    EXPECT_TRUE(mine.ok()) << mine.status();
    ranks.kernels.push_back(std::make_unique<ExchangeKernels>());
    PlanOptions options = setup.plan;
    options.exchanges = ranks.kernels.back().get();
    absl::StatusOr<Plan> plan = MakePlan(mine->program, options);
    EXPECT_TRUE(plan.ok()) << plan.status();
    if (!plan.ok()) return ranks;
    ranks.plans.push_back(*std::move(plan));
  }
  return ranks;
}

GanCase Small(const std::string& family) {
  GanCase setup = CaseOf(family);
  setup.size = 16;
  setup.width = 8;
  setup.latent = 8;
  setup.batch = 12;
  return setup;
}

int CountBeside(const Plan& plan) {
  int count = 0;
  for (const PlannedOp& step : plan.schedule) count += step.done_by >= 0 && plan.program.ops()[step.op].definition->communicates;
  return count;
}

TEST(VerifyRanksTest, PlansMadeApartFitTogether) {
  for (const char* const family : {"dcgan", "wgan-gp", "sngan", "r3gan"}) {
    for (const char* const split : {"batch", "space", "shard", "batch+shard", "space+shard", "batch+space"}) {
      for (const int size : {2, 3, 4}) {
        if (size == 4 && family != std::string_view("dcgan")) continue;
        for (const double budget : {0.0, 0.85}) {
          if (budget > 0 && (size != 2 || family != std::string_view("dcgan"))) continue;  // planning takes seconds
          GanCase setup = Small(family);
          setup.plan.kernels = KernelChoice::kReference;  // whose scratch takes no share of the budget
          setup.plan.tiers = {test::Host()};
          setup.plan.device_memory.fraction = budget;
          const Ranks ranks = PlanRanks(setup, split, size);
          ASSERT_EQ(static_cast<int>(ranks.plans.size()), size) << family << " " << split;
          const absl::Status fits = VerifyRanks(ranks.traces());
          EXPECT_TRUE(fits.ok()) << family << ", " << split << " over " << size << ", budget " << budget << ": " << fits;
          for (const Plan& plan : ranks.plans) {
            EXPECT_GT(CountBeside(plan), 0);
            const RankTrace trace = TraceOf(plan);
            const absl::StatusOr<RankTrace> back = TraceFromText(ToText(trace));
            ASSERT_TRUE(back.ok()) << back.status();
            EXPECT_EQ(ToText(*back), ToText(trace));
          }
        }
      }
    }
  }
}

// Each change of one rank's trace by itself must be found.
TEST(VerifyRanksTest, FindsWhatDoesNotFit) {
  const Ranks ranks = PlanRanks(Small("dcgan"), "batch+shard", 3);
  ASSERT_EQ(ranks.plans.size(), 3u);
  const std::vector<RankTrace> good = ranks.traces();
  ASSERT_TRUE(VerifyRanks(good).ok());
  const auto Broken = [&](std::string_view what, const std::function<void(RankTrace&)>& change) {
    for (size_t rank = 0; rank < good.size(); ++rank) {
      std::vector<RankTrace> traces = good;
      change(traces[rank]);
      EXPECT_EQ(VerifyRanks(traces).code(), absl::StatusCode::kInternal) << what << " of rank " << rank;
    }
  };
  const size_t count = good[0].exchanges.size();
  ASSERT_GT(count, 6u);
  for (size_t i = 0; i < count; ++i) {
    Broken("sizes", [&](RankTrace& trace) { trace.exchanges[i].sizes += "1"; });
    Broken("sequence", [&](RankTrace& trace) { trace.exchanges[i].sequence += 1; });
    Broken("condition", [&](RankTrace& trace) { trace.exchanges[i].condition += "x"; });
    Broken("op", [&](RankTrace& trace) { trace.exchanges[i].op += "x"; });
    Broken("place", [&](RankTrace& trace) { trace.exchanges[i].index = (trace.exchanges[i].index + 1) % 3; });
    Broken("group", [&](RankTrace& trace) { trace.exchanges[i].ranks.pop_back(); });
    Broken("lane", [&](RankTrace& trace) {
      trace.exchanges[i].lane = trace.exchanges[i].lane == PlanLane::kUrgent ? PlanLane::kGradients : PlanLane::kUrgent;
    });
    Broken("missing", [&](RankTrace& trace) {
      trace.exchanges.erase(trace.exchanges.begin() + static_cast<int64_t>(i));
      std::vector<int> events;
      for (const int event : trace.events) {
        const int number = event >= 0 ? event : ~event;
        if (number == static_cast<int>(i)) continue;
        const int moved = number > static_cast<int>(i) ? number - 1 : number;
        events.push_back(event >= 0 ? moved : ~moved);
      }
      trace.events = std::move(events);
    });
    if (good[0].exchanges[i].beside) {
      Broken("never waited for", [&](RankTrace& trace) { std::erase(trace.events, ~static_cast<int>(i)); });
    }
  }
  for (size_t i = 0; i + 1 < count; ++i) {
    Broken("order", [&](RankTrace& trace) {
      std::swap(trace.exchanges[i], trace.exchanges[i + 1]);
      for (int& event : trace.events) {
        const int number = event >= 0 ? event : ~event;
        const int swapped = number == static_cast<int>(i) ? number + 1 : number == static_cast<int>(i) + 1 ? number - 1 : number;
        event = event >= 0 ? swapped : ~swapped;
      }
      // As the rank would tell it: begun one after the other.
      std::vector<int> begins;
      for (const int event : trace.events) {
        if (event >= 0) begins.push_back(event);
      }
      std::sort(begins.begin(), begins.end());
      size_t next = 0;
      for (int& event : trace.events) {
        if (event >= 0) event = begins[next++];
      }
    });
  }
}

// Two meshes of two, used crosswise: each group agrees with itself, and yet nobody gets on. Sequences that say so are refused, and without
// them the clock stands still.
TEST(VerifyRanksTest, FindsGroupsThatWaitForEachOther) {
  const auto Exchange = [](std::vector<int> ranks, int index, int64_t sequence) {
    return RankTrace::Exchange{.op = "all_reduce", .purpose = "sum", .ranks = std::move(ranks), .index = index, .sequence = sequence, .sizes = "type 0 4"};
  };
  // Rank 0 meets 1 then 2, rank 1 meets 2 then 0, rank 2 meets 0 then 1: a circle, whatever the numbers.
  RankTrace first{.exchanges = {Exchange({0, 1}, 0, 0), Exchange({0, 2}, 0, 1)}, .events = {0, 1}};
  RankTrace second{.exchanges = {Exchange({1, 2}, 0, 2), Exchange({0, 1}, 1, 0)}, .events = {0, 1}};
  RankTrace third{.exchanges = {Exchange({0, 2}, 1, 1), Exchange({1, 2}, 1, 2)}, .events = {0, 1}};
  EXPECT_FALSE(VerifyRanks(std::vector<RankTrace>{first, second, third}).ok());
  std::swap(second.exchanges[0], second.exchanges[1]);
  EXPECT_TRUE(VerifyRanks(std::vector<RankTrace>{first, second, third}).ok());
  // Beside compute, rank 0 waits for the second before it begins the first of what rank 1 waits for.
  const auto Beside = [&](int index, int64_t sequence, PlanLane lane) {
    RankTrace::Exchange exchange = Exchange({0, 1}, index, sequence);
    exchange.beside = true;
    exchange.lane = lane;
    return exchange;
  };
  RankTrace left{.exchanges = {Beside(0, 0, PlanLane::kGradients), Beside(0, 1, PlanLane::kUrgent)}, .events = {0, 1, ~0, ~1}};
  RankTrace right{.exchanges = {Beside(1, 0, PlanLane::kGradients), Beside(1, 1, PlanLane::kUrgent)}, .events = {0, ~0, 1, ~1}};
  EXPECT_TRUE(VerifyRanks(std::vector<RankTrace>{left, right}).ok());
  left.events = {~1, 0, 1, ~0};
  EXPECT_FALSE(VerifyRanks(std::vector<RankTrace>{left, right}).ok());
}

TEST(TraceFromTextTest, RefusesWhatIsDamaged) {
  const std::string text = ToText(TraceOf(PlanRanks(Small("dcgan"), "batch", 2).plans[0]));
  EXPECT_TRUE(TraceFromText(text).ok());
  EXPECT_FALSE(TraceFromText("").ok());
  EXPECT_FALSE(TraceFromText(text.substr(0, text.size() - 1)).ok());
  EXPECT_FALSE(TraceFromText("0,x\n").ok());
  std::string other = text;
  other.at(other.find('|')) = ',';
  EXPECT_FALSE(TraceFromText(other).ok());
}

// What reads a result, or writes over an operand, before the exchange is done.
TEST(VerifyPlanTest, FindsExchangesThatAreWaitedForTooLate) {
  for (const char* const split : {"batch", "shard"}) {
    Ranks ranks = PlanRanks(Small("dcgan"), split, 2);
    Plan& plan = ranks.plans[0];
    ASSERT_TRUE(VerifyPlan(plan).ok());
    int tried = 0;
    for (size_t step = 0; step < plan.schedule.size(); ++step) {
      PlannedOp& planned = plan.schedule[step];
      if (planned.done_by < 0 || !plan.program.ops()[planned.op].definition->communicates) continue;
      const int done_by = planned.done_by;
      if (done_by < static_cast<int>(plan.schedule.size())) {
        planned.done_by = done_by + 1;
        EXPECT_FALSE(VerifyPlan(plan).ok()) << plan.program.Describe(planned.op) << " waited for one step later";
      }
      planned.done_by = static_cast<int>(step);
      EXPECT_FALSE(VerifyPlan(plan).ok()) << "done before it begins";
      planned.done_by = static_cast<int>(plan.schedule.size()) + 1;
      EXPECT_FALSE(VerifyPlan(plan).ok()) << "done after the step";
      planned.done_by = done_by;
      // Something that is made meanwhile, in the memory of its result.
      for (int between = static_cast<int>(step) + 1; between < done_by; ++between) {
        const Op& other = plan.program.ops()[plan.schedule[between].op];
        if (other.definition->is_view || plan.schedule[between].kernel == nullptr || UpdateCount(other) > 0 || other.outputs.empty()) continue;
        const ValueId value = other.outputs[0];
        const int64_t before = std::exchange(plan.offsets[value], plan.offsets[plan.program.ops()[planned.op].outputs[0]]);
        if (before != plan.offsets[value]) {
          EXPECT_FALSE(VerifyPlan(plan).ok()) << "value " << value << " over what " << plan.program.Describe(planned.op) << " makes";
          ++tried;
        }
        plan.offsets[value] = before;
      }
    }
    EXPECT_GT(tried, 10) << split;
    ASSERT_TRUE(VerifyPlan(plan).ok());
  }
}

// An op without a lane may not run beside compute, nor may compute.
TEST(VerifyPlanTest, FindsWhatHasNoLane) {
  Ranks ranks = PlanRanks(Small("dcgan"), "space", 2);
  Plan& plan = ranks.plans[0];
  int tried = 0;
  for (size_t step = 0; step + 1 < plan.schedule.size(); ++step) {
    const Op& op = plan.program.ops()[plan.schedule[step].op];
    if (plan.schedule[step].done_by >= 0 || op.definition->is_view) continue;
    plan.schedule[step].done_by = static_cast<int>(step) + 1;
    EXPECT_FALSE(VerifyPlan(plan).ok()) << plan.program.Describe(plan.schedule[step].op);
    plan.schedule[step].done_by = -1;
    ++tried;
  }
  EXPECT_GT(tried, 50);
}

TEST(OverlapTest, LeavesLessExposedThanTheSerialSchedule) {
  for (const char* const split : {"batch", "space", "batch+shard"}) {
    GanCase setup = Small("dcgan");
    setup.size = 32;
    setup.width = 16;
    setup.plan.link = {.bytes_per_second = 1e9, .latency_seconds = 20e-6};
    const OverlapEstimate beside = EstimateOverlap(PlanRanks(setup, split, 2).plans[0]);
    setup.plan.overlap = false;
    const OverlapEstimate serial = EstimateOverlap(PlanRanks(setup, split, 2).plans[0]);
    EXPECT_NEAR(serial.exposed_seconds, serial.exchange_seconds, 1e-9);
    EXPECT_NEAR(beside.exchange_seconds, serial.exchange_seconds, 1e-9);
    EXPECT_LT(beside.exposed_seconds, 0.8 * serial.exposed_seconds) << split;
    EXPECT_LT(beside.seconds, serial.seconds);
  }
}

// A convolution of a rank's own rows runs while the rows beside them travel, and what goes back through batch norms has weight gradients to
// hide behind.
TEST(OverlapTest, HalosTravelBesideTheirOwnRows) {
  for (const int size : {2, 3}) {
    GanCase setup = Small("dcgan");
    setup.size = 32;
    const Ranks ranks = PlanRanks(setup, "space", size);
    const absl::Status fits = VerifyRanks(ranks.traces());
    EXPECT_TRUE(fits.ok()) << fits;
    for (const Plan& plan : ranks.plans) {
      int halos = 0, hidden = 0;
      for (int step = 0; step < static_cast<int>(plan.schedule.size()); ++step) {
        const Op& op = plan.program.ops()[plan.schedule[step].op];
        if (op.attributes.String("purpose") != "halo") continue;
        ++halos;
        bool computes = false;
        for (int other = step + 1; other < plan.schedule[step].done_by; ++other) {
          computes = computes || plan.program.ops()[plan.schedule[other].op].definition->name.find("conv") != std::string_view::npos;
        }
        hidden += computes;
      }
      EXPECT_GT(halos, 10);
      EXPECT_GE(hidden, halos * 3 / 4) << size;
    }
    setup.plan.overlap = false;
    for (const Plan& plan : PlanRanks(setup, "space", size).plans) EXPECT_EQ(CountBeside(plan), 0);
  }
}

// Small gradients go together; nothing is summed twice or left out.
TEST(OverlapTest, BucketsHoldEveryGradientOnce) {
  const auto Sums = [](const Plan& plan) {
    std::multiset<int64_t> elements;
    int exchanges = 0;
    for (const Op& op : plan.program.ops()) {
      if (op.definition->name != "all_reduce" || op.attributes.String("purpose") != "gradient") continue;
      ++exchanges;
      for (ValueId input : op.inputs) elements.insert(plan.program.TypeOf(input).element_count());
    }
    return std::pair(exchanges, elements);
  };
  const auto [alone, of_alone] = Sums(PlanRanks(Small("dcgan"), "batch", 2, 0).plans[0]);
  const auto [small, of_small] = Sums(PlanRanks(Small("dcgan"), "batch", 2, 16384).plans[0]);
  const auto [large, of_large] = Sums(PlanRanks(Small("dcgan"), "batch", 2, 1 << 30).plans[0]);
  EXPECT_EQ(of_alone, of_small);
  EXPECT_EQ(of_alone, of_large);
  EXPECT_EQ(alone, static_cast<int>(of_alone.size()));
  EXPECT_LT(small, alone);
  EXPECT_EQ(large, 2);  // one a network
}

// What is summed in place is wanted at once: losses, norms. Gradients through a spectral norm are summed behind it, where nothing waits.
TEST(OverlapTest, GradientsThroughSpectralNormsRunBesideCompute) {
  const Ranks ranks = PlanRanks(Small("sngan"), "batch", 2);
  for (const Plan& plan : ranks.plans) {
    int gradients = 0;
    for (const Op& op : plan.program.ops()) {
      if (op.definition->name != "all_reduce") continue;
      gradients += op.attributes.String("purpose") == "gradient";
      if (op.attributes.String("purpose") != "sum" || plan.program.labels()[op.phase] == "report") continue;
      EXPECT_EQ(plan.program.TypeOf(op.inputs[0]).element_count(), 1) << plan.program.labels()[op.phase];
    }
    EXPECT_GT(gradients, 1);
  }
}

// A gradient of several pieces is on its way before all of it is made, and what is kept for the next step is no larger for it.
TEST(OverlapTest, PiecesOfGradientsLeaveLessExposed) {
  GanCase setup = Small("dcgan");
  setup.width = 64;
  setup.plan.chunk_bytes = 1 << 17;
  setup.plan.link = {.bytes_per_second = 5e7, .latency_seconds = 20e-6};
  const absl::StatusOr<Program> program = test::StepProgramOf(setup);
  ASSERT_TRUE(program.ok()) << program.status();
  for (const bool across : {false, true}) {
    OverlapEstimate estimates[2];
    int64_t states[2] = {};
    int exchanges[2] = {};
    for (const bool pieces : {false, true}) {
      Parallel parallel = *Parallel::Parse("batch");
      parallel.exchanges = {.bucket_bytes = 1 << 17, .piece_bytes = pieces ? int64_t{1} << 17 : int64_t{1} << 40};
      parallel.across_steps = across;
      const absl::StatusOr<RankProgram> mine = PartitionFor(*program, parallel, 0, 2);
      ASSERT_TRUE(mine.ok()) << mine.status();
      ExchangeKernels kernels;
      setup.plan.exchanges = &kernels;
      const absl::StatusOr<Plan> plan = MakePlan(mine->program, setup.plan);
      ASSERT_TRUE(plan.ok()) << plan.status();
      estimates[pieces] = EstimateOverlap(*plan);
      exchanges[pieces] = CountBeside(*plan);
      for (const State& state : plan->program.states()) states[pieces] += plan->program.TypeOf(state.first).size_bytes();
    }
    EXPECT_GT(exchanges[1], exchanges[0] + 3);
    EXPECT_LT(estimates[1].exposed_seconds, 0.95 * estimates[0].exposed_seconds) << "across " << across;
    EXPECT_LE(states[1], states[0]);
  }
}

// Whatever order leaves exchanges time, memory is what it was.
TEST(OverlapTest, OrdersTakeHardlyMoreMemory) {
  for (const char* const family : {"dcgan", "wgan-gp", "sngan", "r3gan"}) {
    GanCase setup = Small(family);
    setup.size = 32;
    setup.width = 16;
    setup.plan.link = {.bytes_per_second = 1e8, .latency_seconds = 20e-6};
    const int64_t with = PlanRanks(setup, "batch", 2).plans[0].arena_bytes;
    setup.plan.overlap = false;
    const int64_t without = PlanRanks(setup, "batch", 2).plans[0].arena_bytes;
    EXPECT_LE(static_cast<double>(with), 1.06 * static_cast<double>(without)) << family;
  }
}

// Weights that are gathered: at most those of two ops at a time that nobody reads yet.
TEST(OverlapTest, GathersAreOneOpAhead) {
  const Ranks ranks = PlanRanks(Small("dcgan"), "batch+shard", 2);
  const Plan& plan = ranks.plans[0];
  std::vector<int> first_read(plan.program.values().size(), -1);
  for (int step = static_cast<int>(plan.schedule.size()) - 1; step >= 0; --step) {
    for (ValueId input : plan.program.ops()[plan.schedule[step].op].inputs) first_read[input] = step;
  }
  std::vector<int> ahead(plan.schedule.size() + 1, 0);
  int gathers = 0, early = 0;
  for (size_t step = 0; step < plan.schedule.size(); ++step) {
    const Op& op = plan.program.ops()[plan.schedule[step].op];
    if (op.attributes.String("purpose") != "gather") continue;
    ++gathers;
    early += plan.schedule[step].done_by > static_cast<int>(step) + 1;
    for (int at = static_cast<int>(step); at < plan.schedule[step].done_by; ++at) ++ahead[at];
  }
  ASSERT_GT(gathers, 4);
  EXPECT_GT(early, gathers / 2);
  // An op wants a weight and at most two vectors beside it (bias, scale).
  EXPECT_LE(*std::max_element(ahead.begin(), ahead.end()), 6);
}

TEST(ParseLinkTest, TakesRatesAndLatencies) {
  const absl::StatusOr<Throttle> both = ParseLink("1GB/s,50us");
  ASSERT_TRUE(both.ok());
  EXPECT_EQ(both->bytes_per_second, 1e9);
  EXPECT_DOUBLE_EQ(both->latency_seconds, 50e-6);
  EXPECT_EQ(ParseLink("2.5GBps")->bytes_per_second, 2.5e9);
  EXPECT_DOUBLE_EQ(ParseLink("1ms, 100MiB/s")->latency_seconds, 1e-3);
  EXPECT_EQ(ParseLink("")->bytes_per_second, 0.0);
  for (const char* const wrong : {"1GB", "fast", "1GB/s,2GB/s", "1us,2us", "-1GB/s", "1GB/s,50us,x", "0GB/s", "100s"}) {
    EXPECT_FALSE(ParseLink(wrong).ok()) << wrong;
  }
  PlanOptions options;
  EXPECT_NE(SetExchanges({.link = "x"}, options).status().ToString().find("parallel.link"), std::string::npos);
  EXPECT_NE(SetExchanges({.overlap = "x"}, options).status().ToString().find("parallel.overlap"), std::string::npos);
  EXPECT_NE(SetExchanges({.bucket = "x"}, options).status().ToString().find("parallel.bucket"), std::string::npos);
}

// Notes when it runs.
class NotingKernel final : public Kernel {
 public:
  explicit NotingKernel(std::vector<int>& order, int number, absl::Status status = {}) : order_(order), number_(number), status_(std::move(status)) {}
  std::string_view implementation() const override { return "noting"; }
  absl::Status Run(const KernelArguments&) override {
    order_.push_back(number_);
    return status_;
  }

 private:
  std::vector<int>& order_;
  const int number_;
  const absl::Status status_;
};

TEST(ExchangeLanesTest, CarriesOutInOrderAndHoldsToTheLink) {
  // Stands until the gate opens.
  class StandingKernel final : public Kernel {
   public:
    StandingKernel(Kernel& kernel, std::latch& gate) : kernel_(kernel), gate_(gate) {}
    std::string_view implementation() const override { return "standing"; }
    absl::Status Run(const KernelArguments& arguments) override {
      gate_.wait();
      return kernel_.Run(arguments);
    }

   private:
    Kernel& kernel_;
    std::latch& gate_;
  };
  std::vector<int> order;
  std::latch gate(1);
  NotingKernel noting(order, 1), second(order, 2), third(order, 3);
  StandingKernel first(noting, gate);
  // 10 ms for 1 MB, and 1 ms each.
  const auto lanes = ExchangeLanes::Create({.bytes_per_second = 100e6, .latency_seconds = 1e-3}, {{PlanLane::kGradients, 4}});
  ASSERT_TRUE(lanes.ok()) << lanes.status();
  const auto begin = std::chrono::steady_clock::now();
  const auto Passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  (*lanes)->Start(PlanLane::kGradients, {.kernel = &first, .link_bytes = 1'000'000});
  const int64_t ticket = (*lanes)->Start(PlanLane::kGradients, {.kernel = &second, .link_bytes = 1'000'000});
  gate.count_down();  // beginning has not waited: it would not have ended
  ASSERT_TRUE((*lanes)->Wait(PlanLane::kGradients, ticket).ok());
  EXPECT_GE(Passed(), 22e-3);
  const double before = Passed();
  ASSERT_TRUE((*lanes)->Run({.kernel = &third, .link_bytes = 500'000}).ok());
  EXPECT_GE(Passed() - before, 6e-3);
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
}

TEST(ExchangeLanesTest, WhatIsUrgentTakesItsTimeFromGradients) {
  class BeginningKernel final : public Kernel {
   public:
    std::string_view implementation() const override { return "beginning"; }
    absl::Status Run(const KernelArguments&) override {
      thread = gettid();
      return absl::OkStatus();
    }
    std::atomic<pid_t> thread = 0;
  };
  BeginningKernel gradient, halo;
  const auto lanes = ExchangeLanes::Create({.bytes_per_second = 100e6}, {{PlanLane::kGradients, 1}});
  ASSERT_TRUE(lanes.ok());
  const auto begin = std::chrono::steady_clock::now();
  const int64_t ticket = (*lanes)->Start(PlanLane::kGradients, {.kernel = &gradient, .link_bytes = 6'000'000});
  while (gradient.thread == 0) std::this_thread::yield();
  ASSERT_TRUE(AwaitSleep(gradient.thread));  // it is held to the link
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ASSERT_TRUE((*lanes)->Run({.kernel = &halo, .link_bytes = 3'000'000}).ok());
  ASSERT_TRUE((*lanes)->Wait(PlanLane::kGradients, ticket).ok());
  EXPECT_GE(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), 90e-3);
}

TEST(ExchangeLanesTest, StopsAtTheFirstError) {
  std::vector<int> order;
  NotingKernel first(order, 1), second(order, 2, absl::UnavailableError("rank 1 is lost")), third(order, 3);
  const auto lanes = ExchangeLanes::Create({}, {{PlanLane::kGradients, 3}});
  ASSERT_TRUE(lanes.ok());
  for (NotingKernel* const kernel : {&first, &second, &third}) (*lanes)->Start(PlanLane::kGradients, {.kernel = kernel});
  EXPECT_EQ((*lanes)->Wait(PlanLane::kGradients, 3).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ((*lanes)->Drain().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

}  // namespace
}  // namespace gantry
