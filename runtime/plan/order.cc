#include "runtime/plan/order.h"

#include <algorithm>
#include <deque>
#include <iterator>

#include "runtime/graph/lanes.h"
#include "runtime/plan/dependencies.h"

namespace gantry {
namespace {

constexpr int64_t kSmallBytes = 4096;

bool IsEager(const Program& program, const Op& op) {
  // Ranks plan apart from each other and must meet in the same order, whatever the sizes of their parts.
  if (op.definition->is_view || op.definition->communicates) return false;
  if (UpdateCount(op) > 0) return true;
  int64_t made = 0;
  for (ValueId output : op.outputs) made += program.TypeOf(output).size_bytes();
  return made <= kSmallBytes;
}

}  // namespace

absl::StatusOr<Program> UpdateEarly(const Program& program) {
  GANTRY_RETURN_IF_ERROR(program.status());
  const OpId count = static_cast<OpId>(program.ops().size());
  const Dependencies dependencies(program);
  std::vector<size_t> waits_for;
  for (const std::vector<OpId>& before : dependencies.before) waits_for.push_back(before.size());
  Program target;
  ProgramCopier copier(program, target);
  std::vector<bool> done(count, false);
  std::deque<OpId> ready;
  // What could follow from the last exchanges beside compute: it would wait for them, so that it goes behind the begin of the next one of gradients.
  std::vector<OpId> held;
  // What follows from an op goes before what was ready already: all pieces of one weight's update run before another weight's begin,
  // whose gradients may still be away.
  const auto Run = [&](OpId id) {
    copier.Copy(id);
    done[id] = true;
    const Op& op = program.ops()[id];
    const PlanLane lane = LaneOf(*op.definition, op.attributes);
    const bool beside = lane != PlanLane::kCompute;
    if (beside && lane != PlanLane::kActivations) {
      ready.insert(ready.end(), held.begin(), held.end());
      held.clear();
    }
    auto place = ready.begin();
    for (OpId next : dependencies.after[id]) {
      if (--waits_for[next] != 0 || !IsEager(program, program.ops()[next])) continue;
      if (beside) {
        held.push_back(next);
      } else {
        place = std::next(ready.insert(place, next));
      }
    }
  };
  const auto RunReady = [&] {
    while (!ready.empty()) {
      const OpId next = ready.front();
      ready.pop_front();
      if (!done[next]) Run(next);
    }
  };
  // What reads inputs and states only goes first: all updates of a network wait for their number.
  for (OpId id = 0; id < count; ++id) {
    if (waits_for[id] == 0 && IsEager(program, program.ops()[id])) ready.push_back(id);
  }
  RunReady();
  for (OpId id = 0; id < count; ++id) {
    if (!done[id]) Run(id);
    RunReady();
  }
  copier.Finish();
  GANTRY_RETURN_IF_ERROR(target.status());
  return target;
}

}  // namespace gantry
