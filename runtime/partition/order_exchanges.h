// The one order in which all ranks begin their exchanges.
#pragma once

#include <vector>

#include "ops/weight_rows.h"
#include "runtime/graph/program.h"

namespace gantry {

// When each exchange of a rank's program could begin, and when its result is wanted, counted in ops of the whole program: the same on all
// ranks, whatever the sizes of their parts.
struct ExchangePlaces {
  struct Place {
    int ready = -1;   // the op after which its operand is there; -1: before the first one
    int needed = -1;  // the op that wants the result
  };
  std::vector<Place> exchanges;  // in the order of the rank's program
  std::vector<OpId> first_op;    // of each op of the whole program, the first of the rank's ops that carry it out; and where the last one ends
};

struct ExchangeOrder {
  // Sums of gradients of one network are put together until they have so many bytes; larger ones go alone. 0: every one goes alone.
  int64_t bucket_bytes = 1 << 20;
  // Larger sums come in pieces of about so many bytes (split_gradients.h): chunks of weights as planning makes them (PlanOptions::chunk_bytes).
  int64_t piece_bytes = kWeightChunkBytes;
};

// Moves exchanges to where they can begin, and numbers all of them ({sequence}): decisions depend on `places` and on sizes that all
// ranks have alike.
//   gradients  begin as soon as they are complete; small ones of one network go in one exchange, where nobody wants the first before the
//              last is there (Li et al. 2020, PyTorch Distributed, section 3.2.3)
//              Those much smaller than their network's largest are {urgent}: they have a lane of their own.
//   gathers    begin when the op begins that wants the gather before it: what is gathered ahead is one op's weights
//   others     stay where they are: something waits for them at once, or as soon as an op beside them is done
absl::StatusOr<Program> OrderExchanges(const Program& program, const ExchangePlaces& places, const ExchangeOrder& order);

// {sequence} anew, in the order of the program.
void NumberExchanges(Program& program);

}  // namespace gantry
