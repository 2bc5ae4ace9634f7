#include "runtime/plan/dependencies.h"

#include <algorithm>
#include <numeric>

namespace gantry {

Dependencies::Dependencies(const Program& program) : base(program.values().size()), before(program.ops().size()), after(program.ops().size()) {
  std::iota(base.begin(), base.end(), 0);
  std::vector<std::vector<OpId>> readers(program.values().size());
  OpId exchange = -1;
  for (OpId id = 0; id < static_cast<OpId>(program.ops().size()); ++id) {
    const Op& op = program.ops()[id];
    if (op.definition->is_view) base[op.outputs[0]] = base[op.inputs[0]];
    for (int i = 0; i < UpdateCount(op); ++i) base[op.outputs[i]] = base[op.inputs[i]];
    for (ValueId input : op.inputs) Precede(program.values()[input].producer, id);
    for (int i = 0; i < UpdateCount(op); ++i) {
      for (OpId reader : readers[base[op.inputs[i]]]) Precede(reader, id);
    }
    for (ValueId input : op.inputs) readers[base[input]].push_back(id);
    if (op.definition->communicates) {
      Precede(exchange, id);
      exchange = id;
    }
  }
}

void Dependencies::Precede(OpId first, OpId second) {
  if (first < 0 || first == second || std::ranges::find(before[second], first) != before[second].end()) return;
  before[second].push_back(first);
  after[first].push_back(second);
}

}  // namespace gantry
