// What exchanges between ranks take on a described machine.
#pragma once

#include <span>

#include "memory/status.h"
#include "runtime/graph/program.h"
#include "runtime/plan/machine.h"

namespace gantry {

// Closed forms, after Hockney (1994): a message takes latency plus bytes over bandwidth. A group of P ranks on n nodes
// with m of them each, B bytes:
//   all-reduce, one node   the smaller of a ring, 2 (P - 1) (latency + B / P / bandwidth) (Patarasuk and Yuan 2009),
//   and doubling,
//                          ceil(log2 P) (latency + B / bandwidth) (Thakur, Rabenseifner and Gropp 2005, section 4.5)
//   all-reduce, n nodes    reduce-scatter in each node, all-reduce of B / m between the nodes beside each other over
//   the node's shared
//                          network links, all-gather in each node (Cho et al. 2019, BlueConnect); m = 1: a ring or
//                          doubling on the network
//   all-gather, reduce-scatter   the half of the ring, or ceil(log2 P) latencies and (P - 1) / P B / bandwidth (the
//   same, sections 4.1, 4.3);
//                                in nodes and between them likewise
//   other exchanges        the larger of what a rank sends and gets on each kind of link, and the latency of each
//   neighbour
// A link that is one medium for all is shared by all ranks of the node; network links are shared by the node's ranks.
// Exchanges on other lanes at the same time are taken as not in the way.
class LinkModel {
 public:
  // Where the machine describes no links, those of kDefaultBandwidth and kDefaultLatency. `ranks_per_node`: where it says nothing of ranks; 0: all are on
  // one node.
  explicit LinkModel(const Machine* machine, int ranks_per_node = 0);
  static constexpr double kDefaultBandwidth = 4e9, kDefaultLatency = 20e-6;

  // OK, or kInvalidArgument where `ranks` take several nodes and nothing connects those.
  absl::Status Check(int ranks) const;

  // Of the exchange `op` of a rank, whose group is `group`, once all have come.
  double Seconds(const Program& program, OpId op, std::span<const int> group) const;
  // That compute of a rank loses where an exchange with `group` begins beside it.
  double StartSeconds(std::span<const int> group) const;
  // Bytes that the rank sends or gets, whichever is more.
  static double Bytes(const Program& program, OpId op);

  double AllReduce(double bytes, std::span<const int> group) const;
  // Of `bytes` in all.
  double AllGather(double bytes, std::span<const int> group) const;
  int NodeOf(int rank) const { return rank / ranks_per_node_; }
  int ranks_per_node() const { return ranks_per_node_; }

 private:
  struct Link {
    double bandwidth = kDefaultBandwidth, latency = kDefaultLatency, start = 0.0;
    bool shared = false;
  };
  struct Spread {
    int nodes = 1, per_node = 1;
  };
  Spread SpreadOf(std::span<const int> group) const;
  Link InNode(std::span<const int> group) const;

  Link node_, network_;
  std::vector<MachineLink> pairs_;
  bool has_network_ = false;
  int ranks_per_node_ = 1;
};

}  // namespace gantry
