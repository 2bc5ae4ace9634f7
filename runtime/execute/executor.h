// Runs a plan, step after step, in one arena that is reserved once.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/device.h"
#include "memory/tier/copy_lanes.h"
#include "memory/tier/tier.h"
#include "runtime/plan/plan.h"

namespace gantry {

// One thread at a time. From the second step on Run allocates nothing.
class Executor {
 public:
  // Reserves the arena on `device`, which must outlive the executor, and the slabs of the plan's tiers. kResourceExhausted names
  // the bytes that are short.
  static absl::StatusOr<std::unique_ptr<Executor>> Create(Plan plan, Device& device);

  const Plan& plan() const { return plan_; }
  const Program& program() const { return plan_.program; }

  // The device memory of a step, e.g. to share it with other ranks.
  const Slab& arena() const { return *arena_; }

  // The memory of an input, for the caller to fill before a step, or of an output, to read after one: on the device or in a tier
  // with addresses. Empty where there is none, or nobody reads the input; and of a state in a file.
  std::span<std::byte> Data(std::string_view name);
  std::span<std::byte> Data(ValueId value);
  // Copies a state, wherever it is between steps. Sizes must be the state's. kDataLoss, kUnavailable where a file fails.
  absl::Status ReadState(const State& state, std::span<std::byte> to);
  absl::Status WriteState(const State& state, std::span<const std::byte> from);

  // One step. A scalar output (a loss) is checked as soon as it is made: where it is not finite, the step stops there with
  // kDataLoss before any later op of it runs. Errors of a tier (kUnavailable, kDataLoss) stop it likewise: what it held is then lost,
  // states are partly of this step and partly of the one before, and every later Run fails too.
  absl::Status Run();
  // Whether the last Run ended because of a loss that was not finite.
  bool stopped_on_loss() const { return stopped_on_loss_; }

  // After Run returned kDataLoss and the inputs have been filled again: runs the step up to the same place, looking at every
  // value, and returns what first held a NaN or infinity: "input real", "state discriminator.0.weight" or an op.
  std::string FindFirstNonFinite();

  // Highest arena byte that a step has touched so far, counted as the ops ran.
  int64_t high_water_bytes() const { return high_water_; }
  // The same of a tier's slab.
  int64_t tier_high_water_bytes(int tier) const { return tier_high_water_[tier]; }
  // What the copies took and compute waited for, since the executor was made; null without tiers.
  const CopyLanes* copies() const { return lanes_.get(); }

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
    std::span<const int> waits;  // copies that must be done first
    int copy;                    // index into copies_, or -1; the kernel is then null
  };
  struct BoundCopy {
    LaneCopy copy;
    int64_t tier_top;     // highest byte of the slab that it touches
    int64_t ticket = 0;   // of the present step
  };

  Executor(Plan plan, std::unique_ptr<Slab> arena);
  std::span<std::byte> Memory(ValueId value);
  absl::Status ReserveTiers();
  int64_t NumberChunks();
  void NumberChecksums();
  void Bind();
  absl::Status RunOne(BoundOp& op);
  absl::Status WaitFor(std::span<const int> copies);

  Plan plan_;
  std::unique_ptr<Slab> arena_;
  std::vector<const void*> input_pointers_;
  std::vector<void*> output_pointers_;
  std::vector<BoundOp> ops_;
  std::vector<int> waits_;
  std::vector<int> last_waits_;  // copies that must be done when the step ends
  std::vector<int> going_on_;    // copies that the next step waits for
  std::vector<BoundCopy> copies_;
  std::vector<int64_t> first_chunk_;  // LaneCopy::first_chunk per value in a tier
  std::vector<int> checksum_slot_;    // LaneCopy::checksum_slot, likewise
  std::vector<std::unique_ptr<TierSlab>> slabs_;
  std::unique_ptr<CopyLanes> lanes_;  // goes before the slabs
  int64_t high_water_ = 0;
  std::vector<int64_t> tier_high_water_;
  size_t stopped_at_ = 0;
  bool stopped_on_loss_ = false;
  bool profiling_ = false;
  std::vector<double> op_seconds_;
};

}  // namespace gantry
