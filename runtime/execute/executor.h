// Runs a plan, step after step, in one arena that is reserved once.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/device.h"
#include "memory/tier/copy_lanes.h"
#include "memory/tier/tier.h"
#include "runtime/execute/exchange_lanes.h"
#include "runtime/plan/plan.h"

namespace gantry {

// For how long compute stood still.
struct ExposedWait {
  std::string kind;      // "copies" between device and tiers, or an exchange's purpose (ops/exchange.cc): "gradient", "halo", ...
  double seconds = 0.0;  // of an exchange that is waited for where it stands: all that it takes
};

// Makes the slab of a tier, as ReserveTier does.
using TierReserver = std::function<absl::StatusOr<std::unique_ptr<TierSlab>>(const TierOptions&, int64_t bytes)>;

// One thread at a time. From the second step on Run allocates nothing.
class Executor {
 public:
  // Reserves the arena on `device`, which must outlive the executor, with what the plan lends behind it, and the slabs of the plan's tiers.
  // kResourceExhausted names the bytes that are short.
  static absl::StatusOr<std::unique_ptr<Executor>> Create(Plan plan, Device& device, const TierReserver& reserve_tier = ReserveTier);

  const Plan& plan() const { return plan_; }
  const Program& program() const { return plan_.program; }

  // The device memory of a step, and what is lent behind it: to share it with other ranks.
  const Slab& arena() const { return *arena_; }

  // The memory of an input, for the caller to fill before a step, or of an output, to read after one: on the device or in a tier
  // with addresses. Empty where there is none, or nobody reads the input; and of a state in a file.
  std::span<std::byte> Data(std::string_view name);
  std::span<std::byte> Data(ValueId value);
  // Copies a state, wherever it is between steps. Sizes must be the state's. kUnavailable where a tier fails: a file, or, with the plan's
  // checksums, what was read is not what was written.
  absl::Status ReadState(const State& state, std::span<std::byte> to);
  absl::Status WriteState(const State& state, std::span<const std::byte> from);

  // A state's memory, to read it between steps where it is; empty where it has no addresses, or has to be compared with a checksum.
  std::span<const std::byte> Borrow(const State& state);

  // One step. A scalar output (a loss) is checked as soon as it is made: where it is not finite, the step stops there with
  // kDataLoss before any later op of it runs. Errors of a tier (kUnavailable) stop it likewise: what it held is then lost,
  // states are partly of this step and partly of the one before, and every later Run fails too.
  absl::Status Run();
  // The ops under the condition `input` alone, in their order: what a step has left for the next one (runtime/partition/defer_tail.h). States and
  // outputs apart from theirs are as before. The caller has set the input to 1. Errors as Run.
  absl::Status RunTail(ValueId input);

  // After Run returned kDataLoss and the inputs have been filled again: runs the step up to the same place, looking at every
  // value, and returns what first held a NaN or infinity: "input real", "state discriminator.0.weight" or an op.
  std::string FindFirstNonFinite();

  // Highest arena byte that a step has touched so far, counted as the ops ran.
  int64_t high_water_bytes() const { return high_water_; }
  // The same of a tier's slab.
  int64_t tier_high_water_bytes(int tier) const { return tier_high_water_[tier]; }
  // Until copies that go on into the next step are done: what they read and write may be given up then. Their errors are the next Run's.
  void EndCopies();
  // What the copies took and compute waited for, since the executor was made; null without tiers.
  const CopyLanes* copies() const { return lanes_.get(); }

  // Since the executor was made, one of each kind that the plan has.
  std::span<const ExposedWait> exposed() const { return exposed_; }

  // Seconds spent in each op of the schedule since profiling was switched on, and before it, waiting for copies and exchanges.
  void SetProfiling(bool on);
  const std::vector<double>& op_seconds() const { return op_seconds_; }
  const std::vector<double>& op_wait_seconds() const { return op_wait_seconds_; }

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
    std::span<const int> waits;  // what must be done first: a copy, or ~i: exchange i
    int copy;                    // index into copies_, or -1; the kernel is then null
    int exchange;                // index into exchanges_, or -1
  };
  struct BoundExchange {
    LaneExchange exchange;
    PlanLane lane;        // kCompute: waited for where it stands
    int kind;             // index into exposed_
    OpId op;
    int64_t ticket = 0;   // of the present step; 0: not begun
  };
  struct BoundCopy {
    LaneCopy copy;
    int64_t tier_top;     // highest byte of the slab that it touches
    int64_t ticket = 0;   // of the present step
  };

  Executor(Plan plan, std::unique_ptr<Slab> arena);
  std::span<std::byte> Memory(ValueId value);
  absl::Status ReserveTiers(const TierReserver& reserve_tier);
  int64_t NumberChunks();
  void NumberChecksums();
  void Bind();
  absl::Status StartLanes();
  void BindExchange(const PlannedOp& step, BoundOp& bound);
  int KindOf(std::string_view kind);
  absl::Status RunOne(BoundOp& op);
  absl::Status RunExchange(BoundExchange& exchange);
  absl::Status WaitFor(std::span<const int> transfers);
  absl::Status WaitForOne(int transfer);
  void Drain();

  Plan plan_;
  std::unique_ptr<Slab> arena_;
  std::vector<const void*> input_pointers_;
  std::vector<void*> output_pointers_;
  std::vector<BoundOp> ops_;
  std::vector<int> waits_;
  std::vector<int> last_waits_;  // copies and exchanges that must be done when the step ends
  std::vector<int> going_on_;    // copies that the next step waits for
  std::vector<BoundCopy> copies_;
  std::vector<int64_t> first_chunk_;  // LaneCopy::first_chunk per value in a tier
  std::vector<int> checksum_slot_;    // LaneCopy::checksum_slot, likewise
  std::vector<std::unique_ptr<TierSlab>> slabs_;
  std::unique_ptr<CopyLanes> lanes_;  // goes before the slabs
  std::vector<BoundExchange> exchanges_;
  std::unique_ptr<ExchangeLanes> exchange_lanes_;  // null without exchanges
  std::vector<ExposedWait> exposed_;
  int64_t high_water_ = 0;
  std::vector<int64_t> tier_high_water_;
  size_t stopped_at_ = 0;
  bool profiling_ = false;
  std::vector<double> op_seconds_, op_wait_seconds_;
};

}  // namespace gantry
