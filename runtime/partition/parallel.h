// How a step is shared out over the ranks of a job, and what this rank's part of it is.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/partition/partition.h"

namespace gantry {

// A mesh: ranks next to each other share out space or channels, ranks further apart the batch; with roles, the first half of the ranks has the
// generators and the second half the discriminators, each half with a mesh of its own; with a pipeline, as many equal parts of the ranks as there
// are stages have some layers of every network each.
struct Parallel {
  bool batch = false, space = false, channel = false;  // space and channel exclude each other
  bool roles = false, pipeline = false;  // exclude each other
  std::vector<std::string> generators;  // roles and pipeline: names of the networks of the first half, and that begin in the first stage
  int stages = 0;  // pipeline: 0: one a rank, or two where another split is asked for, too
  bool shard = false;  // states are held once among the ranks that share out space or channels, or else batch, or else among all
  ExchangeOrder exchanges;
  bool gradients_first = true;  // gradients as soon as they can be made, for exchanges that run beside compute; false: in the program's order
  bool across_steps = false;  // the last network's exchanges and updates run in the next step (defer_tail.h)
  std::vector<double> shares;  // of the work, one a rank, where one axis has them all (TakesShares); empty: equal
  std::vector<double> speeds;  // of ranks' compute, for predictions; of fewer ranks than the job's they repeat; empty: alike
  bool automatic = false;  // "auto": whoever plans looks for the best of the others (runtime/simulate)
  int batch_ranks = 0;  // batch with space or channel: ranks along the batch; 0: MeshOf's own choice

  // "auto", or "batch", "space", "channel", "shard", "roles", "pipeline", joined with "+"; "pipeline:3" has 3 stages; "batch:4" with space or channel has 4 ranks along the batch; "batch=4:2:1" has shares; "" is none.
  // kInvalidArgument names what is allowed.
  static absl::StatusOr<Parallel> Parse(std::string_view text);
  std::string Text() const;
  std::string TextOrBatch() const;  // what is done: where nothing is said, the batch is shared out
  bool any() const { return batch || space || channel || shard || roles || pipeline; }
  bool second() const { return space || channel; }  // the mesh has ranks next to each other
  // States are in parts: channels of them, or flat ones.
  bool states_in_parts() const { return shard || channel; }
  bool by_homes() const { return roles || pipeline; }  // ops and states are on some ranks only
};

// Ranks of the outermost axis: with roles two, with a pipeline its stages, else one.
int OutermostOf(const Parallel& parallel, int ranks);
// Ranks per axis: the batch's times space's, or channels', is `ranks` over those of the outermost axis. The second gets the larger factor of the pair nearest to a square, unless
// Parallel::batch_ranks says otherwise.
struct MeshSize {
  int batch = 1, second = 1;
};
MeshSize MeshOf(const Parallel& parallel, int ranks);
// Whether one axis has all ranks, so that each can have its own share of the work.
bool TakesShares(const Parallel& parallel, int ranks);

// The ranks that hold one copy of the states among them, this one included, in the order of their parts; one where states are whole.
std::vector<int> ShardGroup(const Parallel& parallel, int rank, int ranks);
// All groups that this rank exchanges in, in the same order on every rank.
std::vector<std::vector<int>> GroupsOf(const Parallel& parallel, int rank, int ranks);

// `program`, simplified, as `rank` of `ranks` runs it. Where `parallel` says nothing, the batch is shared out.
// kInvalidArgument where rows of the mesh with different numbers of samples would not fit together; the same on every rank.
absl::StatusOr<RankProgram> PartitionFor(const Program& program, const Parallel& parallel, int rank, int ranks);

}  // namespace gantry
