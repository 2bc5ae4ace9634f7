// Partitioning: a step program becomes one program a rank. Values are split over the ranks of a group, and what an op needs of the
// others arrives by exchanges (ops/exchange.cc). The meaning stays: every rank's outputs are those of the whole program, up to the order
// of floating-point sums. Rules per op propagate a placement from inputs to outputs, as GSPMD does (Xu et al. 2021, section 3).
#pragma once

#include <string>
#include <vector>

#include "runtime/graph/program.h"
#include "runtime/partition/order_exchanges.h"

namespace gantry {

enum class SplitKind : uint8_t {
  kNone,   // nothing but states are split
  kBatch,  // samples: axis 0 of what the discriminators judge and of noise
  kSpace,  // rows, or frames: axis 2 of [N, C, spatial...]
  kChannel,  // channels of activations, and weights, moments and averages with them: each rank has its part of a layer (tensor parallel)
};

// One axis of the mesh of ranks.
struct PartitionAxis {
  SplitKind split = SplitKind::kBatch;
  // Parameters, moments and averages are held in parts, gathered before use (Rajbhandari et al. 2020, ZeRO stage 3).
  bool shard_states = false;
  std::vector<int> ranks;        // of the job, in the order of their parts
  std::vector<double> shares;    // of the work, one a rank; empty: equal
  int64_t least_rows = 4;        // kSpace: values with fewer rows a rank than this are not split where nothing splits them yet
  int64_t least_channels = 4;    // kChannel: values with fewer channels a rank than this are not split where nothing splits them yet
  std::vector<int> choices;      // kChannel: RankProgram::choices of ranks that share out the same samples otherwise, to be followed; empty: the cheapest
  int64_t least_elements = 256;  // shard_states: states with fewer elements a rank are held by every rank
};

// The part of an input that a rank is given.
struct InputPart {
  std::string name;
  Shape whole;                  // of the program before partitioning
  std::vector<int64_t> begins;  // per axis; the extents are those of the rank's program
};

struct RankProgram {
  Program program;
  // Inputs that are split; others are given whole.
  std::vector<InputPart> input_parts;
  // Ops that no rule covers, by name, each once: their inputs are gathered and every rank computes all of it.
  std::vector<std::string> gathered;
  // When exchanges could begin: what OrderExchanges takes.
  ExchangePlaces places;
  // Of the exchanges of the axis before, in order: how what they move is split along this axis. The ranks of such an exchange must agree.
  std::vector<std::string> crossings;
  // kChannel: which way each op is split for which several were open, in order.
  std::vector<int> choices;
};

// Where the parts of `extent` places begin and end, one more number than ranks; no rank's part is empty. Empty where there are fewer places
// than ranks. `shares`: of the work, one a rank; empty: equal.
std::vector<int64_t> CutsOf(int64_t extent, int ranks, const std::vector<double>& shares);

// The program of the rank at `index` of the axis. Every rank calls it with the same program and axis; kInvalidArgument where that makes
// no sense. A program that was partitioned along one axis may be partitioned along another one: `before` is then what that gave.
// States that are held in parts are pieces (State::whole, State::begin); other states keep their names. Outputs are whole where they are
// scalars, else as they are split.
absl::StatusOr<RankProgram> Partition(const Program& program, const PartitionAxis& axis, int index,
                                      const std::vector<InputPart>& before = {});

}  // namespace gantry
