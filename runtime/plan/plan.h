// The plan: for every op of a program its kernel and its place in time, for every value its place in one arena. Executing a
// plan never plans again: the plan is the allocation.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "memory/residency/residency_problem.h"
#include "memory/tier/tier.h"
#include "ops/kernel.h"
#include "ops/weight_rows.h"
#include "runtime/graph/lanes.h"
#include "runtime/graph/program.h"

namespace gantry {

struct Machine;

enum class KernelChoice : uint8_t {
  kFast,       // CpuKernels, and ReferenceKernels for what those lack
  kReference,  // ReferenceKernels only
};

// How much of a device a step may take: bytes, or a share of what it takes with nothing offloaded or made again.
struct MemoryBudget {
  int64_t bytes = 0;       // 0: no limit
  double fraction = 0.0;   // where bytes is 0; 0: no limit
  bool operator==(const MemoryBudget&) const = default;
};

// How fast things go before anything is measured: what the planner chooses depends on it, results do not.
struct MachineRates {
  double flops_per_second = 3e10;   // of one thread
  double bytes_per_second = 8e9;    // of an op that reads and writes memory
  double copy_bytes_per_second = 5e9;  // of a lane without a throttle
  double op_seconds = 2e-6;         // of any op
  double link_bytes_per_second = 4e9;  // of exchanges between ranks, without a throttle
  double link_latency_seconds = 20e-6;  // of each exchange
};

// How to build the same step with its batch in other micro-batches, for advice where it does not fit.
struct StepVariants {
  int64_t batch = 0;   // samples per update
  int accumulate = 1;  // micro-batches that they go through the networks in now
  std::function<absl::StatusOr<Program>(int accumulate)> build;  // null: not known
};

// What an activation is rounded to while it waits in a tier.
enum class StashDtype : uint8_t {
  kF32,   // not at all
  kBf16,  // lossy: results depend on what is stashed, and so on the budget
};

struct PlanOptions {
  KernelChoice kernels = KernelChoice::kFast;
  int thread_count = 1;
  int ranks_of_machine = 0;  // that compute at the same time, this one included: costs measured so count first; 0: not known
  bool fuse = true;
  bool in_place = true;    // let kernels write over inputs that nobody reads later
  bool winograd = true;    // allow Winograd forms of convolutions (ops/cpu/panel/panel_conv.h states their accuracy)
  // Weights from two of these on are used so many bytes at a time, with a budget and without (split_weights.h), sums over batches whose images
  // take as much are over parts of the batch (split_batch.h), large images by bands (split_space.h): it decides the order of sums, and how small a budget may be.
  int64_t chunk_bytes = kWeightChunkBytes;
  MemoryBudget device_memory;
  // Budgets of the ranks, one a rank, where they differ: TakeRankMemory (memory_options.h) makes one of them device_memory.
  std::vector<MemoryBudget> rank_memory;
  // Where values may wait that do not fit, nearest first. Used only where the budget asks for it. Memory of other ranks without a lender
  // stands for what they agree on (lending.h); its budget: of each rank's own memory of that kind.
  std::vector<TierOptions> tiers;
  bool recompute = true;   // let ops run again instead of keeping what they made; likewise
  // Where the budget asks for it: sign bits in place of what only gradients of leaky relus read again, and zeros left out of copies
  // (encode.h). The same bits in the end.
  bool encode = true;
  StashDtype stash_dtype = StashDtype::kF32;
  bool checksums = false;  // Plan::checksums
  MachineRates rates;
  // Exchanges of gradients and gathers of weights run beside compute (overlap.h); false: each is waited for where it begins. The same
  // bits.
  bool overlap = true;
  // Ops move, so that exchanges have more to run beside; false: they stay in the program's order (SetOrder, runtime/simulate).
  bool reorder = true;
  Throttle link;  // what an exchange takes at least: latency, and its LinkBytes (runtime/graph/lanes.h) at the rate
  // Makes the kernels of exchanges between ranks; null: programs of one rank only. Outlives the plan.
  const KernelLibrary* exchanges = nullptr;
  std::shared_ptr<const Machine> machine;  // what was measured or described goes before `rates`; null: nothing was
  StepVariants variants;
  bool any_plan_will_do = false;  // the first that fits its budget, which need not be the fastest
  bool advise = true;      // where nothing fits, look for what would: that plans the step several times
};

inline constexpr int64_t kNoOffset = -1;

// A stretch of the arena and what lives there: values that share memory (views, updates, in place), or an op's scratch.
struct PlannedBuffer {
  std::string name;            // of the value, or "scratch"
  std::string network, phase;  // of the op that makes it; empty for inputs
  int64_t offset = 0;          // bytes from the arena's start
  int64_t bytes = 0;
  int lower = 0, upper = 0;    // live at steps [lower, upper) of the schedule
  bool persistent = false;     // a state
  int tier = kDeviceTier;
};

struct PlannedOp {
  OpId op = -1;
  std::unique_ptr<Kernel> kernel;      // null for a view and for a copy between device and tier
  int64_t scratch_offset = kNoOffset;
  // Of a copy, or of an exchange that runs beside compute: it begins here and runs beside what follows; step `done_by` of the schedule
  // begins only once it is done. The schedule's length: the end of the step. Beyond it: a state's copy goes on into the next step, whose step
  // `done_by` less the schedule's length begins only once it is done. -1: done before the next step of the schedule begins.
  int done_by = -1;
};

// A tier as the plan uses it.
struct PlannedTier {
  TierOptions options;
  int64_t bytes = 0;              // of its slab
  int64_t lender_offset = 0;      // of memory of another rank: as PlannedLoan::offset there
  int64_t lower_bound_bytes = 0;  // the largest sum of bytes live at one time
  int64_t out_bytes = 0, in_bytes = 0;  // copied in one step; at most, where copies leave zeros out
};

// Memory of this rank that is a tier of another rank's plan.
struct PlannedLoan {
  int borrower = 0;                 // rank
  TierKind kind = TierKind::kPeer;  // kPeer: on the device, behind the arena; kRemoteHost: in host memory, where loans alone lie
  int64_t offset = 0;               // kPeer: from the arena's start; kRemoteHost: from the start of what is lent
  int64_t bytes = 0;
  bool operator==(const PlannedLoan&) const = default;
};

// What a plan does to fit its budget.
struct PlannedResidency {
  bool used = false;                // false: everything fits, nothing moves
  int64_t budget_bytes = 0;         // 0: none
  int64_t piece_bytes = 0;          // of states that only updates use, where `used`
  int batch_parts = 1;              // ops on many or large images run in so many parts of the batch, or of their rows (split_batch.h, split_space.h)
  int64_t footprint_bytes = 0;      // arena of the same step with nothing offloaded or made again
  double seconds = 0.0, wait_seconds = 0.0, recompute_seconds = 0.0;  // predicted, of one step
  double unlimited_seconds = 0.0;   // predicted, with nothing offloaded
  double bound_seconds = 0.0;       // no plan of this order of ops takes less by the same costs
  int stashes = 0, fetches = 0, repeats = 0;
  int masks = 0;          // values of which signs are kept
  int zero_stashes = 0;   // of the stashes, those that leave zeros out
  int bf16_stashes = 0;   // those that round: above 0, results are not those of another budget
};

// What a plan was made from and how, so that it can be kept in a file and carried out again (plan_file.h).
struct PlanOrigin {
  std::string program;   // fingerprint of the step program
  std::string prepared;  // of the program that residency began with: simplified, fused, lowered to a machine
  std::string machine;   // what kernels were chosen for: "avx2, 2 threads"
  std::string costs;     // where predicted seconds come from: CostText of cost_model.h
  std::string parallel;  // how ranks share out the step, as text; empty: one rank
  ResidencyChoice choice;
  std::vector<ResidencyAction> actions;
};

// One step of a schedule, as far as totals and a clock need it.
struct StepCost {
  std::string phase, network;
  double seconds = 0.0;  // predicted, on its lane
  PlanLane lane = PlanLane::kCompute;
  std::string purpose;   // of an exchange: "gradient", "gather", "halo", ... (ops/exchange.cc)
  int tier = kDeviceTier;  // of a copy
  bool out = false;
  int64_t bytes = 0;     // of a copy; of an exchange, LinkBytes
};

struct Plan {
  Program program;                    // as executed: simplified, fused, lowered
  std::vector<PlannedOp> schedule;    // in order of execution
  std::vector<int64_t> offsets;       // per value, in the arena or its tier's slab; kNoOffset where it is never made or read
  std::vector<PlannedBuffer> buffers;
  int64_t arena_bytes = 0;
  int64_t lower_bound_bytes = 0;      // the largest sum of bytes live at one time
  std::vector<PlannedTier> tiers;
  std::vector<PlannedLoan> loans;     // by kind and borrower
  PlannedResidency residency;
  PlanOrigin origin;
  std::string layout_method;
  std::vector<StepCost> costs;        // predicted, per step of the schedule (plan_totals.h)
  Throttle link;                      // of exchanges
  bool checksums = false;  // what tiers give back is compared with what they were given; in debug builds at all events
  std::vector<std::string> fallbacks;  // ops for which the fast kernels have no form, by name, each once
};

// Of the device: the arena and what is lent behind it.
int64_t DeviceBytes(const Plan& plan);
// Of host memory, for other ranks.
int64_t LentHostBytes(const Plan& plan);

// Simplifies, fuses and lowers `program`, chooses kernels, decides what leaves the device where the budget is smaller than the
// footprint, and lays out the arena and the tiers. The plan has passed VerifyPlan. kResourceExhausted where no plan fits: the message
// names the bytes that are short, what takes the most, and what would help. kInvalidArgument where the options are of several ranks: their
// budgets, or memory of others without a lender.
absl::StatusOr<Plan> MakePlan(const Program& program, const PlanOptions& options);

// The program as MakePlan begins with it: simplified, fused, lowered. `piece_bytes` above 0: as it does where the budget is short, with
// states that only updates use in pieces of about so many bytes, and ops on many or large images in `batch_parts` parts of the batch or of their rows.
absl::StatusOr<Program> PrepareProgram(const Program& program, const PlanOptions& options, int64_t piece_bytes, int batch_parts = 1);
// 64 bits as text: two programs with the same dump have the same.
std::string Fingerprint(const Program& program);
// What kernels are chosen for.
std::string MachineText(const PlanOptions& options);

// The independent checker: walks the schedule over the arena's bytes and proves that every op reads exactly what was last written
// for it, that nothing lies outside the arena or unaligned, and that every state ends where it began. kInternal names the op, the
// value and the bytes where it does not hold. It knows nothing of how the plan was made.
absl::Status VerifyPlan(const Plan& plan);

// A table to read: totals, the largest buffers live at the peak.
std::string Describe(const Plan& plan);
// Its lines about encodings: what is kept or copied in another form, and whether that rounds. Empty where nothing is.
std::string DescribeEncodings(const PlannedResidency& residency);

}  // namespace gantry
