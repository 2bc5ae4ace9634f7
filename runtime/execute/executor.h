// Runs a plan, step after step, in one arena that is reserved once.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/device.h"
#include "runtime/plan/plan.h"

namespace gantry {

// One thread at a time. From the second step on Run allocates nothing.
class Executor {
 public:
  // Reserves the arena on `device`, which must outlive the executor. kResourceExhausted names the bytes that are short.
  static absl::StatusOr<std::unique_ptr<Executor>> Create(Plan plan, Device& device);

  const Plan& plan() const { return plan_; }
  const Program& program() const { return plan_.program; }

  // The memory of an input or state by name, for the caller to fill before a step or to read after one; of an output, to read
  // after one. Empty where there is none, or nobody reads the input.
  std::span<std::byte> Data(std::string_view name);
  std::span<std::byte> Data(ValueId value);

  // One step. A scalar output (a loss) is checked as soon as it is made: where it is not finite, the step stops there with
  // kDataLoss before any later op of it runs.
  absl::Status Run();

  // After Run returned kDataLoss and the inputs have been filled again: runs the step up to the same place, looking at every
  // value, and returns what first held a NaN or infinity: "input real", "state discriminator.0.weight" or an op.
  std::string FindFirstNonFinite();

  // Highest arena byte that a step has touched so far, counted as the ops ran.
  int64_t high_water_bytes() const { return high_water_; }

  // Seconds spent in each op of the schedule since profiling was switched on.
  void SetProfiling(bool on);
  const std::vector<double>& op_seconds() const { return op_seconds_; }

 private:
  struct BoundOp {
    Kernel* kernel;
    OpId op;
    const void* condition;      // a float scalar, or null
    DataType condition_type;
    std::span<const void* const> inputs;
    std::span<void* const> outputs;
    void* scratch;
    int64_t top;                // highest byte it touches
    const void* watched_scalar;  // an output of the program to check, or null
    DataType watched_type;
  };

  Executor(Plan plan, std::unique_ptr<Slab> arena);
  void Bind();

  Plan plan_;
  std::unique_ptr<Slab> arena_;
  std::vector<const void*> input_pointers_;
  std::vector<void*> output_pointers_;
  std::vector<BoundOp> ops_;
  int64_t high_water_ = 0;
  size_t stopped_at_ = 0;
  bool profiling_ = false;
  std::vector<double> op_seconds_;
};

}  // namespace gantry
