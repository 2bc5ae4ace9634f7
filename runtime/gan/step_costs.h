// What ops and exchanges take in a session's steps, and a machine that learns from it.
#pragma once

#include <optional>
#include <vector>

#include "memory/status.h"
#include "runtime/gan/gan_session.h"
#include "runtime/plan/machine.h"

namespace gantry {

struct StepCosts {
  // One sample for all ops of a kind that do the same work: their mean. Samples of a step's ops add up to the step, without what it waits.
  std::vector<MeasuredKernel> kernels;
  double start_seconds = 0;     // mean over exchanges beside compute: what compute loses where one begins; 0 where there is none
  double in_place_seconds = 0;  // mean over exchanges of a few bytes that compute waits for where they begin; likewise
};

// Runs `steps` (>= 1) steps on made-up data, after a first one that does not count. A call of all ranks, which measure while the others are at work.
absl::StatusOr<StepCosts> MeasureOps(GanSession& session, int steps);

// Seconds of a step of the session on made-up data: the median of `steps` (>= 1), without a first one. A call of all ranks, the same for all.
absl::StatusOr<double> MeasureStep(GanSession& session, int steps);

// What an all-reduce of the session's ranks, and `costs` of all of them, say of what lies between them, in the closed forms of LinkModel: between
// the ranks of a node where all are on one, of the network where each has a node of its own; nothing otherwise. A call of all ranks, the same for
// all. Writes over the session's arena, which is then of no further use.
absl::StatusOr<std::optional<MachineLink>> MeasureLink(GanSession& session, const StepCosts& costs);

// Adds the samples. What is near a sample that `machine` has already is put together with it.
void AddSamples(const std::vector<MeasuredKernel>& kernels, Machine& machine);
// Instead of what the machine has of its kind.
void SetLink(const MachineLink& link, Machine& machine);

}  // namespace gantry
