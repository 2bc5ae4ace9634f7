// The machine's tree, and how ranks are spread over its cores.
#include "comm/topology.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "comm/binding.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gantry {
namespace {

std::set<int> AllowedCpus() {
  cpu_set_t allowed;
  EXPECT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  std::set<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) cpus.insert(cpu);
  }
  return cpus;
}

void Visit(const TopologyNode& node, std::set<int>& core_cpus, uint64_t& memory_bytes) {
  if (node.kind == "core") core_cpus.insert(node.cpus.begin(), node.cpus.end());
  if (node.kind == "memory") memory_bytes += node.bytes;
  for (const TopologyNode& child : node.children) {
    for (const int cpu : child.cpus) {
      EXPECT_TRUE(child.kind == "memory" || std::find(node.cpus.begin(), node.cpus.end(), cpu) != node.cpus.end()) << child.kind << " in " << node.kind;
    }
    Visit(child, core_cpus, memory_bytes);
  }
}

TEST(TopologyTest, HoldsEveryCoreAndAllMemory) {
  const auto machine = DiscoverTopology();
  ASSERT_TRUE(machine.ok()) << machine.status();
  EXPECT_EQ(machine->kind, "machine");
  std::set<int> cpus;
  uint64_t bytes = 0;
  Visit(*machine, cpus, bytes);
  const std::set<int> allowed = AllowedCpus();
  EXPECT_TRUE(std::includes(cpus.begin(), cpus.end(), allowed.begin(), allowed.end()));
  const auto system_bytes = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  EXPECT_GE(bytes, system_bytes / 2);
  EXPECT_LE(bytes, system_bytes * 2);
  EXPECT_THAT(FormatTopology(*machine), testing::HasSubstr("core"));
}

TEST(TopologyTest, TextAndJson) {
  const TopologyNode machine{.kind = "machine", .cpus = {0, 1, 2, 5}, .children = {{.kind = "l3", .bytes = 32 << 20, .cpus = {0, 1}}, {.kind = "gpu", .name = "a \"b\"", .gigabytes_per_second = 31.5}}};
  EXPECT_EQ(FormatTopology(machine), "machine, cpus 0-2,5\n  l3, 32.0 MiB, cpus 0-1\n  gpu a \"b\", 31.5 GB/s\n");
  EXPECT_EQ(FormatTopologyJson(machine),
            "{\"kind\": \"machine\", \"version\": 1, \"cpus\": [0, 1, 2, 5], \"children\": [\n"
            "  {\"kind\": \"l3\", \"bytes\": 33554432, \"cpus\": [0, 1]},\n"
            "  {\"kind\": \"gpu\", \"name\": \"a \\\"b\\\"\", \"gigabytes_per_second\": 31.500}]}\n");
}

TEST(BindingTest, RanksShareTheCoresAndNoneTwice) {
  const std::set<int> allowed = AllowedCpus();
  for (int ranks = 1; ranks <= static_cast<int>(allowed.size()) + 1; ++ranks) {
    const auto bindings = BindRanks(ranks);
    ASSERT_TRUE(bindings.ok()) << bindings.status();
    ASSERT_EQ(bindings->size(), static_cast<size_t>(ranks));
    std::set<int> used;
    size_t empty = 0;
    for (const RankBinding& binding : *bindings) {
      empty += binding.cpus.empty();
      for (const int cpu : binding.cpus) {
        EXPECT_TRUE(allowed.count(cpu)) << cpu;
        EXPECT_TRUE(used.insert(cpu).second) << "cpu " << cpu << " has two ranks";
      }
    }
    // All of them or none: none where ranks outnumber cores.
    EXPECT_TRUE(empty == 0 ? used == allowed : empty == bindings->size()) << ranks << " ranks";
    if (ranks > static_cast<int>(allowed.size())) {
      EXPECT_EQ(empty, bindings->size());
    }
  }
}

}  // namespace
}  // namespace gantry
