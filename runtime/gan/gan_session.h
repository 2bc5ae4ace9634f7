// A GAN ready to train: its step program, the plan, the arena and what changes from step to step.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/fabric.h"
#include "memory/device.h"
#include "runtime/execute/executor.h"
#include "runtime/gan/gan_step.h"
#include "runtime/gan/sampler.h"
#include "runtime/gan/session_loans.h"
#include "runtime/partition/exchange_kernels.h"
#include "runtime/partition/job_ranks.h"
#include "runtime/partition/parallel.h"

namespace gantry {

struct GanSessionOptions {
  GanStepConfig step;
  PlanOptions plan;   // thread_count 0: as many as the device has
  uint64_t seed = 0;  // of initial weights, noise and dropout
  std::string plan_file;  // a plan to carry out instead of planning; empty: plan
  // With several ranks every one makes the same session, gives it the same batches and steps it as often. `ranks` outlives the session.
  JobRanks* ranks = nullptr;
  Parallel parallel;
};

// What a step read from the outside, in the order of n_critic and, inside, accumulate: one entry per draw and micro-batch.
struct GanBatch {
  std::span<const float> real;                // all draws behind one another
  std::span<const float> noise;               // empty: standard normal, drawn from the seed and the step's number
  std::span<const float> mix;                 // empty: uniform, drawn likewise
};

// Everything that is not in a state: with the states, all that a run needs to go on bit for bit.
struct GanProgress {
  int64_t steps = 0;         // finished
  int64_t images_seen = 0;   // real samples read so far
};

// One thread at a time. With several ranks, Create, Step, AgreeOn and what reads states that are held in parts are calls of all ranks, in
// the same order. So is its end where ranks borrow memory of other nodes: nobody goes as long as others may read from it.
class GanSession {
 public:
  ~GanSession();
  // Plans, reserves the arena on `device` (which must outlive the session) and initializes the states. Errors name roles, ops and bytes.
  static absl::StatusOr<std::unique_ptr<GanSession>> Create(const GanSessionOptions& options, std::vector<GanRole> generators,
                                                            std::vector<GanRole> discriminators, Device& device);

  const Plan& plan() const { return executor_->plan(); }
  const GanSessionOptions& options() const { return options_; }
  std::span<const GanRole> generators() const { return generators_; }
  std::span<const GanRole> discriminators() const { return discriminators_; }
  Executor& executor() { return *executor_; }
  const Executor& executor() const { return *executor_; }

  // Elements that GanBatch must hold: one real draw and micro-batch, the same of noise, and how many of them a step takes.
  int64_t real_elements() const;
  int64_t noise_elements() const;
  int64_t batch_size() const;
  // Highest byte of this rank's device that steps have touched so far, its own and, from the end of the first step on, those of ranks that
  // it lends memory: after a step, DeviceBytes of the plan.
  int64_t high_water_bytes() const;
  // The same of the host memory that it lends: LentHostBytes.
  int64_t lent_host_high_water_bytes() const { return loans_ == nullptr ? 0 : loans_->host_high_water_bytes(); }
  int64_t draws_per_step() const { return int64_t{options_.step.n_critic} * options_.step.accumulate; }
  int64_t images_per_step() const { return draws_per_step() * batch_size(); }
  const Shape& sample_shape() const;  // of one batch of samples, as the discriminators judge it

  int rank() const { return options_.ranks == nullptr ? 0 : options_.ranks->rank(); }
  int rank_count() const { return options_.ranks == nullptr ? 1 : options_.ranks->size(); }
  // The group of all ranks; null for one rank.
  Communicator* world() { return fabric_ == nullptr ? nullptr : &fabric_->world(); }
  // The largest of what all ranks give. kUnavailable names a rank that is lost.
  absl::StatusOr<double> AgreeOn(double mine);
  // What all ranks give, by rank.
  absl::StatusOr<std::vector<double>> GatherNumbers(double mine);
  // The same of several numbers each, one behind the other in `all`. Allocates nothing.
  absl::Status GatherNumbers(std::span<const double> mine, std::span<double> all);
  // Seconds that this rank's compute stood still for exchanges since the session was made; 0 for one rank.
  double exchange_seconds() const;
  // How ranks wait and reach each other, a line each; empty for one rank.
  std::vector<std::string> DescribeRanks() const;

  // This rank ends on its own, after an error that others do not have: its end does not wait for them.
  void Abandon() { whole_ = false; }

  // The role's rate for the steps from here on; the configured one until then.
  absl::Status SetLearningRate(std::string_view role, double rate);

  // One adversarial step. kInvalidArgument: a size is wrong, nothing changed. kDataLoss: a loss is not finite; the message names
  // the loss and what first held a NaN or infinity; the session is then of use for reading only. Allocates nothing from the second step on.
  absl::Status Step(const GanBatch& batch);

  // Ends what the last step has left for the next one, with several ranks and Parallel::across_steps: a call of all ranks. Whatever reads or
  // writes states, draws samples, or reads a scalar of which IsOfTail is true does so by itself, and is then a call of all ranks, too.
  // Where it fails, states are partly of that step: every later call, and every later step, fails likewise.
  absl::Status EndTail() const;
  bool IsOfTail(std::string_view scalar) const;

  // A scalar output of the last step ("discriminator_loss", ...). kNotFound lists the names.
  absl::StatusOr<double> Scalar(std::string_view name) const;
  std::vector<std::string> ScalarNames() const;

  const GanProgress& progress() const { return progress_; }
  void SetProgress(const GanProgress& progress) { progress_ = progress; }

  // States by name, as they are now. kNotFound names the nearest one; sizes are elements, data is f64 for every type.
  // What the step program keeps from step to step, whole: however the plan holds it.
  struct SessionState {
    std::string name, network;
    StateRole role = StateRole::kParameter;
    TensorType type;
    Initializer initializer;
    std::vector<const State*> pieces;  // where it is in the executor's program, in order
    bool in_parts = false;             // other ranks have the rest
  };
  std::span<const SessionState> states() const { return states_; }
  std::vector<std::string> StateNames() const;
  absl::StatusOr<TensorType> StateType(std::string_view name) const;
  absl::Status ReadState(std::string_view name, std::span<double> to) const;
  absl::Status WriteState(std::string_view name, std::span<const double> from);
  // The state's bytes as they are, as many as StateType says, wherever it is.
  absl::Status CopyStateOut(std::string_view name, std::span<std::byte> to) const;
  absl::Status CopyStateIn(std::string_view name, std::span<const std::byte> from);

  // Draws `count` samples from the first generator, on its averages if it has some and `ema`, else on its weights. Noise depends on
  // `noise_seed` only. Returns count * elements of one sample. Plans a small program of its own at the first call.
  absl::StatusOr<std::vector<float>> Sample(int64_t count, uint64_t noise_seed, bool ema);

 private:
  GanSession() = default;
  absl::Status Initialize();
  absl::Status BindInputs();
  void FindTail();

  struct BoundInput {
    enum class Kind : uint8_t { kReal, kNoise, kMix, kLearningRate, kUpdates, kPenalty, kRandomState, kTail };
    Kind kind;
    ValueId value;
    int64_t slot = 0;    // which draw and micro-batch
    int64_t offset = 0;  // of this tensor inside one slot's noise, in elements
    int64_t stream = 0;
    int role = 0;        // index into learning_rates_
    // Where this rank has a part: of what, and from where. `whole` is drawn or read first, then the part is taken.
    bool in_part = false;
    Shape whole;
    std::vector<int64_t> begins;
  };

  void FillInputs(const GanBatch& batch);
  // All of an input, as all ranks have it.
  template <typename T>
  void FillWhole(const BoundInput& input, const GanBatch& batch, T* to, int64_t count);
  const SessionState* Find(std::string_view name) const;
  absl::Status CollectStates(const Program& program);
  // This rank's plan, and an arena for it: without a word with other ranks, but for the choice of a split that rank 0 makes, and for what
  // they lend each other.
  absl::Status PlanAndReserve(const Program& program);
  absl::StatusOr<Plan> MakePlan(const Program& program);
  absl::Status ChooseSplit(const Program& program);
  absl::Status Connect();
  // Gives all ranks each other's exchanges and proves that they fit together.
  absl::Status VerifyExchanges();
  absl::Status GatherState(const SessionState& state, std::span<std::byte> to) const;

  GanSessionOptions options_;
  std::vector<SessionState> states_;
  std::vector<GanRole> generators_, discriminators_;
  std::vector<InputPart> input_parts_;
  std::unique_ptr<SessionLoans> loans_;         // null where ranks lend each other nothing
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<Fabric> fabric_;              // over the executor's arena
  std::unique_ptr<ExchangeKernels> exchanges_;  // over the fabric; null for one rank
  Device* device_ = nullptr;
  std::unique_ptr<Sampler> sampler_[2];  // on weights, on averages
  std::vector<std::string> role_names_;
  std::vector<double> learning_rates_;
  std::vector<int> updates_per_step_;
  std::vector<BoundInput> inputs_;
  std::vector<int64_t> gathered_bytes_;  // of GatherNumbers, one a rank
  std::vector<double> whole_input_;  // of the largest input that this rank has a part of
  GanProgress progress_;
  ValueId tail_flag_ = kNoValue;
  mutable bool has_tail_ = false;      // of the last step
  mutable absl::Status tail_failure_;  // once one could not be ended
  bool whole_ = false;                 // made, and nothing has failed: the others end as this rank does
  std::vector<std::string> tail_scalars_;
};

}  // namespace gantry
