#include "runtime/plan/memory_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "memory/device.h"
#include "ops/functional.h"
#include "runtime/execute/executor.h"
#include "runtime/gan/gan_step.h"
#include "tests/support/small_gan.h"

namespace gantry {
namespace {

constexpr int64_t kCount = 4096;

// Goes forward through `passes` chains of layers one after another, and then back through all of them.
Program PassesInARow(int passes, int layers) {
  Program p;
  std::vector<std::vector<ValueId>> kept(passes);
  for (int pass = 0; pass < passes; ++pass) {
    ValueId value = p.AddInput(absl::StrCat("x", pass), {DataType::kF32, Shape{kCount}});
    for (int layer = 0; layer < layers; ++layer) kept[pass].push_back(value = ops::Exp(p, ops::Scale(p, value, 0.25)));
  }
  for (int pass = 0; pass < passes; ++pass) {
    ValueId gradient = ops::Scale(p, kept[pass].back(), 0.5);
    for (int layer = layers; layer-- > 0;) gradient = ops::Mul(p, gradient, kept[pass][layer]);
    p.AddOutput(absl::StrCat("gradient", pass), ops::ReduceSum(p, gradient, {0}, false));
  }
  return p;
}

// An order that keeps the program's meaning, drawn at random: values before their readers, readers of an old version before its update.
Program Shuffled(const Program& program, uint32_t seed) {
  const int count = static_cast<int>(program.ops().size());
  std::map<ValueId, ValueId> memory;  // what each value is a view or a new version of
  const auto MemoryOf = [&](ValueId value) { return memory.contains(value) ? memory[value] : value; };
  std::vector<std::vector<int>> before(count);
  for (int id = 0; id < count; ++id) {
    const Op& op = program.ops()[id];
    for (int other = 0; other < id; ++other) {
      const Op& earlier = program.ops()[other];
      bool must = false;
      for (ValueId input : op.inputs) must = must || std::ranges::find(earlier.outputs, input) != earlier.outputs.end();
      for (int i = 0; i < UpdateCount(op); ++i) {
        for (ValueId read : earlier.inputs) must = must || MemoryOf(read) == MemoryOf(op.inputs[i]);
      }
      if (must) before[id].push_back(other);
    }
    if (op.definition->is_view) memory[op.outputs[0]] = MemoryOf(op.inputs[0]);
    for (int i = 0; i < UpdateCount(op); ++i) memory[op.outputs[i]] = MemoryOf(op.inputs[i]);
  }
  std::mt19937 random(seed);
  std::vector<bool> done(count, false);
  Program target;
  ProgramCopier copier(program, target);
  for (int placed = 0; placed < count; ++placed) {
    std::vector<int> ready;
    for (int id = 0; id < count; ++id) {
      if (!done[id] && std::ranges::all_of(before[id], [&](int other) { return done[other]; })) ready.push_back(id);
    }
    const int next = ready[random() % ready.size()];
    copier.Copy(next);
    done[next] = true;
  }
  copier.Finish();
  EXPECT_TRUE(target.status().ok()) << target.status();
  return target;
}

// All outputs and states after two steps of reference kernels.
std::map<std::string, std::vector<std::byte>> Results(const Program& program) {
  absl::StatusOr<Plan> plan = MakePlan(program, {.kernels = KernelChoice::kReference, .fuse = false});
  EXPECT_TRUE(plan.ok()) << plan.status();
  const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = 1});
  auto made = Executor::Create(*std::move(plan), *device);
  EXPECT_TRUE(made.ok()) << made.status();
  Executor& executor = **made;
  const auto Fill = [](std::span<std::byte> to, double scale) {
    for (size_t i = 0; i < to.size() / sizeof(float); ++i) {
      const float value = static_cast<float>(scale * (1.25 + std::sin(0.7 * static_cast<double>(i))));
      std::memcpy(to.data() + i * sizeof(float), &value, sizeof(float));
    }
  };
  for (const State& state : executor.program().states()) Fill(executor.Data(state.name), 0.01);
  for (int step = 0; step < 2; ++step) {
    for (ValueId input : executor.program().inputs()) Fill(executor.Data(input), 0.1);
    EXPECT_TRUE(executor.Run().ok());
  }
  std::map<std::string, std::vector<std::byte>> results;
  const auto Keep = [&](const std::string& name) {
    const std::span<std::byte> data = executor.Data(name);
    results[name].assign(data.begin(), data.end());
  };
  for (const NamedValue& output : executor.program().outputs()) Keep(output.name);
  for (const State& state : executor.program().states()) Keep(state.name);
  return results;
}

TEST(MemoryOrderTest, LiveBytesAreTheBoundOfThePlan) {
  for (const auto& [passes, layers] : {std::pair{1, 1}, {2, 5}, {3, 3}}) {
    const Program program = PassesInARow(passes, layers);
    const auto plan = MakePlan(program, {.kernels = KernelChoice::kReference, .fuse = false});
    ASSERT_TRUE(plan.ok()) << plan.status();
    // Scalars take 64 bytes there.
    EXPECT_NEAR(static_cast<double>(LiveBytes(program)), static_cast<double>(plan->lower_bound_bytes), 64.0 * passes);
  }
}

TEST(MemoryOrderTest, OnePassGoesBackBeforeTheNextGoesForward) {
  const int layers = 12;
  const Program program = PassesInARow(3, layers);
  const auto ordered = OrderForMemory(program);
  ASSERT_TRUE(ordered.ok()) << ordered.status();
  EXPECT_EQ(ordered->ops().size(), program.ops().size());
  const double bytes = kCount * sizeof(float);
  EXPECT_GT(static_cast<double>(LiveBytes(program)), 3 * layers * bytes);
  EXPECT_LT(static_cast<double>(LiveBytes(*ordered)), (layers + 5) * bytes);
}

TEST(MemoryOrderTest, AnyOrderBecomesOneThatIsNoWorseAndGivesTheSameBits) {
  const testing::SmallGan gan = testing::MakeSmallGan(4, DataType::kF32);
  GanStepConfig config;
  config.r1 = 1.0;
  config.ema = 0.99;
  const auto program = BuildGanStep(config, gan.generators, gan.discriminators);
  ASSERT_TRUE(program.ok()) << program.status();
  const auto expected = Results(*program);
  int better = 0;
  for (uint32_t seed = 1; seed <= 6; ++seed) {
    const Program shuffled = Shuffled(*program, seed);
    ASSERT_EQ(shuffled.ops().size(), program->ops().size());
    EXPECT_EQ(Results(shuffled), expected) << seed;
    const auto ordered = OrderForMemory(shuffled);
    ASSERT_TRUE(ordered.ok()) << ordered.status();
    ASSERT_EQ(ordered->ops().size(), program->ops().size());
    EXPECT_LE(LiveBytes(*ordered), LiveBytes(shuffled)) << seed;
    better += LiveBytes(*ordered) < LiveBytes(shuffled);
    EXPECT_EQ(Results(*ordered), expected) << seed;
  }
  EXPECT_GT(better, 0);
}

}  // namespace
}  // namespace gantry
