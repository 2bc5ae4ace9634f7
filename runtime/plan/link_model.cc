#include "runtime/plan/link_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

namespace gantry {
namespace {

double Rounds(int ranks) { return std::ceil(std::log2(static_cast<double>(ranks))); }

double RingAllReduce(double bytes, int ranks, double bandwidth, double latency) {
  if (ranks < 2) return 0.0;
  const double p = ranks;
  return std::min(2 * (p - 1) * (latency + bytes / p / bandwidth), Rounds(ranks) * (latency + bytes / bandwidth));
}

double Gather(double bytes, int ranks, double bandwidth, double latency) {
  if (ranks < 2) return 0.0;
  const double p = ranks;
  return Rounds(ranks) * latency + (p - 1) / p * bytes / bandwidth;
}

}  // namespace

LinkModel::LinkModel(const Machine* machine, int ranks_per_node) {
  ranks_per_node_ = ranks_per_node > 0 ? ranks_per_node : std::numeric_limits<int>::max();
  has_network_ = machine == nullptr || machine->links.empty();  // as good as any other that is not described
  if (machine == nullptr) return;
  if (machine->ranks_per_node > 0 && machine->rank_count > 1) ranks_per_node_ = machine->ranks_per_node;
  for (const MachineLink& link : machine->links) {
    const Link described{link.bytes_per_second * link.parallel, link.latency_seconds, link.start_seconds, link.shared};
    if (link.between == "node") node_ = described;
    if (link.between == "pairs") pairs_.push_back(link);
    if (link.between == "network") {
      network_ = described;
      has_network_ = true;
    }
  }
}

absl::Status LinkModel::Check(int ranks) const {
  if (ranks <= ranks_per_node_ || has_network_) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%d ranks take %d nodes of %d, but the machine file has no [[links]] with between = \"network\"",
                      ranks, (ranks - 1) / ranks_per_node_ + 1, ranks_per_node_));
}

LinkModel::Spread LinkModel::SpreadOf(std::span<const int> group) const {
  Spread spread{0, 0};
  std::map<int, int> ranks;
  for (const int rank : group) spread.per_node = std::max(spread.per_node, ++ranks[NodeOf(rank)]);
  spread.nodes = static_cast<int>(ranks.size());
  return spread;
}

// Between ranks of a group that are next to each other; the slowest of them where pairs are described.
LinkModel::Link LinkModel::InNode(std::span<const int> group) const {
  Link link = node_;
  double slowest = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i + 1 < group.size() && !pairs_.empty(); ++i) {
    if (NodeOf(group[i]) != NodeOf(group[i + 1])) continue;
    const std::pair<int, int> wanted = std::minmax(group[i] % ranks_per_node_, group[i + 1] % ranks_per_node_);
    Link found = node_;
    for (const MachineLink& described : pairs_) {
      for (const auto& pair : described.pairs) {
        if (std::pair<int, int>(std::minmax(pair.first, pair.second)) == wanted) {
          found = {described.bytes_per_second * described.parallel, described.latency_seconds, described.start_seconds, described.shared};
        }
      }
    }
    if (found.bandwidth >= slowest) continue;
    slowest = found.bandwidth;
    link = found;
  }
  if (link.shared)
    link.bandwidth /= static_cast<double>(std::min<size_t>(group.size(), static_cast<size_t>(ranks_per_node_)));
  return link;
}

double LinkModel::StartSeconds(std::span<const int> group) const {
  return SpreadOf(group).nodes > 1 ? network_.start : InNode(group).start;
}

double LinkModel::AllReduce(double bytes, std::span<const int> group) const {
  const Spread spread = SpreadOf(group);
  const Link node = InNode(group);
  if (spread.nodes == 1) return RingAllReduce(bytes, spread.per_node, node.bandwidth, node.latency);
  // Every rank of a node has a part of the node's network links.
  const double network = network_.bandwidth / spread.per_node;
  return 2 * Gather(bytes, spread.per_node, node.bandwidth, node.latency) +
         RingAllReduce(bytes / spread.per_node, spread.nodes, network, network_.latency);
}

double LinkModel::AllGather(double bytes, std::span<const int> group) const {
  const Spread spread = SpreadOf(group);
  const Link node = InNode(group);
  if (spread.nodes == 1) return Gather(bytes, spread.per_node, node.bandwidth, node.latency);
  const double network = network_.bandwidth / spread.per_node;
  return Gather(bytes / spread.per_node, spread.nodes, network, network_.latency) +
         Gather(bytes, spread.per_node, node.bandwidth, node.latency);
}

namespace {

// What each other rank gets from this one, and gives to it, in bytes.
struct Traffic {
  std::vector<double> sent, got;
  bool gather = true;  // every rank gets everything
  double whole = 0.0;
};
Traffic TrafficOf(const Program& program, OpId id) {
  const Op& op = program.ops()[id];
  const auto index = static_cast<size_t>(op.attributes.Int("index"));
  const std::vector<int64_t> from_begins = op.attributes.Ints("from_begins"),
                             from_ends = op.attributes.Ints("from_ends");
  const std::vector<int64_t> to_begins = op.attributes.Ints("to_begins"), to_ends = op.attributes.Ints("to_ends");
  const int64_t held = from_ends[index] - from_begins[index], wanted = to_ends[index] - to_begins[index];
  const double place =
      held > 0     ? static_cast<double>(program.TypeOf(op.inputs[0]).size_bytes()) / static_cast<double>(held)
      : wanted > 0 ? static_cast<double>(program.TypeOf(op.outputs[0]).size_bytes()) / static_cast<double>(wanted)
                   : 0.0;
  Traffic traffic;
  const auto Common = [&](size_t holder, size_t taker) {
    return place * static_cast<double>(std::max<int64_t>(0, std::min(from_ends[holder], to_ends[taker]) -
                                                                std::max(from_begins[holder], to_begins[taker])));
  };
  const int64_t first = *std::min_element(from_begins.begin(), from_begins.end()),
                last = *std::max_element(from_ends.begin(), from_ends.end());
  for (size_t other = 0; other < from_begins.size(); ++other) {
    traffic.sent.push_back(other == index ? 0.0 : Common(index, other));
    traffic.got.push_back(other == index ? 0.0 : Common(other, index));
    traffic.gather = traffic.gather && to_begins[other] == first && to_ends[other] == last;
  }
  traffic.whole = place * static_cast<double>(last - first);
  return traffic;
}

double InputBytes(const Program& program, const Op& op) {
  double bytes = 0.0;
  for (ValueId input : op.inputs) bytes += static_cast<double>(program.TypeOf(input).size_bytes());
  return bytes;
}

}  // namespace

double LinkModel::Bytes(const Program& program, OpId id) {
  const Op& op = program.ops()[id];
  const auto ranks = static_cast<double>(op.attributes.Ints("ranks").size());
  if (op.definition->name == "all_reduce") return 2 * (ranks - 1) / ranks * InputBytes(program, op);
  if (op.definition->name == "reduce_scatter") return (ranks - 1) / ranks * InputBytes(program, op);
  const Traffic traffic = TrafficOf(program, id);
  double sent = 0.0, got = 0.0;
  for (size_t other = 0; other < traffic.sent.size(); ++other) {
    sent += traffic.sent[other];
    got += traffic.got[other];
  }
  return std::max(sent, got);
}

double LinkModel::Seconds(const Program& program, OpId id, std::span<const int> group) const {
  const Op& op = program.ops()[id];
  if (op.definition->name == "all_reduce") return AllReduce(InputBytes(program, op), group);
  if (op.definition->name == "reduce_scatter") return AllGather(InputBytes(program, op), group);
  const Traffic traffic = TrafficOf(program, id);
  if (traffic.gather) return AllGather(traffic.whole, group);
  const auto index = static_cast<size_t>(op.attributes.Int("index"));
  const Spread spread = SpreadOf(group);
  double sent[2] = {}, got[2] = {}, latency = 0.0;  // in the node, between nodes
  for (size_t other = 0; other < traffic.sent.size(); ++other) {
    if (traffic.sent[other] + traffic.got[other] <= 0) continue;
    const bool apart = NodeOf(group[other]) != NodeOf(group[index]);
    sent[apart ? 1 : 0] += traffic.sent[other];
    got[apart ? 1 : 0] += traffic.got[other];
    latency += apart ? network_.latency : node_.latency;
  }
  const Link node = InNode(group);
  return latency + std::max(sent[0], got[0]) / node.bandwidth +
         std::max(sent[1], got[1]) / (network_.bandwidth / spread.per_node);
}

}  // namespace gantry
