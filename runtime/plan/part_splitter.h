// What rewrites share that let values exist in parts along one axis (split_batch.cc, split_space.cc): which parts there are, and what is
// there as a whole.
#pragma once

#include <string>
#include <vector>

#include "runtime/graph/rewrite.h"

namespace gantry {

// Takes the ops of a program one after the other; a rewrite holds some of them back in a run that goes part by part together.
class PartSplitter {
 public:
  // Once.
  absl::StatusOr<Program> Run();

 protected:
  PartSplitter(const Program& source, int axis, int parts, int64_t least_bytes);
  virtual ~PartSplitter() = default;

  // Emits the op, or adds it to the run.
  virtual void Take(OpId id) = 0;
  // Emits the run.
  virtual void Flush() = 0;
  // Places of the axis, of `extent`, in every part but the last.
  virtual int64_t SizeOfPart(int64_t extent) const = 0;
  // Ops on target values: `into` (kNoValue: zeros) with a part of `extent` places put in at `begin`, and `count` places from `begin` on.
  virtual ValueId Put(ValueId part, ValueId into, int64_t begin, int64_t extent) = 0;
  virtual ValueId TakeOut(ValueId whole, const TensorType& type, int64_t begin, int64_t count) = 0;

  int64_t Extent(const TensorType& type) const { return type.shape[axis_]; }
  int64_t PartsOf(int64_t extent) const { return (extent + SizeOfPart(extent) - 1) / SizeOfPart(extent); }
  // An op that needs its operands whole.
  void CopyWhole(OpId id);
  // The value as a whole, put together where it is in parts only.
  ValueId Whole(ValueId value);
  // Part of a value, taken out of the whole where there is nothing else.
  ValueId Part(ValueId value, int64_t part);
  // The next part of a value, and a value as a whole, that the target has made now; kNoValue: it failed.
  void Define(ValueId value, ValueId part);
  void DefineWhole(ValueId value, ValueId made);

  const Program& source_;
  Program target_;
  ProgramCopier copier_;
  const int part_count_;
  const int64_t least_bytes_;
  std::vector<std::vector<ValueId>> parts_;  // per value: its parts in the target, as far as there are any
  std::vector<bool> whole_;                  // per value: the target has it as a whole
  std::vector<bool> in_parts_;               // per value: it is made in parts
  std::vector<bool> pending_;                // per value: the run makes it

 private:
  const int axis_;
};

}  // namespace gantry
