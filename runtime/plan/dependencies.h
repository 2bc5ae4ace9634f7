// Which ops must stand before which, for rewrites that change a program's order.
#pragma once

#include <vector>

#include "runtime/graph/program.h"

namespace gantry {

// A value goes before its readers, the readers of a state's version before the op that writes over it, and exchanges between ranks keep their order.
struct Dependencies {
  explicit Dependencies(const Program& program);

  std::vector<ValueId> base;                     // per value: the one whose memory it is in, by views and updates
  std::vector<std::vector<OpId>> before, after;  // per op: each op once, in order of the program

 private:
  void Precede(OpId first, OpId second);
};

}  // namespace gantry
