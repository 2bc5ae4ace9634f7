// Where the ops of a step run: compute, and lanes beside it for copies and exchanges.
#pragma once

#include <cstdint>
#include <string_view>

#include "runtime/graph/program.h"

namespace gantry {

// Ops of a lane follow one another; lanes run beside each other. Exchanges of the three last ones have communicators of their own.
enum class PlanLane : uint8_t {
  kCompute,    // ops, and exchanges that are waited for where they stand
  kCopy,       // between the device and a tier, in one direction
  kGradients,  // exchanges of large gradients
  kUrgent,     // what is wanted sooner: gathers of weights that are held in parts, small gradients
  kActivations,  // what is wanted next: halos, sums of what goes back through batch norms
};
inline constexpr PlanLane kExchangeLanes[] = {PlanLane::kGradients, PlanLane::kUrgent, PlanLane::kActivations};

// "compute", "copy", "gradients", "urgent", "activations".
std::string_view Name(PlanLane lane);

// An input, 1 where a step before has left something to do behind. What runs under this condition is its tail (runtime/partition/defer_tail.h).
inline constexpr std::string_view kTailFlag = "tail";

// The lane of an exchange that may run beside compute, by its purpose, {urgent} and {backward} (ops/exchange.cc); kCompute for the others, which something waits
// for at once.
PlanLane LaneOf(const OpDefinition& definition, const Attributes& attributes);

// Bytes that an exchange takes a link: the larger of what this rank sends and gets; 0 for other ops. A sum over P ranks counts as sent and
// gathered in parts, 2 (P - 1) / P of its bytes each way (Thakur, Rabenseifner and Gropp 2005, Optimization of collective communication
// operations in MPICH, section 4.5), however a transport does it.
int64_t LinkBytes(const Program& program, OpId op);

}  // namespace gantry
