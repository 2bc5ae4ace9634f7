#include "runtime/simulate/topology.h"

#include <algorithm>

#include "runtime/plan/link_model.h"

namespace gantry {
namespace {

uint64_t BytesOf(int64_t bytes) { return bytes == INT64_MAX ? 0 : static_cast<uint64_t>(bytes); }

TopologyNode RankOf(const Machine& machine, int rank) {
  TopologyNode node{.kind = "rank", .number = rank, .bytes = BytesOf(machine.memory_bytes)};
  node.gigabytes_per_second = machine.bytes_per_second * 1e-9;
  if (!machine.rank_speeds.empty()) {
    const double speed = machine.rank_speeds[static_cast<size_t>(rank) % machine.rank_speeds.size()];
    if (speed != 1.0) node.name = absl::StrFormat("speed %g", speed);
  }
  for (const MachineTier& tier : machine.tiers) {
    TopologyNode& of_tier = node.children.emplace_back(TopologyNode{.kind = "tier", .name = tier.kind, .bytes = BytesOf(tier.memory_bytes)});
    if (tier.name != tier.kind) absl::StrAppend(&of_tier.name, " ", tier.name);
    of_tier.gigabytes_per_second = std::min(tier.out_bytes_per_second, tier.in_bytes_per_second) * 1e-9;
    of_tier.latency_seconds = tier.latency_seconds;
  }
  return node;
}

TopologyNode LinkOf(const MachineLink& link, std::string_view name) {
  TopologyNode node{.kind = "link", .name = std::string(name)};
  if (link.parallel > 1) absl::StrAppend(&node.name, ", ", link.parallel, " side by side");
  if (link.shared) node.name += ", one for all together";
  node.gigabytes_per_second = link.bytes_per_second * 1e-9;
  node.latency_seconds = link.latency_seconds;
  return node;
}

}  // namespace

absl::StatusOr<TopologyNode> DescribedTopology(const Machine& machine, int nodes) {
  if (nodes < 0 || nodes > kMaxDescribedNodes)
    return absl::InvalidArgumentError(absl::StrFormat("nodes is %d; it must be 1 to %d", nodes, kMaxDescribedNodes));
  const int per_node = std::max(machine.ranks_per_node, 1);
  const int ranks = nodes > 0 ? nodes * per_node : std::max(machine.rank_count, 1);
  GANTRY_RETURN_IF_ERROR(LinkModel(&machine).Check(ranks));
  TopologyNode job{.kind = "job", .name = machine.name};
  for (int first = 0; first < ranks; first += per_node) {
    TopologyNode& node = job.children.emplace_back(TopologyNode{.kind = "node", .number = first / per_node});
    for (int rank = first; rank < std::min(first + per_node, ranks); ++rank) node.children.push_back(RankOf(machine, rank));
    for (const MachineLink& link : machine.links) {
      if (link.between == "node") node.children.push_back(LinkOf(link, "between every two ranks"));
      for (const auto& [a, b] : link.pairs) node.children.push_back(LinkOf(link, absl::StrFormat("between ranks %d and %d", first + a, first + b)));
    }
  }
  for (const MachineLink& link : machine.links) {
    if (link.between == "network" && job.children.size() > 1) job.children.push_back(LinkOf(link, "between nodes"));
  }
  return job;
}

}  // namespace gantry
